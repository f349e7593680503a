"""Config files: the settings in a json or yaml file, each with the line or the key where it is."""

import json
from pathlib import Path

from versatile.utils.errors import UserError, brief, first_line
from versatile.utils.files import find_shipped
from versatile.utils.schema import unique_keys

ENDINGS = (".json", ".yaml", ".yml")
EXPECTED = "an object of flags without their dashes, such as lr: 0.001"


def read_config(path):
    """[(key, value, location)] of a config file.

    Raises:
        UserError: the file cannot be read or parsed, is not an object, or names a key twice.
    """
    try:
        text = Path(find_shipped(path)).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror}", location=path, expected="a json or yaml file of flags",
                        remedy="those of the published methods are in configs/") from error  # fmt: skip
    except UnicodeDecodeError as error:
        raise UserError(f"not UTF-8: {error}", location=path, remedy="save the file as UTF-8") from error
    return _parse_yaml(text, path) if str(path).endswith((".yaml", ".yml")) else _parse_json(text, path)


def _parse_json(text, path):
    try:
        content = json.loads(text, object_pairs_hook=unique_keys)
    except (ValueError, RecursionError) as error:
        raise UserError(f"not valid json: {first_line(error)}", location=path, remedy="correct the file") from error
    if not isinstance(content, dict):
        raise UserError(f"{brief(content)} is not a json object", location=path, expected=EXPECTED)
    return [(key, value, f"{path}: {key}") for key, value in content.items()]


def _parse_yaml(text, path):
    import yaml

    try:
        loader = yaml.SafeLoader(text)
        root = loader.get_single_node()
        if root is None:
            return []
        if not isinstance(root, yaml.MappingNode):
            raise UserError("not a yaml mapping", location=f"{path}:{root.start_mark.line + 1}", expected=EXPECTED)
        entries, seen = [], set()
        for key_node, value_node in root.value:
            key, location = str(loader.construct_object(key_node)), f"{path}:{key_node.start_mark.line + 1}"
            if key in seen:
                raise UserError(f"the key {key} appears twice", location=location, expected="each key once")
            seen.add(key)
            entries.append((key, loader.construct_object(value_node, deep=True), f"{location}: {key}"))
        return entries
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        problem = getattr(error, "problem", None) or first_line(error)
        raise UserError(f"not valid yaml: {problem}", location=f"{path}:{mark.line + 1}" if mark else path,
                        remedy="correct the file") from error  # fmt: skip
