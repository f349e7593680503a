"""lifelong/losses.py: the original's values and gradients, and the intended differences."""

import math

import pytest
import torch
import torch.nn.functional as F
from lifelong_models import ANS, PAD, gradients, model, random_rows, rows, same, tensors, tokenizer, values
from versatile.adapters.attach import attach
from versatile.adapters.backbones import loading as backbones
from versatile.data.encoders.question_answer import Row, special_tokens
from versatile.lifelong.batches import LifelongBatches
from versatile.lifelong.losses import LM, QA, Objective, WeightedLoss
from versatile.lifelong.teachers import DistributionTeacher
from versatile.utils.errors import UserError

WEIGHTS = {ANS: 5.0}


def learn(student, batch, loss, count=1):
    student.zero_grad()
    total = loss(student, batch, count)
    total.backward()
    return total


def case(name, size=304, distil=True):
    """(student, WeightedLoss, batch, the original's tensors, its settings) of a golden case."""
    found, settings = tensors(f"loss_{name}"), values("losses")[name]
    student, more = model(tensors(f"model_student{size}")), ["__taskA__", "__taskB__"][: size - 304]
    teacher = None
    if distil:
        names = tokenizer(*more)
        teacher = DistributionTeacher((model(tensors("model_teacher304")).eval(), tokenizer()), (student, names),
                          aliases=dict.fromkeys(more[-1:], "__gen__"), temperature=settings["temperature"])  # fmt: skip
    lm_lambda = settings["lm_lambda"] if settings["seq_train_type"] == "lll" else None
    objective = Objective(lm_lambda, WEIGHTS, distil)
    made = rows(found["gen_X"], found["gen_Y"], found["Y"], found.get("is_extra"))
    batch, divisor = LifelongBatches([], objective, PAD, 64, 1, 1).collate(made)
    assert divisor == 1
    return student, WeightedLoss(teacher), batch, found, settings


@pytest.mark.parametrize("name", ["kd_no_extra", "kd_no_extra_T1", "kd_mixed", "kd_finetune_mode", "plain_lll",
                                  "plain_finetune"])  # fmt: skip
def test_loss_and_gradient_are_the_originals(name):
    student, loss, batch, found, settings = case(name, distil=name.startswith("kd"))
    total = learn(student, batch, loss)
    same(total, settings["qa_loss"] + settings["lm_loss"])
    same(student.transformer.wte.weight.grad, found["grad_wte"], atol=1e-5)


def test_tokens_beyond_the_teachers_vocabulary_have_no_probability():
    student, loss, batch, found, settings = case("kd_bigger_student_no_extra", 306)
    total, wanted = learn(student, batch, loss), 0.0
    for part, labels, scale in (("qa", found["Y"], 1.0), ("lm", found["gen_Y"], 0.25)):
        ours = F.log_softmax(found[f"student_{part}_logits"] / 2, dim=-1)
        # The teacher's start token 303 is the student's 305; the original compares them by number.
        ours = ours[..., [*range(303), 305]]
        theirs = F.log_softmax(found[f"teacher_{part}_logits"] / 2, dim=-1)
        kl = (theirs.exp() * (theirs - ours)).sum(-1)
        wanted += scale * 4 * kl[labels != -1].mean()
    same(total, wanted)
    # The original repeats the last one instead.
    assert abs(total.item() - settings["qa_loss"] - settings["lm_loss"]) > 1e-4


def test_a_batch_of_replayed_samples_alone_is_plain_cross_entropy():
    student, loss, batch, found, settings = case("kd_all_extra")
    assert settings["qa_loss"] is None and math.isnan(found["qa_loss"])
    assert batch["targets"].at is None, "the teacher is not asked"
    weights = torch.ones(304).index_fill(0, torch.tensor([ANS]), 5.0)
    wanted = sum(
        scale * F.cross_entropy(found[f"student_{part}_logits"].flatten(0, 1), y.flatten(), weights, ignore_index=-1)
        for part, y, scale in (("qa", found["Y"], 1.0), ("lm", found["gen_Y"], 0.25))
    )
    same(learn(student, batch, loss), wanted)
    assert all(g.isfinite().all() for g in gradients(student).values())


@pytest.mark.parametrize("distil", [False, True])
def test_one_pass_is_two_passes(distil):
    """Both objectives' rows in one batch give the sum of one batch per objective."""
    student, loss, batch, found, _ = case("kd_mixed", distil=distil)
    total, whole = learn(student, batch, loss).item(), gradients(student)
    made = rows(found["gen_X"], found["gen_Y"], found["Y"], found["is_extra"])
    alone = {QA: Objective(None, WEIGHTS, distil), LM: Objective(0.25, WEIGHTS, distil)}
    alone[LM].sequences = lambda row: Objective.sequences(alone[LM], row)[1:]
    student.zero_grad()
    apart = 0.0
    for objective in alone.values():
        one, _ = LifelongBatches([], objective, PAD, 64, 1, 1).collate(made)
        part = loss(student, one)
        part.backward()
        apart += part.item()
    same(total, apart)
    for name, gradient in gradients(student).items():
        same(gradient, whole[name], atol=1e-5)


@pytest.mark.parametrize("distil", [False, True])
@pytest.mark.parametrize("count", [2, 3, 7])
def test_parts_of_a_batch_add_up_to_it(distil, count):
    student, loss, *_ = case("kd_mixed")
    objective = Objective(0.25, WEIGHTS, distil)
    batches = LifelongBatches(random_rows(7, extra=(1, 4)), objective, PAD, 64, 10_000, 7)
    total, whole = learn(student, batches.batch(0, 0)[0], loss).item(), gradients(student)
    student.zero_grad()
    apart = 0.0
    parts, divisor = batches.split_batch(0, 0, count)
    assert len(parts) == count
    for batch in parts:
        part = loss(student, batch, divisor)
        part.backward()
        apart += part.item()
    same(total, apart)
    for name, gradient in gradients(student).items():
        same(gradient, whole[name], atol=1e-5)


def test_a_teacher_with_other_ids_teaches_the_same():
    """The ids of special tokens may differ: they are found by name."""
    weights = tensors("model_teacher304")
    swapped = {k: v.clone() for k, v in weights.items()}
    swapped["transformer.wte.weight"][[300, 303]] = weights["transformer.wte.weight"][[303, 300]]
    student, loss, batch, *_ = case("kd_no_extra")
    wanted, whole = learn(student, batch, loss).item(), gradients(student)
    names = tokenizer()

    class Swapped:
        def get_vocab(self):
            return {**names.get_vocab(), "__ans__": 303, "__gen__": 300}

    teacher = DistributionTeacher((model(swapped).eval(), Swapped()), (student, names))
    loss = WeightedLoss(teacher)
    same(learn(student, batch, loss), wanted)
    for name, gradient in gradients(student).items():
        same(gradient, whole[name], atol=1e-5)


def test_a_teacher_that_lacks_a_token_is_refused():
    student, names = model(tensors("model_student306")), tokenizer("__taskA__", "__taskB__")
    teacher = DistributionTeacher((model(tensors("model_teacher304")).eval(), tokenizer()), (student, names))
    found = tensors("loss_kd_bigger_student_no_extra")
    made = rows(found["gen_X"], found["gen_Y"], found["Y"])
    made = [type(r)(r.ids, r.prompt_length, r.last, 305, r.task) for r in made]
    batch, _ = LifelongBatches([], Objective(0.25, WEIGHTS, True), PAD, 64, 1, 1).collate(made)
    with pytest.raises(UserError, match="no token '__taskB__'"):
        WeightedLoss(teacher)(student, batch)


def test_only_rows_of_the_current_task_run_through_the_teacher(monkeypatch):
    student, loss, batch, *_ = case("kd_mixed")
    seen = []
    ask = loss.teacher.model.forward
    monkeypatch.setattr(loss.teacher.model, "forward",
                        lambda labels, **how: seen.append(len(labels)) or ask(labels=labels, **how))  # fmt: skip
    loss(student, batch)
    assert seen == [4], "two of four samples, with two rows each"


def test_weights_of_a_mean_are_1_in_sum():
    batch = LifelongBatches(random_rows(6, extra=(2,)), Objective(None, WEIGHTS), PAD, 64, 1e9, 9).batch(0, 0)[0]
    same(batch["targets"].hard.sum(), 1.0)
    batch = LifelongBatches(random_rows(6, extra=(2,)), Objective(0.5, WEIGHTS, True), PAD, 64, 1e9, 9).batch(0, 0)[0]
    same(batch["targets"].hard.sum(), 1.5)
    same(batch["targets"].soft.sum(), 1.5)


@pytest.mark.parametrize("adapters", [None, {"all": 4}])
def test_a_student_like_its_teacher_has_nothing_to_learn(adapters):
    """Attached models, with the backbone frozen or not; the teacher's tokens are in another order, with one fewer."""
    made = []
    for names in (special_tokens(["a", "b"], True), [*special_tokens(["b"], True)][::-1]):
        backbone, words = backbones.load_backbone("tiny-gpt2", random_init=1)
        made.append((attach(backbone, words, {"all": names}, adapters).eval(), words))
    (student, ours), (teacher, theirs) = made
    # The same model with other ids.
    tables = [m.get_input_embeddings() for m in (student, teacher)]
    tables = [t.rows.tasks["all"] if adapters else t.weight for t in tables]
    first = student.info.first + 1 if adapters else 0
    with torch.no_grad():
        for token, at in theirs.get_vocab().items():
            if at >= first:
                tables[1][at - first] = tables[0][ours.get_vocab()[token] - first]
        for name, p in teacher.named_parameters():
            if "adapter" in name:
                p.copy_(dict(student.named_parameters())[name])
    loss = WeightedLoss(DistributionTeacher((teacher, theirs), (student, ours)))
    start, ans = (ours.convert_tokens_to_ids(t) for t in ("__b__", "__ans__"))
    row = Row(torch.tensor([5, 6, ans, 7, 8]).numpy(), 3, 9, start, "b")
    batches = LifelongBatches([row, row], Objective(0.25, {ans: 5.0}, True), ours.pad_token_id, 64, 1e9, 9)
    total = learn(student, batches.batch(0, 0)[0], loss)
    # The little that the student gives to __a__ and <pad>.
    assert 0 <= total < 0.05
    assert all(g.isfinite().all() for g in gradients(student).values())
