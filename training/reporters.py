"""Reporters for a run's scalars: TensorBoard's event file, Weights & Biases and trackio (--report_to).

tensorboardX's SummaryWriter writes in a thread. On a full disk the thread dies with a traceback and training hangs on
its queue; when a run is killed, queued events are lost. Here each event is written as soon as it occurs.
"""

import hashlib
import importlib
import importlib.util
import os
import sys
import time
from pathlib import Path

from versatile.training.runs import stored_record
from versatile.utils.errors import UserError, first_line
from versatile.utils.files import disk_errors

PROJECT = "versatile"


def check_reporters(names):
    """Raise a `UserError` if --report_to names a library that is not installed, or "none" together with another."""
    if "none" in names and len(set(names)) > 1:
        raise UserError(f"none was given together with {' '.join(name for name in names if name != 'none')}",
                        location="--report_to", remedy="leave one of them out")  # fmt: skip
    for name in names:
        if name in ("wandb", "trackio") and name not in sys.modules and importlib.util.find_spec(name) is None:
            raise UserError(f"the library {name} is not installed", location=f"--report_to {name}",
                            remedy=f"pip install {name}, or choose tensorboard or none")  # fmt: skip


class Reporters:
    """All reporters of a run.

    Args:
        folder: the run directory.
        first: the optimizer step that training resumes after.
        report_to: names of --report_to.
        events: where TensorBoard's event file goes (default: the run directory).
    """

    def __init__(self, folder, first=0, report_to=("tensorboard",), events=None):
        self.reporters = []
        for name in dict.fromkeys(report_to):
            if name == "tensorboard":
                self.reporters.append(EventFile(events or folder, first))
            elif name != "none":
                self.reporters.append(Tracker(name, folder))

    def add(self, step, group, scalars):
        """Log {name: value} as `group/name` at an optimizer step."""
        for reporter in self.reporters:
            reporter.add(step, group, scalars)

    def close(self):
        """Close all reporters."""
        for reporter in self.reporters:
            reporter.close()


class EventFile:
    """TensorBoard's event file.

    Args:
        folder: where it goes.
        first: see `Reporters`. What a killed run logged after this step is logged again; TensorBoard drops the first
            copy.
    """

    def __init__(self, folder, first=0):
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        self.folder = Path(folder)
        with disk_errors(self.folder):
            self.events = EventsWriter(str(self.folder / "events"))
            self.events.write_event(Event(step=first, session_log=SessionLog(status=SessionLog.START)))

    def add(self, step, group, scalars):
        """As `Reporters.add`."""
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.summary import scalar

        with disk_errors(self.folder):
            for name, value in scalars.items():
                summary = scalar(f"{group}/{name}", value)
                self.events.write_event(Event(wall_time=time.time(), step=step, summary=summary))
            self.events.flush()

    def close(self):
        """Do nothing: each event has been flushed."""


class Tracker:
    """wandb or trackio, whose interfaces are the same for what is used here.

    A resumed run continues its earlier record, found by its path in wandb and by its name in trackio. The project is
    set by WANDB_PROJECT or TRACKIO_PROJECT (default: versatile).

    Args:
        name: the library's name.
        folder: the run directory.
    """

    def __init__(self, name, folder):
        path = Path(folder).resolve()
        options = dict(project=os.environ.get(f"{name.upper()}_PROJECT", PROJECT), name=path.name, resume="allow",
                       config=stored_record(folder).get("flags", {}))  # fmt: skip
        if name == "wandb":
            options |= dict(id=hashlib.sha256(str(path).encode()).hexdigest()[:16], dir=str(path))
        self.library = importlib.import_module(name)
        try:
            self.library.init(**options)
        except Exception as error:
            raise UserError(f"it could not be started: {first_line(error)}", location=f"--report_to {name}",
                            remedy="set the library up first, or choose tensorboard or none") from error  # fmt: skip

    def add(self, step, group, scalars):
        """As `Reporters.add`."""
        self.library.log({f"{group}/{name}": value for name, value in scalars.items()}, step=step)

    def close(self):
        """Upload what is left."""
        self.library.finish()
