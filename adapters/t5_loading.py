"""Load a T5 by name or directory, or create one from scratch in a named size."""

import json
from pathlib import Path

from versatile.utils.errors import UserError, first_line

# Raffel et al. 2020; t5-tiny and t5-mini are those of Tay et al. 2021 ("Scale Efficiently").
SIZES = {
    "t5-tiny": dict(d_model=256, d_ff=1024, d_kv=32, num_layers=4, num_heads=4),
    "t5-mini": dict(d_model=384, d_ff=1536, d_kv=32, num_layers=4, num_heads=8),
    "t5-small": dict(d_model=512, d_ff=2048, d_kv=64, num_layers=6, num_heads=8),
    "t5-base": dict(d_model=768, d_ff=3072, d_kv=64, num_layers=12, num_heads=12),
    "t5-large": dict(d_model=1024, d_ff=4096, d_kv=64, num_layers=24, num_heads=16),
    "t5-v1_1-small": dict(d_model=512, d_ff=1024, d_kv=64, num_layers=8, num_heads=6),
    "t5-v1_1-base": dict(d_model=768, d_ff=2048, d_kv=64, num_layers=12, num_heads=12),
    "t5-v1_1-large": dict(d_model=1024, d_ff=2816, d_kv=64, num_layers=24, num_heads=16),
}
FLAG = "--model_name_or_path {}"
_V1_1 = dict(feed_forward_proj="gated-gelu", tie_word_embeddings=False)


def load_bare_t5(name, seed, tokenizer_name=None, dropout=None, from_scratch=False, config_name=None,
                 config_overrides=None):  # fmt: skip
    """A T5 and its tokenizer.

    Args:
        name: the model's directory or hub name; from scratch, the default of the two names below.
        seed: random seed of untrained weights.
        tokenizer_name: name or file of another tokenizer.
        dropout: dropout rate, or None for the model's own.
        from_scratch: random weights in the shape `config_name`.
        config_name, config_overrides: see `load_config`; from scratch only.

    Returns:
        (T5ForConditionalGeneration or a related class in fp32, tokenizer)

    Raises:
        UserError: no model of that name, files that cannot be read, or a tokenizer that does not fit.
    """
    if from_scratch:
        model, tokenizer = random_model(config_name or name, tokenizer_name or name, seed, config_overrides)
    else:
        for flag, value in (("config_name", config_name), ("config_overrides", config_overrides)):
            if value not in (None, name):
                raise UserError("trained weights fit only their own shape", location=f"--{flag}",
                                remedy="leave it out, or train from scratch with --from_scratch")  # fmt: skip
        model, tokenizer = pretrained(name, tokenizer_name)
    if dropout is not None:
        set_dropout(model, dropout)
    return model, tokenizer


def pretrained(name, tokenizer_name=None):
    """A trained model and its tokenizer; see `load_bare_t5`."""
    from versatile.adapters import t5
    from versatile.adapters.backbones import loading as backbones
    from versatile.adapters.manifest import peek

    manifest = peek(name)
    if manifest and manifest.mode == "adapter" and manifest.encoder == "text_to_text":
        raise UserError("these are adapters trained by train_t5.py, not a bare T5", location=FLAG.format(name),
                        remedy="name the T5 that they were trained on: adapter_config.json holds its name")  # fmt: skip
    model, tokenizer = t5.load_t5_of_name(name, location=FLAG.format(name))
    if tokenizer_name not in (None, name):
        tokenizer = load_tokenizer(tokenizer_name)
        backbones.check_table(model, tokenizer, f"--tokenizer_name {tokenizer_name}")
    return model, tokenizer


def random_model(shape, source, seed, config_overrides=None):
    """A model with random weights and a tokenizer.

    Args:
        shape, config_overrides: see `load_config`.
        source: see `load_tokenizer`.
        seed: random seed of the weights.
    """
    import torch
    from transformers import AutoModelForSeq2SeqLM

    if not shape:
        raise UserError("no shape", location="--from_scratch", expected=f"--config_name, such as {', '.join(SIZES)}")
    if not source:
        raise UserError("no tokenizer", location="--from_scratch", expected="--tokenizer_name, such as a spiece.model")
    tokenizer = load_tokenizer(source)
    config = load_config(shape, tokenizer, config_overrides)
    if config.vocab_size < len(tokenizer):
        raise UserError(f"the tokenizer knows {len(tokenizer)} tokens, the shape has {config.vocab_size}",
                        location=f"--config_name {shape}", expected="a row for every token",
                        remedy=f"--config_overrides vocab_size={rows_for(tokenizer)}")  # fmt: skip
    # The weights must depend only on the seed.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForSeq2SeqLM.from_config(config, dtype=torch.float32)
    model.random_init_seed = seed
    return model, tokenizer


def rows_for(tokenizer):
    """Rows of the embedding table: a multiple of 128, as in the published models (32,128 for 32,100 tokens)."""
    return -(-len(tokenizer) // 128) * 128


def load_config(name, tokenizer, overrides=None):
    """A T5 config of a named size, a directory, a json file or a hub name, with "key=value,key=value" changed."""
    from transformers import T5Config

    location = f"--config_name {name}"
    special = dict(pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id,
                   decoder_start_token_id=tokenizer.pad_token_id)  # fmt: skip
    if name in SIZES:
        more = _V1_1 if "v1_1" in name else {}
        config = T5Config(vocab_size=rows_for(tokenizer), **SIZES[name], **more, **special)
    else:
        from versatile.adapters.backbones import bundled
        from versatile.adapters.backbones import loading as backbones

        folder = bundled.resolve(name)
        try:
            is_file = Path(folder).is_file()
            config = (
                backbones.config_of_file(Path(folder), location) if is_file else backbones.read_config(folder, location)
            )
        except (OSError, ValueError, KeyError) as error:
            expected = f"a config.json, its directory, or one of {', '.join(SIZES)}"
            raise UserError(f"cannot be read: {first_line(error)}", location=location, expected=expected) from error
    if config.model_type not in ("t5", "mt5", "umt5"):
        raise UserError(f"model_type {config.model_type!r}", location=location, expected="t5, mt5 or umt5")
    for pair in filter(None, (overrides or "").split(",")):
        key, equals, value = (part.strip() for part in pair.partition("="))
        if not equals or not hasattr(config, key):
            raise UserError(f"{pair!r}", location="--config_overrides", expected="keys of a T5's config: d_model=256")
        try:
            setattr(config, key, json.loads(value))
        except ValueError:
            setattr(config, key, value)
    return config


def load_tokenizer(source):
    """A fast tokenizer from a directory, a hub name, a spiece.model or a tokenizer.json."""
    from transformers import PreTrainedTokenizerFast, T5Tokenizer
    from versatile.adapters.backbones import bundled
    from versatile.adapters.backbones import loading as backbones

    location, path = f"--tokenizer_name {source}", Path(source)
    expected = "a directory, a hub name, a spiece.model or a tokenizer.json"
    if not path.exists() and source not in bundled.NAMES:
        # A hub name has at most one slash and does not look like a file, so do not ask the hub about a mistyped path.
        if path.suffix in (".model", ".json") or len(path.parts) > 2 or path.is_absolute() or source[0] in ".~":
            raise UserError("no such file or directory", location=location, expected=expected)
        try:
            backbones.reach_hub(source, "tokenizer_config.json")
        except OSError as error:
            raise UserError("no such directory, and the hub cannot be reached", location=location, expected=expected,
                            remedy="without a network: a file or a directory") from error  # fmt: skip
    try:
        if source in bundled.NAMES:
            tokenizer = backbones.read_tokenizer(bundled.folder(source), location, expected)
        elif path.is_file() and path.suffix == ".json":
            tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(path), pad_token="<pad>", eos_token="</s>",
                                                unk_token="<unk>")  # fmt: skip
        elif path.is_file() or ((path / "spiece.model").is_file() and not (path / "tokenizer.json").is_file()):
            # Loaded from its folder: given the file itself, T5Tokenizer creates an empty vocabulary.
            tokenizer = _sentencepiece(path if path.is_file() else path / "spiece.model", T5Tokenizer)
        else:
            tokenizer = backbones.read_tokenizer(source, location, expected)
    except UserError:
        raise
    except Exception as error:
        # transformers raises whatever its parsers raise; a file that does not load is bad input in any case.
        raise UserError(f"the tokenizer cannot be read: {first_line(error)}", location=location,
                        expected=expected) from error  # fmt: skip
    check_end_token(tokenizer, location)
    return tokenizer


def check_end_token(tokenizer, location):
    """Raise a `UserError` unless a tokenizer pads, and ends its texts, as a T5's does."""
    if tokenizer.eos_token_id is None or tokenizer.pad_token_id is None:
        raise UserError("the tokenizer has no end token or no padding token", location=location,
                        expected="a T5's tokenizer")  # fmt: skip
    probe = tokenizer("a").input_ids
    if not probe or probe[-1] != tokenizer.eos_token_id:
        raise UserError(f"the tokenizer does not end a text with {tokenizer.eos_token}", location=location,
                        expected="a T5's tokenizer")  # fmt: skip


def _sentencepiece(path, kind):
    """T5Tokenizer of a .model file of any name, with the hundred sentinels after its pieces."""
    import shutil
    import tempfile

    with open(path, "rb") as file:
        if file.read(1) != b"\n":
            raise UserError("this is not a SentencePiece model", location=path, expected="a spiece.model")
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(path, Path(folder) / "spiece.model")
        return kind.from_pretrained(folder)


def set_dropout(model, rate):
    """Set every dropout of a T5 to `rate`."""
    import torch

    model.config.dropout_rate = rate
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = rate
        # Attention stores its rate as a number; v1.1's feed-forward has a module.
        if isinstance(getattr(module, "dropout", None), float):
            module.dropout = rate
