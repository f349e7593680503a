"""A task as a question and its answer: its files in LAMOL's and L2KD's data, and how it is scored."""

from dataclasses import dataclass

SPLITS = ("train", "dev", "test", "distil")


@dataclass(frozen=True)
class LifelongTask:
    """One task: the names of its files in the data directory, and its scores.

    Attributes:
        name: the key, e.g. "woz.en".
        kind: what is scored beside em, nf1 and nem: "text" (nothing more), "rouge", "rouge_l", "dialogue", "sql",
            "bleu", "corpus_f1", or of TRACE "accuracy", "choice", "edit", "words_l", "sari"; see
            `data.question_scores`.
        metric: the score of that kind that stands for the task in a matrix of tasks.
        has_dev: the released data have a dev file of it.
        same_test: the dev file is the test file: the true test set is not public.
        gold: the file of the true answers of the test file, where their texts are not enough, or None.
    """

    name: str
    kind: str = "text"
    metric: str = "em"
    has_dev: bool = True
    same_test: bool = False
    gold: str | None = None

    # Of a form that is made of prompts and answers (`data.views`): they.
    pairs = None

    @property
    def needs_texts_alone(self):
        """Its score is one of answers and true answers: neither of a file of truths nor of what was asked."""
        return self.gold is None and self.kind != "sari"

    def filename(self, split):
        """The name of a split's file: "train", "dev", "test", or "distil": the training file a teacher rewrote."""
        if split not in SPLITS:
            raise ValueError(f"{split!r} is none of {SPLITS}")
        split = "dev" if split == "test" and self.same_test else split
        if self.name in _SQUAD:
            return f"squad-{split}-{_SQUAD[self.name]}.json"
        return f"{self.name}_to_squad-{split}-v2.0.json"


_SQUAD = {"squad1": "v1.1", "squad2": "v2.0"}
