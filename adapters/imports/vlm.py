"""Checkpoints released with the original VLM code, read directly.

A directory holds pytorch_model.bin (weights only; the pickled training arguments next to it are never opened),
config.json, vocab.json, merges.txt and added_tokens.json. Adapters are stored under
`transformer.h.<layer>.adapter_block.{ln,project_down,project_up}` (one task) or
`…adapter_block.mixadapter.<task id>.…` (the combined VLM), and the last 30 rows of the embedding are
`<pad>` and the five tasks' 29 markers. A fully fine-tuned checkpoint has the rows but no adapters.

  convert to a directory of this toolkit, including the backbone, that gives the same logits:
    python -m adapters.imports.vlm RELEASED_DIR OUTPUT [--task nlg]
"""

import re
from pathlib import Path

import torch
from versatile.adapters.attach import TaskModelInfo, add_method, add_tokens, attach, keep_tasks, make_task_conditioned
from versatile.adapters.backbones import loading as backbones
from versatile.adapters.backbones.family import backbone_of
from versatile.adapters.imports import foreign_format
from versatile.adapters.methods import pointer as self_copy
from versatile.utils import flags
from versatile.utils.errors import UserError, brief, exit_on_user_error
from versatile.utils.files import atomic_directory, refuse_taken

# In the order of the embedding rows, which is not the order of the task ids.
ROWS = {
    "dialogue": ["<bos_dial>", "<eos_dial>", "<speaker1>", "<speaker2>", "<persona>"],
    "qa": ["<bos_qa>", "<eos_qa>", "<question>", "<answer>", "<document>"],
    "mt": ["<bos_mt>", "<eos_mt>", "<source_mt>", "<target_mt>"],
    "summarization": ["<bos_sm>", "<eos_sm>", "<source_sm>", "<target_sm>"],
    "nlg": ["<bos_nlg>", "<eos_nlg>", "<name>", "<eatType>", "<familyFriendly>", "<priceRange>", "<food>", "<near>",
            "<area>", "<customerRating>", "<response>"],
}  # fmt: skip
TASK_IDS = ["mt", "summarization", "dialogue", "qa", "nlg"]
ADDED = 1 + sum(map(len, ROWS.values()))

_PART = {"ln": "norm", "project_down": "down", "project_up": "up"}
_KEY = re.compile(r"transformer\.h\.(\d+)\.adapter_block\.(?:mixadapter\.(\w+)\.)?(ln|project_down|project_up)\.(\w+)")
_IGNORED = re.compile(r".*\.attn\.(masked_)?bias$|.*p_gen_linear.*|lm_head\.weight")


def load_released(path, task=None, pointer=False):
    """(model, tokenizer) of a released checkpoint.

    Args:
        path: its directory.
        task: the task of a single-task checkpoint.
        pointer: whether it was trained with `--self_copy`. The weights do not tell, as all contain `p_gen_linear`.
    """
    state = _read_weights(Path(path) / "pytorch_model.bin")
    tokenizer = _tokenizer(path, state["transformer.wte.weight"].shape[0])
    model, tokenizer = build_released(state, tokenizer, _config(path, state), task, pointer, location=path)
    model.config._name_or_path = str(Path(path).resolve())
    return model, tokenizer


def build_released(state, tokenizer, config, task=None, pointer=False, location="released checkpoint"):
    """A model from the original code's state dict.

    Args:
        state: {original key: tensor}.
        tokenizer: the base tokenizer, without the added tokens.
        config: a GPT2Config with the *base* vocabulary size.
        task: the task of a single-task checkpoint.
        pointer: whether it was trained with `--self_copy`.
        location: for errors.

    Returns:
        (model in eval mode, tokenizer with the 30 tokens)
    """
    model = _build(state, tokenizer, config, task, location)
    if pointer:
        if "p_gen_linear.weight" not in state:
            raise UserError(
                "no p_gen_linear in it", location=location, expected="a checkpoint trained with --self_copy"
            )
        self_copy.add(model)
        for kind, p in model.added["pointer"].p_gen_linear.named_parameters():
            p.data.copy_(state[f"p_gen_linear.{kind}"])
    return model.eval(), tokenizer


def _build(state, tokenizer, config, task, location):
    from transformers import GPT2LMHeadModel

    base = config.vocab_size
    adapters = {key: _KEY.fullmatch(key) for key in state if "adapter_block" in key}
    if bad := [key for key, match in adapters.items() if not match]:
        raise UserError(f"unknown adapter key {bad[0]}", location=location, expected="keys of the original VLM code")
    own = {k: v for k, v in state.items() if k not in adapters and not _IGNORED.fullmatch(k)}
    table = own["transformer.wte.weight"]
    if not adapters:
        config.vocab_size = len(table)
        model = GPT2LMHeadModel(config)
        _load_backbone(model, own, location)
        markers = {t: ROWS[t] for t in TASK_IDS}
        info = TaskModelInfo("full", markers, {}, add_tokens(tokenizer, ROWS), mask_other_tasks=False)
        make_task_conditioned(model, info)
        return model
    model = GPT2LMHeadModel(config)
    _load_backbone(model, own | {"transformer.wte.weight": table[:base]}, location)
    # Rows keep the file's order, so token ids are the file's; task ids are the combiner's order.
    attach(model, tokenizer, ROWS, dict.fromkeys(ROWS, 0), mask_other_tasks=False, save_backbone=True)
    _set_rows(model, table[base:])
    _set_adapters(model, state, adapters, task)
    return model


def _set_rows(model, rows):
    held = model.get_input_embeddings().rows
    held.spare.copy_(rows[:1])
    held.spare_scores = True
    start = 1
    for name, markers in ROWS.items():
        held.tasks[name].data.copy_(rows[start : start + len(markers)])
        start += len(markers)


def _set_adapters(model, state, matches, task):
    names = set()
    for key, match in matches.items():
        layer, slot, part, kind = match.groups()
        name = _task_of(slot, task)
        if name not in names:
            prefix = key[: key.index(f".{part}.")]
            add_method(model, name, len(state[f"{prefix}.project_down.weight"]))
            names.add(name)
        adapter = model.added["bottleneck"].blocks[int(layer)][name]
        getattr(getattr(adapter, _PART[part]), kind).data.copy_(state[key])
    # Ids are those of the original's combiner; a single-task checkpoint has one task.
    order = [t for t in TASK_IDS if t in names]
    keep_tasks(model, order)


def _task_of(slot, task):
    if slot is None:
        if task not in ROWS:
            raise UserError("a released single-task checkpoint does not say which task it is for",
                            location="--task", expected="one of " + ", ".join(TASK_IDS))  # fmt: skip
        return task
    return TASK_IDS[int(slot)] if slot.isdigit() else slot


def _load_backbone(model, state, location):
    missing, unexpected = model.load_state_dict(state, strict=False)
    missing = [k for k in missing if not _IGNORED.fullmatch(k)]
    if missing or unexpected:
        raise UserError(
            f"keys do not fit a GPT-2: missing {missing[:2]}, unexpected {unexpected[:2]}",
            location=location,
            expected="a checkpoint of the original VLM code",
        )
    model.tie_weights()


def _read_weights(path):
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # The file is damaged or would run code; in neither case is it loaded.
        raise UserError(
            f"cannot be read as plain weights: {brief(str(error), 120)}", location=path,
            expected="a whole pytorch_model.bin with tensors only", remedy="fetch it again",
        ) from error  # fmt: skip
    if not isinstance(state, dict) or "transformer.wte.weight" not in state:
        raise UserError("no transformer.wte.weight in it", location=path, expected="a GPT-2 state dict")
    if bad := backbones.not_finite({k: t for k, t in state.items() if not _IGNORED.fullmatch(k)}):
        raise UserError(f"holds values that are not numbers (first in {bad})", location=path, expected="finite numbers",
                        remedy="fetch it again")  # fmt: skip
    return state


def _config(path, state):
    config = backbones.read_config(path, f"--model_checkpoint {path}")
    backbone_of(config)
    config.vocab_size = state["transformer.wte.weight"].shape[0] - ADDED
    return config


def _tokenizer(path, rows):
    from transformers import GPT2TokenizerFast

    path = Path(path)
    for name in ("vocab.json", "merges.txt"):
        if not (path / name).is_file():
            raise UserError(f"no {name}", location=path, expected="the tokenizer's files next to the weights")
    tokenizer = GPT2TokenizerFast(str(path / "vocab.json"), str(path / "merges.txt"))
    if len(tokenizer) + ADDED != rows:
        raise UserError(f"vocab.json has {len(tokenizer)} tokens, the table {rows} rows", location=path,
                        expected=f"{ADDED} more rows than tokens")  # fmt: skip
    return tokenizer


def convert(source, output, task=None, pointer=False):
    """Convert a released checkpoint to our format (adapters/checkpoint.py), verifying that the logits are the same.

    Args:
        source: the released directory.
        output: the directory to create; it must not exist or be empty.
        task: the task of a single-task checkpoint.
        pointer: whether it was trained with `--self_copy`.

    Returns:
        the model.

    Raises:
        UserError: no released checkpoint, an output path that is taken, or logits that differ.
    """
    from versatile.adapters import checkpoint

    source, output = Path(source), Path(output)
    backbones.need_directory(source, source, "a checkpoint of the original VLM code")
    if foreign_format(source) != "vlm":
        raise UserError("not a checkpoint of the original VLM code", location=source,
                        expected="pytorch_model.bin and added_tokens.json with <bos_dial>")  # fmt: skip
    refuse_taken(output)
    model, tokenizer = load_released(source, task, pointer)
    with atomic_directory(output) as temporary:
        checkpoint.save_checkpoint(model, tokenizer, temporary)
        _verify_equal(model, tokenizer, *checkpoint.load_checkpoint(temporary), location=output)
    return model


def _verify_equal(model, tokenizer, again, words, location, length=32):
    """Check that logits on random tokens of the whole vocabulary, with types, are bitwise equal for every task."""
    if words.get_vocab() != tokenizer.get_vocab() or again.info.tasks != model.info.tasks:
        raise UserError("the written directory has other tokens or tasks", location=location, expected="the source's")
    generator = torch.Generator().manual_seed(0)
    for task in [-1, *range(len(model.info.tasks))]:
        ids, types = torch.randint(len(tokenizer), (2, 1, length), generator=generator)
        inputs = dict(input_ids=ids, token_type_ids=types, task_ids=torch.tensor([task]))
        with torch.no_grad():
            if not torch.equal(model(**inputs).logits, again(**inputs).logits):
                raise UserError("the written directory gives other logits", location=location, expected="the source's")


@exit_on_user_error
def main(argv=None):
    """`python -m adapters.imports.vlm`."""
    p = flags.build_parser("Convert a released checkpoint.")
    p.prog, p.usage = "python -m adapters.imports.vlm", "%(prog)s SOURCE OUTPUT [flags]"
    p.add_argument("source", help="the released directory")
    p.add_argument("output", help="the directory to create")
    p.add_argument("--task", choices=TASK_IDS, help="the task of a single-task adapter, which does not record it")
    p.add_argument("--self_copy", action="store_true", help="the checkpoint was trained with --self_copy")
    args = p.parse_args(argv)
    model = convert(args.source, args.output, args.task, args.self_copy)
    print(f"{args.output}: {', '.join(model.info.tasks)}; logits equal the source's")


if __name__ == "__main__":
    main()
