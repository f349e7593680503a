"""A task as questions and answers: its files in LAMOL's and L2KD's data, and how it is scored."""

from dataclasses import dataclass

SPLITS = ("train", "dev", "test", "distil")


@dataclass(frozen=True)
class LifelongTask:
    """One task: the names of its files in the data directory, and its scores.

    Attributes:
        name: the key, e.g. "woz.en".
        kind: the scores reported in addition to em, nf1 and nem: "text" (none), "rouge", "rouge_l", "dialogue", "sql",
            "bleu", "corpus_f1", or for TRACE "accuracy", "choice", "edit", "words_l", "sari"; see
            `data.question_scores`.
        metric: the score that represents the task in a matrix of tasks.
        has_dev: whether the released data include a dev file.
        same_test: the dev file is also the test file, as the true test set is not public.
        gold: the file of true answers to the test file, if their texts are not enough, or None.
    """

    name: str
    kind: str = "text"
    metric: str = "em"
    has_dev: bool = True
    same_test: bool = False
    gold: str | None = None

    # The prompts and answers that the form was built from (`data.views`), if any.
    pairs = None

    @property
    def needs_texts_alone(self):
        """Whether its score compares only answers and true answers, without a gold file or the question's context."""
        return self.gold is None and self.kind != "sari"

    def filename(self, split):
        """The name of a split's file: "train", "dev", "test", or "distil", the training file a teacher rewrote."""
        if split not in SPLITS:
            raise ValueError(f"{split!r} is none of {SPLITS}")
        split = "dev" if split == "test" and self.same_test else split
        if self.name in _SQUAD:
            return f"squad-{split}-{_SQUAD[self.name]}.json"
        return f"{self.name}_to_squad-{split}-v2.0.json"


_SQUAD = {"squad1": "v1.1", "squad2": "v2.0"}
