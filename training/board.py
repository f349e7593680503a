"""TensorBoard scalars, written where they arise.

tensorboardX's SummaryWriter leaves the writing to a thread. On a full disk the thread dies with a traceback and
training hangs behind its queue; of a killed run it loses what was queued.
"""

import time
from pathlib import Path

from versatile.utils.files import disk_errors


class Board:
    """An event file in a run directory.

    Args:
        folder: the run directory.
        first: the optimizer step that training goes on after. Whatever a killed run logged behind it is logged
            again; TensorBoard forgets the first copy.
    """

    def __init__(self, folder, first=0):
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        self.folder = Path(folder)
        with disk_errors(self.folder):
            self.events = EventsWriter(str(self.folder / "events"))
            self.events.write_event(Event(step=first, session_log=SessionLog(status=SessionLog.START)))

    def add(self, step, group, scalars):
        """Log {name: value} as `group/name` at an optimizer step."""
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.summary import scalar

        with disk_errors(self.folder):
            for name, value in scalars.items():
                summary = scalar(f"{group}/{name}", value)
                self.events.write_event(Event(wall_time=time.time(), step=step, summary=summary))
            self.events.flush()
