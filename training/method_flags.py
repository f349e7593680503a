"""--method and flags for the settings of all adaptation methods, generated from the methods' declarations."""

from versatile.adapters.methods.registry import BARE, FULL, all_methods, get_method
from versatile.utils import flags
from versatile.utils.errors import UserError

# Scripts define this flag themselves.
WIDTH = "adapter_bottleneck"

# For the help of scripts that train only models of one kind.
ONLY_CLASSIFIERS = "conditional is for a BERT that classifies, in train_camtl.py"
ONLY_GENERATORS = "prefix, prompt and task_embeddings are for models that generate"


def method_names():
    """Values of --method; a component of the whole model, such as self-copy, is not a method."""
    return [FULL, *sorted(all_methods())]


def setting_names():
    """All settings with a generated flag, i.e. all but the bottleneck's width."""
    return sorted({name for method in all_methods().values() for name in method.settings} - {WIDTH})


def settings_of_methods(methods):
    """Names of the settings of these methods."""
    return [name for method in methods for name in get_method(method).settings]


def users_of(setting):
    """The methods that have a setting."""
    return [method for method in all_methods().values() if setting in method.settings]


def add_setting_flags(group, names=None):
    """Add a flag for each named setting; None: for all of `setting_names`."""
    for name in names or setting_names():
        kind, default, text = users_of(name)[0].settings[name]
        methods = " or ".join(method.name for method in users_of(name))
        group.add_argument(f"--{name}", type=getattr(flags, kind),
                           help=f"--method {methods}: {text} (default {setting_text(default)})")  # fmt: skip


def setting_text(value):
    """A setting's value as shown in help texts and directory names: 16.0 is "16"."""
    return value if isinstance(value, str) else f"{value:g}"


def check_settings(args, names, settings=None, locate="--{}".format):
    """Raise a `UserError` if a setting was given that none of the methods in use has.

    Args:
        args: flags.
        names: names of the methods in use.
        settings: the settings to check (default: `setting_names`).
        locate: maps a setting's name to where it was given.
    """
    for setting in settings or setting_names():
        users = [method.name for method in users_of(setting)]
        if getattr(args, setting, None) is not None and not set(users) & set(names):
            raise UserError(f"has no effect with the method {' '.join(dict.fromkeys(names))}", location=locate(setting),
                            expected=f"--method {' or '.join(users)}",
                            remedy="leave it out, or choose that")  # fmt: skip


def choose_method(args, name, width=None, default_width=None):
    """A task's adaptation method in the form that `methods.registry.method_of` accepts; None: train the whole model.

    Args:
        args: flags, from which the settings are read.
        name: value of --method; None: the width decides.
        width: value of --adapter_bottleneck: None or below 0 if not given, 0: task embeddings only.
        default_width: width of the method bottleneck if none is given; None: the method's own default.

    Raises:
        UserError: a width that contradicts the method.
    """
    width = None if width is None or width < 0 else width
    if name is None:
        name = FULL if width is None else "bottleneck" if width else BARE
    elif width is not None and (name, width > 0) not in (("bottleneck", True), (BARE, False)):
        raise UserError(f"--method {name} was given", location=f"--{WIDTH} {width}",
                        expected="--method bottleneck with a width from 1, or --method task_embeddings with 0",
                        remedy="leave one of the two out")  # fmt: skip
    if name == FULL:
        return None
    values = {setting: getattr(args, setting, None) for setting in get_method(name).settings}
    if name == "bottleneck":
        values[WIDTH] = width or default_width
    return dict(method=name, **{setting: value for setting, value in values.items() if value is not None})


def name_of(method):
    """A method's name with its non-default settings, for directory names: "lora_rank4"."""
    if method is None:
        return FULL
    name, parts = method["method"], [method["method"]]
    for setting, (_, default, _) in get_method(name).settings.items():
        if method.get(setting, default) != default:
            parts.append(f"{setting.removeprefix(name + '_')}{setting_text(method[setting])}".replace(",", "-"))
    return "_".join(parts)
