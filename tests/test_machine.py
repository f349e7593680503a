"""Cores and memory, with and without a container's limits.

    python -m pytest tests/test_machine.py
"""

import os

import pytest
from versatile.utils import machine


@pytest.mark.parametrize(("limit", "expected"), [("max", None), (str(2**30), 2**30), ("", None), (str(2**63), None)])
def test_memory_is_the_smaller_of_the_machines_and_the_containers(limit, expected, tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "MEMORY_LIMITS", (str(tmp_path / "none"), str(tmp_path / "memory.max")))
    unlimited = machine.memory()
    (tmp_path / "memory.max").write_text(f"{limit}\n")
    assert machine.memory() == (expected or unlimited) and unlimited > 2**30


@pytest.mark.parametrize(("quota", "expected"), [("max 100000", 3), ("150000 100000", 2), ("50000 100000", 1),
                                                 ("900000 100000", 3), ("1 0", 3), ("", 3)])  # fmt: skip
def test_cores_are_those_of_the_process_and_its_quota(quota, expected, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1, 5}, raising=False)
    monkeypatch.setattr(machine, "CPU_QUOTA", str(tmp_path / "cpu.max"))
    assert machine.cores() == 3
    (tmp_path / "cpu.max").write_text(quota)
    assert machine.cores() == expected
