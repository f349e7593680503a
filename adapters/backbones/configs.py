"""Read and check a directory's config.json: a family known to transformers, and no code in the directory is run.

pytorch_transformers (1.x) wrote no `model_type`; the family is then inferred from the keys, which differ by family.
"""

from pathlib import Path

from versatile.adapters import manifest, schemas
from versatile.utils import machine
from versatile.utils.errors import UserError, first_line
from versatile.utils.schema import read_json_object, validate

# For a config.json without a model_type: (family, keys it must have, keys it must not have).
_BY_KEYS = (
    ("openai-gpt", {"n_embd", "n_layer", "n_head", "afn"}, set()),
    ("gpt2", {"n_embd", "n_layer", "n_head", "layer_norm_epsilon"}, {"afn", "dff"}),
    ("bert", {"hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "type_vocab_size"},
     {"embedding_size"}),
)  # fmt: skip
# Parameter names that identify the family if the config's keys do not.
_BY_WEIGHTS = (("roberta", "roberta."), ("openai-gpt", "tokens_embed.weight"), ("gpt2", "wte.weight"),
               ("bert", "embeddings.word_embeddings.weight"))  # fmt: skip
_DTYPES = ("float32", "float16", "bfloat16", "float64", "auto")


def config_of_file(path, location):
    """The transformers config in a file.

    Args:
        path: config.json, or another json file of the same form.
        location: where it was named, for errors.

    Raises:
        UserError: not json, a value of the wrong type or out of range, or a family that transformers itself does not
            know: it would need code from the directory, which is never run.
    """
    from transformers import CONFIG_MAPPING

    location = f"{location}: {Path(path).name}"
    values = validate(read_json_object(path, location=location), schemas.TRANSFORMERS, location)
    for key in ("dtype", "torch_dtype"):
        if str(values.get(key) or "float32").removeprefix("torch.") not in _DTYPES:
            raise UserError(f"{key} is {values[key]!r}", location=location, expected="one of " + ", ".join(_DTYPES))
    if values.get("versatile") is not None:
        manifest.upgrade(values["versatile"], "versatile", location)
    model_type = values.get("model_type") or _family_of_old(values, Path(path).parent)
    if model_type is None:
        raise UserError("no 'model_type', and its keys match no model known here", location=location,
                        expected="a config.json of transformers, or of pytorch_transformers' gpt2, openai-gpt or bert",
                        remedy='add "model_type" by hand')  # fmt: skip
    if model_type not in CONFIG_MAPPING:
        note = " (code that comes with a model is never run)" if "auto_map" in values else ""
        raise UserError(f"model_type {model_type!r} is unknown to transformers{note}", location=location,
                        expected="a model that needs no code of its own",
                        remedy="choose another backbone")  # fmt: skip
    values.pop("auto_map", None)
    try:
        config = CONFIG_MAPPING[model_type].from_dict(values)
    except Exception as error:
        # transformers' own checks raise many kinds of errors; a config that it rejects is bad input in any case.
        raise UserError(f"cannot be used: {first_line(error)}", location=location, expected="a transformers config",
                        remedy="copy it again from where it was written") from error  # fmt: skip
    config._name_or_path = str(Path(path).parent)
    return config


def _family_of_old(values, folder):
    """The model type of a config without one, or None."""
    for model_type, present, absent in _BY_KEYS:
        if present <= set(values) and not absent & set(values):
            # RoBERTa has the same keys as BERT, but only one token type.
            is_roberta = model_type == "bert" and values["type_vocab_size"] == 1
            return "roberta" if is_roberta else model_type
    names = weight_names(folder)
    return next((family for family, part in _BY_WEIGHTS if any(part in name for name in names)), None)


def weight_names(folder):
    """Names of the weights in a directory; [] if none can be read."""
    import torch
    from safetensors import safe_open

    try:
        if (path := folder / "model.safetensors").is_file():
            with safe_open(path, "pt") as file:
                return list(file.keys())
        return list(torch.load(folder / "pytorch_model.bin", map_location="meta", weights_only=True))
    except Exception:
        # Loading the file reports whatever is wrong with it.
        return []


def check_size(config, folder, build, location):
    """Raise a `UserError` if a config does not match the weights beside it, or describes a model too large for memory.

    The model is built from shapes only, so that wrong sizes in a damaged config allocate nothing.

    Args:
        config: a transformers config.
        folder: the directory or hub name; only a directory's model.safetensors is compared.
        build: config -> model.
    """
    import torch
    from safetensors import SafetensorError, safe_open
    from transformers.initialization import no_init_weights

    try:
        with torch.device("meta"), no_init_weights():
            shapes = {name: list(tensor.shape) for name, tensor in build(config).state_dict().items()}
    except Exception as error:
        # A model's constructor raises many kinds of errors on an inconsistent config.
        raise UserError(f"the config cannot be built: {first_line(error)}", location=location,
                        expected="sizes that fit together", remedy="copy config.json again") from error  # fmt: skip
    elements = sum(torch.Size(shape).numel() for shape in shapes.values())
    memory = machine.memory()
    if 4 * elements > memory:
        raise UserError(
            f"config.json describes {elements:,} parameters, {4 * elements / 2**30:,.0f} GiB",
            location=location,
            expected=f"a model that fits this machine's {memory / 2**30:,.0f} GiB of memory",
            remedy="copy config.json again, or choose a smaller model",
        )
    path = Path(folder) / "model.safetensors"
    if not path.is_file():
        return
    try:
        with safe_open(path, "pt") as file:
            held = {name: file.get_slice(name).get_shape() for name in list(file.keys())}
    except (SafetensorError, OSError, ValueError):
        return  # reported when it is loaded
    for name in shapes.keys() & held.keys():
        if shapes[name] != held[name]:
            raise UserError(f"{name} has the shape {held[name]} in model.safetensors, {shapes[name]} in config.json",
                            location=location, expected="config.json and weights of the same model",
                            remedy="copy both again from one directory")  # fmt: skip
