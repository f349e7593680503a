"""Teachers (L2KD): single-task models whose distributions or texts a task is trained on."""

import hashlib
import json
from dataclasses import asdict, replace
from pathlib import Path

import ignite.distributed as idist
import torch
from versatile.adapters import checkpoint
from versatile.adapters.attach import PAD
from versatile.adapters.backbones.family import max_length_of
from versatile.adapters.labels import label_positions
from versatile.data import question_samples as samples
from versatile.data.encoders.question_answer import gen_token
from versatile.data.files import fingerprint
from versatile.lifelong import answers, routing, sequence
from versatile.lifelong.batches import HalvingOnOutOfMemory
from versatile.lifelong.run_records import tasks_learned
from versatile.training.distillation import check_same_vocabulary
from versatile.training.experiment import print_once
from versatile.utils.devices import autocast
from versatile.utils.errors import UserError
from versatile.utils.progress import Progress
from versatile.utils.screen import counted

TEMPERATURE = 2.0


class DistributionTeacher:
    """A single-task model whose distribution over the next token is the target.

    Tokens are matched by name, as special tokens may have different ids in the two models. (The original clamps ids to
    hit the teacher's only start token.)

    Unlike `training.distillation.WordTeacher`, which matches one task's markers and scores all labels of a batch, it
    matches all tokens by name and runs only the rows that are distilled.

    Args:
        teacher, student: (attached model, tokenizer) each; the teacher in eval mode.
        aliases: {student's token: teacher's token of another name}, e.g. a task's start token for `__gen__`.
        task: the teacher's task id, or None if it holds at most one task.
        temperature: T.
        dtype: precision of the teacher's matrix products.

    Attributes:
        columns: [columns] the student's ids of the tokens that both models know. Other tokens are not masked: the
            student has to learn to give them no probability.

    Raises:
        UserError: the two tokenise plain text differently, or the teacher lacks a special token.
    """

    def __init__(self, teacher, student, aliases=None, task=None, temperature=TEMPERATURE, dtype=torch.float32):
        (self.model, tokenizer), (model, student_tokenizer) = teacher, student
        self.temperature, self.task, self.dtype = temperature, task, dtype
        check_same_vocabulary(self.model, tokenizer, model, student_tokenizer)
        theirs, ours = tokenizer.get_vocab(), student_tokenizer.get_vocab()
        names = {token: (aliases or {}).get(token, token) for token in ours}
        known = {i: theirs[names[token]] for token, i in ours.items() if names[token] in theirs and token != PAD}
        # Student's id -> teacher's id; -1 where it has none.
        self.translation = torch.full((len(ours),), -1)
        self.translation[list(known)] = torch.tensor(list(known.values()))
        # One column for each of the teacher's tokens: that of its alias, if it has one.
        back = {t: s for s, t in sorted(known.items())} | {theirs[t]: ours[s] for s, t in (aliases or {}).items()}
        self.columns, self.teachers_columns = (
            torch.tensor(ids) for ids in zip(*sorted((s, t) for t, s in back.items()))
        )
        self.positions = max_length_of(self.model)
        self.names = {i: token for token, i in ours.items()}

    @torch.no_grad()
    def scores(self, batch):
        """[m, columns] logits at the labels distilled from the teacher, or None; only rows with such labels are run."""
        targets = batch["targets"]
        if targets.at is None:
            return None
        labels = batch["labels"]
        rows = label_positions(labels)[0][targets.at[targets.soft > 0]].unique()
        device = next(self.model.parameters()).device
        used = batch["attention_mask"][rows].bool()
        ids = self.translation[batch["input_ids"][rows].masked_fill(~used, int(self.columns[0]))]
        if (missing := ids < 0).any():
            name = self.names[int(batch["input_ids"][rows][missing][0])]
            raise UserError(f"the teacher has no token {name!r}", location="--teacher_dir",
                            expected="a teacher of this task", remedy="train one: --train_teachers")  # fmt: skip
        length = int(used.sum(1).max())
        if length > self.positions:
            raise UserError(f"an example has {length} tokens, the teacher takes {self.positions}",
                            location="--teacher_dir", remedy="choose a teacher with as many positions")  # fmt: skip
        inputs = dict(input_ids=ids, attention_mask=used.long(), position_ids=batch["position_ids"][rows])
        inputs = {k: v[:, :length] for k, v in (inputs | dict(labels=labels[rows])).items()}
        task = None if self.task is None else torch.full((len(rows),), self.task)
        with autocast(device, self.dtype):
            scores = self.model(task_ids=task, use_cache=False, **inputs).scores
        return scores[:, self.teachers_columns.to(device)]


def load_teacher(student, folder, task, args, dtype=torch.float32):
    """The `DistributionTeacher` of a task, on the CPU.

    Raises:
        UserError: the teacher cannot teach this model.
    """
    model, tokenizer = checkpoint.load_checkpoint(folder)
    check_teacher_task(model, folder, task)
    positions = max_length_of(model)
    if positions < student.positions:
        raise UserError(f"it has {positions} positions", location=f"the teacher {folder}",
                        expected=f"at least {student.positions}, the maximum length of a sample",
                        remedy=f"--max_len {positions}, or another teacher")  # fmt: skip
    known, ours = tokenizer.get_vocab(), gen_token(task, args.add_task_tokens)
    names = (ours, gen_token(task, True), gen_token(task, False))
    theirs = next((token for token in names if token in known), ours)
    aliases = {} if theirs == ours else {ours: theirs}
    try:
        teacher = DistributionTeacher(
            (model.eval(), tokenizer), (student.model, student.tokenizer), aliases,
            task=routing.task_id(model, task), temperature=args.kd_temperature, dtype=dtype,
        )  # fmt: skip
    except UserError as error:
        raise UserError(error.found, location=f"the teacher {folder}",
                        expected="a teacher whose backbone has the student's tokenizer",
                        remedy="choose another teacher, or train on its texts (--seq_distil)") from error  # fmt: skip
    # Special tokens that occur in every sample of the task.
    encoder = student.encoder
    for token in (ours, encoder.ans, encoder.sep, encoder.eos):
        name = student.tokenizer.convert_ids_to_tokens(token) if isinstance(token, int) else token
        if name is not None and teacher.translation[student.tokenizer.convert_tokens_to_ids(name)] < 0:
            raise UserError(f"the teacher has no token {name!r}", location=f"the teacher {folder}",
                            expected=f"a teacher of {task}, trained with the same --use_sep",
                            remedy="train one: --train_teachers")  # fmt: skip
    return teacher


def check_teacher_task(model, folder, task):
    """Raise a `UserError` if a teacher was trained on other tasks only."""
    learned, problem = tasks_learned(folder), None
    try:
        routing.task_id(model, task)
        if learned is not None and task not in learned:
            problem = f"it was trained on {', '.join(learned)}"
    except KeyError:
        problem = f"it holds the tasks {', '.join(model.info.tasks)}"
    if problem:
        raise UserError(problem, location=f"the teacher {folder}", expected=f"a teacher of {task}",
                        remedy="train one: --train_teachers")  # fmt: skip


def check_teachers(student, teachers, args):
    """Check that every task's teacher can teach the student, before anything is trained."""
    for task, folder in teachers.items():
        load_teacher(student, folder, task, args)


def write_teacher_texts(args, task, folder, dtype):
    """The file of a teacher's answers to a task's training questions, written if it does not exist.

    Args:
        task: a `LifelongTask`.
        folder: the teacher's directory; the file is kept there, under a name derived from the questions, the teacher's
            weights, the maximum length and the precision.
    """
    qas = samples.load_task(task, args.data_dir, "train")[: args.limit]
    # Everything that determines the answers.
    key = content_key([contents(qas), fingerprint(sequence.find_weights(folder)), args.max_len, str(dtype), "greedy"])
    path = Path(folder) / f"distil_{key}.json"
    with idist.one_rank_first():
        exists = path.exists()
        if not exists:
            teacher = answers.Predictor.load(folder, idist.device(), dtype, args.max_len)
            check_teacher_task(teacher.model, folder, task.name)

            def work(size):
                with Progress(len(qas), f"texts of the teacher of {task.name}") as done:
                    return answers.answer(teacher, qas, batch_size=size, progress=done, task=task.name)[0]

            texts = HalvingOnOutOfMemory(32, "questions at once", print_line=print_once).run(work)
            samples.save_samples(path, [replace(qa, answers=(text,)) for qa, text in zip(qas, texts)])
    blank = sum(not any(map(str.strip, qa.answers)) for qa in samples.load_samples(path, "distil"))
    texts = f"{counted(len(qas), 'text')} of the teacher"
    print_once(f"{task.name}: {texts} {'already in ' if exists else 'in '}{path}")
    if blank:
        print_once(f"warning: {blank:,} of them empty, which teach a student to answer nothing; train the teacher "
                   "for longer")  # fmt: skip
    return path


def contents(qas):
    """Samples as json values, without their locations."""
    return [asdict(qa) | {"location": ""} for qa in qas]


def content_key(value):
    """A short hash of a json value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]
