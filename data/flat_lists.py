"""Many short lists in one flat array: in memory, or written to a file as they come and mapped from there."""

from array import array

import numpy as np


class FlatLists:
    """Lists of numbers of any length, one after the other.

    Args:
        values: all of them, flat.
        ends: [n + 1] where each list begins, and the last one ends.
    """

    def __init__(self, values, ends):
        self.values, self.ends = values, ends

    @classmethod
    def from_lists(cls, lists, dtype=np.int32):
        """Of lists that fit in memory."""
        ends = np.cumsum([0, *map(len, lists)], dtype=np.int64)
        return cls(np.fromiter((i for ids in lists for i in ids), dtype=dtype, count=int(ends[-1])), ends)

    @classmethod
    def open(cls, folder, name, dtype=np.int32):
        """Mapped from what a `FlatWriter` wrote."""
        return cls(map_file(folder / f"{name}.bin", dtype), map_file(folder / f"{name}_ends.bin", np.int64))

    def __len__(self):
        return len(self.ends) - 1

    def __getitem__(self, i):
        return self.values[self.ends[i] : self.ends[i + 1]]

    def lengths(self):
        """[n] how long each list is."""
        return np.diff(self.ends)

    def update_digest(self, digest):
        """Add all values and ends to a hashlib object."""
        digest.update(self.values)
        digest.update(self.ends)


class FlatTexts:
    """A sequence of texts, mapped from what a `FlatWriter` wrote of their bytes."""

    def __init__(self, folder, name):
        self._bytes = FlatLists.open(folder, name, np.uint8)

    def __len__(self):
        return len(self._bytes)

    def __getitem__(self, i):
        if isinstance(i, slice):
            return [self[k] for k in range(*i.indices(len(self)))]
        if not -len(self) <= i < len(self):
            # What tells `for text in texts` that it is through.
            raise IndexError(i)
        return self._bytes[i % len(self)].tobytes().decode("utf-8", "surrogatepass")


class FlatWriter:
    """Writes lists, or texts, into `<name>.bin` and `<name>_ends.bin` of a folder."""

    def __init__(self, folder, name, dtype=np.int32):
        self.dtype, self._path, self._ends_path = dtype, folder / f"{name}.bin", folder / f"{name}_ends.bin"
        # Rows come by the million: 8 bytes for each are all that memory holds of them.
        self._file, self._ends, self._end = None, array("q", [0]), 0

    def __enter__(self):
        self._file = open(self._path, "wb")
        return self

    def __exit__(self, kind, *_):
        self._file.close()
        if kind is None:
            self._ends_path.write_bytes(self._ends.tobytes())

    def write(self, values):
        """Add a list."""
        self._add(np.asarray(values, self.dtype).tobytes(), len(values))

    def write_text(self, text):
        """Add a text."""
        content = text.encode("utf-8", "surrogatepass")
        self._add(content, len(content))

    def _add(self, content, length):
        self._file.write(content)
        self._end += length
        self._ends.append(self._end)


def map_file(path, dtype):
    """A file as a read-only array."""
    # An empty file cannot be mapped.
    return np.memmap(path, dtype, "r") if path.stat().st_size else np.zeros(0, dtype)
