"""combine_all.py: a combination takes exactly what belongs to a task and answers it to the last bit."""

import itertools
import json
import re
import shlex
import shutil

import pytest
import quick
import torch
from attached_models import Words, gpt2_on_meta
from combining import (
    NAMES,
    QUICK,
    TASKS,
    answered,
    answers,
    combined,
    gpt2_singles,
    lively,
    pairs,
    same,
    trained,
)
from safetensors.torch import load_file
from scripts import SAMPLES, contents, metrics, run, run_as_user, small, without_java
from test_released import CONFIG, VGLM, inputs, released_directory
from training_runs import refused, short_run
from versatile.adapters import checkpoint, combine
from versatile.adapters.attach import attach
from versatile.adapters.backbones import loading as backbones
from versatile.adapters.methods import pointer as self_copy
from versatile.data.task import get_task
from versatile.utils.screen import format_count

import combine_all
import evaluate
import evaluate_vlm


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    return gpt2_singles(tmp_path_factory.mktemp("gpt2"))


@pytest.fixture(scope="module", params=quick.only(["tiny-gpt2"], NAMES))
def singles(request, tmp_path_factory):
    """{task: a directory trained for it alone}."""
    folder = tmp_path_factory.mktemp(request.param)
    return {task: trained(folder / task, [task], request.param, seed) for seed, task in enumerate(TASKS)}


def test_each_task_keeps_its_tensors_history_and_answers(singles, tmp_path, capsys):
    vlm = combined(tmp_path / "vlm", singles)
    model, _ = checkpoint.load_checkpoint(vlm)
    assert model.info.tasks == list(TASKS) and model.info.bottlenecks == TASKS
    assert model.info.histories == {"dialogue": 3} and model.info.mask_other_tasks and model.info.freeze
    whole, owners = checkpoint.adapter_state(model), checkpoint.owners_of_keys(model)
    for task, folder in singles.items():
        own = checkpoint.adapter_state(checkpoint.load_checkpoint(folder)[0])
        mine = {key: tensor for key, tensor in whole.items() if owners[key] == task}
        assert own.keys() == mine.keys() and all(torch.equal(own[k], mine[k]) for k in own)
        assert same(answers(folder, task), answers(vlm, task))
    # The outputs are meaningful: they are not all alike.
    assert len({tuple(out) for task in singles for out in answers(vlm, task)[1]}) > 8
    assert "backbone" not in {p.name for p in vlm.iterdir()}
    printed = capsys.readouterr().out
    assert len(re.findall("0, equal bit for bit +3 of 3 equal$", printed, re.MULTILINE)) == len(TASKS)
    assert f"next: python evaluate_vlm.py --task all --no_sample --model_checkpoint {vlm} --data mt=" in printed


def test_the_order_changes_the_ids_and_nothing_else(gpt2):
    alone = {task: answers(folder, task) for task, folder in gpt2.items()}
    read = {task: combine.read_sources(folder, [task])[0] for task, folder in gpt2.items()}
    for order in list(itertools.permutations(gpt2))[1::2]:
        sources = [read[task] for task in order]
        combine.check_sources(sources)
        model, tokenizer = combine.build_combined_model(sources)
        assert model.info.tasks == list(order)
        assert all(same(alone[task], answered(model, tokenizer, task)) for task in order)


@pytest.mark.parametrize("name", quick.only(["tiny-gpt2"], NAMES))
def test_a_task_that_comes_later_leaves_the_others_as_they_were(name, tmp_path):
    old = {"mt": trained(tmp_path / "mt", ["mt"], name, 1), "nlg": trained(tmp_path / "nlg", ["nlg"], name, 2)}
    new = trained(tmp_path / "dialogue", ["dialogue"], name, 3)
    vlm = combined(tmp_path / "vlm", old)
    before = {task: answers(vlm, task) for task in old}
    combine_all.main(["--into", str(vlm), "--checkpoints", f"dialogue={new}", *QUICK])
    assert checkpoint.load_checkpoint(vlm)[0].info.tasks == ["mt", "nlg", "dialogue"]
    assert all(same(before[task], answers(vlm, task)) for task in old)
    assert same(answers(new, "dialogue"), answers(vlm, "dialogue"))
    # Adding one after another equals adding all at once.
    at_once = combined(tmp_path / "once", {**old, "dialogue": new})
    weights = (f / checkpoint.ADAPTER_WEIGHTS for f in (vlm, at_once))
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
    assert checkpoint.load_checkpoint(vlm)[0].info.tasks == ["nlg", "dialogue", "mt", "summarization"]
    assert all(same(answers(gpt2[task], task), answers(vlm, task)) for task in gpt2)
    assert same(answers(mixed, "summarization"), answers(vlm, "summarization"))
    sources = json.loads((vlm / "run.json").read_text())["sources"]
    assert sources["dialogue"]["dataset_path"] == str(SAMPLES / "dialogue.json")
    # One task alone is a VLM, too.
    assert same(answers(gpt2["mt"], "mt"), answers(combined(tmp_path / "one", {"mt": both}), "mt"))


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
    model, tokenizer = checkpoint.load_checkpoint(vlm)
    assert model.info.tasks == CONFIG["task_order"] and model.info.bottlenecks == CONFIG["bottleneck_map"]
    assert not model.info.mask_other_tasks and model.info.save_backbone and not model.info.self_copy
    embed, base = model.get_input_embeddings(), checkpoint.backbone_state(model)
    tokens = {number: token for token, number in CONFIG["special_token_ids"].items()}
    for start, end, source in golden["embedding_rows"]:
        for row in range(start, end):
            if source == "base":
                assert torch.equal(embed.weight[row], states["mt"]["transformer.wte.weight"][row])
            elif source == "random_init":
                # <pad>: belongs to no task and is never scored; the original draws it anew.
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
    # A further one, from a VLM in one of our directories: it joins the model that carries its backbone.
    model, tokenizer = checkpoint.load_checkpoint(sources["qa"], "qa")
    checkpoint.save_checkpoint(model, tokenizer, tmp_path / "converted")
    four = combined(tmp_path / "four", {t: f for t, f in sources.items() if t != "qa"})
    combine_all.main(["--into", str(four), "--checkpoints", f"qa={tmp_path / 'converted'}", *QUICK])
    assert checkpoint.load_checkpoint(four)[0].info.tasks == ["mt", "summarization", "dialogue", "nlg", "qa"]


def test_a_released_vlm_combined_alone_scores_as_it_did(tmp_path):
    source, golden = released_directory(tmp_path / "released", "vlm_model"), load_file(VGLM / "forward.safetensors")
    vlm = combined(tmp_path / "vlm", dict.fromkeys(CONFIG["task_order"], source))
    theirs, words = checkpoint.load_checkpoint(source, "mt")
    ours, tokenizer = checkpoint.load_checkpoint(vlm)
    # The markers' ids follow the order of the tasks, which differs in released files.
    order = torch.tensor(tokenizer.convert_tokens_to_ids(words.convert_ids_to_tokens(range(len(words)))))
    given = inputs(golden)
    moved = {k: order[v] if k.endswith("ids") else v for k, v in given.items()}
    for number in range(5):
        ids = torch.full((3,), number)
        with torch.no_grad():
            # <pad>'s row as well: all sources have the same one.
            assert torch.equal(theirs(**given, task_ids=ids).logits, ours(**moved, task_ids=ids).logits[..., order])


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
    printed = [format_count(counts[k]) for k in ("added", "backbone", "separate")]
    assert printed == ["15.1M", "124.4M", "622.2M"] and round(100 * counts["together"] / counts["separate"], 1) == 22.4


def test_the_ledger_counts_every_parameter_once(singles):
    sources = [combine.read_sources(folder, [task])[0] for task, folder in singles.items()]
    model, _ = combine.build_combined_model(sources)
    assert combine.count_task_parameters(model)["together"] == sum(p.numel() for p in model.parameters())


def test_a_result_that_answers_otherwise_is_refused_and_nothing_is_written(gpt2, tmp_path, monkeypatch, capsys):
    vlm = combined(tmp_path / "vlm", {"mt": gpt2["mt"]})
    before, build = contents(vlm), combine.build_combined_model

    def wrong(sources):
        model, tokenizer = build(sources)
        model.get_input_embeddings().rows.tasks["nlg"].data[3, 0] += 0.5
        return model, tokenizer

    monkeypatch.setattr(combine, "build_combined_model", wrong)
    argv = ["--checkpoints", f"nlg={gpt2['nlg']}", *QUICK]
    for location in (["--into", str(vlm)], ["--output", str(tmp_path / "new")]):
        with pytest.raises(SystemExit) as stopped:
            combine_all.main([*argv, *location])
        assert stopped.value.code == 2
        assert "the combined model answers differently" in capsys.readouterr().err
    assert contents(vlm) == before and [p.name for p in tmp_path.iterdir()] == ["vlm"]


@pytest.mark.parametrize("value", [float("nan"), 1.0])
def test_the_proof_sees_every_column_that_counts(gpt2, value):
    (ours, tokenizer), theirs = (checkpoint.load_checkpoint(gpt2["nlg"]) for _ in range(2))
    given = [((ids, types),) * 2 for ids, types in [([5, 405, 7], [405, 405, 405])]]
    assert combine.largest_difference((ours, tokenizer), theirs, "nlg", given) == (0, 0)
    ours.get_input_embeddings().rows.tasks["nlg"].data[-1, 0] += value
    gap, share = combine.largest_difference((ours, tokenizer), theirs, "nlg", given)
    assert not share <= combine.SCORE_TOLERANCE and not gap <= 0


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
        assert f" inputs of {combine_all.shortest_path(read)}" in capsys.readouterr().out
        proof = json.loads((vlm / "run.json").read_text())["proof"]["nlg"]
        assert proof["data"] == str(read) and proof["max_abs_difference"] == 0
        shutil.rmtree(vlm)
    monkeypatch.setattr("versatile.data.files.SAMPLES", tmp_path / "none")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        combined(tmp_path / "vlm", {"nlg": gpt2["nlg"]})
    assert "remedy:   name one: --data nlg=FILE" in capsys.readouterr().err


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
    assert checkpoint.load_checkpoint(turned)[0].info.save_backbone and same(before["mt"], answers(turned, "mt"))
    model, _ = checkpoint.load_checkpoint(tmp_path / "moved")
    assert model.info.tasks == ["mt", "nlg", "dialogue"] and not model.info.freeze and model.info.save_backbone


def test_self_copy_stays_with_its_own_tasks(gpt2, tmp_path, capsys):
    model, tokenizer = backbones.load_backbone(lively("tiny-gpt2"))
    attach(model, tokenizer, {t: get_task(t).markers for t in ("mt", "summarization")}, {"mt": 4, "summarization": 4})
    self_copy.add(model)
    checkpoint.save_checkpoint(model, tokenizer, tmp_path / "pointer")
    pointer = tmp_path / "pointer"
    vlm = combined(tmp_path / "vlm", {"mt": pointer, "summarization": pointer})
    again, _ = checkpoint.load_checkpoint(vlm)
    gates = [m.added["pointer"].p_gen_linear.weight for m in (again, model)]
    assert again.info.self_copy and torch.equal(*gates)
    assert same(answers(pointer, "mt"), answers(vlm, "mt"))
    for sources, said in (
        ({"mt": pointer, "nlg": gpt2["nlg"]}, f"no other source; --checkpoints nlg={gpt2['nlg']}"),
        ({"mt": pointer}, "trained with --self_copy for 'summarization' too"),
    ):
        with pytest.raises(SystemExit):
            combined(tmp_path / "out", sources)
        assert said in capsys.readouterr().err and not (tmp_path / "out").exists()


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
    together = {name: text for name, text in contents(tmp_path / "all").items() if "metrics" not in name}
    apart = {}
    for task in gpt2:
        apart |= {name: text for name, text in contents(tmp_path / "single" / task).items() if "metrics" not in name}
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
    (line,) = re.findall(r"^next: python \S*/evaluate_vlm\.py (.*)$", result.out, re.MULTILINE)
    result = run("evaluate_vlm", [*shlex.split(line), "--limit", "2", "--max_length", "5"], tmp_path / "evaluate",
                 env=without_java(), cwd=tmp_path)  # fmt: skip
    assert result.code == 0, result.err
    assert {"mt_output.txt", "nlg_output.txt"} <= {p.name for p in (tmp_path / "results" / "VLM").iterdir()}
    refused(run_as_user("combine_all", argv, cwd=tmp_path), "this path already exists")
