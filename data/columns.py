"""Columns of a table as flat files, with a number, a list of numbers or a text in each row.

They are written row by row and memory-mapped for reading, so memory does not grow with the number of rows.
"""

import json
from array import array

import numpy as np


class FlatLists:
    """Concatenated lists of numbers of any length.

    Args:
        values: all numbers, flat.
        ends: [n + 1] the start of each list, and the end of the last.
    """

    def __init__(self, values, ends):
        self.values, self.ends = values, ends

    @classmethod
    def from_lists(cls, lists, dtype=np.int32):
        """Create from lists that fit in memory."""
        ends = np.cumsum([0, *map(len, lists)], dtype=np.int64)
        return cls(np.fromiter((i for ids in lists for i in ids), dtype=dtype, count=int(ends[-1])), ends)

    @classmethod
    def open(cls, folder, name, dtype):
        """Map the files that a `ColumnWriter` wrote."""
        return cls(map_file(folder / f"{name}.bin", dtype), map_file(folder / f"{name}_ends.bin", np.int64))

    def __len__(self):
        return len(self.ends) - 1

    def __getitem__(self, i):
        return self.values[self.ends[i] : self.ends[i + 1]]

    def lengths(self):
        """[n] length of each list."""
        return np.diff(self.ends)

    def update_digest(self, digest):
        """Add all values and ends to a hashlib object."""
        digest.update(self.values)
        digest.update(self.ends)


class FlatTexts:
    """A sequence of texts, mapped from the bytes that a `ColumnWriter` wrote."""

    def __init__(self, folder, name):
        self._bytes = FlatLists.open(folder, name, np.uint8)

    def __len__(self):
        return len(self._bytes)

    def __getitem__(self, i):
        if isinstance(i, slice):
            return [self[k] for k in range(*i.indices(len(self)))]
        if not -len(self) <= i < len(self):
            # This is what ends iteration over the texts.
            raise IndexError(i)
        return self._bytes[i % len(self)].tobytes().decode("utf-8", "surrogatepass")


class ColumnWriter:
    """Writes a column's rows to `<name>.bin` in a folder, and the ends of lists and texts to `<name>_ends.bin`.

    Args:
        folder, name: see above.
        kind: "number", "list" or "text".
        dtype: type of the numbers.
    """

    def __init__(self, folder, name, kind, dtype="u1"):
        self.kind, self._typecode, self._end = kind, np.dtype(dtype).char, 0
        self._file = open(folder / f"{name}.bin", "wb")  # noqa: SIM115 - closed by __exit__
        self._ends = None if kind == "number" else open(folder / f"{name}_ends.bin", "wb")  # noqa: SIM115

    def __enter__(self):
        if self._ends:
            self._ends.write(array("q", [0]).tobytes())
        return self

    def __exit__(self, *error):
        self._file.close()
        if self._ends:
            self._ends.close()

    def write(self, value):
        """Add a row: a number, a list of numbers, or a text (for which any json value may be given)."""
        if self.kind == "text":
            value = value if isinstance(value, str) else json.dumps(value)
            content = value.encode("utf-8", "surrogatepass")
            length = len(content)
        else:
            numbers = [value] if self.kind == "number" else value
            content, length = array(self._typecode, numbers).tobytes(), len(numbers)
        self._file.write(content)
        if self._ends:
            self._end += length
            self._ends.write(array("q", [self._end]).tobytes())


def open_column(folder, name, kind, dtype="u1"):
    """A column written by a `ColumnWriter`: an array of numbers, `FlatLists` or `FlatTexts`."""
    if kind == "text":
        return FlatTexts(folder, name)
    return map_file(folder / f"{name}.bin", dtype) if kind == "number" else FlatLists.open(folder, name, dtype)


def map_file(path, dtype):
    """A file as a read-only array."""
    # An empty file cannot be mapped; slicing a plain view of the mapping is faster than slicing the mapping itself.
    return np.asarray(np.memmap(path, dtype, "r")) if path.stat().st_size else np.zeros(0, dtype)
