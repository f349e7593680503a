"""Load a backbone and its tokenizer by name. The supported families are in family.py and one file each."""

import copy
import hashlib
import os
import re
import time
from pathlib import Path

from versatile.adapters.backbones.configs import check_size, config_of_file
from versatile.adapters.backbones.family import backbone_of
from versatile.adapters.backbones.quantized import keep_gradients, plain_state, quantization_config
from versatile.adapters.manifest import refuse_sequence
from versatile.utils.errors import UserError, first_line
from versatile.utils.schema import read_json_object
from versatile.utils.screen import resume_command

# Flags that name a T5, and nothing else.
T5_FLAGS = ("--model_name_or_path", "--config_name")


def load_backbone(name, random_init=False, location=None, quantization=None):
    """A backbone and its fast tokenizer.

    Args:
        name: a bundled name (`smollm2`, `tiny-gpt2`, `tiny-llama`, `tiny-t5`), a local directory, or a hub name.
        random_init: a seed: random weights drawn reproducibly from it instead of the pretrained ones, in the same
            shape. True: a seed drawn from torch's global generator. False or None: the pretrained weights.
        location: where it was named, for errors (default: --model_checkpoint).
        quantization: "4bit" or "8bit", see `backbones.quantized`; None: no quantisation.

    Returns:
        (model in fp32 and eval mode, tokenizer); `model.random_init_seed` is the seed or None,
        `model.quantization` as above, and `model.backbone_fingerprint` identifies the weights (only the unquantised
        ones of a quantised model).

    Raises:
        UserError: no model of that name, an unsupported family, files that cannot be read, or a tokenizer that
            does not fit the model's vocabulary.
    """
    from versatile.adapters.backbones import bundled

    location = location or f"--model_checkpoint {name}"
    folder = bundled.resolve(name)
    config = read_config(folder, location)
    backbone_of(config, location)
    seed = _seed_of(random_init)
    model, tokenizer = _load_transformers(folder, config, location, seed, quantization)
    check_table(model, tokenizer, location)
    keep_name(model, name)
    model.backbone_fingerprint = fingerprint(plain_state(model))
    model.random_init_seed, model.quantization = seed, quantization
    keep_gradients(model)
    return model.eval(), tokenizer


def check_table(model, tokenizer, location, remedy="use the tokenizer that belongs to the model"):
    """Raise a `UserError` if a model's embedding table has fewer rows than the tokenizer has tokens."""
    if len(tokenizer) > (rows := len(model.get_input_embeddings().weight)):
        raise UserError(f"the tokenizer knows {len(tokenizer)} tokens, the model's table has {rows} rows",
                        location=location, expected="a row for every token", remedy=remedy)  # fmt: skip
    token, highest = max(tokenizer.get_vocab().items(), key=lambda pair: pair[1])
    if highest >= rows:
        raise UserError(f"the tokenizer's token {token!r} has the id {highest}, the model's table has {rows} rows",
                        location=location, expected="a row for every token", remedy=remedy)  # fmt: skip


def keep_name(model, name):
    """Record in a model's config what it was loaded from: for a directory the absolute path, as a run may be evaluated
    from another working directory."""
    from versatile.adapters.backbones import bundled

    local = name not in bundled.NAMES and Path(name).is_dir()
    model.config._name_or_path = str(Path(name).resolve()) if local else str(name)


def check_weights(state, missing, location):
    """Raise a `UserError` if loaded weights are not finite, or some were missing from the file.

    Args:
        state: the state dict.
        missing: names of the missing weights.
    """
    if bad := not_finite(state):
        raise UserError(f"the weights hold values that are not numbers (first in {bad})", location=location,
                        expected="finite numbers", remedy="fetch or copy the file again")  # fmt: skip
    if missing:
        raise UserError(f"{len(missing)} weights are missing, first {min(missing)}", location=location,
                        expected="every weight of the model in the file",
                        remedy="fetch the file again, or point to the right directory")  # fmt: skip


def _seed_of(random_init):
    """The seed for random weights, or None. `True == 1` and `0 == False`, but 1 and 0 are valid seeds."""
    if random_init is None or random_init is False:
        return None
    if random_init is True:
        import torch

        return int(torch.randint(2**31, ()))
    return random_init


def need_directory(path, location, expected=None, remedy=None):
    """Raise a `UserError` if a directory does not exist, listing the contents of its parent."""
    path = Path(path)
    if path.is_dir():
        if not os.access(path, os.R_OK | os.X_OK):
            raise UserError("no permission to read this directory", location=location, expected=expected,
                            remedy="ask its owner, or copy it")  # fmt: skip
        return
    if path.exists():
        raise UserError("this is a file", location=location, expected=expected or "a directory", remedy=remedy)
    near = ""
    if path.parent.is_dir():
        names = sorted(p.name for p in path.parent.iterdir() if not p.name.startswith("."))
        near = f" ({path.parent} holds: {', '.join(names[:8]) or 'nothing'})"
    raise UserError(f"no such directory{near}", location=location, expected=expected, remedy=remedy)


def read_config(folder, location):
    """The transformers config of a directory or hub name; every failure is a `UserError`."""
    from transformers import AutoConfig

    path, for_t5 = Path(folder), location.startswith(T5_FLAGS)
    _check_name(folder, location)
    if path.exists() or (len(path.parts) > 1 and path.parent.is_dir()):
        # For a path such as runs/mistyped, do not ask the hub.
        need_directory(path, location, "a model's directory or hub name")
    if path.is_dir():
        require_config(path, location, "train_t5.py" if for_t5 else "train.py", "a T5's directory"
                       if for_t5 else "a transformers model, or a run directory of train.py that has saved a model")
        return config_of_file(path / "config.json", location)
    try:
        reach_hub(str(folder))
        # Code shipped with a model is never run.
        return AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:
        # The hub's libraries raise many kinds of errors.
        if "trust_remote_code" in str(error):
            raise UserError("this model needs code of its own, which is never run", location=location,
                            expected="a model that transformers itself supports",
                            remedy="choose another backbone") from error  # fmt: skip
        raise UserError(
            "no such directory, and the hub has no such model or cannot be reached",
            location=location,
            expected="a T5: a local directory, a hub name, or tiny-t5"
            if for_t5
            else "a local directory, a hub name, or one of smollm2, tiny-gpt2, tiny-llama, tiny-t5",
            remedy="without a network: tiny-t5, a directory, or --from_scratch"
            if for_t5
            else "without a network use smollm2 (installed by ./run.sh setup)",
        ) from error


def newest_checkpoint(path):
    """The checkpoint of most steps below a run's directory or its checkpoints/, or None."""
    path = Path(path)
    folders = [*path.glob("checkpoints/step_*"), *path.glob("checkpoint-*"), *path.glob("step_*")]
    steps = {int(number[0]): folder for folder in folders if (number := re.search(r"\d+$", folder.name))}
    return steps[max(steps)] if steps else None


def unsaved_model(path, location, script):
    """A `UserError`: a run has not saved a model yet.

    Args:
        path: its directory.
        script: the script that resumes it, if its run.json does not say.
    """
    newest = newest_checkpoint(path)
    return UserError("this run has not saved a best model yet", location=location,
                     remedy=f"resume it: {resume_command(_script_of(path) or script, path)}"
                     + (f"; or take its last checkpoint, {newest}" if newest else ""))  # fmt: skip


def _script_of(path):
    """The script that made a run, from its run.json, or None."""
    try:
        words = str(read_json_object(path / "run.json").get("command", "")).split()
    except UserError:
        return None
    return words[0] if words and re.fullmatch(r"[a-z_0-9]+\.py", words[0]) else None


def require_config(path, location, script, expected):
    """Raise a `UserError` if a directory has no config.json and so no model, saying what it holds instead.

    Args:
        script: the script that resumes a run which has not saved a model yet, if its run.json does not say.
        expected: what was expected, for other directories.
    """
    if (path / "config.json").is_file():
        return
    refuse_sequence(path, location)
    if (path / "adapter_config.json").is_file():
        raise UserError("this is a trained model, whose weights are additions to a backbone", location=location,
                        expected=expected,
                        remedy="name its backbone: adapter_config.json holds the name")  # fmt: skip
    if (path / "run.json").is_file():
        raise unsaved_model(path, location, script)
    found = ", ".join(sorted(p.name for p in path.iterdir())[:8]) or "nothing"
    newest = newest_checkpoint(path)
    raise UserError(f"the directory has no config.json (it holds: {found})", location=location, expected=expected,
                    remedy=f"name a checkpoint; the newest is {newest}" if newest else None)  # fmt: skip


def locate(name, file):
    """Find the backbone named in an adapter_config.json.

    Args:
        name: its `base_model_name_or_path`.
        file: the adapter_config.json.

    Returns:
        (the name, or the path of a directory of that name near the adapters if the run was moved; where it was named,
        for errors)

    Raises:
        UserError: the directory no longer exists.
    """
    path, location = Path(name), f"{file}: base_model_name_or_path {name}"
    _check_name(name, location)
    if path.is_absolute() and not path.exists():
        neighbours = (folder / path.name for folder in list(file.absolute().parents)[:3])
        moved = next((folder for folder in neighbours if (folder / "config.json").is_file()), None)
        if moved is None:
            raise UserError(
                "no such directory: the backbone that the adapters were trained on has moved",
                location=location,
                expected="its directory, or its hub name",
                remedy=f"restore the directory, or put it next to the adapters, or write its new path into {file}",
            )
        name = str(moved)
    return name, location


def _check_name(name, location):
    """Raise a `UserError` if a name can be neither a path nor a hub name: too long, or not encodable."""
    try:
        Path(name).exists()
        str(name).encode()
    except (OSError, ValueError) as error:
        raise UserError(f"not a valid name: {first_line(error)}", location=location,
                        expected="a model's directory or hub name") from error  # fmt: skip


def read_tokenizer(folder, location=None, expected="tokenizer.json, or vocab.json and merges.txt, next to config.json",
                   **more):  # fmt: skip
    """The tokenizer of a directory or hub name, as transformers reads it; no code shipped with it is run.

    Args:
        location, expected: for the `UserError` if it cannot be read (default location: the folder).
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, **more)
    except Exception as error:
        # transformers raises whatever its parsers raise; a file that does not load is bad input in any case.
        raise UserError(f"the tokenizer cannot be read: {first_line(error)}", location=location or folder,
                        expected=expected, remedy="copy it again") from error  # fmt: skip
    # Without a vocabulary's file, transformers makes a tokenizer that knows special tokens, and at most a blank.
    special = {*tokenizer.all_special_tokens, *map(str, tokenizer.added_tokens_decoder.values())}
    if len(set(tokenizer.get_vocab()) - special) < 2:
        raise UserError("the tokenizer has no vocabulary", location=location or folder, expected=expected,
                        remedy="copy the tokenizer's files again")  # fmt: skip
    return tokenizer


def reach_hub(name, file="config.json", tries=2):
    """Raise an OSError if the hub cannot be reached and a model's file is not in the cache.

    Fetching itself would retry for half a minute, or for many minutes if nothing answers. Slow or negative answers are
    left to the fetch that follows.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache

    if isinstance(try_to_load_from_cache(name, file), str):
        return
    for left in reversed(range(tries)):
        try:
            get_hf_file_metadata(hf_hub_url(name, file))
            return
        except Exception as error:
            # Compared by name, as the classes belong to whichever HTTP library huggingface_hub uses.
            kinds = {kind.__name__ for kind in type(error).__mro__}
            if not kinds & {"ConnectError", "ConnectTimeout", "ConnectionError"}:
                return
            if not left:
                raise OSError(f"the hub cannot be reached: {first_line(error)}") from error
            time.sleep(1)


def _load_transformers(folder, config, location, seed, quantization):
    import torch
    import transformers

    auto = getattr(transformers, backbone_of(config, location).auto_class)
    tokenizer = read_tokenizer(folder, location, config=config)
    if not tokenizer.is_fast:
        raise UserError("its tokenizer has no fast version", location=location, expected="a tokenizer.json")
    check_size(config, folder, lambda config: auto.from_config(config, trust_remote_code=False), location)
    # A half-precision checkpoint still trains in fp32; autocast decides what is computed in half precision.
    config.dtype = torch.float32
    quantized = {}
    if quantization:
        quantized = dict(quantization_config=quantization_config(quantization, config.model_type, location))
    if seed is not None:
        if quantized:
            raise UserError("random weights must be trained; quantised ones cannot",
                            location=f"--load_in_{quantization}", expected="a pretrained backbone",
                            remedy="leave this or --random_init out")  # fmt: skip
        # Depends only on the seed, and leaves the global random state unchanged.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return _with_own_head(auto.from_config(config, dtype=torch.float32)), tokenizer
    _check_generation_config(Path(folder) / "generation_config.json", config)
    try:
        model, info = auto.from_pretrained(
            folder, config=config, dtype=torch.float32, output_loading_info=True, weights_only=True,
            trust_remote_code=False, **quantized,
        )  # fmt: skip
    except Exception as error:
        raise UserError(
            f"the weights cannot be read: {first_line(error)}",
            location=location,
            expected="a whole model.safetensors or pytorch_model.bin",
            remedy="fetch the file again",
        ) from error
    check_weights(plain_state(model), info["missing_keys"], location)
    if backbone_of(config).encoder_decoder:
        # transformers assumes every T5 is tied and unties it if the file has a separate head (v1.1, Flan, mT5).
        # Unless the config records this, the next resizing would tie it again.
        tables = model.get_input_embeddings().weight, model.get_output_embeddings().weight
        model.config.tie_word_embeddings = tables[0] is tables[1]
    return model, tokenizer


def _check_generation_config(path, config):
    """Raise a `UserError` if a model's own settings of `generate` cannot be read or name tokens that it does not have;
    transformers would put the former down to the weights."""
    from transformers import GenerationConfig

    if not path.is_file():
        return
    try:
        own = GenerationConfig.from_pretrained(path.parent).to_dict()
    except Exception as error:
        raise UserError(f"not readable: {first_line(error)}", location=path, expected="settings of generation",
                        remedy="fetch the file again, or delete it") from error  # fmt: skip
    for name in ("forced_bos_token_id", "forced_eos_token_id", "suppress_tokens", "begin_suppress_tokens"):
        value = own.get(name)
        ids = value if isinstance(value, list) else [value]
        if any(isinstance(i, int) and i >= config.vocab_size for i in ids):
            raise UserError(f"{name} is {value}", location=path, expected=f"ids below {config.vocab_size}",
                            remedy="fetch the file again, or delete it")  # fmt: skip


def _with_own_head(model):
    """Untie the head of a randomly initialised encoder-decoder without head scaling (T5 v1.1, Flan, mT5).

    transformers ties it by default, as there is no file with a separate head.
    """
    backbone = backbone_of(model.config)
    if backbone.encoder_decoder and backbone.head_scale(model.config) == 1.0:
        head = copy.deepcopy(model.get_output_embeddings())
        head.weight.data.normal_(std=model.config.initializer_factor)
        model.set_output_embeddings(head)
        model.config.tie_word_embeddings = False
    return model


def not_finite(state):
    """The first key of a state dict whose tensor holds NaN or an infinity, or None."""
    for key, tensor in state.items():
        if not tensor.is_floating_point() or not tensor.numel():
            continue
        # 8-bit types have no minimum.
        values = tensor if tensor.element_size() > 1 else tensor.float()
        # Minimum and maximum suffice, without a copy of the tensor; both are NaN if any value is.
        if not all(e.isfinite() for e in values.aminmax()):
            return key
    return None


def fingerprint(state):
    """A short hash that identifies a backbone's weights, given as a state dict.

    It covers shapes, names and 64 evenly spaced values of every tensor: enough to detect another model or another
    training run, at a cost that does not grow with their size.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        flat = tensor.detach().reshape(-1)
        sample = flat[:: max(1, len(flat) // 64)][:64].float().cpu().numpy()
        digest.update(f"{name}{tuple(tensor.shape)}".encode() + sample.tobytes())
    return digest.hexdigest()[:16]
