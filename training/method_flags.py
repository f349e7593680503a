"""--method and the settings of every way of adapting, as flags; generated from what the methods' files declare."""

from versatile.adapters.methods.registry import BARE, FULL, all_methods, get_method
from versatile.utils import flags
from versatile.utils.errors import UserError


def method_names():
    """What --method takes."""
    return [FULL, *sorted(all_methods())]


def add_method_flags(group, published=()):
    """A flag for each setting of each method.

    Args:
        group: of a parser.
        published: settings that the script has a flag of its own for.
    """
    for method, settings in _settings().items():
        for name, (kind, default, text) in settings.items():
            if name not in published:
                group.add_argument(f"--{name}", type=getattr(flags, kind),
                                   help=f"--method {method}: {text} (default {default:g})")  # fmt: skip


def _settings():
    """{methods that share a file, as one word: their settings}, of methods with settings."""
    files = {}
    for name, description in all_methods().items():
        files.setdefault(description.module, []).append(name)
    return {" or ".join(names): all_methods()[names[0]].settings for names in files.values()}


def add_method_flag(group, default):
    """--method of a script that adapts all tasks alike.

    Args:
        default: what the help says where it is not given.
    """
    group.add_argument("--method", choices=method_names(), help=f"how the backbone is adapted (default: {default})")


def chosen_method(args, width=None, default_width=None):
    """How the backbone is adapted, as `methods.registry.method_of` takes it; None: the whole model is trained.

    Args:
        args: flags; `method` may be None: the width decides.
        width: of --adapter_bottleneck: None where it was not given, below 0: no adapter, 0: task embeddings alone.
        default_width: where the method is bottleneck and no width was given; None: the method's own default.

    Raises:
        UserError: a setting of another method, a width that contradicts the method.
    """
    name = args.method
    if name is None:
        name = FULL if width is None or width < 0 else "bottleneck" if width else BARE
    elif width is not None and width != {FULL: -1, BARE: 0}.get(name, max(width, 1) if name == "bottleneck" else None):
        raise UserError(f"--method {name} was given", place=f"--adapter_bottleneck {width}",
                        expected="--method bottleneck, or none", remedy="leave one of the two out")  # fmt: skip
    settings = {} if name == FULL else get_method(name).settings
    for other, theirs in _settings().items():
        for setting in theirs:
            if setting not in settings and setting != "adapter_bottleneck" and getattr(args, setting, None) is not None:
                raise UserError(f"has no effect with the method {name}", place=f"--{setting}",
                                expected=f"--method {other}", remedy="leave it out, or choose that")  # fmt: skip
    if name == FULL:
        return None
    chosen = {s: getattr(args, s) for s in settings if getattr(args, s, None) is not None and s != "adapter_bottleneck"}
    if name == "bottleneck" and (width or default_width):
        chosen["adapter_bottleneck"] = width or default_width
    return dict(method=name, **chosen)


def name_of(method):
    """A method with the settings that it has besides defaults, for the names of directories: "lora_rank4"."""
    if method is None:
        return FULL
    declared = get_method(method["method"]).settings
    parts = [method["method"]]
    for setting, (_, default, _) in declared.items():
        if method.get(setting, default) != default:
            parts.append(f"{setting.removeprefix(method['method'] + '_')}{method[setting]:g}")
    return "_".join(parts)
