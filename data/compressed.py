"""Reading of gzip files with a bound on their decompressed size."""

import gzip
import io
import os

from versatile.utils.errors import UserError

# Text compresses to a third or a tenth; a large file compressed to less than a thousandth was built to fill memory.
MOST_RATIO = 1000
MOST_BYTES = 1 << 30


def open_gzip(path, mode="rb"):
    """Open a gzip file for reading bytes.

    Raises:
        UserError: while reading, as soon as the decompressed bytes exceed both bounds.
    """
    return io.BufferedReader(_Bounded(gzip.open(path, mode), path), 1 << 16)


class _Bounded(io.RawIOBase):
    def __init__(self, file, path):
        self.file, self.path, self.count = file, path, 0
        self.bound = max(MOST_BYTES, MOST_RATIO * os.path.getsize(path))

    def readable(self):
        return True

    def readinto(self, buffer):
        size = self.file.readinto(buffer)
        self.count += size
        if self.count > self.bound:
            raise UserError(f"decompresses to more than {self.bound:,} bytes, over {MOST_RATIO} times its size",
                            location=self.path, expected="compressed text",
                            remedy="check where the file comes from; if it is right, decompress it with gunzip")
        return size

    def close(self):
        if not self.closed:
            self.file.close()
        super().close()
