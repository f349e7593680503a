"""Stopping on a signal, and printing above a progress bar."""

import contextlib
import os
import signal
import sys
import threading


def stopping_signals():
    """The signals that ask a process to stop; without SIGHUP if it is ignored, as under nohup."""
    hangup = getattr(signal, "SIGHUP", None)
    ignored = hangup is None or signal.getsignal(hangup) == signal.SIG_IGN
    return [signal.SIGINT, signal.SIGTERM, *([] if ignored else [hangup])]


@contextlib.contextmanager
def handling(handler, numbers=None):
    """Context in which `handler(number, frame)` receives the signals that ask the process to stop; in a thread other
    than the main one, to which Python delivers signals, it receives none.

    Args:
        numbers: the signals; None: all `stopping_signals`.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    old = {number: signal.signal(number, handler) for number in (stopping_signals() if numbers is None else numbers)}
    try:
        yield
    finally:
        for number, before in old.items():
            # None: it was set outside of Python and cannot be restored.
            signal.signal(number, signal.SIG_DFL if before is None else before)


def is_alone():
    """Whether no other process works with this one. Those that torchrun started stop each other: one that waits in
    another's collective could not clean up."""
    return int(os.environ.get("WORLD_SIZE", "1")) == 1


class Stopped(BaseException):
    """A stop signal was received; its number is the only argument."""


def _raise_stopped(number, frame):
    raise Stopped(number)


@contextlib.contextmanager
def raising_on_termination():
    """Context in which SIGTERM and SIGHUP raise `Stopped`, so that what is half-written is removed, as on Ctrl-C."""
    with (
        handling(_raise_stopped, [number for number in stopping_signals() if number != signal.SIGINT]),
        _sending_again_what_was_lost(),
    ):
        yield


# Seconds until a lost signal comes again: by then the destructor that it fell into is over.
_LOST_FOR = 0.02


@contextlib.contextmanager
def _sending_again_what_was_lost():
    """Context in which a signal is sent again if it came while Python ran a destructor or a callback of the garbage
    collector: Python ignores exceptions of these, and the work would go on after a traceback."""
    before = sys.unraisablehook

    def hook(unraisable):
        error = unraisable.exc_value
        if not isinstance(error, Stopped | KeyboardInterrupt):
            return before(unraisable)
        number = error.args[0] if isinstance(error, Stopped) else signal.SIGINT
        timer = threading.Timer(_LOST_FOR, os.kill, (os.getpid(), number))
        timer.daemon = True
        timer.start()

    sys.unraisablehook = hook
    try:
        yield
    finally:
        sys.unraisablehook = before


@contextlib.contextmanager
def stop_on_signals(kept, command):
    """On SIGINT, SIGTERM or SIGHUP stop at once, print how to continue and exit with 128 + the signal's number.

    Args:
        kept: called then; it returns what is said of the work so far, or None if this process is to say nothing.
        command: the command that continues it.
    """
    try:
        with handling(_raise_stopped):
            yield
    except Stopped as stopped:
        (number,) = stopped.args
        sys.stdout.flush()
        if (said := kept()) is not None:
            print(f"{signal.Signals(number).name}: {said}. To resume:\n  {command}", flush=True)
        raise SystemExit(128 + number) from None


class Signals:
    """Context in which SIGINT, SIGTERM and SIGHUP let the current step finish; then the loop saves and exits.

    A second Ctrl-C ends the process at once. A second SIGTERM does not: schedulers and launchers send it to a process
    and again to its group, and would lose what the first one saves; they have SIGKILL to insist.

    Attributes:
        caught: the signal's number, or 0.
    """

    caught = 0

    def __enter__(self):
        self.caught, self._handling = 0, handling(self._catch)
        self._handling.__enter__()
        return self

    def __exit__(self, *error):
        return self._handling.__exit__(*error)

    def _catch(self, number, frame):
        if self.caught and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.caught = self.caught or number


def say_above_bar(line):
    """Print a line on stdout, above the progress bar if there is one."""
    from tqdm import tqdm

    tqdm.write(line, file=sys.stdout)
    sys.stdout.flush()
