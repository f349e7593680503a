"""--method and the settings of every way of adapting, as flags; generated from what the methods' files declare."""

from versatile.adapters.methods.registry import BARE, FULL, all_methods, get_method
from versatile.utils import flags
from versatile.utils.errors import UserError

# Scripts have a flag of their own for it.
WIDTH = "adapter_bottleneck"


def method_names():
    """What --method takes: a method's name; a helper of the whole model's (self-copy) is none."""
    return [FULL, *sorted(all_methods())]


def setting_names():
    """Every setting that has a generated flag, but the bottleneck's width."""
    return sorted({name for method in all_methods().values() for name in method.settings} - {WIDTH})


def settings_of(methods):
    """The settings of these methods, by their names."""
    return [name for method in methods for name in get_method(method).settings]


def users_of(setting):
    """The methods that have a setting."""
    return [method for method in all_methods().values() if setting in method.settings]


def add_setting_flags(group, names=None):
    """A flag for each setting by name; None: for all of `setting_names`."""
    for name in names or setting_names():
        kind, default, text = users_of(name)[0].settings[name]
        methods = " or ".join(method.name for method in users_of(name))
        group.add_argument(f"--{name}", type=getattr(flags, kind),
                           help=f"--method {methods}: {text} (default {setting_text(default)})")  # fmt: skip


def setting_text(value):
    """A setting's value as a help text or a directory's name has it: 16.0 is "16"."""
    return value if isinstance(value, str) else f"{value:g}"


def check_settings(args, names, settings=None, locate="--{}".format):
    """A `UserError` where a setting was given that no method of those in use has.

    Args:
        args: flags.
        names: of the methods in use.
        settings: those that are looked at (default: `setting_names`).
        locate: gives where a setting stands, by its name.
    """
    for setting in settings or setting_names():
        users = [method.name for method in users_of(setting)]
        if getattr(args, setting, None) is not None and not set(users) & set(names):
            raise UserError(f"has no effect with the method {' '.join(dict.fromkeys(names))}", location=locate(setting),
                            expected=f"--method {' or '.join(users)}",
                            remedy="leave it out, or choose that")  # fmt: skip


def choose_method(args, name, width=None, default_width=None):
    """How a task is adapted, as `methods.registry.method_of` takes it; None: the whole model is trained.

    Args:
        args: flags, of which the settings count.
        name: of --method; None: the width decides.
        width: of --adapter_bottleneck: None or below 0 where it was not given, 0: task embeddings alone.
        default_width: of the method bottleneck without a width; None: the method's own default.

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
    """A method with the settings that are not its defaults, for the names of directories: "lora_rank4"."""
    if method is None:
        return FULL
    name, parts = method["method"], [method["method"]]
    for setting, (_, default, _) in get_method(name).settings.items():
        if method.get(setting, default) != default:
            parts.append(f"{setting.removeprefix(name + '_')}{setting_text(method[setting])}".replace(",", "-"))
    return "_".join(parts)
