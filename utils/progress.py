"""Progress of a long job, on a terminal and in a log."""

import time

# Without a terminal there is no bar; a line is printed this often instead.
QUIET_SECONDS = 20


class Progress:
    """A progress bar, with the time left, as a callback that takes the number done so far.

    Without a terminal there is no bar; a line is printed now and then instead.

    Args:
        total: how many there are to do; None: unknown, and then a job that takes only a moment shows nothing.
        what: description of the job.
        initial: how many are already done.
    """

    def __init__(self, total, what, initial=0):
        from tqdm import tqdm

        self.bar = tqdm(total=total, desc=what, initial=initial, disable=None, delay=2 if total is None else 0)
        self.total, self.what, self.initial = total, what, initial
        self.started = self.last_print = time.monotonic()

    def __enter__(self):
        return self.update

    def update(self, done):
        """Report that `done` are finished."""
        now = time.monotonic()
        if not self.bar.disable:
            self.bar.update(done - self.bar.n)
        elif now - self.last_print > QUIET_SECONDS:
            self.last_print = now
            print(f"{self.what}: {done:,}{self._remaining(done, now)}", flush=True)

    def _remaining(self, done, now):
        if self.total is None:
            return ""
        left = (self.total - done) * (now - self.started) / max(done - self.initial, 1)
        return f" of {self.total:,}, about {left / 60:.1f} min left"

    def __exit__(self, *error):
        self.bar.close()
