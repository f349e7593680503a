"""Run any script by its name, from anywhere: `python -m versatile train --task …`, or `versatile train --task …`.

To run several in one process, which imports torch once: `versatile --commands FILE` (`-`: standard input) runs a file
of such lines, each without the word versatile, one after another until one fails. The lines are printed, and so are
lines that begin with #.
"""

import contextlib
import importlib
import os
import shlex
import sys
from pathlib import Path

from versatile.utils.errors import UserError, exit_on_user_error
from versatile.utils.parser import version_line
from versatile.utils.screen import shell_command, started_as
from versatile.utils.settings import SET_BY_FLAGS

USAGE = "usage: versatile SCRIPT [flags]\n       versatile --commands FILE\n       versatile --version"


def script_names():
    """Names of the scripts."""
    from versatile import scripts

    return sorted(path.stem for folder in scripts.__path__ for path in Path(folder).glob("[a-z]*.py"))


@exit_on_user_error
def main(argv=None):
    argv = sys.argv[1:] if argv is None else list(argv)
    if not argv or argv[0] in ("-h", "--help"):
        print(f"{USAGE}\n\nscripts: {', '.join(script_names())}")
        print("flags:   versatile SCRIPT --help")
        print("FILE:    one SCRIPT with its flags per line, run one after another in one process until one fails;\n"
              "         lines that begin with # are printed (-: standard input)")  # fmt: skip
        return
    if argv[0] == "--version":
        return print(version_line())
    with started_as(*launcher()):
        run_commands(argv[1:]) if argv[0] == "--commands" else run_script(argv, "versatile")


def launcher():
    """The words that this program was started with: the command versatile, or python -m versatile."""
    before = sys.orig_argv[: len(sys.orig_argv) - len(sys.argv) + 1]
    return ["python", "-m", "versatile"] if before[-2:] == ["-m", "versatile"] else ["versatile"]


def run_script(words, location):
    """Run the script that the first of `words` names; `location` says where they come from, for errors."""
    with open_script(find_script(words[0], location), words[1:]) as main:
        main(words[1:])


@contextlib.contextmanager
def open_script(name, words):
    """The `main` of a script; within the block the command line is the script's own, so that a run records how it was
    started and messages name the script.

    Args:
        name: one of `script_names`.
        words: its command line, without the script.
    """
    before, sys.argv = sys.argv, [f"{name}.py", *words]
    environment = {variable: os.environ.get(variable) for variable in SET_BY_FLAGS}
    try:
        yield importlib.import_module(f"versatile.scripts.{name}").main
    finally:
        sys.argv = before
        # Flags of this call are none of the next one's.
        for variable, value in environment.items():
            if value is None:
                os.environ.pop(variable, None)
            else:
                os.environ[variable] = value


def find_script(word, location):
    """The script's name without its ending; a `UserError` if there is no such script."""
    name, names = word.removeprefix("./").removesuffix(".py"), script_names()
    if name not in names:
        raise UserError(f"there is no script {name!r}", location=location, expected="one of " + ", ".join(names),
                        remedy="see versatile --help")  # fmt: skip
    return name


def run_commands(paths):
    """Run the commands of a file; one that names no script is reported before any is run."""
    if len(paths) != 1:
        raise UserError(f"{len(paths)} files", location="--commands", expected="one file, or - for standard input")
    for location, words in read_commands(paths[0]):
        if words[0] == "#":
            print(words[1], flush=True)
            continue
        print("$", shell_command(f"{words[0]}.py", *words[1:]), flush=True)
        try:
            run_script(words, location)
        except SystemExit as end:
            # After --help or --version continue with the next command.
            if end.code:
                print(f"stopped at {location}", file=sys.stderr)
                raise


def read_commands(path):
    """[(location, words)] of a file's lines: a script's name and its flags, or "#" and the text of a comment.

    A line that ends in a backslash continues on the next; "python" before a script is allowed.
    """
    name = "standard input" if path == "-" else path
    try:
        text = sys.stdin.read().removeprefix("\ufeff") if path == "-" else Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot be read ({error})", location=f"--commands {path}",
                        expected="a text file, or - for standard input") from error  # fmt: skip
    commands, begun = [], ""
    for number, line in enumerate(text.splitlines(), 1):
        if line.endswith("\\") and not line.lstrip().startswith("#"):
            begun += line[:-1] + " "
            continue
        line, begun, location = (begun + line).strip(), "", f"{name}:{number}"
        if line.startswith("#"):
            commands.append((location, ["#", line[1:].strip()]))
            continue
        try:
            words = shlex.split(line)
        except ValueError as error:
            raise UserError(f"{error}: {line}", location=location, expected="words as in a shell") from error
        if words[:1] == ["python"]:
            words = words[1:]
        if words:
            commands.append((location, [find_script(words[0], location), *words[1:]]))
    if begun or all(words[0] == "#" for _, words in commands):
        raise UserError("ends in a backslash" if begun else "holds no command", location=name,
                        expected="a script with its flags on each line")  # fmt: skip
    return commands


if __name__ == "__main__":
    sys.exit(main())
