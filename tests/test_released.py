"""Checkpoints released with the original code, against that code's own outputs (tests/golden/vglm).

python -m pytest tests/test_released.py
"""

import json
import shutil

import pytest
import torch
from conftest import GOLDEN
from safetensors.torch import load_file
from transformers import GPT2Config, GPT2TokenizerFast
from versatile.adapters import checkpoint
from versatile.adapters.imports import vlm as released
from versatile.training.decoding import Decoding, Prompt, decode
from versatile.training.objectives import cross_entropy
from versatile.training.optimizers import AdamW
from versatile.utils.errors import UserError

VGLM = GOLDEN / "vglm"
CONFIG = json.loads((VGLM / "config.json").read_text())


def config():
    return GPT2Config(
        vocab_size=300, n_positions=128, n_embd=64, n_layer=2, n_head=4, bos_token_id=299, eos_token_id=299
    )


def base_tokenizer():
    return GPT2TokenizerFast(str(VGLM / "gpt2_tiny_tok/vocab.json"), str(VGLM / "gpt2_tiny_tok/merges.txt"))


def build(name, task=None):
    return released.build_released(load_file(VGLM / f"{name}.safetensors"), base_tokenizer(), config(), task)


@pytest.fixture(scope="module")
def adapter_model():
    return build("gpt2_adapter_model", "nlg")


@pytest.fixture(scope="module")
def vlm():
    return build("vlm_model")


@pytest.fixture(scope="module")
def golden():
    return load_file(VGLM / "forward.safetensors")


def unpadded(golden):
    """The original masks with -1e4: only positions before the padding can agree."""
    return golden["input_ids"] != CONFIG["pad_id"]


def inputs(golden):
    return dict(
        input_ids=golden["input_ids"], token_type_ids=golden["token_type_ids"], attention_mask=unpadded(golden).long()
    )


def test_added_tokens_get_the_released_ids(vlm):
    _, tokenizer = vlm
    for token, number in CONFIG["special_token_ids"].items():
        assert tokenizer.convert_tokens_to_ids(token) == number
    assert len(tokenizer) == CONFIG["vocab_size"]


def test_single_task_logits_equal_the_original(adapter_model, golden):
    model, _ = adapter_model
    seen = unpadded(golden)
    with torch.no_grad():
        logits = model(**inputs(golden)).logits
        bare = model(**{k: v for k, v in inputs(golden).items() if k != "token_type_ids"}).logits
    torch.testing.assert_close(logits[seen], golden["adapter_logits"][seen], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(bare[seen], golden["adapter_logits_no_token_type"][seen], atol=1e-4, rtol=1e-4)


def test_cached_continuation_equals_the_original(adapter_model, golden):
    model, _ = adapter_model
    ids, types, seen = golden["input_ids"], golden["token_type_ids"], unpadded(golden)
    with torch.no_grad():
        past = model(input_ids=ids[:, :10], token_type_ids=types[:, :10], use_cache=True).past_key_values
        logits = model(input_ids=ids[:, 10:], token_type_ids=types[:, 10:], past_key_values=past).logits
    torch.testing.assert_close(
        logits[seen[:, 10:]], golden["adapter_logits_with_past10"][seen[:, 10:]], atol=1e-4, rtol=1e-4
    )


@pytest.mark.parametrize("task", [-1, 0, 1, 2, 3, 4])
def test_combined_logits_and_loss_equal_the_original_for_every_task(vlm, golden, task):
    model, _ = vlm
    assert model.info.tasks == CONFIG["task_order"]
    seen, ids = unpadded(golden), torch.full((3,), task)
    labels = golden["labels"].masked_fill(golden["labels"] == -1, -100)
    with torch.no_grad():
        logits = model(**inputs(golden), task_ids=ids).logits
        loss = cross_entropy(model, inputs(golden) | dict(task_ids=ids, labels=labels))
    torch.testing.assert_close(logits[seen], golden[f"vlm_logits_task{task}"][seen], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(loss, golden[f"vlm_loss_task{task}"].reshape(()), atol=1e-4, rtol=1e-4)


def test_modules_equal_the_original(adapter_model, vlm):
    golden = load_file(VGLM / "modules.safetensors")
    hidden = golden["hidden"]
    with torch.no_grad():
        adapter = adapter_model[0].added["bottleneck"].blocks[0]["nlg"]
        torch.testing.assert_close(adapter(hidden), golden["adapter_out"], atol=1e-5, rtol=1e-4)
        adapters = vlm[0].added["bottleneck"].blocks[0]
        for number, task in enumerate(CONFIG["task_order"]):
            out = adapters[task](hidden)
            torch.testing.assert_close(out, golden[f"vlm_mixadapter_out_task{number}"], atol=1e-5, rtol=1e-4)


def prompt_ids(case):
    """(ids, types) of a golden prompt, composed by hand from the published layout."""
    special = CONFIG["special_token_ids"]
    task, prompt = case["task"], case["prompt"]
    if task == "nlg":
        ids, types = [special["<bos_nlg>"]], [special["<bos_nlg>"]]
        for slot, tokens in prompt["source"]:
            marker = special[f"<{'customerRating' if slot == 'customer rating' else slot}>"]
            ids, types = ids + [marker, *tokens], types + [marker] * (1 + len(tokens))
        return ids + [special["<response>"]], types + [special["<response>"]]
    if task in ("dialogue", "qa"):
        dialogue, qa = ("bos_dial", "persona", "speaker1", "speaker2"), ("bos_qa", "document", "question", "answer")
        bos, first, *speakers = (special[f"<{name}>"] for name in (dialogue if task == "dialogue" else qa))
        front = next(v for k, v in prompt.items() if k != "history")
        front = [i for text in front for i in text]
        ids, types = [bos, first, *front], [first] * (2 + len(front))
        turns = [*prompt["history"], []]
        for number, turn in enumerate(turns):
            # Markers count from the end, types from the start.
            ids += [speakers[(len(turns) - number) % 2], *turn]
            types += [speakers[number % 2]] * (1 + len(turn))
        return ids, types
    short = {"mt": "mt", "summarization": "sm"}[task]
    bos, source, target = (special[f"<{word}_{short}>"] for word in ("bos", "source", "target"))
    return [bos, source, *prompt["source"], target], [bos] + [source] * (1 + len(prompt["source"])) + [target]


def test_greedy_decoding_equals_the_original_token_for_token(adapter_model, vlm):
    cases = json.loads((VGLM / "greedy_decoding.json").read_text())["cases"]
    cases = [c for c in cases if c["min_top1_top2_margin"] >= 1e-3]
    assert {c["task"] for c in cases} == set(CONFIG["task_order"])
    alike = {}
    for case in cases:
        alike.setdefault((case["model"], case["max_length"], case["min_length"]), []).append(case)
    compared = whole = 0
    for (kind, longest, least), group in alike.items():
        model, tokenizer = adapter_model if kind == "adapter" else vlm
        prompts = [Prompt(*prompt_ids(case), 0 if kind == "adapter" else model.task_id(case["task"]),
                          CONFIG["eos_ids"][case["task"]]) for case in group]  # fmt: skip
        outputs = decode(model, tokenizer, prompts, Decoding(max_length=longest, min_length=least, batch_size=32))
        for case, ours in zip(group, outputs, strict=True):
            theirs = case["output"]
            # The original may emit other tasks' markers, ours never does: compare up to the first of them.
            foreign = next((i for i, t in enumerate(theirs) if t >= CONFIG["base_vocab"]), len(theirs))
            assert ours[:foreign] == theirs[:foreign], case
            compared += 1
            whole += foreign == len(theirs)
    assert compared > 80 and whole > 0.8 * compared


def released_directory(path, name):
    """A directory as the original's authors published it, from the golden weights."""
    path.mkdir()
    torch.save(load_file(VGLM / f"{name}.safetensors"), path / "pytorch_model.bin")
    for file in ("vocab.json", "merges.txt"):
        shutil.copy(VGLM / "gpt2_tiny_tok" / file, path)
    (path / "added_tokens.json").write_text(json.dumps(CONFIG["special_token_ids"]))
    # The published config is of an old release: it counts the base vocabulary only, and lacks newer keys.
    old = dict(vocab_size=300, n_positions=128, n_ctx=128, n_embd=64, n_layer=2, n_head=4,
               layer_norm_epsilon=1e-5, initializer_range=0.02, num_labels=1, finetuning_task=None, pruned_heads={},
               summary_type="cls_index", summary_use_proj=True, torchscript=False)  # fmt: skip
    (path / "config.json").write_text(json.dumps(old))
    (path / "model_training_args.bin").write_bytes(b"\x80\x04never opened")
    return path


def test_a_released_directory_loads_as_it_is(tmp_path, golden):
    single = released_directory(tmp_path / "single", "gpt2_adapter_model")
    combined = released_directory(tmp_path / "vlm", "vlm_model")
    assert checkpoint.peek(single).released and checkpoint.peek(combined).released
    model, _ = checkpoint.load_checkpoint(single, "mt")
    assert model.info.tasks == ["mt"] and model.info.bottlenecks == {"mt": 8}
    model, _ = checkpoint.load_checkpoint(combined, "nlg")
    assert model.info.bottlenecks == CONFIG["bottleneck_map"]
    with torch.no_grad():
        logits = model(**inputs(golden), task_ids=torch.full((3,), 4)).logits
    torch.testing.assert_close(
        logits[unpadded(golden)], golden["vlm_logits_task4"][unpadded(golden)], atol=1e-4, rtol=1e-4
    )


def test_a_released_directory_that_is_damaged_is_one_clear_error(tmp_path):
    path = released_directory(tmp_path / "vlm", "vlm_model")
    weights = path / "pytorch_model.bin"
    weights.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(UserError, match=r"pytorch_model.bin.*cannot be read as plain weights"):
        checkpoint.load_checkpoint(path, "mt")
    path = released_directory(tmp_path / "single", "gpt2_adapter_model")
    with pytest.raises(UserError, match="does not say which task"):
        checkpoint.load_checkpoint(path, None)


class Evil:
    def __reduce__(self):
        return (print, ("code of a stranger ran",))


def test_a_pickle_that_would_run_code_is_refused(tmp_path, capsys):
    path = released_directory(tmp_path / "vlm", "vlm_model")
    torch.save({"transformer.wte.weight": Evil()}, path / "pytorch_model.bin")
    with pytest.raises(UserError, match="plain weights"):
        checkpoint.load_checkpoint(path, "mt")
    assert "ran" not in capsys.readouterr().out


def finetuned_directory(path):
    """Like the original's fully fine-tuned models: rows, no adapters."""
    released_directory(path, "gpt2_adapter_model")
    state = torch.load(path / "pytorch_model.bin", weights_only=True)
    torch.save({k: v for k, v in state.items() if "adapter_block" not in k}, path / "pytorch_model.bin")
    return path


SOURCES = {
    "single": (lambda path: released_directory(path, "gpt2_adapter_model"), "qa"),
    "vlm": (lambda path: released_directory(path, "vlm_model"), None),
    "finetuned": (finetuned_directory, None),
}


@pytest.mark.parametrize("kind", SOURCES)
def test_a_released_checkpoint_becomes_a_directory_of_ours_with_the_same_logits(kind, tmp_path, golden, capsys):
    make, task = SOURCES[kind]
    source, target = make(tmp_path / "released"), tmp_path / "ours"
    released.main([str(source), str(target), *(["--task", task] if task else [])])
    assert "logits equal the source's" in capsys.readouterr().out
    theirs, words = checkpoint.load_checkpoint(source, task)
    ours, tokenizer = checkpoint.load_checkpoint(target)
    assert ours.info == theirs.info and ours.router.tasks == theirs.router.tasks
    assert tokenizer.get_vocab() == words.get_vocab() and tokenizer.pad_token_id == CONFIG["pad_id"]
    for number in [-1, *range(len(ours.info.tasks))]:
        ids = torch.full((3,), number)
        with torch.no_grad():
            a, b = (m(**inputs(golden), task_ids=ids).logits for m in (theirs, ours))
        # <pad> has its own row: its column is a number like the others.
        assert torch.equal(a, b) and torch.isfinite(a[..., CONFIG["pad_id"]]).all()
    labels = golden["labels"].masked_fill(golden["labels"] == -1, -100)
    ids = torch.tensor([i % len(ours.info.tasks) for i in (4, 0, 2)])
    with torch.no_grad():
        a, b = (cross_entropy(m, inputs(golden) | dict(task_ids=ids, labels=labels)) for m in (theirs, ours))
    assert torch.equal(a, b)


def test_a_converted_vlm_equals_the_original_for_every_task(tmp_path, golden):
    released.convert(released_directory(tmp_path / "released", "vlm_model"), tmp_path / "ours")
    model, _ = checkpoint.load_checkpoint(tmp_path / "ours", "nlg")
    seen = unpadded(golden)
    assert model.info.tasks == CONFIG["task_order"]
    for task in range(-1, 5):
        with torch.no_grad():
            logits = model(**inputs(golden), task_ids=torch.full((3,), task)).logits
        torch.testing.assert_close(logits[seen], golden[f"vlm_logits_task{task}"][seen], atol=1e-4, rtol=1e-4)


def test_a_converted_directory_stands_alone(tmp_path, golden):
    source = released_directory(tmp_path / "released", "vlm_model")
    released.convert(source, tmp_path / "ours")
    shutil.rmtree(source)
    moved = (tmp_path / "ours").rename(tmp_path / "moved")
    assert checkpoint.peek(moved) and not checkpoint.peek(moved).released
    model, tokenizer = checkpoint.load_checkpoint(moved, "mt")
    names = {str(p.relative_to(moved)) for p in moved.rglob("*") if p.is_file()}
    assert {"adapter_config.json", "adapter_model.safetensors", "backbone/model.safetensors"} <= names
    assert not any(name.endswith((".bin", ".pt", ".pkl")) for name in names)
    assert str(tmp_path) not in "".join(p.read_text() for p in moved.rglob("*.json"))
    # A loaded model can be saved again, and loaded into a live model.
    checkpoint.save_checkpoint(model, tokenizer, tmp_path / "twice")
    again, _ = checkpoint.load_checkpoint(tmp_path / "twice")
    with torch.no_grad():
        given = inputs(golden) | dict(task_ids=torch.tensor([0, 3, 1]))
        expected = model(**given).logits
        assert torch.equal(again(**given).logits, expected)
        for p in [*again.parameters(), again.get_input_embeddings().rows.spare]:
            p.zero_()
        checkpoint.load_weights(again, moved)
        assert torch.equal(again(**given).logits, expected)


def test_a_conversion_that_cannot_be_is_one_clear_error_and_leaves_nothing(tmp_path, capsys):
    source = released_directory(tmp_path / "released", "gpt2_adapter_model")
    with pytest.raises(UserError, match="does not say which task"):
        released.convert(source, tmp_path / "ours")
    with pytest.raises(UserError, match="not a checkpoint of the original VLM code"):
        released.convert(tmp_path, tmp_path / "ours")
    with pytest.raises(UserError, match=r"nope: no such directory \(.* holds: released\)"):
        released.convert(tmp_path / "nope", tmp_path / "ours")
    with pytest.raises(UserError, match="this path already exists"):
        released.convert(source, source, "nlg")
    weights = source / "pytorch_model.bin"
    weights.write_bytes(weights.read_bytes()[:4000])
    with pytest.raises(SystemExit) as stopped:
        released.main([str(source), str(tmp_path / "ours"), "--task", "nlg"])
    assert stopped.value.code == 2 and "plain weights" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["released"]


def test_a_pointer_that_is_not_there_is_one_clear_error(tmp_path):
    source = released_directory(tmp_path / "released", "gpt2_adapter_model")
    state = torch.load(source / "pytorch_model.bin", weights_only=True)
    torch.save({k: v for k, v in state.items() if "p_gen" not in k}, source / "pytorch_model.bin")
    with pytest.raises(UserError, match="no p_gen_linear"):
        checkpoint.load_checkpoint(source, "nlg", pointer=True)


@pytest.mark.parametrize("name, accumulation", [("frozen_base_lr5e-3", 1), ("frozen_base_lr5e-4_acc2", 2)])
def test_training_steps_equal_the_original_with_its_clipping(name, accumulation):
    """Losses, gradients and weights of the original run whose base gradients were mostly removed.

    Its clipping still counted the base rows' gradients and ran on every micro-batch; both are emulated here.
    """
    settings = json.loads((VGLM / "train_result.json").read_text())[name]
    model, _ = released.build_released(load_file(VGLM / "train_init.safetensors"), base_tokenizer(), config(), "nlg")
    rows = model.get_input_embeddings().rows
    base = model.get_input_embeddings().base.weight.requires_grad_(True)
    rows.spare.requires_grad_(True)
    adapters = [p for n, p in model.named_parameters() if n.startswith("added.bottleneck.")]
    trained = [*adapters, rows.spare, *rows.tasks.values()]
    batches, losses, norms = load_file(VGLM / "train_batches.safetensors"), [], []
    optimizer = AdamW(trained, lr=settings["lr"], eps=1e-6, weight_decay=0, fused=True)
    for i in range(settings["micro_steps"]):
        labels = batches[f"lm_labels_{i}"].squeeze(1)
        labels = labels.masked_fill(labels == -1, -100)
        inputs = {k: batches[f"{k}_{i}"].squeeze(1) for k in ("input_ids", "token_type_ids")}
        loss = cross_entropy(model, inputs | dict(labels=labels)) / accumulation
        loss.backward()
        losses.append(loss.item())
        norms.append(float(torch.nn.utils.clip_grad_norm_([*trained, base], 1.0)))
        if (i + 1) % accumulation == 0:
            optimizer.step()
            # The base rows' gradients are dropped only here, after they counted in the clipping.
            for p in (*trained, base):
                p.grad = None
    torch.testing.assert_close(losses, settings["losses"], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(norms, settings["total_grad_norm_before_clip"], atol=1e-3, rtol=1e-3)
    golden = load_file(VGLM / "train_result.safetensors")
    torch.testing.assert_close(rows.table().detach(), golden[f"{name}/wte_special_rows"], atol=2e-4, rtol=1e-3)
    for layer in range(2):
        adapter = model.added["bottleneck"].blocks[layer]["nlg"]
        for part, ours in (("ln", adapter.norm), ("project_down", adapter.down), ("project_up", adapter.up)):
            theirs = golden[f"{name}/transformer.h.{layer}.adapter_block.{part}.weight"]
            torch.testing.assert_close(ours.weight.detach(), theirs, atol=2e-4, rtol=1e-3)
