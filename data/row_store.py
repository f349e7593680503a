"""Random access to rows of any size without keeping them in memory; subsets and concatenations of them."""

import hashlib
import pickle
import tempfile
from array import array

import numpy as np
from versatile.utils.files import disk_errors

IN_MEMORY = 8 << 20


class Rows:
    """Base of sliceable sequences of rows; a slice is a `RowView`. Subclasses define `__len__` and `row(number)`."""

    def __getitem__(self, number):
        if isinstance(number, slice):
            return RowView(self, range(len(self))[number])
        if not -len(self) <= number < len(self):
            # This is what ends `for row in rows`.
            raise IndexError(number)
        return self.row(number % len(self))

    def lengths(self):
        """[n] length of each row."""
        return np.fromiter(map(len, self), np.int64, len(self))


class RowView(Rows):
    """Some of the rows, in the order of `numbers`, a range or an array."""

    def __init__(self, rows, numbers):
        self.rows, self.numbers = rows, numbers

    def __len__(self):
        return len(self.numbers)

    def row(self, number):
        return self.rows[self.numbers[number]]

    def lengths(self):
        return _lengths(self.rows)[np.asarray(self.numbers, np.int64)]

    @property
    def content_key(self):
        """A key that changes with the rows."""
        return _joined([self.rows.content_key, hashlib.sha256(np.asarray(self.numbers, np.int64)).hexdigest()])


class RowChain(Rows):
    """The rows of several sequences, concatenated."""

    def __init__(self, parts):
        self.parts = list(parts)
        self._starts = np.cumsum([0, *map(len, self.parts)])

    def __len__(self):
        return int(self._starts[-1])

    def __iter__(self):
        for part in self.parts:
            yield from part

    def row(self, number):
        part = int(np.searchsorted(self._starts, number, "right")) - 1
        return self.parts[part][number - int(self._starts[part])]

    def lengths(self):
        return np.concatenate([np.zeros(0, np.int64), *map(_lengths, self.parts)])

    @property
    def content_key(self):
        """A key that changes with the rows."""
        return _joined([part.content_key for part in self.parts])


def _lengths(rows):
    return rows.lengths() if hasattr(rows, "lengths") else np.fromiter(map(len, rows), np.int64, len(rows))


def _joined(keys):
    return hashlib.sha256(" ".join(keys).encode()).hexdigest()


class RowStore(Rows):
    """Stores what an iterable of (location, record) yields, for repeated access by index.

    Rows are kept in an unnamed temporary file, or in memory if they are few, plus 8 bytes of memory for each.

    Args:
        rows: yields (location, record); exhausted immediately.

    Attributes:
        content_key: changes with the rows.
    """

    def __init__(self, rows):
        self._file = tempfile.SpooledTemporaryFile(max_size=IN_MEMORY)  # noqa: SIM115 - open as long as the store lives
        self._starts = array("q")
        position, digest = 0, hashlib.sha256()
        for row in rows:
            content = pickle.dumps(row, pickle.HIGHEST_PROTOCOL)
            with disk_errors(tempfile.gettempdir()):
                self._file.write(content)
            self._starts.append(position)
            position += len(content)
            digest.update(content)
        self.content_key = digest.hexdigest()

    def __len__(self):
        return len(self._starts)

    def row(self, number):
        """A row's record."""
        return self._read(number)[1]

    def location(self, number):
        """A row's location."""
        return self._read(number)[0]

    def _read(self, number):
        with disk_errors(tempfile.gettempdir()):
            self._file.seek(self._starts[number])
        return pickle.load(self._file)
