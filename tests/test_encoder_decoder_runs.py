"""Encoder-decoders in files and in the scripts: saved, combined, distilled, resumed, and refused.

python -m pytest tests/test_encoder_decoder_runs.py
"""

import json
import re
import shutil

import pytest
import quick
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from scripts import SAMPLES, metrics, small, tensors
from test_encoder_decoder import (
    BOTTLENECKS,
    KINDS,
    MARKERS,
    attached,
    backbone,
    plain,
    prompts,
    rows,
    scored_by_hand,
)
from test_sentence_distiller import asked, distilled, here, learnt, lively
from training_runs import close_runs, in_two_processes, killed_and_resumed, on_seeing, same_run, short_run
from transformers import AutoModelForSeq2SeqLM
from versatile.adapters import checkpoint, combine, inference
from versatile.adapters.attach import trainable
from versatile.adapters.backbones import loading as backbones
from versatile.adapters.methods import pointer as self_copy
from versatile.data.task import get_task
from versatile.training.decoding import Decoding, decode
from versatile.training.distillation import WordTeacher
from versatile.training.objectives import Distilled, cross_entropy
from versatile.utils.errors import UserError

# ---- files


@pytest.mark.parametrize("kind", quick.only(["tiny-t5"], KINDS))
@pytest.mark.parametrize("bottlenecks, freeze", [(BOTTLENECKS, True), (BOTTLENECKS, False), (dict(nlg=0, mt=0), True),
                                                 (None, True)])  # fmt: skip
def test_a_saved_model_comes_back_bit_for_bit_with_nothing_typed(kind, bottlenecks, freeze, tmp_path):
    model, tokenizer = attached(backbone(kind), bottlenecks, freeze=freeze)
    checkpoint.save_checkpoint(model, tokenizer, tmp_path / "one")
    again, words = checkpoint.load_checkpoint(tmp_path / "one", "mt")
    batch, asked = rows(tokenizer), prompts(tokenizer)
    with torch.no_grad():
        assert torch.equal(cross_entropy(again, batch), cross_entropy(model, batch))
    assert words.get_vocab() == tokenizer.get_vocab() and again.info == model.info
    short = Decoding(max_length=5)
    assert decode(again, words, asked, short) == decode(model, tokenizer, asked, short)
    # A resumed run reads the same files into an existing model.
    live, _ = attached(backbone(kind), bottlenecks, seed=4, freeze=freeze)
    checkpoint.load_weights(live, tmp_path / "one")
    assert all(torch.equal(p, model.state_dict()[n]) for n, p in live.state_dict().items())
    if bottlenecks is None:
        bare = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "one")
        assert torch.equal(bare.lm_head.weight, model.lm_head.weight) and type(bare) is plain(model)
        return
    names = load_file(tmp_path / "one" / checkpoint.ADAPTER_WEIGHTS)
    assert {n.split(".")[1] for n in names if n.startswith("blocks")} == (set("0123") if bottlenecks["nlg"] else set())
    assert sum(t.numel() for t in names.values()) == sum(
        p.numel() for n, p in model.named_parameters() if n.startswith("added.")
    )
    config = json.loads((tmp_path / "one" / checkpoint.CONFIG).read_text())
    assert (config["library_name"], config["encoder"]) == ("versatile", "markers") and "peft_type" not in config
    assert (tmp_path / "one" / "backbone").exists() == (not freeze)
    if freeze:
        size = sum(p.stat().st_size for p in (tmp_path / "one").iterdir())
        assert size < sum(p.numel() for p in trainable(model).values()) * 4 + 200_000


def test_an_encoders_and_its_decoders_adapters_are_told_apart_in_the_file(tmp_path):
    model, tokenizer = attached("tiny-t5")
    checkpoint.save_checkpoint(model, tokenizer, tmp_path)
    state = load_file(tmp_path / checkpoint.ADAPTER_WEIGHTS)
    ids, ran = torch.tensor([[3, 4]]), []
    for i, adapters in enumerate(model.added["bottleneck"].blocks):
        assert torch.equal(state[f"blocks.{i}.mt.down.weight"], adapters["mt"].down.weight)
        adapters["mt"].register_forward_hook(lambda m, args, output, i=i: ran.append(i))
    mt = torch.tensor([model.task_id("mt")])
    encoded = model.encode(ids, task_ids=mt)
    assert ran == [0, 1]
    model(decoder_input_ids=ids, encoder_outputs=encoded, task_ids=mt)
    assert ran == [0, 1, 2, 3]


@pytest.mark.parametrize("kind", ["v1.1", "mt5"])
@pytest.mark.parametrize("freeze", [True, False])
def test_heads_of_their_own_are_combined_bit_for_bit(kind, freeze, tmp_path):
    if freeze:
        made = {t: attached(backbone(kind), {t: 5}, {t: MARKERS[t]}, seed=len(t)) for t in MARKERS}
    else:
        made = {"nlg": attached(backbone(kind), {"nlg": 5}, {"nlg": MARKERS["nlg"]}, freeze=False)}
    for task, (model, tokenizer) in made.items():
        checkpoint.save_checkpoint(model, tokenizer, tmp_path / task)
    sources = [s for t in made for s in combine.read_sources(tmp_path / t, [t])]
    combine.check_sources(sources)
    model, tokenizer = combine.build_combined_model(sources)
    for task, (own, words) in made.items():
        one, two = ([*t.convert_tokens_to_ids(MARKERS[task]), *range(5, 15)] for t in (tokenizer, words))
        sequence = (one, one, 6), (two, two, 6)
        assert combine.largest_difference((model, tokenizer), (own, words), task, [sequence]) == (0, 0)


# ---- what does not go together


def test_an_adapter_of_another_kind_of_backbone_is_refused(tmp_path):
    from attached_models import attached as causal

    for name, other in (("tiny-t5", "tiny-gpt2"), ("tiny-gpt2", "tiny-t5")):
        model, tokenizer = attached(name) if name == "tiny-t5" else causal(name)
        folder = tmp_path / name
        checkpoint.save_checkpoint(model, tokenizer, folder)
        config = json.loads((folder / checkpoint.CONFIG).read_text())
        moved = shutil.copytree(folder, tmp_path / f"{name}-moved")
        (moved / checkpoint.CONFIG).write_text(json.dumps(config | dict(base_model_name_or_path=other)))
        with pytest.raises(UserError, match=rf"the backbone {other} has the fingerprint(.|\n)*trained on"):
            checkpoint.load_checkpoint(moved)
    model, tokenizer = causal("tiny-gpt2", {"qa": 3}, {"qa": get_task("qa").markers})
    with pytest.raises(UserError, match="the model in memory has the fingerprint"):
        checkpoint.load_onto(model, tokenizer, tmp_path / "tiny-t5")
    names = {"tiny-gpt2": "nlg", "tiny-t5": "mt"}
    sources = [source for name, task in names.items() for source in combine.read_sources(tmp_path / name, [task])]
    with pytest.raises(UserError, match=r"model_type is t5(.|\n)*gpt2, as in"):
        combine.check_sources(sources)


def test_self_copy_is_refused_in_one_sentence():
    model, _ = attached("tiny-t5")
    with pytest.raises(UserError, match="--self_copy: points into the one sequence of a causal model; T5 is") as caught:
        self_copy.add(model)
    assert not model.info.self_copy and "\n  remedy:   leave the flag out" in str(caught.value)


# ---- learning from a teacher


@pytest.mark.parametrize("kind", ["tiny-t5", "v1.1"])
def test_word_distillation_equals_a_plain_computation_from_full_scores(kind):
    temperature, alpha = 3.0, 0.3
    student = attached(backbone(kind), {"mt": 4}, {"mt": MARKERS["mt"]})
    # The teacher holds more tasks: it numbers the markers differently.
    teacher = attached(backbone(kind), {"nlg": 3, "mt": 6}, seed=2)
    inference.prepare_for_inference(teacher[0], torch.device("cpu"), torch.float32)
    objective = Distilled(WordTeacher(teacher, student, get_task("mt")), None, temperature, alpha)
    batch = rows(student[1], tasks=(0,))
    loss = objective(student[0], batch, 1)
    theirs = batch | dict(task_ids=torch.full((4,), 1), token_type_ids=batch["token_type_ids"].clone())
    own = [words.convert_tokens_to_ids(list(MARKERS["mt"])) for _, words in (student, teacher)]
    columns = [[*range(student[0].info.first), *ids] for ids in own]
    for old, new in zip(*own):
        theirs["token_type_ids"][batch["token_type_ids"] == old] = new
    expected = torch.zeros(())
    for r in range(4):
        ours, targets = scored_by_hand(student[0], batch, r)
        other, _ = scored_by_hand(teacher[0], theirs, r)
        p, q = (F.log_softmax(s[:, c] / temperature, -1) for s, c in zip((other, ours), columns[::-1]))
        expected = expected + (1 - alpha) * F.cross_entropy(ours, targets, reduction="sum")
        expected = expected + alpha * temperature**2 * (p.exp() * (p - q)).sum()
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-3)
    parameters = list(trainable(student[0]).values())
    for one, same in zip(torch.autograd.grad(loss, parameters), torch.autograd.grad(expected, parameters)):
        torch.testing.assert_close(one, same, rtol=1e-3, atol=1e-3)


def test_a_teacher_of_another_vocabulary_is_refused():
    from attached_models import attached as causal

    with pytest.raises(UserError, match="--teacher: the teacher's vocabulary"):
        WordTeacher(causal("tiny-gpt2"), attached("tiny-t5"), get_task("mt"))


@pytest.fixture
def data(tmp_path):
    return small(tmp_path / "nlg.json", train=16, valid=4, test=6)


def test_a_student_learns_a_teachers_texts_and_distributions(data, tmp_path):
    teacher = lively(tmp_path / "teacher", ["mt", "nlg"], model="tiny-t5")
    out = distilled(asked(teacher, data))
    assert re.search(r"16 outputs, \d+ ", out)
    records = json.loads((tmp_path / "nlg_distilled.json").read_text())["train"]
    texts = [record["distillated_tgt"] for record in records]
    assert len(set(texts)) > 3
    # The file holds the teacher's output for each input alone.
    model, tokenizer = checkpoint.load_checkpoint(teacher, "nlg")
    inference.prepare_for_inference(model, torch.device("cpu"), torch.float32)
    from versatile.data import instances

    examples = list(get_task("nlg").examples(records[5], "x", get_task("nlg").read_options(decoding=True)))
    (prompt,), _ = instances.prompts(get_task("nlg"), model.task_id("nlg"), tokenizer, examples, 256, 6)
    (ids,) = decode(model, tokenizer, [prompt], Decoding(max_length=6, min_length=2))
    assert tokenizer.decode(ids, clean_up_tokenization_spaces=False).strip() == texts[5]
    runs = {}
    for kd in ("sentence", "word", "both"):
        more = ["--kd", kd] + (["--teacher", teacher] if kd != "sentence" else [])
        runs[kd] = tensors(learnt(short_run(data, tmp_path / kd, *more, "--max_steps", 2, model="tiny-t5")))
    assert runs["sentence"] != runs["both"] != runs["word"]


# ---- runs


@pytest.mark.slow
@pytest.mark.parametrize("bottleneck", [4, -1])
def test_a_run_killed_and_resumed_equals_one_never_stopped(bottleneck, data, tmp_path):
    options = dict(model="tiny-t5", bottleneck=bottleneck, epochs=2)
    whole = learnt(short_run(data, tmp_path / "whole", "--save_steps", "1", **options))
    out = tmp_path / "killed"
    argv = short_run(data, out, "--save_steps", "1", **options)
    assert killed_and_resumed(argv, out, tmp_path / "log", [on_seeing("checkpoints/step_*03")]) == 1
    same_run(whole, out)


def test_a_run_is_evaluated_to_its_own_loss_in_batches_of_any_size(data, tmp_path):
    run = learnt(short_run(data, tmp_path / "run", model="tiny-t5", epochs=1))
    argv = ["--task", "nlg", "--dataset_path", data, "--model_checkpoint", run, "--no_sample", "--fp32",
            "--max_length", 8]  # fmt: skip
    for size in (1, 6):
        result = here("evaluate", [*argv, "--batch_size", size, "--output_dir", tmp_path / str(size)])
        assert result.code == 0, result.err
    assert (tmp_path / "1" / "nlg_output.txt").read_bytes() == (tmp_path / "6" / "nlg_output.txt").read_bytes()
    assert metrics(tmp_path / "1")["nll"] == pytest.approx(metrics(tmp_path / "6")["nll"], rel=1e-6)
    assert here("evaluate", [*argv, "--split", "valid", "--output_dir", tmp_path / "valid"]).code == 0
    assert metrics(tmp_path / "valid")["nll"] == pytest.approx(metrics(run)["valid_nll"], rel=1e-5)
    # A few MB: the trained weights and the tokenizer, nothing of the backbone.
    names = set(tensors(run))
    assert {n.split(".")[0] for n in names} == {"blocks", "rows"} and metrics(run)["backbone"] == 0


def test_all_tasks_are_trained_combined_and_evaluated(tmp_path):
    tasks = ["mt", "summarization", "dialogue", "qa", "nlg", "webnlg"]
    files = {t: small(tmp_path / f"{t}.json", t, train=6, valid=2, test=2) for t in tasks}
    named = [f"{t}={file}" for t, file in files.items()]
    argv = ["--tasks", *tasks, "--data", *named, "--model_checkpoint", "tiny-t5", "--adapter_bottleneck", 4, "--fp32",
            "--n_epochs", 1, "--train_batch_size", 8, "--gradient_accumulation_steps", 1, "--lr", "1e-2"]  # fmt: skip
    result = here("train_vlm", [*argv, "--output_dir", tmp_path / "vlm"])
    assert result.code == 0, result.err
    one = learnt(short_run(files["mt"], tmp_path / "mt", "--max_steps", 2, model="tiny-t5", task="mt"))
    rest = [f"{t}={tmp_path / 'vlm'}" for t in tasks if t != "mt"]
    result = here("combine_all", ["--checkpoints", f"mt={one}", *rest, "--output", tmp_path / "all", "--data", *named,
                                  "--proof_examples", 2, "--proof_tokens", 5])  # fmt: skip
    assert result.code == 0, result.err
    assert result.out.count("0, equal bit for bit") == 6 and result.out.count("2 of 2 equal") == 6
    asks = ["--no_sample", "--fp32", "--max_length", 6, "--model_checkpoint", tmp_path / "all"]
    result = here("evaluate_vlm", [*asks, "--data", *named, "--output_dir", tmp_path / "out"])
    assert result.code == 0, result.err
    assert all((tmp_path / "out" / f"{task}_outputs.jsonl").is_file() for task in tasks)
    for task in ("qa", "nlg"):
        more = ["--task", task, "--dataset_path", files[task], "--batch_size", 1, "--output_dir", tmp_path / task]
        alone = here("evaluate_vlm", [*asks, *more])
        assert alone.code == 0, alone.err
        files_of = [(tmp_path / where / f"{task}_outputs.jsonl").read_bytes() for where in ("out", task)]
        assert files_of[0] == files_of[1]


def test_rows_alone_and_the_tables_alone_can_be_trained(data, tmp_path):
    for flag, kinds in (("--emb_only", {"rows"}), ("--outputlayer_only", None)):
        run = learnt(short_run(data, tmp_path / flag, flag, "--max_steps", 1, model="tiny-t5", bottleneck=-1))
        if kinds:
            assert {n.split(".")[0] for n in tensors(run)} == kinds
        else:
            bare = backbones.load_backbone("tiny-t5")[0].state_dict()
            moved = {n for n, p in load_file(run / "model.safetensors").items() if not torch.equal(p, bare[n])}
            assert moved == {"shared.weight"}


def test_an_answer_in_a_pipe_comes_from_the_task_asked(tmp_path):
    from test_interact import piped

    folder = lively(tmp_path / "vlm", ["mt", "qa"], model="tiny-t5")
    lines = ["A man is reading.", "/show", "/task qa", "document: The river is long.", "How long?"]
    argv = ["--model_checkpoint", str(folder), "--no_sample", "--fp32", "--max_length", "6"]
    out, err, code = piped(tmp_path, argv, *lines)
    assert code == 0 and len(out) == 2 and "<source_mt>" in err


def test_a_backbone_that_is_not_there_is_told_the_names_that_are(tmp_path):
    result = here("train", short_run(SAMPLES / "nlg.json", tmp_path / "run", model=str(tmp_path / "no")))
    assert result.code == 2
    for script in ("train", "train_vlm"):
        assert "tiny-t5" in here(script, ["--help"]).out


@pytest.mark.slow
def test_two_processes_train_what_one_trains_with_twice_the_batch(tmp_path):
    # Dropout's randomness belongs to each process. Of 17 rows one is left for two processes in the end.
    model, tokenizer = backbones.load_backbone("tiny-t5")
    model.config.dropout_rate = 0.0
    model.save_pretrained(tmp_path / "dry")
    tokenizer.save_pretrained(tmp_path / "dry")
    odd = small(tmp_path / "nlg.json", train=17, valid=3, test=2)
    options = dict(model=tmp_path / "dry", epochs=1)
    one = learnt(short_run(odd, tmp_path / "one", batch=8, **options))
    in_two_processes(short_run(odd, tmp_path / "two", batch=4, **options), tmp_path / "log")
    close_runs(one, tmp_path / "two")
