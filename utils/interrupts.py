"""Signal handling shared by both training loops, and printing above a progress bar."""

import signal
import sys


def stopping_signals():
    """The signals that ask a process to stop; without SIGHUP if it is ignored, as under nohup."""
    hangup = getattr(signal, "SIGHUP", None)
    ignored = hangup is None or signal.getsignal(hangup) == signal.SIG_IGN
    return [signal.SIGINT, signal.SIGTERM, *([] if ignored else [hangup])]


class Signals:
    """Context in which SIGINT, SIGTERM and SIGHUP let the current step finish; then the loop saves and exits.

    A second Ctrl-C ends the process at once. A second SIGTERM does not: schedulers and launchers send it to a process
    and again to its group, and would lose what the first one saves; they have SIGKILL to insist.

    Attributes:
        caught: the signal's number, or 0.
    """

    caught = 0

    def __enter__(self):
        self.caught = 0
        self._old = {number: signal.signal(number, self._catch) for number in stopping_signals()}
        return self

    def __exit__(self, *error):
        for number, handler in self._old.items():
            # None: it was set outside of Python and cannot be restored.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _catch(self, number, frame):
        if self.caught and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.caught = self.caught or number


def say_above_bar(line):
    """Print a line on stdout, above the progress bar if there is one."""
    from tqdm import tqdm

    tqdm.write(line, file=sys.stdout)
    sys.stdout.flush()
