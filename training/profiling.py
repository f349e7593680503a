"""--profile DIR: a trace of a few optimizer steps, viewed in a browser (https://ui.perfetto.dev or chrome://tracing)."""

import contextlib
from pathlib import Path

from torch.profiler import ProfilerActivity, profile, schedule
from versatile.utils.files import writable_directory
from versatile.utils.screen import counted

# The first steps prepare kernels and fill caches.
WARM_UP, RECORDED = 2, 5


@contextlib.contextmanager
def profile_steps(folder, name, first, total, device, print_line=print):
    """Record some optimizer steps; the context yields a function to call after each step.

    Args:
        folder: where the trace is written as <name>_steps_<first>-<last>.json; None: nothing is recorded.
        name: the run's name.
        first, total: optimizer steps already taken, and in total.
        device: the training device.
        print_line: called with a message that says where the trace is.
    """
    skipped = WARM_UP if total - first > WARM_UP else 0
    recorded = min(RECORDED, total - first - skipped)
    if folder is None or recorded < 1:
        yield lambda: None
        return
    begin = first + skipped + 1
    path = Path(writable_directory(folder, "--profile")) / f"{name}_steps_{begin}-{begin + recorded - 1}.json"

    def write(trace):
        trace.export_chrome_trace(str(path))
        print_line(f"trace of {counted(recorded, 'step')}: {path}; open it at https://ui.perfetto.dev")

    kinds = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device.type == "cuda" else [])
    plan = schedule(wait=max(skipped - 1, 0), warmup=min(skipped, 1), active=recorded, repeat=1)
    with profile(activities=kinds, schedule=plan, on_trace_ready=write) as profiler:
        yield profiler.step
