"""evaluate.py and decoding: the same outputs in any batch, scores checked by hand, clear errors."""

import copy
import json
import math
import os
import shutil
from pathlib import Path

import pytest
import quick
import torch
from scripts import metrics, run, run_as_user, small, without_java, write_task
from training_runs import NLG, evaluate, refused, short_run
from versatile.training import evaluation
from versatile.training.decoding import Decoding, Prompt, decode
from versatile.training.prompt_batches import left_padded

MODELS = [("tiny-gpt2", -1), ("tiny-gpt2", 16), ("tiny-llama", 16)]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return small(tmp_path_factory.mktemp("data") / "nlg.json", train=48, valid=4, test=24)


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    """(backbone, bottleneck) -> a run trained until its outputs depend on the input."""
    made = {}

    def make(model, bottleneck):
        if (model, bottleneck) not in made:
            folder = tmp_path_factory.mktemp(f"{model}{bottleneck}")
            rate = "1e-2" if bottleneck > 0 else "1e-3"
            argv = short_run(data, folder / "run", "--lr", rate, model=model, bottleneck=bottleneck, batch=8, epochs=8)
            result = run("train", argv, folder)
            assert result.code == 0, result.err
            made[model, bottleneck] = folder / "run"
        return made[model, bottleneck]

    return make


@pytest.fixture(scope="module")
def loaded(trained, data):
    """(backbone, bottleneck) -> (model, tokenizer, prompts, end token's id)."""
    from versatile.adapters import checkpoint
    from versatile.data.encoders.markers import MarkerEncoder
    from versatile.data.json_files import iter_records
    from versatile.data.task import get_task

    made = {}

    def make(model, bottleneck):
        if (model, bottleneck) not in made:
            task = get_task("nlg")
            held, tokenizer = checkpoint.load_checkpoint(trained(model, bottleneck), "nlg")
            encoder = MarkerEncoder(tokenizer, 256, reserve=40)
            examples = [e for location, record in iter_records(data, "test") for e in task.examples(record, location)][
                :8
            ]
            prompts = [encoded.prompt for _, encoded in encoder.encode_all(task, examples)]
            made[model, bottleneck] = held, tokenizer, prompts, encoder.marker_ids(task)[task.eos]
        return made[model, bottleneck]

    return make


def evaluated(model, data, out, *more):
    """Flags of an evaluation in fp32."""
    return ["--task", "nlg", "--dataset_path", data, "--model_checkpoint", model, "--no_sample", "--fp32",
            "--max_length", 24, "--output_dir", out, *more]  # fmt: skip


@pytest.fixture(scope="module")
def lively(loaded):
    """Like `loaded`, with noise on every weight: a tiny model trained for seconds gives every input the same answer."""
    made = {}

    def make(model, bottleneck):
        if (model, bottleneck) not in made:
            held, *others = loaded(model, bottleneck)
            held, noise = copy.deepcopy(held), torch.Generator().manual_seed(1)
            for parameter in held.parameters():
                # Norms and biases would push every input the same way.
                if parameter.ndim > 1:
                    parameter.data += 0.2 * torch.randn(parameter.shape, generator=noise)
            made[model, bottleneck] = held, *others
        return made[model, bottleneck]

    return make


# --- decoding ----------------------------------------------------------------------------------------------


def asked(prompts, eos):
    return [Prompt(*prompt, 0, eos) for prompt in prompts]


def by_hand(model, tokenizer, prompt, eos, length):
    """Greedy search without a cache, without padding, one example at a time."""
    ids, types = map(list, prompt)
    start = len(ids)
    special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder} - {eos}
    while len(ids) - start < length:
        with torch.no_grad():
            scores = model(
                input_ids=torch.tensor([ids]), token_type_ids=torch.tensor([types]), task_ids=torch.tensor([0])
            ).logits[0, -1]
        scores[sorted(special)] = -math.inf
        if len(ids) == start:
            scores[eos] = -math.inf
        ids.append(int(scores.argmax()))
        # Produced tokens belong to the target's span, whose marker is the prompt's last token.
        types.append(types[-1])
        if ids[-1] == eos:
            return ids[start:-1]
    return ids[start:]


@pytest.mark.parametrize("model, bottleneck", quick.only([("tiny-gpt2", 16)], MODELS))
def test_batched_greedy_search_equals_search_by_hand_token_for_token(model, bottleneck, lively):
    model, tokenizer, prompts, eos = lively(model, bottleneck)
    assert len({len(ids) for ids, _ in prompts}) > 3
    expected = [by_hand(model, tokenizer, prompt, eos, 24) for prompt in prompts]
    assert len(set(map(tuple, expected))) > 3, "the model says the same to everything: the test would prove little"
    for batch_size in (1, 3, 8):
        found = decode(model, tokenizer, asked(prompts, eos), Decoding(max_length=24, batch_size=batch_size))
        assert found == expected, batch_size


@pytest.mark.parametrize("model, bottleneck", quick.only([("tiny-gpt2", 16)], MODELS))
def test_batched_beam_search_equals_one_by_one(model, bottleneck, lively):
    model, tokenizer, prompts, eos = lively(model, bottleneck)
    beams = dict(num_beams=3, max_length=16)
    alone = decode(model, tokenizer, asked(prompts, eos), Decoding(batch_size=1, **beams))
    assert decode(model, tokenizer, asked(prompts, eos), Decoding(batch_size=12, **beams)) == alone
    assert decode(model, tokenizer, asked(prompts, eos), Decoding(batch_size=5, **beams)) == alone
    assert len(set(map(tuple, alone))) > 1


SAMPLED = dict(no_sample=False, temperature=9.0, top_p=1.0)


@pytest.mark.parametrize("more", quick.only([SAMPLED], [{}, dict(num_beams=3), SAMPLED]))
@pytest.mark.parametrize("model, bottleneck", quick.only([("tiny-llama", 16)], MODELS))
def test_no_special_token_but_the_tasks_own_end_is_ever_produced(model, bottleneck, more, lively, monkeypatch):
    model, tokenizer, prompts, eos = lively(model, bottleneck)
    raw = []
    generate = type(model).generate

    def watched(self, **given):
        out = generate(self, **given)
        raw.extend(out[:, given["input_ids"].shape[1] :].flatten().tolist())
        return out

    monkeypatch.setattr(type(model), "generate", watched)
    for row in decode(model, tokenizer, asked(prompts, eos), Decoding(max_length=40, **more)):
        raw.extend(row)
    # Rows that have ended are filled up with padding.
    allowed = {eos, tokenizer.pad_token_id}
    special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    assert len(special) >= 12
    assert special & set(raw) <= allowed
    assert len(raw) >= 100


def test_sampling_repeats_with_its_seed_and_differs_with_another(lively):
    model, tokenizer, prompts, eos = lively("tiny-gpt2", 16)
    sample = lambda seed: decode(  # noqa: E731
        model, tokenizer, asked(prompts, eos), Decoding(no_sample=False, temperature=2.0, max_length=12, seed=seed)
    )
    assert sample(1) == sample(1) != sample(2)


def test_minimum_and_maximum_lengths_hold(lively):
    model, tokenizer, prompts, eos = lively("tiny-gpt2", -1)
    for row in decode(model, tokenizer, asked(prompts, eos), Decoding(min_length=9, max_length=11)):
        assert 9 <= len(row) <= 11


def test_left_padding_counts_positions_from_each_rows_start():
    batch = left_padded([([5, 6, 7], [1, 1, 2]), ([8], [3])], pad_id=0)
    assert batch["input_ids"].tolist() == [[5, 6, 7], [0, 0, 8]]
    assert batch["token_type_ids"].tolist() == [[1, 1, 2], [0, 0, 3]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [0, 0, 1]]
    assert batch["position_ids"].tolist() == [[0, 1, 2], [0, 0, 0]]


# --- scores ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model, bottleneck", MODELS)
def test_perplexity_equals_the_one_computed_one_example_at_a_time(model, bottleneck, loaded, trained, data, tmp_path):
    from versatile.data.encoders.markers import MarkerEncoder
    from versatile.data.json_files import iter_records
    from versatile.data.task import get_task

    evaluate(evaluated(trained(model, bottleneck), data, tmp_path / "out"), tmp_path / "log")
    held, tokenizer, _, _ = loaded(model, bottleneck)
    task, total, count = get_task("nlg"), 0.0, 0
    encoder = MarkerEncoder(tokenizer, 256)
    for location, record in iter_records(data, "test"):
        ((_, encoded),) = encoder.encode_all(task, task.examples(record, location))
        with torch.no_grad():
            scores = held(input_ids=torch.tensor([encoded.ids]), token_type_ids=torch.tensor([encoded.types])).logits[0]
        likely = scores.double().log_softmax(-1)
        for at in range(encoded.prompt_length, len(encoded.ids)):
            total -= float(likely[at - 1, encoded.ids[at]])
            count += 1
    written = metrics(tmp_path / "out")
    assert written["labels"] == count
    assert written["nll"] == pytest.approx(total / count, rel=1e-6)
    assert written["scores"]["PPL"]["score"] == pytest.approx(math.exp(total / count), rel=1e-5)


def test_results_are_one_line_an_instance_and_say_how_they_were_made(trained, data, tmp_path):
    out = tmp_path / "out"
    result = evaluate(evaluated(trained("tiny-gpt2", 16), data, out), tmp_path / "log")
    assert sorted(p.name for p in out.iterdir()) == [
        "nlg_metrics.json",
        "nlg_output.txt",
        "nlg_outputs.jsonl",
        "nlg_ref.txt",
    ]
    rows = [json.loads(line) for line in (out / "nlg_outputs.jsonl").read_text().splitlines()]
    assert [set(row) for row in rows] == [{"source", "references", "hypothesis"}] * len(rows)
    assert (out / "nlg_output.txt").read_text().splitlines() == [row["hypothesis"] for row in rows]
    assert (out / "nlg_ref.txt").read_text().splitlines() == [row["references"][0] for row in rows]
    written = metrics(out)
    assert written["instances"] == len(rows)
    assert written["checkpoint"] == str(trained("tiny-gpt2", 16)) and written["split"] == "test"
    for name in ("BLEU", "NIST", "ROUGE_L", "CIDEr", "PPL"):
        assert math.isfinite(written["scores"][name]["score"]) and written["scores"][name]["signature"]
        assert name in result.out
    assert written["decoding"]["max_length"] == 24 and written["versions"]["torch"]
    # Equal meaning representations are one instance with all their references.
    records = json.loads(data.read_text())["test"]
    assert len(rows) == len({json.dumps(r["src"]) for r in records})
    assert sum(len(row["references"]) for row in rows) >= len(rows)


def test_outputs_do_not_depend_on_the_batch_size(trained, data, tmp_path):
    for size in (1, 7):
        evaluate(
            evaluated(trained("tiny-llama", 16), data, tmp_path / str(size), "--batch_size", size), tmp_path / "log"
        )
    assert (tmp_path / "1" / "nlg_output.txt").read_bytes() == (tmp_path / "7" / "nlg_output.txt").read_bytes()
    assert metrics(tmp_path / "1")["nll"] == pytest.approx(metrics(tmp_path / "7")["nll"], rel=1e-6)


@pytest.mark.slow
def test_a_command_line_evaluates_a_run_and_a_checkpoint_inside_it(trained, data, tmp_path):
    folder = trained("tiny-gpt2", 16)
    newest = sorted((folder / "checkpoints").iterdir())[-1]
    result = run_as_user("evaluate", evaluated(folder, data, tmp_path / "run", "--limit", 3), env=without_java())
    assert result.code == 0, result.err
    assert result.err == "", "a pipe gets no progress bar"
    of_tasks = ["--data", f"e2e={data}", "--dataset_path", ""]
    evaluate(evaluated(newest, data, tmp_path / "step", "--limit", 3, *of_tasks), tmp_path / "log")
    assert metrics(tmp_path / "run")["instances"] == metrics(tmp_path / "step")["instances"] == 3


def test_validation_loss_in_training_is_what_evaluation_measures(trained, data, tmp_path):
    folder = trained("tiny-llama", 16)
    evaluate(evaluated(folder, data, tmp_path / "out", "--split", "valid"), tmp_path / "log")
    assert metrics(tmp_path / "out")["nll"] == pytest.approx(metrics(folder)["valid_nll"], rel=1e-5)


def test_a_bare_backbone_is_evaluated_untrained(data, tmp_path):
    result = evaluate(evaluated("tiny-gpt2", data, tmp_path / "out", "--limit", 3), tmp_path / "log")
    assert "bare backbone" in result.out
    assert metrics(tmp_path / "out")["instances"] == 3
    for flag in ("--emb_only", "--outputlayer_only", "--self_copy"):
        argv = evaluated("tiny-gpt2", data, tmp_path / "none", flag)
        refused(run("evaluate", argv, tmp_path / "log"), flag, "bare backbone")
    assert not (tmp_path / "none").exists()


def test_line_breaks_in_outputs_stay_inside_their_line():
    from versatile.utils.lines import from_one_line, one_line

    assert one_line("plain \\d text") == "plain \\d text"
    breaks = [f"a{c}b" for c in "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"]
    for text in ("plain \\n text", "C:\\new\\x", "a\\\nb", "tail\\", *breaks):
        assert len(one_line(text).splitlines()) == 1
        assert from_one_line(one_line(text)) == text
    assert one_line("two\nlines\r\nhere") == "two\\nlines\\r\\nhere"


def test_without_output_dir_results_lie_under_results(trained, data, tmp_path, monkeypatch):
    import evaluate as script

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", without_java()["PATH"])
    for model, bottleneck, name in (("tiny-gpt2", 16, "adapter_result"), ("tiny-gpt2", -1, "GPT2_result")):
        argv = evaluated(trained(model, bottleneck), data, "x", "--limit", "1", "--max_length", "2")
        argv = [a for a in map(str, argv) if a not in ("--output_dir", "x")]
        for _ in range(2):
            script.main(argv)
        assert (tmp_path / "results" / name / "nlg_output.txt").is_file()
    assert len(list((tmp_path / "results").iterdir())) == 2


def test_the_default_directory_never_overwrites_another_models_results(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def results(name, run, *tasks):
        folder = Path(evaluation.default_results(name, run, tasks))
        folder.mkdir(parents=True, exist_ok=True)
        for task in tasks:
            (folder / f"{task}_metrics.json").write_text(json.dumps({"checkpoint": run}))
        return str(folder)

    assert results("adapter_result", "runs/a", "nlg") == "results/adapter_result"
    assert results("adapter_result", str(tmp_path / "runs" / "a"), "nlg") == "results/adapter_result"
    assert results("adapter_result", "runs/b", "mt") == "results/adapter_result"
    assert results("adapter_result", "runs/b", "nlg", "mt") == "results/adapter_result-b"
    assert results("adapter_result", "other/b", "nlg") == "results/adapter_result-b-2"
    assert results("b", "runs/b", "rte") == "results/b" and results("b", "other/b", "rte") == "results/b-2"
    (tmp_path / "results" / "b" / "rte_metrics.json").write_text("{")
    assert results("b", "runs/b", "rte") == "results/b-3"


# --- bad input ---------------------------------------------------------------------------------------------

BAD = {
    "no reference": ([dict(NLG, refs=[])], ["test[0]", "reference"]),
    "reference a number": ([dict(NLG, refs=[3])], ["test[0]", "refs[0]"]),
    "no tgt": ([NLG, {"src": {"name": "x"}}], ["test[1]", "'tgt'"]),
    "unknown slot": ([dict(NLG, src={"nmae": "x"})], ["test[0]", "'nmae'"]),
    "long target": ([NLG, dict(NLG, tgt="x" * 300)], ["test[1]", "256", "positions"]),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_record_is_one_clear_error_before_anything_is_decoded(name, trained, tmp_path):
    records, fragments = BAD[name]
    file = write_task(tmp_path / "data.json", test=records)
    result = run("evaluate", evaluated(trained("tiny-gpt2", 16), file, tmp_path / "out"), tmp_path / "log")
    refused(result, file, *fragments)
    assert "decoded" not in result.out
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_a_missing_split_names_those_there_are(trained, tmp_path):
    file = write_task(tmp_path / "data.json", train=[NLG])
    refused(run("evaluate", evaluated(trained("tiny-gpt2", 16), file, tmp_path / "out"), tmp_path / "log"),
            file, "no 'test' split", "train")  # fmt: skip


def test_an_input_longer_than_the_model_is_cut_and_said_so(trained, tmp_path):
    file = write_task(tmp_path / "data.json", test=[dict(NLG, src={"name": "long " * 300})])
    result = evaluate(evaluated(trained("tiny-gpt2", 16), file, tmp_path / "out"), tmp_path / "log")
    assert "nlg: 1 input cut (over the positions)" in result.out


BAD_FLAGS = {
    "wrong task": (["--task", "mt", "--dataset_path", "{mt}"], ["holds the task(s) nlg", "'mt'", "--task nlg"]),
    "unknown task": (["--task", "x"], ["holds the task(s) nlg", "'x'"]),
    "bottleneck": (["--adapter_bottleneck", "7"], ["--adapter_bottleneck 7", "16"]),
    "no adapter": (["--model_checkpoint", "tiny-gpt2", "--adapter_bottleneck", "7"], ["7", "has no adapter"]),
    "unknown flag": (["--beams", "3"], ["--beams"]),
    "top_p": (["--top_p", "1.5"], ["--top_p", "'1.5'"]),
    "temperature": (["--temperature", "0"], ["--temperature", "'0'"]),
    "beams": (["--num_beams", "-1"], ["--num_beams", "'-1'"]),
    "data of another task": (["--dataset_path", "", "--data", "mt={mt}"], ["--data", "'mt'", "one of nlg"]),
    "data twice": (["--data", "nlg={data}"], ["--data and --dataset_path"]),
    "split": (["--split", "dev"], ["--split", "'dev'"]),
    "references": (["--references", "x"], ["--references", "--score_only"]),
    "min over max": (["--min_length", "30"], ["--min_length 30", "--max_length 24"]),
    "no such model": (["--model_checkpoint", "no/such"], ["no/such"]),
    "a file": (["--model_checkpoint", "{data}"], ["{data}", "this is a file"]),
    "output a file": (["--output_dir", "{data}"], ["--output_dir {data}", "cannot write"]),
}


@pytest.mark.parametrize("name", BAD_FLAGS)
def test_a_bad_flag_is_one_clear_error(name, trained, data, tmp_path):
    from scripts import SAMPLES

    more, fragments = BAD_FLAGS[name]
    fill = dict(data=data, mt=SAMPLES / "mt.json")
    argv = evaluated(trained("tiny-gpt2", 16), data, tmp_path / "out", *(m.format(**fill) for m in more))
    refused(run("evaluate", argv, tmp_path / "log"), *(f.format(**fill) for f in fragments))
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_a_model_and_a_task_must_be_named(tmp_path):
    refused(run("evaluate", ["--model_checkpoint", "x"], tmp_path), "--task")
    refused(run("evaluate", ["--task", "nlg"], tmp_path), "--model_checkpoint", "--score_only")


@pytest.mark.parametrize("bottleneck", [16, -1])
def test_a_damaged_checkpoint_is_one_clear_error(bottleneck, trained, data, tmp_path):
    name = "adapter_model.safetensors" if bottleneck > 0 else "model.safetensors"
    config = "adapter_config.json" if bottleneck > 0 else "config.json"
    damages = {
        "cut": (lambda f: os.truncate(f / name, 500), []),
        "empty": (lambda f: (f / name).write_bytes(b""), []),
        "garbage": (lambda f: (f / name).write_bytes(b"garbage" * 100), []),
        "gone": (lambda f: (f / name).unlink(), []),
        "no numbers": (lambda f: (f / name).write_bytes((f / name).read_bytes()[:-50] + b"\xff" * 50), ["not numbers"]),
        "config": (lambda f: (f / config).write_text("{"), [config]),
        "list": (lambda f: (f / config).write_text("[]"), [config]),
    }
    for case, (damage, fragments) in damages.items():
        folder = shutil.copytree(trained("tiny-gpt2", bottleneck), tmp_path / case)
        damage(folder)
        result = run("evaluate", evaluated(folder, data, tmp_path / "out"), tmp_path / "log")
        refused(result, folder, *fragments)
    assert not (tmp_path / "out").exists()


def test_an_adapter_on_another_backbone_is_one_clear_error(trained, data, cache, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(trained("tiny-gpt2", 16), tmp_path / "run")
    config = json.loads((folder / "adapter_config.json").read_text())
    retrained = shutil.copytree(cache / "models" / "tiny-gpt2", tmp_path / "retrained")
    weights = load_file(retrained / "model.safetensors")
    save_file({k: v + 0.1 for k, v in weights.items()}, retrained / "model.safetensors", {"format": "pt"})
    for base in ("tiny-llama", str(retrained), "no/such"):
        (folder / "adapter_config.json").write_text(json.dumps(config | dict(base_model_name_or_path=base)))
        result = run("evaluate", evaluated(folder, data, tmp_path / "out"), tmp_path / "log")
        refused(result, base)


def test_two_processes_are_refused(trained, data, tmp_path):
    argv = evaluated(trained("tiny-gpt2", 16), data, tmp_path / "out")
    refused(run("evaluate", argv, tmp_path / "log", env=dict(WORLD_SIZE="2", RANK="0")), "torchrun", "one process")
