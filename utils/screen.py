"""Safe terminal output: failing output never ends the work, and texts from files cannot control a terminal.

A script's `main` runs under `protected` (through `utils.errors.exit_on_user_error`).
"""

import contextlib
import contextvars
import os
import re
import shlex
import sys
import tempfile
from pathlib import Path

from versatile.utils.context import value_in_context

# Control characters (C0 except tab and line feed, DEL, C1), other line ends, marks that reorder a line, and lone
# surrogates.
_UNSAFE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)


def escape_controls(text):
    r"""`text` with every character that could control a terminal escaped: ESC as ``\x1b``."""
    return _UNSAFE.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def clipped(text, longest):
    """A text of at most so many characters, with an ellipsis where it was cut."""
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


def counted(number, noun):
    """"1 sample", "2,000 samples"."""
    return f"{number:,} {noun}{'s' * (number != 1)}"


def format_count(number):
    """A number of parameters: "124.4M", or "2,000" below a million."""
    return f"{number / 1e6:.1f}M" if number >= 1e6 else f"{number:,}"


def format_number(value, digits):
    """A number with a fixed number of digits after the point: "3.14"; from a billion on "5.18e+21"."""
    return f"{value:.{digits}f}" if abs(value) < 1e9 else f"{value:.3g}"


def align_columns(rows, right, rule=False):
    """Rows of texts as a table; the columns in `right` are right-aligned, and `rule` underlines the first row."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = [*rows[:1], *([["-" * width for width in widths]] if rule else []), *rows[1:]]
    return "\n".join("  ".join(cell.rjust(w) if i in right else cell.ljust(w)
                               for i, (cell, w) in enumerate(zip(row, widths))).rstrip() for row in lines)  # fmt: skip


def shortest_path(path):
    """The shortest way to write a path from here."""
    return min(str(path), os.path.relpath(path), key=len)


def shell_words(*words):
    """Words for pasting into a shell, each quoted if necessary."""
    return shlex.join(map(str, words))


# How `python -m versatile` or the command `versatile` was typed, while they run a script.
_LAUNCHER = contextvars.ContextVar("launcher", default=None)


def started_as(*words):
    """Context in which printed commands begin with a launcher's words: "python", "-m", "versatile"."""
    return value_in_context(_LAUNCHER, words)


def shell_command(script, *words):
    """A command for pasting into a shell in the current directory: "python <script> <words>", or "versatile <name>"."""
    return shell_words(*_start_words(script), *words)


def module_command(module, *words):
    """A command that runs a module: "python -m data.convert <words>", in the installed package of versatile's."""
    return shell_words("python", "-m", module if (_HOME / "train.py").is_file() else f"versatile.{module}", *words)


def program_name(script):
    """How a message names the running script: as a file, or as `versatile` was told its name."""
    return shell_words(*_LAUNCHER.get(), Path(script).stem) if _LAUNCHER.get() and script.endswith(".py") else script


def resume_command(script, directory, processes=1):
    """The command that resumes a run with the same number of processes on each machine."""
    if processes == 1:
        return shell_command(script, "--resume", directory)
    python, *start = _start_words(script)
    start = start if python == "python" else ["-m", "versatile", Path(script).stem]
    return shell_words("torchrun", "--nproc_per_node", processes, *start, "--resume", directory)


def portable_command(script, *words):
    """A command that names no place on this machine, for a text that is read elsewhere."""
    start = ["python", script] if (_HOME / script).is_file() else ["versatile", Path(script).stem]
    return shell_words(*start, *words)


_HOME = Path(__file__).resolve().parent.parent


def _start_words(script):
    """The words that start a script from the current directory, as the running one was started if possible."""
    path = _HOME / script
    if path.is_file():
        with contextlib.suppress(OSError):
            # A script of the checkout that the user stands in is the shortest.
            if path.parent.samefile(Path.cwd()):
                return ["python", script]
    if _LAUNCHER.get() or not path.is_file():
        return [*(_LAUNCHER.get() or ["versatile"]), Path(script).stem]
    return ["python", shortest_path(path)]


class SafeStream:
    """A text stream that shows what can be shown and never fails.

    Errors of the underlying file (closed, full, no reader) are dropped, as no output is worth the work it reports on;
    control characters are escaped. Everything else is the stream's own.

    Args:
        stream: a text stream, or None if the process was started without one.

    Attributes:
        has_reader: False once the process at the other end of a pipe has exited.
    """

    def __init__(self, stream):
        self._stream, self.has_reader = stream, True

    def __getattr__(self, name):
        if self._stream is None:
            raise AttributeError(name)
        return getattr(self._stream, name)

    def write(self, text):
        # Progress bars return to the start of their line.
        start = "\r" if text.startswith("\r") else ""
        shown = start + escape_controls(text[len(start) :])
        with self._dropped():
            self._stream.write(shown)
        return len(text)

    def write_data(self, line):
        """Write a line for a program to read: unchanged, unless a terminal is at the other end.

        Raises:
            UserError: the file it goes to cannot be written.
        """
        if self.isatty():
            self.write(f"{line}\n")
            self.flush()
            return
        with self._dropped(is_data=True):
            self._stream.write(f"{line}\n")
            self._stream.flush()

    def writelines(self, lines):
        for line in lines:
            self.write(line)

    def flush(self):
        with self._dropped():
            self._stream.flush()

    def isatty(self):
        try:
            return self._stream is not None and self._stream.isatty()
        except ValueError:
            return False

    @contextlib.contextmanager
    def _dropped(self, is_data=False):
        """Context in which the stream's errors are dropped; of data, which the work is done for, only those of a
        stream that nobody reads."""
        if self._stream is None:
            # Nothing to write to: `write` and `flush` of None.
            with contextlib.suppress(AttributeError):
                yield
            return
        try:
            yield
        except BrokenPipeError:
            self.has_reader = False
        except OSError as error:
            if is_data:
                from versatile.utils.errors import UserError

                raise UserError(f"cannot write: {error.strerror or error}", location="the answers (standard output)",
                                remedy="free some space, or send them elsewhere") from error  # fmt: skip
        except ValueError:
            # "I/O operation on closed file"; anything else is the caller's mistake.
            if not self._stream.closed:
                raise

    def release(self):
        """Flush the buffer; if that fails, flush it to the null device, as Python would complain at exit."""
        if self._stream is None or self._stream.closed:
            return
        try:
            self._stream.flush()
        except OSError:
            with contextlib.suppress(OSError, ValueError):
                null = os.open(os.devnull, os.O_WRONLY)
                os.dup2(null, self._stream.fileno())
                os.close(null)
                self._stream.flush()


@contextlib.contextmanager
def protected():
    """Context in which stdout and stderr are `SafeStream`s, stdin exists, and caches have a writable home."""
    _occupy_standard_files()
    _ensure_home()
    old = sys.stdout, sys.stderr
    if isinstance(sys.stdout, SafeStream):
        # A main called by another.
        yield
        return
    for stream in old:
        if hasattr(stream, "reconfigure"):
            # Characters that the encoding (ascii, latin-1) lacks are escaped. The buffer is written first.
            with contextlib.suppress(OSError, ValueError):
                stream.reconfigure(errors="backslashreplace")
    sys.stdout, sys.stderr = SafeStream(sys.stdout), SafeStream(sys.stderr)
    try:
        yield
    finally:
        sys.stdout.release()
        sys.stderr.release()
        sys.stdout, sys.stderr = old


def _occupy_standard_files():
    """Open the standard files that the process was started without (``>&-``) on the null device.

    Otherwise the next file opened would get the free number, and library output would go into it.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            # The lowest free number is this one.
            os.open(os.devnull, os.O_RDONLY if number == 0 else os.O_WRONLY)
            os.set_inheritable(number, True)
    if sys.stdin is None:
        sys.stdin = open(os.devnull, encoding="utf-8")  # noqa: SIM115 - for the life of the process


# Where libraries keep what can be regenerated: variable -> folder below ours.
_CACHES = {
    "MPLCONFIGDIR": "matplotlib", "HF_HOME": "huggingface", "TORCHINDUCTOR_CACHE_DIR": "inductor",
    "TRITON_CACHE_DIR": "triton", "VERSATILE_CACHE": "versatile", "TORCH_HOME": "torch",
}  # fmt: skip


def _ensure_home():
    """Without a writable home directory, caches go to the folder for temporary files; this is reported once."""
    home = Path(os.path.expanduser("~"))
    if home.is_absolute() and _is_writable(home):
        _name_user()
        return
    fallback = Path(tempfile.gettempdir()) / f"versatile-{os.getuid()}"
    missing = [name for name in _CACHES if not os.environ.get(name)]
    if home.is_absolute() and (home / ".cache" / "huggingface").is_dir():
        # Models that were loaded before can still be read.
        missing = [name for name in missing if name != "HF_HOME"]
    for name in missing:
        os.environ[name] = str(fallback / _CACHES[name])
    _name_user()
    if "VERSATILE_CACHE" in missing and os.environ.get("RANK", "0") == "0" and sys.stderr is not None:
        with contextlib.suppress(OSError, ValueError):
            print(f"no home directory that can be written ({home}): caches go to {fallback}", file=sys.stderr)


def _name_user():
    """Set a user name where the user id has no entry, as PyTorch asks for one."""
    if any(os.environ.get(name) for name in ("LOGNAME", "USER", "LNAME", "USERNAME")):
        return
    try:
        import pwd

        pwd.getpwuid(os.getuid())
    except (ImportError, KeyError):
        os.environ["LOGNAME"] = f"uid{os.getuid()}"


def _is_writable(home):
    """Whether caches can be kept below `home`: its .cache folder is writable, or can be made."""
    cache = home / ".cache"
    return os.access(cache if cache.exists() else home, os.W_OK | os.X_OK)
