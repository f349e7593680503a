"""Command lines of all scripts: spellings, switches, config files, and errors that suggest the nearest flag."""

import argparse
import contextvars
import difflib
import json
import os
import platform
import re
import sys
from itertools import chain
from pathlib import Path

from versatile.utils.config_files import ENDINGS, read_config
from versatile.utils.context import value_in_context
from versatile.utils.errors import UserError, brief
from versatile.utils.screen import escape_controls, program_name, shell_words

_RAISING = contextvars.ContextVar("raising", default=False)


def raising_errors():
    """Context in which a wrong flag is a `UserError`, for callers from Python, instead of the end of the process."""
    return value_in_context(_RAISING, True)


YES, NO = ("true", "yes", "1"), ("false", "no", "0")


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows the description as written, every spelling of a flag, and its default after its help."""

    def _get_help_string(self, action):
        # 0 is a default worth showing; None, off and an empty list are not.
        nothing = action.default is None or action.default is False or action.default in ([], {})
        if nothing or "default" in (action.help or ""):
            return action.help
        if isinstance(action.default, list | tuple):
            return f"{action.help} (default: {' '.join(map(str, action.default))})"
        return super()._get_help_string(action)

    def _format_action_invocation(self, action):
        if not action.option_strings:
            return super()._format_action_invocation(action)
        values = self._format_args(action, action.metavar or action.dest.upper())
        return ", ".join(action.option_strings) + (f" {values}" if values else "")


class Switch(argparse.Action):
    """A flag that is on or off: --x, --x true, --x false; one that is on by default also has --no_x."""

    def __init__(self, option_strings, dest, default=False, required=False, help=None, value=None):
        options = list(option_strings)
        if default is True and value is None:
            options += [f"--no_{option.removeprefix('--')}" for option in option_strings]
        super().__init__(options, dest, nargs=0, default=default, required=required, help=help)
        self.value = value

    def __call__(self, parser, namespace, values, option_string=None):
        value = self.value if self.value is not None else not self.is_negative(option_string)
        setattr(namespace, self.dest, value)

    def is_negative(self, option_string):
        """Whether an option string is the --no_x of --x."""
        positive = option_string.replace("--no_", "--", 1)
        return option_string.startswith("--no_") and positive in self.option_strings

    def option(self, on):
        """The words that switch it on or off."""
        return self.option_strings[0] + ("" if on else "=false")


class Refuse(argparse.Action):
    """A flag of a published system that is not supported; its `const` says why. Switched off, it is ignored."""

    def __init__(self, option_strings, dest, const=None, **_):
        super().__init__(option_strings, dest, nargs="*", const=const, default=argparse.SUPPRESS,
                         help=argparse.SUPPRESS)  # fmt: skip

    def __call__(self, parser, namespace, values, option_string=None):
        if [str(value).lower() for value in values] not in [[no] for no in NO]:
            raise argparse.ArgumentError(self, f"{self.const}; leave it out")


class Parser(argparse.ArgumentParser):
    """A parser that accepts hyphens for underscores, several spellings of one setting, and config files.

    Attributes:
        locations: {setting: where it was given} of the last command line: a flag as typed, or a file and a key.
    """

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        # argparse takes -1e-1 for a flag: it knows no exponents of negative numbers.
        self._negative_number_matcher = re.compile(r"^-(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?$")
        self.register("action", "store_true", Switch)
        self.locations = {}

    def error(self, message):
        """Exit with code 2 and one message, without fifty lines of usage above it."""
        shown = os.environ.get("RANK", "0") == "0"
        named = re.match(r"argument (--[\w/-]+)(: .*)", message, re.S)
        if named:
            # argparse names all spellings; show the one that was typed.
            spellings = named[1].split("/")
            message = next((s for s in spellings if s in self.locations.values()), spellings[0]) + named[2]
        if _RAISING.get():
            raise UserError(message, remedy=f"see {program_name(self.prog)} --help")
        message = escape_controls(message)
        self.exit(2, f"error: {message}\n  remedy:   see {program_name(self.prog)} --help\n" if shown else None)

    def group(self, title):
        """The group of flags under a title in --help."""
        return next((g for g in self._action_groups if g.title == title), None) or self.add_argument_group(title)

    def parse_args(self, args=None, namespace=None):
        """Like argparse's; `locations` then says where each setting was given.

        Raises:
            UserError: a config file is unusable.
            SystemExit: the command line is unusable; also after --help and --version.
        """
        words = self.read_words(args)
        self.print_notices()
        namespace, rest = self.parse_known_args(words, namespace)
        if rest:
            self.refuse(rest)
        return namespace

    def parse_known_args(self, args=None, namespace=None):
        """Like argparse's, also for a sub-command; a flag of several values given twice is an error."""
        words = sys.argv[1:] if args is None else list(args)
        self.refuse_repeated(words)
        return super().parse_known_args(words, namespace)

    def refuse_repeated(self, words):
        """Exit if a flag that takes several values is given more than once: argparse would keep the last one only.

        --tasks may be given again, as scripts that pass "$@" on let their users override it.
        """
        values, flag = {}, None
        for word in words:
            if word.startswith("--"):
                flag, equals, value = word.partition("=")
                values.setdefault(flag, []).append([value] if equals else [])
            elif flag:
                values[flag][-1].append(word)
        for flag, groups in values.items():
            action = self._option_string_actions.get(flag)
            several = action and action.nargs in ("+", "*") and action.help != argparse.SUPPRESS
            if several and len(groups) > 1 and flag != "--tasks":
                once = shell_words(flag, *chain.from_iterable(groups))
                self.error(f"{flag}: given {'twice' if len(groups) == 2 else f'{len(groups)} times'}: name all of its "
                           f"values in one: {once}")  # fmt: skip

    # ---- from a command line to argparse's words

    def read_words(self, args=None):
        """The command line as argparse takes it: config files come first, as the flags they stand for."""
        self.off_switches()
        typed, configs = self.split_configs(map(str, sys.argv[1:] if args is None else args))
        typed = self.plain_words(typed)
        self.locations = self.typed_locations(typed)
        groups = [{a.dest for a in group._group_actions} for group in self._mutually_exclusive_groups]
        settled = set(self.locations).union(*(group for group in groups if group & self.locations.keys()))
        read = {}
        for path in configs:
            read |= self.config_words(path)
        words = []
        for setting, (location, entry) in read.items():
            # A typed flag overrides the file, and the flags that it excludes.
            if setting not in settled:
                self.locations[setting] = location
                words += entry
        return [*words, *typed]

    def off_switches(self):
        """Make --x=false an option of argparse. It is outside the switch's exclusive group: off excludes nothing."""
        for action in [a for a in self._actions if isinstance(a, Switch)]:
            for option in action.option_strings:
                off = Switch([], action.dest, value=action.is_negative(option))
                self._option_string_actions.setdefault(f"{option}=false", off)

    def split_configs(self, words):
        """(remaining words, paths of config files): from --config FILE, or from a config file named first."""
        words, kept, paths = list(words), [], []
        positional = any(not action.option_strings for action in self._actions)
        if words and words[0].endswith(ENDINGS) and not words[0].startswith("-") and not positional:
            paths.append(words.pop(0))
        while words:
            word = words.pop(0)
            if word == "--config" and words:
                paths.append(words.pop(0))
            elif word.startswith("--config="):
                paths.append(word.removeprefix("--config="))
            else:
                kept.append(word)
        return kept, paths

    def plain_words(self, typed):
        """Flags with underscores; switches with a value become --x or --x=false."""
        words, typed = [], list(typed)
        while typed:
            word = typed.pop(0)
            if not word.startswith("--") or len(word) == 2:
                words.append(word)
                continue
            flag, equals, value = word.partition("=")
            flag = flag.replace("-", "_").replace("__", "--", 1)
            action = self._option_string_actions.get(flag)
            if isinstance(action, Switch) and not equals and typed and typed[0].lower() in YES + NO:
                equals, value = "=", typed.pop(0)
            if isinstance(action, Switch) and equals:
                if value.lower() not in YES + NO:
                    self.error(f"{flag}: {value!r}: expected true or false")
                equals, value = ("", "") if value.lower() in YES else ("=", "false")
            if getattr(action, "nargs", None) == "?" and equals and value.lower() == "false":
                # Switched off, whatever its value would be.
                continue
            words.append(f"{flag}{equals}{value}")
        return words

    def typed_locations(self, words):
        """{setting: the flag as typed}; two spellings of one setting are an error."""
        locations = {}
        for word in words:
            flag = word.partition("=")[0]
            action = self._option_string_actions.get(flag)
            if action is None or action.dest == argparse.SUPPRESS:
                continue
            other = locations.setdefault(action.dest, flag)
            if other != flag and not isinstance(action, Switch):
                self.error(f"{flag}: it is the same setting as {other}: give one of them")
        return locations

    def print_notices(self):
        """Print the notices of flags that once had another meaning."""
        for location in self.locations.values():
            option = location if location.startswith("--") else f"--{location.rpartition(': ')[2]}"
            action = self._option_string_actions.get(option)
            if (notice := getattr(action, "notices", {}).get(option)) and os.environ.get("RANK", "0") == "0":
                print(f"note: {location}: {notice}", file=sys.stderr, flush=True)

    # ---- config files

    def config_words(self, path):
        """{setting: (location, argparse's words)} of a config file; each entry is checked on its own.

        Raises:
            UserError: an unknown key, a value that its flag rejects, or a setting given twice.
        """
        words = {}
        for key, value, location in read_config(path):
            option = f"--{str(key).replace('-', '_')}"
            action = self._option_string_actions.get(option)
            if action is None or not option.isprintable() or action.dest == argparse.SUPPRESS:
                raise UserError("there is no such flag", location=location,
                                remedy=self.suggest(option, dashes="") or "see --help")  # fmt: skip
            entry = self.entry_words(action, option, value, location)
            if not entry:
                continue
            if action.dest in words:
                raise UserError(f"the same setting as {words[action.dest][0]}", location=location,
                                remedy="leave one of the two out")  # fmt: skip
            words[action.dest] = location, entry
        return words

    def entry_words(self, action, option, value, location):
        """A config file's value as it would be typed; [] if there is nothing to type."""
        if value is None:
            return []
        if isinstance(action, Switch):
            state = str(value).lower()
            if state not in YES + NO:
                raise UserError(f"it is {brief(value)}", location=location, expected="true or false")
            return [f"{option}=false" if state in NO else option]
        if action.nargs == "?" and isinstance(value, bool):
            return [option] if value else []
        values = self.value_words(action, value, location)
        try:
            parsed = self._get_values(action, values)
            # What takes effect at once waits until it is known which value counts.
            if not getattr(action, "immediate", False):
                action(self, argparse.Namespace(), parsed, option)
        except argparse.ArgumentError as error:
            found, _, expected = error.message.partition(": expected ")
            if "invalid choice" in found:
                found, expected = repr(" ".join(values)), "one of " + ", ".join(map(str, action.choices))
            raise UserError(found, location=location, expected=expected or None, remedy="see --help") from error
        if isinstance(action, Refuse):
            return []
        return [option, *values] if action.nargs in ("+", "*") else [f"{option}={values[0]}"]

    @staticmethod
    def value_words(action, value, location):
        """The words of a value: several for a list or an object, if the flag takes several."""
        several = action.nargs in ("+", "*")
        if several and isinstance(value, dict):
            value = [f"{key}={item}" for key, item in value.items()]
        if several and isinstance(value, str):
            value = value.split()
        if isinstance(value, dict) and getattr(action.type, "written", None) is json.dumps:
            return [json.dumps(value)]
        if isinstance(action, Refuse) and isinstance(value, list | dict):
            value = str(value)
        items = value if several and isinstance(value, list) else [value]
        if not items or any(isinstance(item, list | dict) for item in items):
            expected = "one value or a list of them" if several else "one value"
            raise UserError(f"it is {brief(value)}", location=location, expected=expected)
        if any(isinstance(item, bool) for item in items) and not isinstance(action, Refuse):
            raise UserError(f"it is {brief(value)}", location=location, expected="a number or a text")
        return [str(item) for item in items]

    # ---- unknown flags

    def refuse(self, rest):
        """Exit because no flag takes these words."""
        flag = next((word.partition("=")[0] for word in rest if word.startswith("--")), None)
        if flag is None:
            self.error(f"{rest[0]!r} is neither a config file nor a flag")
        suggestion = self.suggest(flag)
        self.error(f"{flag}: there is no such flag" + (f"; {suggestion}" if suggestion else ""))

    def suggest(self, flag, dashes="--"):
        """A suggestion of the known flag nearest to an unknown one, or None."""
        known = {option: action for p in self.with_subparsers() for option, action in p._option_string_actions.items()}
        visible = [option for option, action in known.items() if action.help != argparse.SUPPRESS and "=" not in option]
        near = sorted((o for o in visible if o.startswith(flag)), key=len)
        near = near or difflib.get_close_matches(flag, visible, n=1, cutoff=0.6)
        return f"did you mean {dashes}{near[0].removeprefix('--')}?" if near else None

    def with_subparsers(self):
        """This parser and those of its sub-commands."""
        commands = [a for a in self._actions if isinstance(a, argparse._SubParsersAction)]
        return [self, *(p for action in commands for p in action.choices.values())]


class _Version(argparse.Action):
    def __call__(self, parser, namespace, values, option_string=None):
        print(version_line())
        parser.exit()


def version_line():
    """Versions of the toolkit and of the libraries that determine its numbers, without importing them."""
    from importlib.metadata import PackageNotFoundError, version

    def installed(name):
        try:
            return version(name)
        except PackageNotFoundError:
            return None

    own = installed("versatile-lm")
    project = Path(__file__).resolve().parents[1] / "pyproject.toml"
    if own is None and project.is_file():
        import tomllib

        own = tomllib.loads(project.read_text(encoding="utf-8"))["project"]["version"]
    libraries = [f"{name} {installed(name) or 'not installed'}" for name in ("torch", "transformers")]
    return f"versatile {own or 'unknown'} ({', '.join(libraries)}, Python {platform.python_version()})"


def build_parser(doc):
    """A parser with a script's docstring as its description; abbreviated flags are not accepted."""
    p = Parser(usage="%(prog)s [config.json|config.yaml] [flags]", description=doc, formatter_class=HelpFormatter,
               allow_abbrev=False)  # fmt: skip
    p.add_argument("--config", metavar="FILE", dest=argparse.SUPPRESS, default=argparse.SUPPRESS,
                   help="read flags from a json or yaml file; those on the command line override it")  # fmt: skip
    p.add_argument("--version", action=_Version, nargs=0, dest=argparse.SUPPRESS, default=argparse.SUPPRESS,
                   help="print the versions of the toolkit, torch and transformers, and exit")  # fmt: skip
    return p


def typed_flags(make_parser, argv=None):
    """{setting: value} of the flags typed or set in a config file, without defaults."""
    bare = make_parser()
    # Values of set_defaults would come back as if they had been typed.
    bare._defaults.clear()
    words = bare.read_words(argv)
    for action in bare._actions:
        action.default = argparse.SUPPRESS
        action.required = False
    return vars(bare.parse_known_args(words)[0])
