"""Any script by its name, from anywhere: `python -m versatile train --task …`, or `versatile train --task …`."""

import importlib
import sys
from pathlib import Path

from versatile.utils.errors import UserError, exit_on_user_error


def script_names():
    """Names of the scripts."""
    from versatile import scripts

    return sorted(path.stem for folder in scripts.__path__ for path in Path(folder).glob("[a-z]*.py"))


@exit_on_user_error
def main(argv=None):
    argv = sys.argv[1:] if argv is None else list(argv)
    if not argv or argv[0] in ("-h", "--help"):
        print(f"usage: versatile SCRIPT [flags]\n\nscripts: {', '.join(script_names())}\n"
              "flags:   versatile SCRIPT --help")  # fmt: skip
        return
    name = argv[0].removesuffix(".py")
    if name not in script_names():
        raise UserError(f"there is no script {name!r}", location="versatile", expected="one of "
                        + ", ".join(script_names()), remedy="see versatile --help")  # fmt: skip
    # What a run is started with is written down, and what is printed names the script.
    sys.argv = [f"{name}.py", *argv[1:]]
    importlib.import_module(f"versatile.scripts.{name}").main()


if __name__ == "__main__":
    sys.exit(main())
