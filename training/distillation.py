"""Word-level knowledge distillation: learn a teacher's distribution over the next token, not only the right one.

    loss = (1 - alpha) · CE + alpha · T² · KL(teacher / T || student / T)

summed over the labelled positions (Hinton et al. 2015; Kim & Rush 2016, section 3.1). The teacher runs without
gradients, in the precision of the training, and scores only positions that carry a label.
"""

import torch
import torch.nn.functional as F
from versatile.adapters.backbones.family import backbone_of
from versatile.utils.devices import autocast
from versatile.utils.errors import UserError

IGNORE = -100


class WordDistillation:
    """A teacher for one task of a student.

    Teacher and student may number their added tokens differently (a teacher may hold more tasks): inputs are
    translated, and the distributions are compared over the common vocabulary and the task's own markers.

    Args:
        teacher, student: (attached model, tokenizer) each; the teacher in eval mode.
        task: a `data.task.Task` that both hold.
        temperature: T above.
        alpha: weight of the teacher, 0 to 1.
        dtype: precision of the teacher's matrix products.
        longest: tokens of the longest training example.

    Raises:
        UserError: the two do not share a vocabulary, the teacher has a pointer beside its softmax, or an example
            does not fit into it.
    """

    def __init__(self, teacher, student, task, temperature=2.0, alpha=0.5, dtype=torch.float32, longest=0):
        (self.teacher, tokenizer), (self.student, students) = teacher, student
        self.task, self.temperature, self.alpha, self.dtype = task, temperature, alpha, dtype
        if self.teacher.info.self_copy:
            raise UserError("was trained with --self_copy: its output is no softmax", place="--teacher",
                            expected="a teacher without it",
                            remedy="learn from its texts: sentence_distiller.py, --kd sentence")  # fmt: skip
        same_vocabulary(self.teacher, tokenizer, self.student, students)
        first = self.student.info.first
        base = torch.arange(first)
        own, theirs = (t.convert_tokens_to_ids(list(task.markers)) for t in (students, tokenizer))
        self.columns = torch.cat([base, torch.tensor(own)])
        self.teachers_columns = torch.cat([base, torch.tensor(theirs)])
        # Student's id -> teacher's id. Padding is masked out, so its id is of no consequence.
        self.translation = torch.zeros(len(students), dtype=torch.long)
        self.translation[self.columns] = self.teachers_columns
        self.task_id = self.teacher.task_id(task.name)
        self.positions = backbone_of(self.teacher.config).max_length(self.teacher.config)
        if longest > self.positions:
            raise UserError(f"an example has {longest} tokens, the teacher takes {self.positions}", place="--teacher",
                            expected="as many positions as the student uses",
                            remedy="choose another, or learn from its texts: sentence_distiller.py")  # fmt: skip
        self.student.distillation = self

    @torch.no_grad()
    def prepare(self, batch):
        """A training batch with the teacher's scores in it: `soft_targets` [labels rounded up, columns].

        With alpha 0 nothing is learnt from the teacher: the batch comes back as it is.
        """
        if not self.alpha:
            return batch
        device = next(self.teacher.parameters()).device
        translation = self.translation.to(device)
        inputs = {k: translation[batch[k].to(device)] for k in ("input_ids", "token_type_ids")}
        # Where a batch is only filled up, a position may lie beyond the teacher's last.
        positions = batch["position_ids"].to(device).clamp(max=self.positions - 1)
        inputs |= dict(attention_mask=batch["attention_mask"].to(device), position_ids=positions, use_cache=False)
        labels = batch["labels"].to(device)
        ids = torch.full((len(labels),), self.task_id)
        with autocast(device, self.dtype):
            scores = self.teacher.scores_at(labels, task_ids=ids, **inputs)
        return {**batch, "soft_targets": scores[:, self.teachers_columns.to(device)]}

    def loss(self, scores, targets, soft_targets):
        """The loss above, summed.

        Args:
            scores: [n, student's vocabulary].
            targets: [n] token ids, -100 where a row is only there to round up.
            soft_targets: [n, columns] the teacher's scores.
        """
        hard = F.cross_entropy(scores.float(), targets, ignore_index=IGNORE, reduction="sum")
        if not self.alpha:
            return hard
        ours = F.log_softmax(scores[:, self.columns.to(scores.device)].float() / self.temperature, dim=-1)
        theirs = F.log_softmax(soft_targets.float() / self.temperature, dim=-1)
        divergence = F.kl_div(ours, theirs, reduction="none", log_target=True).sum(-1)
        soft = divergence.masked_fill(targets == IGNORE, 0.0).sum()
        return (1 - self.alpha) * hard + self.alpha * self.temperature**2 * soft


def same_vocabulary(teacher, tokenizer, student, students):
    """A `UserError` unless both tokenise plain text alike."""

    def plain(t, first):
        return {token: i for token, i in t.get_vocab().items() if i < first}

    sizes = teacher.info.first, student.info.first
    if sizes[0] == sizes[1] and plain(tokenizer, sizes[0]) == plain(students, sizes[1]):
        return
    raise UserError(
        f"the teacher's vocabulary ({sizes[0]} tokens) is not the student's ({sizes[1]} tokens)", place="--teacher",
        expected="a teacher whose backbone has the student's tokenizer",
        remedy="choose another teacher or backbone, or learn from its texts: sentence_distiller.py, --kd sentence",
    )  # fmt: skip
