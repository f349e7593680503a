"""combine_all.py: a combination takes exactly what belongs to a task and answers it to the last bit; clear errors.

python -m pytest tests/test_combine_all.py
"""

import itertools
import json
import os
import re
import shlex
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from scripts import SAMPLES, metrics, run, run_as_user, small, without_java
from test_adapters import Words, gpt2_on_meta
from test_released import CONFIG, VGLM, finetuned_directory, inputs, released_directory
from training_runs import refused, short_run
from versatile.adapters import checkpoint, combine
from versatile.adapters.attach import attach, trainable
from versatile.adapters.backbones import loading as backbones
from versatile.adapters.methods import pointer as self_copy
from versatile.data import instances
from versatile.data.task import get_task
from versatile.training.decoding import Decoding, decode

import combine_all
import evaluate
import evaluate_vlm
from tests.conftest import ROOT

NAMES = ["tiny-gpt2", "tiny-llama", "tiny-t5"]
TASKS = {"mt": 12, "nlg": 4, "dialogue": 8, "summarization": 0}
QUICK = ["--proof_examples", "3", "--proof_tokens", "6"]


@pytest.fixture(autouse=True)
def uncollected(monkeypatch):
    """Tiny models may stay in memory: looking for them among all objects of a test session takes longer than a test."""
    monkeypatch.setattr(combine.gc, "collect", lambda: 0)


def lively(name):
    """A backbone whose outputs differ from input to input, which a tiny one's do not: its weights are too small."""
    folder = Path(os.environ["VERSATILE_CACHE"]) / f"lively-{name}"
    if not folder.exists():
        model, tokenizer = backbones.load(name)
        noise = torch.Generator().manual_seed(1)
        for p in model.parameters():
            p.data += 0.3 * torch.randn(p.shape, generator=noise) * (p.ndim > 1)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return folder


def trained(folder, tasks, backbone="tiny-gpt2", seed=0, history=3, **more):
    """A directory as training leaves it: what is trained of the tasks is random."""
    model, tokenizer = backbones.load(str(lively(backbone) if backbone in NAMES else backbone))
    markers = {task: get_task(task).markers for task in tasks}
    attach(model, tokenizer, markers, {task: TASKS.get(task, 6) for task in tasks}, **more)
    model.info.histories = {task: history for task in tasks if get_task(task).max_history}
    noise = torch.Generator().manual_seed(seed)
    for p in trainable(model).values():
        p.data += 0.1 * torch.randn(p.shape, generator=noise)
    checkpoint.save(model, tokenizer, folder)
    return folder


@pytest.fixture(scope="module", params=NAMES)
def singles(request, tmp_path_factory):
    """{task: a directory trained for it alone}."""
    folder = tmp_path_factory.mktemp(request.param)
    return {task: trained(folder / task, [task], request.param, seed) for seed, task in enumerate(TASKS)}


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gpt2")
    return {task: trained(folder / task, [task], seed=seed) for seed, task in enumerate(["mt", "nlg", "dialogue"])}


def pairs(sources):
    return [f"{task}={folder}" for task, folder in sources.items()]


def combined(output, sources, *more):
    combine_all.main(["--checkpoints", *pairs(sources), "--output", str(output), *QUICK, *map(str, more)])
    return output


def answers(directory, task, count=3):
    """`answered` by the model of a directory."""
    return answered(*checkpoint.load(directory, task), task, count)


def answered(model, tokenizer, task, count=3):
    """(scores on base and own columns, greedy outputs) for a task's samples, one task in a batch."""
    form = get_task(task)
    found = instances.read(SAMPLES / f"{task}.json", "valid", form, form.read_options(decoding=True), count)
    prompts, _ = instances.prompts(form, model.task_id(task), tokenizer, found, 256, 12)
    with torch.no_grad():
        scores = [combine._scores(model, tokenizer, task, (p.ids, p.types)) for p in prompts]
    return scores, decode(model, tokenizer, prompts, Decoding(max_length=12))


def same(one, other):
    return all(map(torch.equal, one[0], other[0])) and one[1] == other[1]


def files(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(Path(folder).rglob("*")) if p.is_file()}


# ---- what a combination is


def test_each_task_keeps_its_tensors_history_and_answers(singles, tmp_path, capsys):
    vlm = combined(tmp_path / "vlm", singles)
    model, _ = checkpoint.load(vlm)
    assert model.info.tasks == list(TASKS) and model.info.bottlenecks == TASKS
    assert model.info.histories == {"dialogue": 3} and model.info.mask_other_tasks and model.info.freeze
    whole, owners = checkpoint.adapter_state(model), checkpoint.owners_of_keys(model)
    for task, folder in singles.items():
        own = checkpoint.adapter_state(checkpoint.load(folder)[0])
        mine = {key: tensor for key, tensor in whole.items() if owners[key] == task}
        assert own.keys() == mine.keys() and all(torch.equal(own[k], mine[k]) for k in own)
        assert same(answers(folder, task), answers(vlm, task))
    # The outputs say something: they are not all alike.
    assert len({tuple(out) for task in singles for out in answers(vlm, task)[1]}) > 8
    assert "backbone" not in {p.name for p in vlm.iterdir()}
    printed = capsys.readouterr().out
    assert len(re.findall("0, equal bit for bit +3 of 3 equal$", printed, re.MULTILINE)) == len(TASKS)
    assert f"next: python evaluate_vlm.py --task all --no_sample --model_checkpoint {vlm} --data mt=" in printed


def test_the_order_changes_the_ids_and_nothing_else(gpt2):
    alone = {task: answers(folder, task) for task, folder in gpt2.items()}
    read = {task: combine.read(folder, [task])[0] for task, folder in gpt2.items()}
    for order in list(itertools.permutations(gpt2))[1::2]:
        sources = [read[task] for task in order]
        combine.check(sources)
        model, tokenizer = combine.build(sources)
        assert model.info.tasks == list(order)
        assert all(same(alone[task], answered(model, tokenizer, task)) for task in order)


@pytest.mark.parametrize("name", NAMES)
def test_a_task_that_comes_later_leaves_the_others_as_they_were(name, tmp_path):
    old = {"mt": trained(tmp_path / "mt", ["mt"], name, 1), "nlg": trained(tmp_path / "nlg", ["nlg"], name, 2)}
    new = trained(tmp_path / "dialogue", ["dialogue"], name, 3)
    vlm = combined(tmp_path / "vlm", old)
    before = {task: answers(vlm, task) for task in old}
    combine_all.main(["--into", str(vlm), "--checkpoints", f"dialogue={new}", *QUICK])
    assert checkpoint.load(vlm)[0].info.tasks == ["mt", "nlg", "dialogue"]
    assert all(same(before[task], answers(vlm, task)) for task in old)
    assert same(answers(new, "dialogue"), answers(vlm, "dialogue"))
    # One after the other is all at once.
    at_once = combined(tmp_path / "once", {**old, "dialogue": new})
    weights = (f / checkpoint.WEIGHTS for f in (vlm, at_once))
    assert len({f.read_bytes() for f in weights}) == 1
    sources = json.loads((vlm / "run.json").read_text())["sources"]
    assert {t: s["checkpoint"] for t, s in sources.items()} == {t: str(f) for t, f in {**old, "dialogue": new}.items()}
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_a_task_is_taken_from_any_kind_of_checkpoint(gpt2, tmp_path):
    both = combined(tmp_path / "both", {"mt": gpt2["mt"], "nlg": gpt2["nlg"]})
    step = tmp_path / "run" / "checkpoints" / "step_00000004"
    shutil.copytree(gpt2["dialogue"], step)
    (tmp_path / "run" / "run.json").write_text(
        json.dumps(dict(flags=dict(dataset_path=str(SAMPLES / "dialogue.json"))))
    )
    mixed = trained(tmp_path / "mixed", ["summarization", "mt"], seed=9)
    vlm = combined(tmp_path / "vlm", {"nlg": both, "dialogue": step, "mt": both, "summarization": mixed})
    assert checkpoint.load(vlm)[0].info.tasks == ["nlg", "dialogue", "mt", "summarization"]
    assert all(same(answers(gpt2[task], task), answers(vlm, task)) for task in gpt2)
    assert same(answers(mixed, "summarization"), answers(vlm, "summarization"))
    sources = json.loads((vlm / "run.json").read_text())["sources"]
    assert sources["dialogue"]["dataset_path"] == str(SAMPLES / "dialogue.json")
    # One task alone is a VLM, too.
    assert same(answers(gpt2["mt"], "mt"), answers(combined(tmp_path / "one", {"mt": both}), "mt"))


# ---- against the original's combiner


def test_every_row_and_every_adapter_comes_from_where_the_original_takes_it(tmp_path):
    golden, names = (
        json.loads((VGLM / "combine_all.json").read_text()),
        dict(ln="norm", project_down="down", project_up="up"),
    )
    sources, states = {}, {}
    for seed, task in enumerate(CONFIG["task_order"]):
        noise = torch.Generator().manual_seed(seed)
        sources[task] = released_directory(tmp_path / task, "gpt2_adapter_model")
        state = torch.load(sources[task] / "pytorch_model.bin", weights_only=True)
        size = CONFIG["bottleneck_map"][task]
        for key in [k for k in state if "adapter_block" in k or "p_gen" in k]:
            shape = [size if n == CONFIG["adapter_bottleneck"] else n for n in state[key].shape]
            state[key] = 0.3 * torch.randn(shape, generator=noise)
        # All 30 rows were trained in each: taking one too many would show.
        state["transformer.wte.weight"][300:] = torch.randn(30, 64, generator=noise)
        state["lm_head.weight"] = state["transformer.wte.weight"]
        torch.save(state, sources[task] / "pytorch_model.bin")
        states[task] = state
    vlm = combined(tmp_path / "vlm", sources)
    model, tokenizer = checkpoint.load(vlm)
    assert model.info.tasks == CONFIG["task_order"] and model.info.bottlenecks == CONFIG["bottleneck_map"]
    assert not model.info.mask_other_tasks and model.info.save_backbone and not model.info.self_copy
    embed, base = model.get_input_embeddings(), checkpoint.backbone_state(model)
    tokens = {number: token for token, number in CONFIG["special_token_ids"].items()}
    for start, end, source in golden["embedding_rows"]:
        for row in range(start, end):
            if source == "base":
                assert torch.equal(embed.weight[row], states["mt"]["transformer.wte.weight"][row])
            elif source == "random_init":
                # <pad>: nobody's here, and never scored; the original draws it anew.
                assert tokens[row] == "<pad>" and not embed.rows.spare_scores
            else:
                ours = embed(torch.tensor([tokenizer.convert_tokens_to_ids(tokens[row])]))[0]
                assert torch.equal(ours, states[source]["transformer.wte.weight"][row])
    for key, origin in golden["keys"].items():
        if origin["source"] != "base":
            layer, number, part, kind = re.findall(r"h\.(\d+)\.adapter_block\.mixadapter\.(\w+)\.(\w+)\.(\w+)", key)[0]
            adapter = model.added["bottleneck"].blocks[int(layer)][model.info.tasks[int(number)]]
            ours = getattr(getattr(adapter, names[part]), kind)
            assert torch.equal(ours, states[origin["source"]][origin["source_key"]])
        elif "attn.bias" not in key and "p_gen" not in key:
            assert torch.equal(base[key], states["mt"][key])
    # A further one, from a VLM in a directory of ours: it joins what carries its backbone.
    model, tokenizer = checkpoint.load(sources["qa"], "qa")
    checkpoint.save(model, tokenizer, tmp_path / "converted")
    four = combined(tmp_path / "four", {t: f for t, f in sources.items() if t != "qa"})
    combine_all.main(["--into", str(four), "--checkpoints", f"qa={tmp_path / 'converted'}", *QUICK])
    assert checkpoint.load(four)[0].info.tasks == ["mt", "summarization", "dialogue", "nlg", "qa"]


def test_a_released_vlm_combined_alone_scores_as_it_did(tmp_path):
    source, golden = released_directory(tmp_path / "released", "vlm_model"), load_file(VGLM / "forward.safetensors")
    vlm = combined(tmp_path / "vlm", dict.fromkeys(CONFIG["task_order"], source))
    theirs, words = checkpoint.load(source, "mt")
    ours, tokenizer = checkpoint.load(vlm)
    # The markers' ids follow the order of the tasks, which is another one in released files.
    order = torch.tensor(tokenizer.convert_tokens_to_ids(words.convert_ids_to_tokens(range(len(words)))))
    given = inputs(golden)
    moved = {k: order[v] if k.endswith("ids") else v for k, v in given.items()}
    for number in range(5):
        ids = torch.full((3,), number)
        with torch.no_grad():
            # <pad>'s row, too: all sources have the same one.
            assert torch.equal(theirs(**given, task_ids=ids).logits, ours(**moved, task_ids=ids).logits[..., order])


# ---- the parameters of each task


def test_the_ledger_has_the_published_numbers():
    model, bottlenecks = gpt2_on_meta(), dict(mt=300, summarization=100, dialogue=100, qa=300, nlg=10)
    attach(model, Words(), {task: get_task(task).markers for task in bottlenecks}, bottlenecks)
    counts = combine.count_task_parameters(model)
    adapters = {task: own["adapters"] for task, own in counts["tasks"].items()}
    assert adapters == dict(mt=5_560_848, summarization=1_872_048, dialogue=1_872_048, qa=5_560_848, nlg=212_088)
    assert sum(adapters.values()) == 15_077_880 and counts["backbone"] == 124_439_808
    assert {task: own["rows"] for task, own in counts["tasks"].items()} == {
        task: 768 * len(get_task(task).markers) for task in bottlenecks
    }
    assert counts["added"] == 15_077_880 + 29 * 768 and counts["together"] == counts["backbone"] + counts["added"]
    assert counts["separate"] == 5 * counts["backbone"]
    printed = [combine_all.short(counts[k]) for k in ("added", "backbone", "separate")]
    assert printed == ["15.1M", "124.4M", "622.2M"] and round(100 * counts["together"] / counts["separate"], 1) == 22.4


def test_the_ledger_counts_every_parameter_once(singles):
    sources = [combine.read(folder, [task])[0] for task, folder in singles.items()]
    model, _ = combine.build(sources)
    assert combine.count_task_parameters(model)["together"] == sum(p.numel() for p in model.parameters())


# ---- the proof


def test_a_result_that_answers_otherwise_is_refused_and_nothing_is_written(gpt2, tmp_path, monkeypatch, capsys):
    vlm = combined(tmp_path / "vlm", {"mt": gpt2["mt"]})
    before, build = files(vlm), combine.build

    def wrong(sources):
        model, tokenizer = build(sources)
        model.get_input_embeddings().rows.tasks["nlg"].data[3, 0] += 0.5
        return model, tokenizer

    monkeypatch.setattr(combine, "build", wrong)
    argv = ["--checkpoints", f"nlg={gpt2['nlg']}", *QUICK]
    for location in (["--into", str(vlm)], ["--output", str(tmp_path / "new")]):
        with pytest.raises(SystemExit) as stopped:
            combine_all.main([*argv, *location])
        assert stopped.value.code == 2
        assert "the combined model answers otherwise" in capsys.readouterr().err
    assert files(vlm) == before and [p.name for p in tmp_path.iterdir()] == ["vlm"]


@pytest.mark.parametrize("value", [float("nan"), 1.0])
def test_the_proof_sees_every_column_that_counts(gpt2, value):
    (ours, tokenizer), theirs = (checkpoint.load(gpt2["nlg"]) for _ in range(2))
    given = [((ids, types),) * 2 for ids, types in [([5, 405, 7], [405, 405, 405])]]
    assert combine.largest_difference((ours, tokenizer), theirs, "nlg", given) == (0, 0)
    ours.get_input_embeddings().rows.tasks["nlg"].data[-1, 0] += value
    gap, share = combine.largest_difference((ours, tokenizer), theirs, "nlg", given)
    assert not share <= combine_all.LARGEST_SHARE and not gap <= 0


def test_the_inputs_come_from_the_flag_then_the_run_then_the_samples(gpt2, tmp_path, capsys, monkeypatch):
    task = small(tmp_path / "mine.json", train=2, valid=2, test=2)
    run = shutil.copytree(gpt2["nlg"], tmp_path / "run")
    for stored, flag, read in (
        ({"dataset_path": str(task)}, [], task),
        ({"dataset_path": str(task)}, ["--data", f"nlg={SAMPLES / 'nlg.json'}"], SAMPLES / "nlg.json"),
        ({"data": {"nlg": str(task)}}, [], task),
        ({"dataset_path": "moved.json"}, [], SAMPLES / "nlg.json"),
        # A file without the scored split is of no use.
        ({"dataset_path": str(small(tmp_path / "train.json", train=2))}, [], SAMPLES / "nlg.json"),
    ):
        (run / "run.json").write_text(json.dumps({"flags": stored}))
        capsys.readouterr()
        vlm = combined(tmp_path / "vlm", {"nlg": run}, *flag)
        assert f"inputs of {combine_all.shown(read)}" in capsys.readouterr().out
        proof = json.loads((vlm / "run.json").read_text())["proof"]["nlg"]
        assert proof["data"] == str(read) and proof["max_abs_difference"] == 0
        shutil.rmtree(vlm)
    monkeypatch.setattr("versatile.data.files.SAMPLES", tmp_path / "none")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        combined(tmp_path / "vlm", {"nlg": gpt2["nlg"]})
    assert "remedy:   name one: --data nlg=FILE" in capsys.readouterr().err


# ---- backbones that were trained, self-copy


def test_a_task_joins_a_vlm_whose_backbone_was_trained(tmp_path):
    vlm = trained(tmp_path / "vlm", ["mt", "nlg"], seed=1, freeze=False)
    later = trained(tmp_path / "later", ["dialogue"], vlm / "backbone", seed=2)
    before = {task: answers(vlm, task) for task in ("mt", "nlg")}
    combine_all.main(["--into", str(vlm), "--checkpoints", f"dialogue={later}", *QUICK])
    assert all(same(before[task], answers(vlm, task)) for task in before)
    assert same(answers(later, "dialogue"), answers(vlm, "dialogue"))
    # In the other order the backbone is carried all the same.
    turned = combined(tmp_path / "turned", {"dialogue": later, "mt": vlm})
    shutil.move(vlm, tmp_path / "moved")
    assert checkpoint.load(turned)[0].info.save_backbone and same(before["mt"], answers(turned, "mt"))
    model, _ = checkpoint.load(tmp_path / "moved")
    assert model.info.tasks == ["mt", "nlg", "dialogue"] and not model.info.freeze and model.info.save_backbone


def test_self_copy_stays_with_its_own_tasks(gpt2, tmp_path, capsys):
    model, tokenizer = backbones.load(str(lively("tiny-gpt2")))
    attach(model, tokenizer, {t: get_task(t).markers for t in ("mt", "summarization")}, {"mt": 4, "summarization": 4})
    self_copy.add(model)
    checkpoint.save(model, tokenizer, tmp_path / "pointer")
    pointer = tmp_path / "pointer"
    vlm = combined(tmp_path / "vlm", {"mt": pointer, "summarization": pointer})
    again, _ = checkpoint.load(vlm)
    gates = [m.added["pointer"].p_gen_linear.weight for m in (again, model)]
    assert again.info.self_copy and torch.equal(*gates)
    assert same(answers(pointer, "mt"), answers(vlm, "mt"))
    for sources, said in (
        ({"mt": pointer, "nlg": gpt2["nlg"]}, f"no other source, but there is --checkpoints nlg={gpt2['nlg']}"),
        ({"mt": pointer}, "trained with --self_copy for 'summarization' too"),
    ):
        with pytest.raises(SystemExit):
            combined(tmp_path / "out", sources)
        assert said in capsys.readouterr().err and not (tmp_path / "out").exists()


# ---- bad input


def other_backbone(folder, **config):
    """A backbone like tiny-gpt2, but for its config; equal numbers where the shapes are."""
    model, tokenizer = backbones.load("tiny-gpt2")
    changed = type(model.config)(**{**model.config.to_dict(), **config})
    type(model)(changed).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def other_tokenizer(folder):
    """tiny-gpt2 with two tokens changing places."""
    model, tokenizer = backbones.load("tiny-gpt2")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    stored = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = stored["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    (folder / "tokenizer.json").write_text(json.dumps(stored))
    return folder


def finetuned(folder):
    model, tokenizer = backbones.load("tiny-gpt2")
    attach(model, tokenizer, {"nlg": get_task("nlg").markers})
    checkpoint.save(model, tokenizer, folder)
    return folder


def not_whole(folder):
    trained(folder, ["nlg"])
    (folder / checkpoint.WEIGHTS).unlink()
    return folder


def unsaved(folder):
    folder.mkdir()
    (folder / "run.json").write_text("{}")
    return folder


def made(folder, **config):
    return trained(folder, ["nlg"], other_backbone(folder.with_name("other"), **config))


def a_file(path):
    path.write_text("x")
    return path


WRONG = {
    "another backbone": (lambda f: trained(f, ["nlg"], "tiny-llama"), "model_type is llama", "gpt2, as in"),
    "other weights": (lambda f: made(f), "backbone (fingerprint of its weights) is", "as in --checkpoints mt="),
    "another width": (lambda f: made(f, n_embd=32), "hidden size is 32", "64, as in --checkpoints mt="),
    "fewer positions": (lambda f: made(f, n_positions=64), "number of positions is 64", "256, as in"),
    "another tokenizer": (lambda f: trained(f, ["nlg"], other_tokenizer(f.with_name("other"))), "tokenizer (hash) is"),
    "a trained backbone": (lambda f: trained(f, ["nlg"], freeze=False), "backbone (fingerprint of its weights) is"),
    "foreign columns": (
        lambda f: trained(f, ["nlg"], mask_other_tasks=False),
        "all markers, as released",
        "own markers only",
    ),
    "a full model": (finetuned, "this is a fully fine-tuned model", "train.py --adapter_bottleneck N"),
    "a bare backbone": (other_backbone, "this is a bare backbone"),
    "another task": (lambda f: trained(f, ["qa"]), "the task(s) qa, not 'nlg'", "trained for 'nlg'"),
    "weights missing": (not_whole, checkpoint.WEIGHTS, "no such file"),
    "no model yet": (unsaved, "this run has not saved a best model yet"),
    "nothing": (lambda f: f, "no such directory"),
    "a file": (a_file, "this is a file", "a run directory"),
    "a released single task": (lambda f: released_directory(f, "gpt2_adapter_model"), "positions is 128", "256, as in"),
    "a released full model": (finetuned_directory, "this is a fully fine-tuned model"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_what_cannot_be_combined_is_one_clear_error(kind, gpt2, tmp_path, capsys):
    make, *said = WRONG[kind]
    source = make(tmp_path / "wrong")
    there = {p.name for p in tmp_path.iterdir()}
    with pytest.raises(SystemExit) as stopped:
        combined(tmp_path / "out", {"mt": gpt2["mt"], "nlg": source})
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and error.startswith("error: ") and error.count("error: ") == 1
    assert all(part in error for part in [*said, str(source)]), error
    assert {p.name for p in tmp_path.iterdir()} == there


@pytest.mark.parametrize("name, task, reason", [
    ("t5_hyperformer", "rte", "hyperformer: its hypernetworks generate the adapters of all tasks"),
    ("t5_adapters", "rte", "adapters: the layer norms of its adapters, or of the T5, belong to all tasks"),
    ("t5_full", "rte", "this is a model of train_t5.py"),
    ("camtl_base", "cola", "conditional: its conditional modules belong to all tasks"),
    ("camtl_plain", "cola", "this is a model of train_camtl.py"),
])  # fmt: skip
def test_what_tasks_share_is_the_reason_why_published_systems_are_not_combined(name, task, reason, tmp_path, capsys):
    source = ROOT / "tests" / "saved" / name
    with pytest.raises(SystemExit) as stopped:
        combined(tmp_path / "out", {task: source})
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and f"--checkpoints {task}={source}: " in error and reason in error
    assert not any(tmp_path.iterdir())


def test_a_task_there_twice_and_a_place_that_is_taken_are_refused(gpt2, tmp_path, capsys):
    vlm = combined(tmp_path / "vlm", {"mt": gpt2["mt"]})
    before = files(tmp_path)
    (tmp_path / "file").write_text("mine")
    nlg, mt = f"nlg={gpt2['nlg']}", f"mt={gpt2['mt']}"
    for argv, *said in (
        (["--into", vlm, "--checkpoints", mt], f"--checkpoints {mt}: task 'mt' is there twice", f"--into {vlm} has it"),
        (["--output", vlm, "--checkpoints", nlg], "something stands there already", f"add to it: --into {vlm}"),
        (["--output", tmp_path / "file", "--checkpoints", nlg], "something stands there already"),
        (["--into", tmp_path / "none", "--checkpoints", nlg], f"--into {tmp_path / 'none'}: no such directory"),
        (["--into", vlm], "--checkpoints is needed"),
        (["--checkpoints", nlg], "--output is needed"),
        (["--checkpoints", mt, mt, "--output", tmp_path / "x"], "task 'mt' is named twice"),
        (["--checkpoints", "runs/mt", "--output", tmp_path / "x"], "expected TASK=RUN"),
        (["--checkpoints", mt, "--output", tmp_path / "x", "--data", "qa=x.json"], "task 'qa' is not combined"),
        (["--checkpoints", mt, "--output", tmp_path / "x", "--data", "mt=x.json"], "x.json"),
        (["--checkpoints", mt, "--output", tmp_path / "file" / "x"], f"--output {tmp_path / 'file'}: cannot write"),
    ):
        with pytest.raises(SystemExit) as stopped:
            combine_all.main([str(word) for word in argv])
        error = capsys.readouterr().err
        assert stopped.value.code == 2 and error.startswith("error: ")
        assert all(part in error for part in said), error
    assert files(tmp_path) == {**before, "file": b"mine"}


def test_nothing_else_in_a_directory_is_lost_by_adding_to_it(gpt2, tmp_path, capsys):
    run = shutil.copytree(gpt2["mt"], tmp_path / "run")
    (run / "learning_curve.png").write_bytes(b"mine")
    before, argv = files(run), ["--into", str(run), "--checkpoints", f"nlg={gpt2['nlg']}", *QUICK]
    with pytest.raises(SystemExit):
        combine_all.main(argv)
    error = capsys.readouterr().err
    assert "it also holds learning_curve.png, which would be lost" in error and "--output VLM" in error
    assert files(run) == before and [p.name for p in tmp_path.iterdir()] == ["run"]
    combine_all.main([*argv, "--output", str(tmp_path / "vlm")])
    assert checkpoint.load(tmp_path / "vlm")[0].info.tasks == ["mt", "nlg"] and files(run) == before


def test_a_vlm_behind_a_link_is_replaced_where_it_lies(gpt2, tmp_path):
    vlm, link = combined(tmp_path / "vlm", {"mt": gpt2["mt"]}), tmp_path / "link"
    link.symlink_to("vlm")
    combine_all.main(["--into", str(link), "--checkpoints", f"nlg={gpt2['nlg']}", *QUICK])
    assert link.is_symlink() and checkpoint.load(vlm)[0].info.tasks == ["mt", "nlg"]


def test_a_task_of_another_version_is_refused(gpt2, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(type(get_task("mt")), "markers", (*get_task("mt").markers, "<more>"))
    with pytest.raises(SystemExit):
        combined(tmp_path / "vlm", {"mt": gpt2["mt"]})
    assert "task 'mt' has other markers here" in capsys.readouterr().err and not (tmp_path / "vlm").exists()


# ---- the scripts


def test_a_vlm_evaluates_to_the_files_of_its_single_runs(gpt2, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", without_java()["PATH"])
    vlm = combined(tmp_path / "vlm", gpt2)
    data = {task: small(tmp_path / f"{task}.json", task, train=1, valid=4, test=4) for task in gpt2}
    common = ["--no_sample", "--fp32", "--max_length", "10", "--samples", "0"]
    for task, folder in gpt2.items():
        evaluate.main(["--task", task, "--model_checkpoint", str(folder), "--dataset_path", str(data[task]),
                       "--output_dir", str(tmp_path / "single" / task), *common])  # fmt: skip
    evaluate_vlm.main(["--task", "all", "--model_checkpoint", str(vlm), "--data", *pairs(data),
                       "--output_dir", str(tmp_path / "all"), *common])  # fmt: skip
    together = {name: text for name, text in files(tmp_path / "all").items() if "metrics" not in name}
    apart = {}
    for task in gpt2:
        apart |= {name: text for name, text in files(tmp_path / "single" / task).items() if "metrics" not in name}
        one = metrics(tmp_path / "single" / task)
        other = json.loads((tmp_path / "all" / f"{task}_metrics.json").read_text())
        assert one["labels"] == other["labels"] and one["headline"] == other["headline"]
        assert one["nll"] == pytest.approx(other["nll"], rel=1e-6) and other["method"] == "combined"
    assert together == apart and "dialogue_persona.txt" in together


@pytest.mark.slow
def test_the_scripts_run_as_a_user_runs_them(tmp_path):
    data, backbone = small(tmp_path / "nlg.json", train=8, valid=4, test=4), lively("tiny-gpt2")
    result = run("train", short_run(data, tmp_path / "nlg", epochs=1, model=backbone), tmp_path / "train")
    assert result.code == 0, result.err
    other = trained(tmp_path / "mt", ["mt"])
    argv = ["--checkpoints", f"mt={other}", f"nlg={tmp_path / 'nlg'}", "--output", "runs/VLM", *QUICK]
    result = run_as_user("combine_all", argv, cwd=tmp_path)
    assert result.code == 0 and not result.err, result.err
    assert "2 tasks: " in result.out and "instead of 284,160 in full models" in result.out
    (line,) = re.findall("^next: python evaluate_vlm.py (.*)$", result.out, re.MULTILINE)
    result = run("evaluate_vlm", [*shlex.split(line), "--limit", "2", "--max_length", "5"], tmp_path / "evaluate",
                 env=without_java(), cwd=tmp_path)  # fmt: skip
    assert result.code == 0, result.err
    assert {"mt_output.txt", "nlg_output.txt"} <= {p.name for p in (tmp_path / "results" / "VLM").iterdir()}
    refused(run_as_user("combine_all", argv, cwd=tmp_path), "something stands there already")
