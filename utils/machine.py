"""Cores and memory of this machine, as far as a container lets a process have them; read without torch."""

import math
import os
from pathlib import Path

# Files of Linux' control groups, in their second and first version.
MEMORY_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
CPU_QUOTA = "/sys/fs/cgroup/cpu.max"


def memory():
    """The machine's memory in bytes, or the limit of its container."""
    size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for limit in MEMORY_LIMITS:
        try:
            size = min(size, int(Path(limit).read_text()))
        except (OSError, ValueError):
            continue
    return size


def cores():
    """The number of cores that this process may use, at least 1."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        # Microseconds of processor time in a period of so many, or "max".
        quota, period = map(int, Path(CPU_QUOTA).read_text().split())
        count = min(count, math.ceil(quota / period))
    except (OSError, ValueError, ZeroDivisionError):
        pass
    return max(count, 1)
