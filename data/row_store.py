"""Rows of any size by their number, without keeping them in memory."""

import pickle
import tempfile
from array import array

from versatile.utils.files import disk_errors

IN_MEMORY = 8 << 20


class RowStore:
    """What an iterable of (place, record) yields, to be had by number as often as needed.

    Rows lie in an unnamed temporary file, or in memory as long as they are few; memory holds 8 bytes for each.

    Args:
        rows: yields (place, record); read to its end at once.
    """

    def __init__(self, rows):
        self._file = tempfile.SpooledTemporaryFile(max_size=IN_MEMORY)  # noqa: SIM115 - open as long as the store lives
        self._starts = array("q")
        position = 0
        for row in rows:
            content = pickle.dumps(row, pickle.HIGHEST_PROTOCOL)
            with disk_errors(tempfile.gettempdir()):
                self._file.write(content)
            self._starts.append(position)
            position += len(content)

    def __len__(self):
        return len(self._starts)

    def __getitem__(self, number):
        """A row's record."""
        return self._row(number)[1]

    def place(self, number):
        """Where a row stands."""
        return self._row(number)[0]

    def _row(self, number):
        # An IndexError tells `for record in rows` that it is through.
        with disk_errors(tempfile.gettempdir()):
            self._file.seek(self._starts[number])
        return pickle.load(self._file)
