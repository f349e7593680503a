"""Word-level distillation: the loss by hand, teachers that number tokens differently, and train.py --teacher.

python -m pytest tests/test_distillation.py
"""

import copy
import json
import re
import shutil
import signal
from types import SimpleNamespace

import numpy as np
import pytest
import quick
import torch
from conftest import GOLDEN
from hypothesis import given, settings
from hypothesis import strategies as st
from scripts import metrics, small, start, tensors, until
from test_sentence_distiller import asked, distilled, here, learnt, lively, released
from training_runs import close_runs, in_two_processes, refused, same_run, short_run
from versatile.adapters import checkpoint, inference, t5
from versatile.adapters.attach import attach, trainable
from versatile.adapters.backbones import loading as backbones
from versatile.adapters.labels import LabelScores
from versatile.adapters.methods import pointer as self_copy
from versatile.data.batching import Batches
from versatile.data.encoders.markers import load_split
from versatile.data.task import get_task
from versatile.training.distillation import WordTeacher, check_same_vocabulary
from versatile.training.objectives import Distilled, cross_entropy
from versatile.utils.errors import UserError

NLG = get_task("nlg")


def attached(tasks=("nlg",), bottlenecks=4, name="tiny-gpt2", seed=0):
    """(model, tokenizer) with noise on all trained weights."""
    model, tokenizer = backbones.load_backbone(name)
    torch.manual_seed(seed)
    widths = None if bottlenecks is None else dict.fromkeys(tasks, bottlenecks)
    attach(model, tokenizer, {t: get_task(t).markers for t in tasks}, widths)
    with torch.no_grad():
        for p in trainable(model).values():
            p += 0.1 * torch.randn(p.shape)
    return model, tokenizer


def ready(pair):
    inference.prepare_for_inference(pair[0], torch.device("cpu"), torch.float32)
    return pair


def batch_for(pair, data, rows=5):
    """The first training rows as train.py passes them to a model of this tokenizer, and the number of labels."""
    model, tokenizer = pair
    split = load_split(data, "train", NLG, tokenizer, 256, training=True, options=NLG.read_options())
    batch = Batches({"nlg": split}, {"nlg": model.task_id("nlg")}, tokenizer.pad_token_id, 256).collate(np.arange(rows))
    return batch, int((batch["labels"] != -100).sum())


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return small(tmp_path_factory.mktemp("data") / "nlg.json", train=24, valid=6, test=4)


def everywhere(pair, batch):
    """A model's own full logits [rows, length, vocabulary], without any distillation code."""
    ids = torch.full((len(batch["labels"]),), pair[0].task_id("nlg"))
    inputs = {k: batch[k] for k in ("input_ids", "token_type_ids", "attention_mask", "position_ids")}
    return pair[0](**inputs, task_ids=ids).logits.float()


def by_hand(student, teacher, batch, temperature, alpha):
    """The loss, summed, position by position; both models number their tokens alike."""
    ours, theirs = everywhere(student, batch), everywhere(teacher, batch).detach()
    common = [*range(student[0].info.first), *student[1].convert_tokens_to_ids(list(NLG.markers))]
    hard = soft = torch.zeros(())
    for row, labels in enumerate(batch["labels"].tolist()):
        for at, label in enumerate(labels):
            if label == -100:
                continue
            one, other = ours[row, at - 1], theirs[row, at - 1]
            p, q = (torch.softmax(scores[common] / temperature, -1) for scores in (other, one))
            hard = hard - torch.log_softmax(one, -1)[label]
            soft = soft + (p * (p.log() - q.log())).sum()
    return (1 - alpha) * hard + alpha * temperature**2 * soft


# --- the loss ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bottleneck, teachers", [(4, 4), (4, None), (0, 4), (None, 4)])
@pytest.mark.parametrize("temperature, alpha", quick.only([(2.0, 0.5)], [(2.0, 0.5), (1.0, 1.0), (4.0, 0.1)]))
def test_the_loss_and_its_gradient_equal_a_plain_computation_from_full_logits(
    bottleneck, teachers, temperature, alpha, data
):
    student, teacher = attached(bottlenecks=bottleneck), ready(attached(bottlenecks=teachers, seed=1))
    student[0].eval()
    batch, labels = batch_for(student, data)
    objective = Distilled(WordTeacher(teacher, student, NLG), None, temperature, alpha)
    loss = objective(student[0], batch, labels)
    expected = by_hand(student, teacher, batch, temperature, alpha) / labels
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    parameters = list(trainable(student[0]).values())
    for one, other in zip(torch.autograd.grad(loss, parameters), torch.autograd.grad(expected, parameters)):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-6)


def test_alpha_0_is_plain_training_to_the_last_bit_and_does_not_ask_the_teacher(data, monkeypatch):
    student, teacher = attached(), ready(attached(seed=1))
    batch, labels = batch_for(student, data)
    objective = Distilled(WordTeacher(teacher, student, NLG), alpha=0.0)
    monkeypatch.setattr(type(teacher[0]), "forward", None)
    torch.manual_seed(3)
    loss = objective(student[0].train(), batch, labels)
    torch.manual_seed(3)
    assert torch.equal(loss, cross_entropy(student[0], batch, labels))
    scores, targets = torch.randn(64, 300), torch.randint(300, (64,))
    hard = torch.nn.functional.cross_entropy(scores, targets, reduction="none")
    assert torch.equal(objective.losses(LabelScores(scores, targets), None), hard)


def test_a_student_that_equals_its_teacher_has_nothing_to_learn_from_it(data):
    student = attached()
    student[0].eval()
    teacher = ready(copy.deepcopy(student))
    batch, labels = batch_for(student, data)
    objective = Distilled(WordTeacher(teacher, student, NLG), temperature=2.0, alpha=1.0)
    loss = objective(student[0], batch, labels)
    assert abs(loss.item()) < 1e-5
    loss.backward()
    assert max(float(p.grad.abs().max()) for p in trainable(student[0]).values()) < 1e-5


def test_a_student_comes_nearer_to_its_teacher(data):
    student, teacher = attached(), ready(attached(seed=1))
    batch, labels = batch_for(student, data)
    objective = Distilled(WordTeacher(teacher, student, NLG), alpha=1.0)
    optimizer = torch.optim.AdamW(trainable(student[0]).values(), lr=2e-2)
    distances = []
    for _ in range(30):
        loss = objective(student[0], batch, labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        distances.append(loss.item())
    assert distances[-1] < 0.5 * distances[0]


@settings(deadline=None, max_examples=50)
@given(seed=st.integers(0, 10**6), temperature=st.floats(0.25, 8), alpha=st.floats(0, 1), padded=st.integers(0, 5))
def test_the_loss_is_never_below_the_labels_share_and_rows_that_round_up_add_nothing(seed, temperature, alpha, padded):
    objective = Distilled(SimpleNamespace(columns=torch.arange(7)), None, temperature, alpha)
    g = torch.Generator().manual_seed(seed)
    ours, theirs = torch.randn(2, 4 + padded, 9, generator=g).double()
    targets = torch.randint(7, (4 + padded,), generator=g)
    targets[4:] = -100
    loss = objective.losses(LabelScores(ours, targets), theirs[:, :7]).sum()
    labelled = objective.losses(LabelScores(ours[:4], targets[:4]), theirs[:4, :7]).sum()
    assert loss == pytest.approx(float(labelled), rel=1e-5, abs=1e-6)
    hard = torch.nn.functional.cross_entropy(ours[:4], targets[:4], reduction="sum")
    assert float(loss) >= (1 - alpha) * float(hard) - 1e-4


# --- the teacher -------------------------------------------------------------------------------------------


def test_the_teacher_gets_no_gradient_keeps_no_dropout_and_is_no_part_of_the_student(data):
    student, teacher = attached(), ready(attached(seed=1))
    batch, labels = batch_for(student, data)
    names = set(student[0].state_dict())
    word_teacher = WordTeacher(teacher, student, NLG)
    objective = Distilled(word_teacher)
    student[0].train()
    assert set(student[0].state_dict()) == names
    assert not any(m.training for m in teacher[0].modules() if isinstance(m, torch.nn.Dropout))
    first, second = (word_teacher.scores(batch) for _ in range(2))
    assert torch.equal(first, second) and not first.requires_grad
    before = {k: v.clone() for k, v in teacher[0].state_dict().items()}
    objective(student[0], batch, labels).backward()
    assert all(p.grad is None and not p.requires_grad for p in teacher[0].parameters())
    assert all(torch.equal(v, before[k]) for k, v in teacher[0].state_dict().items())
    assert any(p.grad is not None and p.grad.any() for p in trainable(student[0]).values())


def test_the_teacher_scores_only_where_a_label_stands(data):
    student, teacher = attached(), ready(attached(seed=1))
    batch, labels = batch_for(student, data)
    word_teacher, shapes = WordTeacher(teacher, student, NLG), []
    teacher[0].get_output_embeddings().register_forward_hook(lambda m, args, out: shapes.append(tuple(out.shape)))
    targets = word_teacher.scores(batch)
    rounded = -(-labels // 64) * 64
    assert rounded < batch["labels"].numel()
    assert [shape[0] for shape in shapes] == [rounded]
    assert targets.shape == (rounded, student[0].info.first + len(NLG.markers))


def soft(teacher, student, batch):
    return WordTeacher(ready(teacher), student, NLG).scores(batch)


def test_a_vlm_that_holds_the_task_among_others_teaches_as_the_single_task_model_does(data):
    student, single = attached(), attached(seed=1)
    batch, _ = batch_for(student, data)
    several = attached(("mt", "qa", "nlg"), seed=2)
    own, theirs = checkpoint.adapter_state(several[0]), checkpoint.adapter_state(single[0])
    with torch.no_grad():
        for key, tensor in theirs.items():
            own[key].copy_(tensor)
    checkpoint.set_adapter_state(several[0], own, "here")
    assert several[1].convert_tokens_to_ids("<bos_nlg>") != single[1].convert_tokens_to_ids("<bos_nlg>")
    assert several[0].task_id("nlg") == 2
    torch.testing.assert_close(soft(several, student, batch), soft(single, student, batch))


def test_a_fully_fine_tuned_vlm_teaches_as_the_single_task_model_does(data):
    student, single, several = attached(), attached(bottlenecks=None), attached(("mt", "nlg"), None)
    batch, _ = batch_for(student, data)
    state, own = single[0].state_dict(), several[0].state_dict()
    markers = list(NLG.markers)
    here, there = (t.convert_tokens_to_ids(markers) for _, t in (several, single))
    with torch.no_grad():
        for key, tensor in state.items():
            if tensor.shape == own[key].shape:
                own[key].copy_(tensor)
            else:
                first = single[0].info.first
                own[key][:first], own[key][here] = tensor[:first], tensor[there]
    assert here != there
    torch.testing.assert_close(soft(several, student, batch), soft(single, student, batch))


def test_a_released_checkpoint_teaches_as_a_model_of_ours_with_its_weights_does(data, tmp_path):
    folder = released(tmp_path / "released")
    vlm = checkpoint.load_checkpoint(folder, "nlg")
    # A student beside the same backbone, whose tokens are numbered as ours are.
    student = bare_student(vlm, tmp_path)
    assert student[1].convert_tokens_to_ids("<bos_nlg>") != vlm[1].convert_tokens_to_ids("<bos_nlg>")
    batch, _ = batch_for(student, data)
    same = bare_student(vlm, tmp_path)
    theirs, own = checkpoint.adapter_state(vlm[0]), checkpoint.adapter_state(same[0])
    with torch.no_grad():
        for key in own:
            own[key].copy_(theirs[key])
    checkpoint.set_adapter_state(same[0], own, "here")
    torch.testing.assert_close(soft(vlm, student, batch), soft(same, student, batch), rtol=1e-4, atol=1e-4)


def bare_student(vlm, folder):
    """(model, tokenizer): the released model's backbone with fresh rows and an adapter for nlg."""
    from transformers import GPT2LMHeadModel, GPT2TokenizerFast

    config = copy.deepcopy(vlm[0].config)
    config.vocab_size = vlm[0].info.first
    model = GPT2LMHeadModel(config)
    state = checkpoint.backbone_state(vlm[0])
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected and set(missing) <= {"lm_head.weight"}
    vglm = GOLDEN / "vglm" / "gpt2_tiny_tok"
    tokenizer = GPT2TokenizerFast(str(vglm / "vocab.json"), str(vglm / "merges.txt"))
    attach(model.eval(), tokenizer, {"nlg": NLG.markers}, {"nlg": vlm[0].info.bottlenecks["nlg"]})
    return model, tokenizer


def test_other_vocabularies_are_refused_naming_both():
    student, teacher = attached(name="tiny-gpt2"), attached()
    other = copy.deepcopy(teacher[1])
    text = other.backend_tokenizer.to_str()
    swapped = json.loads(text)
    vocabulary = swapped["model"]["vocab"]
    one, two = list(vocabulary)[200:202]
    vocabulary[one], vocabulary[two] = vocabulary[two], vocabulary[one]
    from tokenizers import Tokenizer

    other._tokenizer = Tokenizer.from_str(json.dumps(swapped))
    check_same_vocabulary(*teacher, *student)
    with pytest.raises(UserError, match="--teacher: the teacher's vocabulary") as error:
        check_same_vocabulary(teacher[0], other, *student)
    assert len(re.findall(rf"\({student[0].info.first} tokens\)", str(error.value))) == 2


def test_a_teacher_with_a_pointer_and_one_too_short_are_refused():
    student, teacher = attached(), attached(seed=1)
    with pytest.raises(UserError, match=r"--teacher: an example has 257 tokens, the teacher takes 256"):
        WordTeacher(teacher, student, NLG, longest=257)
    self_copy.add(teacher[0])
    with pytest.raises(UserError, match="--teacher: was trained with --self_copy"):
        WordTeacher(teacher, student, NLG)


# --- train.py ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return lively(tmp_path_factory.mktemp("teacher"), ["mt", "nlg"], model="tiny-gpt2")


def learning(data, out, teacher, *more, **options):
    return short_run(data, out, "--teacher", teacher, *more, **options)


def test_alpha_0_trains_the_very_run_that_a_run_without_teacher_is(teacher, data, tmp_path):
    plain = learnt(short_run(data, tmp_path / "plain", epochs=1))
    nothing = learnt(learning(data, tmp_path / "nothing", teacher, "--kd_alpha", 0, epochs=1))
    same_run(plain, nothing)
    taught = learnt(learning(data, tmp_path / "taught", teacher, "--max_steps", 2))
    assert tensors(taught) != tensors(plain)
    assert json.loads((taught / "run.json").read_text())["method"] == "adapter+word-distillation"


@pytest.mark.parametrize("flag", ["--teacher", "--init_from"])
def test_a_model_to_learn_from_is_checked_before_anything_is_loaded(flag, data, tmp_path, monkeypatch):
    def loaded(*_, **__):
        raise AssertionError("the student was loaded")

    monkeypatch.setattr("versatile.training.experiment.load_backbone", loaded)
    model, tokenizer = t5.load_t5_of_name("tiny-t5")
    t5.save_t5(t5.attach(model, ["rte"], t5.T5Settings(method="lora")), tokenizer, tmp_path / "t5")
    names = ["nope", str(tmp_path / "t5"), "tiny-llama"]
    said = ["no such directory", "this is a model of train_t5.py", "this is a bare backbone"]
    for name, words in list(zip(names, said))[: 3 if flag == "--teacher" else 2]:
        result = here("train", short_run(data, tmp_path / "run", flag, name))
        refused(result, f"error: {flag} {name}: {words}", "train.py", out=tmp_path / "run")
        assert "smollm2" not in result.err and "evaluate.py" not in result.err and "  remedy:   train " in result.err


@pytest.mark.parametrize("kd", quick.only(["both"], ["word", "both"]))
def test_killed_and_resumed_with_a_teacher_is_exact(kd, teacher, tmp_path):
    data = small(tmp_path / "nlg.json", train=24, valid=6, test=4)
    if kd == "both":
        distilled(asked(teacher, data))
    more = ["--kd", kd, "--save_steps", 1, "--temperature", 3]
    argv = lambda out: learning(data, out, teacher, *more, accumulation=2, epochs=4)  # noqa: E731
    whole, out = learnt(argv(tmp_path / "whole")), tmp_path / "killed"
    job = start("train", argv(out), tmp_path / "log")
    until(lambda: list(out.glob("checkpoints/step_*04")), job)
    job.kill(signal.SIGKILL)
    assert job.wait().code == -signal.SIGKILL
    assert here("train", ["--resume", out]).code == 0
    same_run(whole, out)
    flags = json.loads((out / "run.json").read_text())["flags"]
    assert flags["distillation"] == (kd == "both")
    # The gold file is recorded: the run is evaluated with it.
    assert flags["dataset_path"] == str(data)


def test_both_learns_the_teachers_distributions_on_its_own_texts(teacher, tmp_path):
    data = small(tmp_path / "nlg.json", train=24, valid=6, test=4)
    refused(here("train", learning(data, tmp_path / "run", teacher, "--kd", "both")),
            f"{data}:train[0]", "distillated_tgt", "sentence_distiller.py", out=tmp_path / "run")  # fmt: skip
    distilled(asked(teacher, data))
    both = learnt(learning(data, tmp_path / "both", teacher, "--kd", "both"))
    # The same as word distillation on a file whose gold texts are the teacher's.
    records = json.loads((tmp_path / "nlg_distilled.json").read_text())
    for record in records["train"]:
        record["tgt"] = record["distillated_tgt"]
    (tmp_path / "gold.json").write_text(json.dumps(records))
    word = learnt(learning(tmp_path / "gold.json", tmp_path / "word", teacher))
    assert tensors(both) == tensors(word)


@pytest.mark.slow
@pytest.mark.parametrize("alpha", [0.5, 1])
def test_two_processes_learn_from_a_teacher_as_one_does(alpha, tmp_path):
    # Of 17 rows one is left for two processes in the end; tiny-llama has no dropout.
    data = small(tmp_path / "data.json", train=17, valid=3, test=1)
    folder = lively(tmp_path / "teacher", ["mt", "nlg"])
    options = dict(model="tiny-llama", accumulation=2)
    argv = lambda out, batch: learning(data, out, folder, "--kd_alpha", alpha, batch=batch, **options)  # noqa: E731
    one = learnt(argv(tmp_path / "one", 8))
    in_two_processes(argv(tmp_path / "two", 4), tmp_path / "log")
    assert metrics(tmp_path / "two")["processes"] == 2
    close_runs(one, tmp_path / "two")


def test_a_teacher_that_changed_since_the_run_began_is_noticed(teacher, data, tmp_path):
    folder = shutil.copytree(teacher, tmp_path / "teacher")
    out = learnt(learning(data, tmp_path / "run", folder))
    assert here("train", ["--resume", out]).code == 0
    lively(folder, ["nlg"], model="tiny-gpt2")
    refused(here("train", ["--resume", out]), f"--teacher {folder}", "has changed")


def test_teachers_that_cannot_teach_this_are_one_clear_error(teacher, data, tmp_path):
    pointer = learnt(short_run(data, tmp_path / "pointer", "--self_copy", "--max_steps", 1))
    for folder, words in ((pointer, "self_copy"), ("tiny-gpt2", "bare backbone"), (tmp_path / "no", ""),
                          (lively(tmp_path / "mt", ["mt"], model="tiny-gpt2"), "not 'nlg'")):  # fmt: skip
        result = here("train", learning(data, tmp_path / "run", folder))
        refused(result, "--teacher", words, out=tmp_path / "run")
        assert "--model_checkpoint" not in result.err and "--task" not in result.err
        assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("more, words", [
    (["--kd", "word"], "no teacher"), (["--kd", "both"], "no teacher"), (["--kd_alpha", 0.3], "--kd_alpha"),
    (["--kd_temperature", 1], "--kd_temperature"), (["--kd", "sentence", "--teacher", "x"], "--kd sentence"),
    (["--teacher", "x", "--self_copy"], "--self_copy"), (["--teacher", "x", "--kd_alpha", 1.5], "--kd_alpha"),
])  # fmt: skip
def test_flags_that_contradict_each_other_are_refused(more, words, data, tmp_path):
    refused(here("train", short_run(data, tmp_path / "run", *more)), words, out=tmp_path / "run")
