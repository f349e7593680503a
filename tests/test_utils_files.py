"""utils.files: a file is whole or absent, and disk errors are errors a user can act on."""

import contextlib
import errno
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from versatile.utils import files
from versatile.utils.errors import UserError, brief, exit_on_user_error, first_line
from versatile.utils.files import (
    atomic_directory,
    atomic_write,
    cache_root,
    check_creatable,
    check_replaceable,
    disk_errors,
    move_into_place,
    remove_leftovers,
    remove_nested_leftovers,
    writable_cache,
    writable_directory,
    write_json,
)

ROOT = Path(__file__).resolve().parent.parent


def names(folder):
    return sorted(p.name for p in folder.iterdir())


def test_a_file_appears_whole_with_unix_line_ends_and_the_usual_permissions(tmp_path):
    path = tmp_path / "new" / "file.txt"
    with atomic_write(path) as file:
        file.write("ä\n")
        assert not path.exists()
    assert path.read_bytes() == b"\xc3\xa4\n"
    mask = os.umask(0)
    os.umask(mask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~mask
    write_json(path, {"ä": [1, None]})
    assert path.read_text(encoding="utf-8") == '{\n  "ä": [\n    1,\n    null\n  ]\n}\n'
    assert names(path.parent) == ["file.txt"]


@pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt(), OSError(errno.ENOSPC, "full")])
def test_an_error_while_writing_leaves_the_old_file_and_no_half_of_a_new_one(error, tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises((type(error), UserError)), atomic_write(path) as file:
        file.write("new")
        raise error
    assert path.read_text() == "old" and names(tmp_path) == ["file"]
    with pytest.raises((type(error), UserError)), atomic_directory(tmp_path / "folder") as beside:
        (beside / "part").write_text("x")
        raise error
    assert names(tmp_path) == ["file"]


def test_a_directory_appears_whole_and_replaces_the_one_before(tmp_path):
    for text in ("one", "two"):
        with atomic_directory(tmp_path / "folder") as beside:
            (beside / text).write_text(text)
        assert names(tmp_path) == ["folder"] and names(tmp_path / "folder") == [text]
    assert (tmp_path / "folder").stat().st_mode & 0o500 == 0o500


@pytest.mark.parametrize("replace", [True, False])
def test_many_that_write_the_same_directory_at_once_leave_one_whole(replace, tmp_path):
    def write(number):
        with atomic_directory(tmp_path / "folder", replace=replace) as beside:
            for name in "abc":
                (beside / name).write_text(str(number))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(200)))
    assert names(tmp_path) == ["folder"] and names(tmp_path / "folder") == ["a", "b", "c"]
    assert len({p.read_text() for p in (tmp_path / "folder").iterdir()}) == 1


def test_a_directory_that_others_may_be_reading_can_be_kept(tmp_path):
    for text in ("one", "two"):
        with atomic_directory(tmp_path / "folder", replace=False) as beside:
            (beside / text).write_text(text)
    assert names(tmp_path) == ["folder"] and names(tmp_path / "folder") == ["one"]


WRITER = """
import sys
from pathlib import Path
from versatile.utils.files import atomic_directory, atomic_write
folder = Path(sys.argv[1])
for i in range(1_000_000):
    with atomic_write(folder / "file") as file:
        for _ in range(200):
            file.write(f"{i}\\n")
    with atomic_directory(folder / f"step_{i}") as beside:
        for name in "abc":
            (beside / name).write_text(f"{i}")
    print(i, flush=True)
"""


@pytest.mark.parametrize("moment", [0.013, 0.031, 0.057])
def test_a_process_killed_while_writing_leaves_only_whole_files(moment, tmp_path):
    process = subprocess.Popen([sys.executable, "-c", WRITER, tmp_path], stdout=subprocess.PIPE, cwd=ROOT, text=True)
    process.stdout.readline()
    time.sleep(moment)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    lines = (tmp_path / "file").read_text().splitlines()
    assert len(lines) == 200 and len(set(lines)) == 1
    for folder in tmp_path.glob("step_*"):
        assert {p.name: p.read_text() for p in folder.iterdir()} == dict.fromkeys("abc", folder.name[5:])
    remove_leftovers(tmp_path)
    assert all(p.name == "file" or p.name.startswith("step_") for p in tmp_path.iterdir())


def test_leftovers_are_removed_and_nothing_else(tmp_path):
    for name in (".a.x.part", ".b.y.old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "inside").write_text("x")
    for name in (".c.part", "d.part", ".hidden", "e.old"):
        (tmp_path / name).write_text("x")
    remove_leftovers(tmp_path)
    assert names(tmp_path) == [".hidden", "d.part", "e.old"]
    remove_leftovers(tmp_path / "nothing here")


def test_leftovers_in_nested_folders_are_removed_except_those_of_other_runs(tmp_path):
    for name in (".a.part", "results/.b.part", "results/deep/.c.part/inside", ".best/.d.part", "e.part", "kept/f"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    for name in ("run.json", "other/run.json", "other/.g.part", "other/checkpoints/.h.part"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    remove_nested_leftovers(tmp_path)
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {"e.part", "kept/f", "run.json", "other/run.json", "other/.g.part", "other/checkpoints/.h.part"}
    remove_nested_leftovers(tmp_path / "nothing here")


@pytest.mark.parametrize("number, words", [
    (errno.ENOSPC, "the disk is full"), (errno.EDQUOT, "quota"), (errno.EACCES, "no permission"),
    (errno.EROFS, "read-only"), (errno.ENOTDIR, "a file, not a directory"), (errno.ENAMETOOLONG, "too long"),
])  # fmt: skip
def test_the_disks_refusals_are_errors_that_name_the_place(number, words, tmp_path):
    with pytest.raises(UserError, match=words) as caught, atomic_write(tmp_path / "file"):
        raise OSError(number, os.strerror(number))
    assert caught.value.location == str(tmp_path / "file") and caught.value.remedy


def test_a_full_disk_is_recognised_behind_a_librarys_own_exception(tmp_path):
    def wrapped():
        try:
            raise OSError(errno.ENOSPC, "full")
        except OSError:
            raise RuntimeError("unexpected pos 64 vs 32")

    def quoted():
        raise Exception("No space left on device (os error 28)")

    for fail in (wrapped, quoted):
        with pytest.raises(UserError, match="the disk is full"), disk_errors(tmp_path):
            fail()


def test_a_name_that_no_directory_can_take_is_refused_at_once(tmp_path, monkeypatch):
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "link").symlink_to("folder")
    (tmp_path / "dangling").symlink_to("nowhere")
    check_replaceable(tmp_path / "dangling", "--output dangling")
    (tmp_path / "folder").mkdir()
    check_replaceable(tmp_path / "link", "--output link")
    check_replaceable(tmp_path / "new", "--output new")
    with pytest.raises(UserError, match="--output loop: cannot write: a symbolic link leads back to itself"):
        check_replaceable(tmp_path / "loop", "--output loop")
    with pytest.raises(UserError, match="--output full: this path already exists and is no directory"):
        check_replaceable("/dev/full", "--output full")
    monkeypatch.setattr(Path, "is_mount", lambda path: path.name == "folder")
    with pytest.raises(UserError, match="--output folder: something is mounted at this name"):
        check_replaceable(tmp_path / "folder", "--output folder")


def test_errors_that_are_not_the_disks_pass_unchanged(tmp_path):
    for error in (ValueError("x"), UserError("y"), OSError(errno.ENOENT, "z")):
        with pytest.raises(type(error)) as caught, disk_errors(tmp_path):
            raise error
        assert caught.value is error


def test_an_error_names_the_file_not_its_half_written_form(tmp_path):
    folder = atomic_directory(tmp_path / "step_1")
    with pytest.raises(UserError) as caught, folder as beside, atomic_write(beside / "weights"):
        raise OSError(errno.ENOSPC, "full")
    assert caught.value.location == str(tmp_path / "step_1" / "weights")


def test_a_directory_is_proved_writable_before_it_is_needed(tmp_path):
    assert writable_directory(tmp_path / "a" / "b", "--output_dir").is_dir()
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "file", tmp_path / "file" / "below", "/proc/nothing", tmp_path / ("x" * 300)):
        with pytest.raises(UserError) as caught:
            writable_directory(path, "--output_dir")
        assert str(caught.value).startswith(f"--output_dir {path}: cannot write")


def test_a_place_where_nothing_can_be_made_is_found_without_making_anything(tmp_path):
    check_creatable(tmp_path / "a" / "b", "--output_dir")
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "file", tmp_path / "file" / "below", "/proc/nothing/below"):
        with pytest.raises(UserError, match="cannot write") as caught:
            check_creatable(path, "--output_dir")
        assert caught.value.location == f"--output_dir {path}"


def test_an_empty_name_is_no_place():
    with pytest.raises(UserError, match="--output_dir: the name is empty"):
        check_creatable("", "--output_dir")


def test_a_cache_that_cannot_be_written_says_how_to_name_another():
    with pytest.raises(UserError, match="VERSATILE_CACHE"):
        writable_cache("/proc/nothing")
    with pytest.raises(UserError, match="name another directory, --cache_dir DIR"):
        writable_cache("/proc/nothing", "--cache_dir")


def test_the_cache_lies_where_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.setenv("VERSATILE_CACHE", str(tmp_path))
    assert cache_root() == tmp_path
    monkeypatch.delenv("VERSATILE_CACHE")
    assert cache_root() == Path.home() / ".cache" / "versatile"


# --- errors ------------------------------------------------------------------------------------------------


def test_an_error_says_place_found_expected_remedy():
    error = UserError("'tgt' is 12", location="data.json:train[3]", expected="a string", remedy="correct the record")
    assert str(error) == ("data.json:train[3]: 'tgt' is 12\n  expected: a string\n  remedy:   correct the record")
    assert str(UserError("nothing to score")) == "nothing to score"
    assert brief("x" * 200) == "'" + "x" * 58 + "… (str)"
    assert first_line(ValueError("one\ntwo")) == "one" and first_line(ValueError()) == "ValueError"


@pytest.mark.parametrize("error, code, printed", [
    (UserError("a", location="b"), 2, "error: b: a\n"), (KeyboardInterrupt(), 130, "interrupted\n"),
    (MemoryError("of 9 GiB"), 2, "error: out of memory: of 9 GiB\n"),
    (RuntimeError("can't allocate memory: 9 GiB"), 2, "error: out of memory: can't allocate memory: 9 GiB\n"),
])  # fmt: skip
def test_a_script_ends_with_a_message_and_a_code_not_a_traceback(error, code, printed, capsys, monkeypatch):
    @exit_on_user_error
    def main():
        raise error

    for rank, expected in (("0", printed), ("1", "")):
        monkeypatch.setenv("RANK", rank)
        with pytest.raises(SystemExit) as stop:
            main()
        said = capsys.readouterr().err
        assert stop.value.code == code and said.startswith(expected) and bool(said) == bool(expected)
        assert len(said.splitlines()) <= 2


def test_an_error_of_the_toolkits_own_keeps_its_traceback():
    @exit_on_user_error
    def main():
        raise KeyError("a defect")

    with pytest.raises(KeyError):
        main()


STOPPED = """
import os, signal, sys
from versatile.utils.errors import exit_on_user_error
from versatile.utils.files import atomic_directory, atomic_write

@exit_on_user_error
def main():
    with atomic_write(sys.argv[1] + "/file"), atomic_directory(sys.argv[1] + "/folder"):
        os.kill(os.getpid(), int(sys.argv[2]))
        signal.pause()

main()
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_script_that_is_told_to_stop_leaves_nothing_half_written(number, tmp_path):
    command = [sys.executable, "-c", STOPPED, tmp_path, str(int(number))]
    stopped = subprocess.run(command, cwd=ROOT, text=True, capture_output=True,
                             preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL))  # fmt: skip
    assert stopped.returncode == 128 + number and names(tmp_path) == []
    assert stopped.stderr == ("interrupted" if number == signal.SIGINT else f"stopped by {number.name}") + "\n"


# --- flags -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind, good, bad", [
    ("positive", {"3": 3}, ["0", "-1", "1.5", "x", ""]), ("not_negative", {"0": 0, "7": 7}, ["-1", "1e3"]),
    ("bottleneck", {"-1": -1, "0": 0, "64": 64}, ["-2", "3.0"]),
    ("rate", {"1e-3": 1e-3}, ["0", "-1", "nan", "inf", "x"]),
    ("not_negative_rate", {"0": 0.0, "0.1": 0.1}, ["-0.1", "nan"]),
    ("share", {"1": 1.0, "0.5": 0.5}, ["0", "1.1", "nan"]),
    ("temperature", {"1e-6": 1e-6, "9": 9.0}, ["0", "1e-7", "1e7", "nan"]),
    ("length_penalty", {"-1": -1.0, "100": 100.0}, ["101", "-1e3", "nan"]),
    ("epochs", {"0.5": 0.5}, ["0", "1e300", "inf"]),
])  # fmt: skip
def test_a_flags_value_is_checked_and_the_error_says_what_was_wanted(kind, good, bad):
    import argparse

    from versatile.utils import flags

    check = getattr(flags, kind)
    assert {text: check(text) for text in good} == good
    for text in bad:
        with pytest.raises(argparse.ArgumentTypeError, match="expected a"):
            check(text)


def test_only_what_was_typed_counts_as_given():
    from versatile.utils import flags

    import train

    argv = ["--resume", "x", "--lr", "0.1", "--no_validation"]
    assert flags.typed_flags(train.parser, argv) == dict(resume="x", lr=0.1, no_validation=True)


def test_a_prefix_of_a_flag_is_not_taken_for_the_flag(capsys):
    import train

    with pytest.raises(SystemExit) as stop:
        train.parser().parse_args(["--task", "nlg", "--learn", "1"])
    assert stop.value.code == 2
    assert capsys.readouterr().err.startswith("error: --learn: there is no such flag; did you mean --learning_rate?")


# ---- replacing a directory: one of the two exists at every moment


def two_directories(folder):
    """(an existing directory, its successor next to it), each with a file that says which it is."""
    for name, text in (("run", "old"), (".run.x.part", "new")):
        (folder / name).mkdir()
        (folder / name / "file").write_text(text)
    return folder / "run", folder / ".run.x.part"


@pytest.mark.parametrize("exchange", [True, False], ids=["exchange", "two renames"])
def test_a_directory_is_replaced_and_nothing_is_left_beside_it(exchange, tmp_path, monkeypatch):
    if not exchange:
        monkeypatch.setattr(files, "_exchange", lambda one, other: False)
    path, beside = two_directories(tmp_path)
    move_into_place(beside, path)
    assert (path / "file").read_text() == "new" and names(tmp_path) == ["run"]


@pytest.mark.parametrize("exchange", [True, False], ids=["exchange", "two renames"])
@pytest.mark.parametrize("call", range(1, 8))
@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.EIO, "broken"), OSError(errno.ENXIO, "broken")])
def test_an_interruption_keeps_the_old_directory_or_has_the_new_one(exchange, call, error, tmp_path, monkeypatch):
    """Any call that changes names may be interrupted, before or after it."""
    calls = []

    def interrupted(function):
        def wrapper(*args, **kwargs):
            calls.append(function)
            if len(calls) == call and call % 2:
                raise error
            result = function(*args, **kwargs)
            if len(calls) == call:
                raise error
            return result

        return wrapper

    if not exchange:
        monkeypatch.setattr(files, "_exchange", lambda one, other: False)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "file").write_text("old")
    # A broken device is an error of the disk.
    stopped = contextlib.suppress(UserError if getattr(error, "errno", None) == errno.EIO else type(error))
    with stopped, monkeypatch.context() as patch, atomic_directory(tmp_path / "run") as beside:
        (beside / "file").write_text("new")
        for name in ("rename", "rmdir"):
            patch.setattr(files.os, name, interrupted(getattr(os, name)))
        patch.setattr(files, "_sync", interrupted(files._sync))
    remove_leftovers(tmp_path)
    assert names(tmp_path) == ["run"] and (tmp_path / "run" / "file").read_text() in ("old", "new")


def test_a_process_killed_between_two_renames_is_put_right_by_the_next_start(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_exchange", lambda one, other: False)
    monkeypatch.setattr(files, "_put_back", lambda aside, path: None)
    path, beside = two_directories(tmp_path)
    rename = os.rename

    def killed(one, other):
        if Path(one) == beside and not path.exists():
            raise KeyboardInterrupt
        rename(one, other)

    monkeypatch.setattr(files.os, "rename", killed)
    with pytest.raises(KeyboardInterrupt):
        move_into_place(beside, path)
    assert not path.exists()
    monkeypatch.undo()
    remove_leftovers(tmp_path)
    assert names(tmp_path) == ["run"] and (path / "file").read_text() == "old"


def test_all_files_of_a_new_directory_have_the_modes_that_the_umask_says(tmp_path):
    old = os.umask(0o027)
    try:
        with atomic_directory(tmp_path / "run") as beside:
            (beside / "inner").mkdir()
            (beside / "inner" / "weights").write_text("x")
            (beside / "inner" / "weights").chmod(0o600)
    finally:
        os.umask(old)
    assert (tmp_path / "run" / "inner" / "weights").stat().st_mode & 0o777 == 0o640
    assert (tmp_path / "run" / "inner").stat().st_mode & 0o777 == 0o750


def test_a_name_as_long_as_a_file_system_allows_is_written(tmp_path):
    path = tmp_path / ("ä" * 127)
    write_json(path, 1)
    with atomic_directory(tmp_path / ("x" * 255)) as beside:
        (beside / "file").write_text("")
    assert len(names(tmp_path)) == 2


@pytest.mark.parametrize("words", [["--output_dir", "x" * 300], ["--checkpoints", "nlg=" + "x" * 300], ["ü" * 200]])
def test_a_name_that_no_file_can_have_is_one_message_that_names_its_flag(words, tmp_path, monkeypatch, capsys):
    @exit_on_user_error
    def main():
        Path(tmp_path / words[-1].rpartition("=")[2]).exists()

    monkeypatch.setattr(sys, "argv", ["train.py", *words])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 2
    message = capsys.readouterr().err
    assert message.startswith(f"error: {words[0][:12]}") and "too long" in message and len(message) < 300


def test_directories_made_for_what_failed_go_again_and_others_stay(tmp_path):
    (tmp_path / "there").mkdir()
    for writer in (files.atomic_write, files.atomic_directory):
        for path in (tmp_path / "a" / "b" / "new", tmp_path / "there" / "c" / "new"):
            with pytest.raises(KeyError), writer(path):
                raise KeyError
        assert names(tmp_path) == ["there"] and names(tmp_path / "there") == []
        # What another has put there meanwhile is not touched.
        with pytest.raises(KeyError), writer(tmp_path / "a" / "b" / "new"):
            (tmp_path / "a" / "other").write_text("")
            raise KeyError
        assert names(tmp_path / "a") == ["other"]
        (tmp_path / "a" / "other").unlink()
        (tmp_path / "a").rmdir()
