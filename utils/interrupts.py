"""What both training loops do with signals, and how they print beside a progress bar."""

import signal
import sys


class Signals:
    """A context in which SIGINT and SIGTERM let the current step finish; a second one ends at once.

    Attributes:
        caught: the signal's number, or 0.
    """

    caught = 0

    def __enter__(self):
        self.caught = 0
        self._old = {s: signal.signal(s, self._catch) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *error):
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def _catch(self, number, frame):
        if self.caught:
            raise KeyboardInterrupt
        self.caught = number


def say_above_bar(line):
    """Print a line on stdout, above the progress bar if there is one."""
    from tqdm import tqdm

    tqdm.write(line, file=sys.stdout)
    sys.stdout.flush()
