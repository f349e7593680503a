"""Shared fixtures. Tests need no network and no file outside the repository."""

import gc
import os
import signal
import sys
from pathlib import Path

import pytest

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

# A shell starts its background jobs with Ctrl-C ignored, and programs started from them inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
GOLDEN = ROOT / "tests" / "golden"
SHARED_DATA = ROOT.parent / "shared" / "data"


@pytest.fixture
def shared_data():
    """The real public data sets, where this machine has them; they are not part of the repository."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"real public data not found at {SHARED_DATA}")
    return SHARED_DATA


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory):
    """Keep everything the toolkit caches in a directory of this test session, not in the home directory."""
    folder = tmp_path_factory.mktemp("cache")
    os.environ["VERSATILE_CACHE"] = str(folder)
    return folder


@pytest.fixture(scope="session", autouse=True)
def uncollected():
    """Let tiny models stay in memory: finding them among all objects of a test session takes longer than a test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gc, "collect", lambda *generation: 0)
        yield


@pytest.fixture(scope="session", autouse=True)
def unsynced():
    """Do not wait for the disk: what was written outlives the processes that tests kill, if not a power cut."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: None)
        yield


@pytest.fixture(scope="session")
def nlg_data(tmp_path_factory):
    """24 training, 6 validation and 4 test rows."""
    from scripts import small

    return small(tmp_path_factory.mktemp("nlg_data") / "nlg.json", train=24, valid=6, test=4)


@pytest.fixture(scope="session")
def finished_run(nlg_data, tmp_path_factory):
    """An undisturbed run of 12 steps of train.py; read it, do not write to it."""
    from training_runs import short_run, trained

    folder = tmp_path_factory.mktemp("finished_run")
    return trained(short_run(nlg_data, folder / "run"), folder)
