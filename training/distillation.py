"""The teacher of word-level distillation, see `training.objectives.Distilled`."""

import torch
from versatile.adapters import manifest
from versatile.adapters.backbones import bundled, loading
from versatile.adapters.backbones.family import max_length_of
from versatile.utils.devices import autocast
from versatile.utils.errors import UserError


def check_teacher(directory, task):
    """Raise a `UserError` if --teacher does not name a language model that holds a task. No weights are read.

    Args:
        directory: the flag's value.
        task: the task's name.
    """
    flag, expected = f"--teacher {directory}", "a run of train.py, train_vlm.py or combine_all.py"
    remedy = "train a teacher with train.py, and name its run"
    source = manifest.need_language_model(directory, flag, remedy)
    if source is None:
        if str(directory) not in bundled.NAMES:
            loading.need_directory(directory, flag, expected, remedy)
            # Report more specific errors first: a sequence of models, a run that has not saved yet.
            manifest.refuse_sequence(directory, flag)
            loading.read_config(directory, flag)
        raise UserError("this is a bare backbone: it was not trained for any task", location=flag, expected=expected,
                        remedy=remedy)  # fmt: skip
    # A released checkpoint does not record its task.
    if source.tasks and not source.released:
        manifest.check_holds(source.tasks, task, directory, flag)


class WordTeacher:
    """A teacher for one task of a student.

    Teacher and student may number their added tokens differently (a teacher may hold more tasks): inputs are
    translated, and the distributions are compared over the common vocabulary and the task's markers.
    (`lifelong.teachers.DistributionTeacher` matches all tokens by name, and runs only the rows that are distilled.)

    Args:
        teacher, student: (attached model, tokenizer) each; the teacher is in eval mode.
        task: a `data.task.Task` that both hold.
        dtype: precision of the teacher's matrix products.
        longest: length of the longest training example in tokens.

    Attributes:
        columns: [columns] the student's ids of the tokens whose scores are compared.

    Raises:
        UserError: the vocabularies differ, the teacher has a pointer in addition to its softmax, or an example is too
            long for the teacher.
    """

    def __init__(self, teacher, student, task, dtype=torch.float32, longest=0):
        (self.teacher, tokenizer), (student, student_tokenizer), self.dtype = teacher, student, dtype
        if self.teacher.info.self_copy:
            raise UserError("was trained with --self_copy: its output is not a softmax", location="--teacher",
                            expected="a teacher without it",
                            remedy="learn from its texts: sentence_distiller.py, --kd sentence")  # fmt: skip
        check_same_vocabulary(self.teacher, tokenizer, student, student_tokenizer)
        base = torch.arange(student.info.first)
        own, theirs = (t.convert_tokens_to_ids(list(task.markers)) for t in (student_tokenizer, tokenizer))
        self.columns = torch.cat([base, torch.tensor(own)])
        self.teachers_columns = torch.cat([base, torch.tensor(theirs)])
        # Student's id -> teacher's id. Padding is masked out, so its id does not matter.
        self.translation = torch.zeros(len(student_tokenizer), dtype=torch.long)
        self.translation[self.columns] = self.teachers_columns
        self.task_id = self.teacher.task_id(task.name)
        self.positions = max_length_of(self.teacher)
        if longest > self.positions:
            raise UserError(
                f"an example has {longest} tokens, the teacher takes {self.positions}",
                location="--teacher",
                expected="as many positions as the student uses",
                remedy="choose another, or learn from its texts: sentence_distiller.py",
            )

    @torch.no_grad()
    def scores(self, batch):
        """The teacher's scores [labels rounded up, columns] at the labels of a training batch."""
        device = next(self.teacher.parameters()).device
        inputs = {k: self.translation[batch[k]] for k in ("input_ids", "token_type_ids")}
        # In the padding of a batch, a position may exceed the teacher's last.
        positions = batch["position_ids"].clamp(max=self.positions - 1)
        inputs |= dict(attention_mask=batch["attention_mask"], position_ids=positions, labels=batch["labels"])
        ids = torch.full((len(positions),), self.task_id)
        with autocast(device, self.dtype):
            scores = self.teacher(task_ids=ids, use_cache=False, **inputs).scores
        return scores[:, self.teachers_columns.to(device)]


def check_same_vocabulary(teacher, tokenizer, student, student_tokenizer):
    """Raise a `UserError` unless both tokenise plain text in the same way."""

    def plain(t, first):
        return {token: i for token, i in t.get_vocab().items() if i < first}

    sizes = teacher.info.first, student.info.first
    if sizes[0] == sizes[1] and plain(tokenizer, sizes[0]) == plain(student_tokenizer, sizes[1]):
        return
    raise UserError(
        f"the teacher's vocabulary ({sizes[0]} tokens) is not the student's ({sizes[1]} tokens)", location="--teacher",
        expected="a teacher whose backbone has the student's tokenizer",
        remedy="choose another teacher or backbone, or learn from its texts: sentence_distiller.py, --kd sentence",
    )  # fmt: skip
