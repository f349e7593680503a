"""A task as one or two sentences with a class or a score: GLUE's files (Wang et al. 2019) and their names."""

from dataclasses import dataclass

SPLITS = ("train", "dev", "test")
MNLI_LABELS = ("contradiction", "entailment", "neutral")
ENTAILMENT = ("entailment", "not_entailment")
PAIR = ("sentence1", "sentence2")


@dataclass(frozen=True)
class GlueExample:
    """One row: `label` is a label string, a float for STS-B, or None if the file has no label column.

    `index` is the file's own number for the row (used in submissions), or else its 0-based position.
    `location` is its file and line, e.g. ``".../RTE/train.tsv:17"``.
    """

    index: int
    text_a: str
    text_b: str | None
    label: str | float | None
    location: str


@dataclass(frozen=True)
class GlueTask:
    """One task of GLUE.

    Attributes:
        name: as on the command line, e.g. ``"sts-b"``.
        folder: the official script's folder.
        columns: names of the one or two text columns in the header.
        label_column: name of the label column in the header; unlabelled files do not have it.
        labels: label strings in the order of CA-MTL's class ids; None for regression. The Hugging Face hub numbers
            MNLI's labels differently, so rely on the strings.
        metrics: names of the functions of `utils.glue_metrics` that GLUE scores it with.
        files: {split: file names relative to the data directory, of which the first that exists is used}.
        submission: the file name that the GLUE site requires for test predictions.
        headerless: the columns of files without a header (CoLA's train and dev).
        broken_rows: the official file itself has rows cut in two; rows with the wrong number of columns are left out.
    """

    name: str
    folder: str
    columns: tuple
    label_column: str
    labels: tuple | None
    metrics: tuple
    files: dict
    submission: str
    headerless: tuple | None = None
    broken_rows: bool = False

    # The prompts and answers that the form was built from (`data.views`), if any.
    pairs = None

    @property
    def regression(self):
        """Whether the label is a number (STS-B)."""
        return self.labels is None


def glue_task(name, folder, columns, label_column="label", labels=("0", "1"), metrics=("accuracy",), **more):
    files = {split: (f"{folder}/{split}.tsv",) for split in SPLITS}
    more.setdefault("submission", f"{folder}.tsv")
    return GlueTask(name, folder, columns, label_column, labels, metrics, more.pop("files", files), **more)


def mnli_task(name, genre, submission):
    files = {"train": ("MNLI/train.tsv",), "dev": (f"MNLI/dev_{genre}.tsv",), "test": (f"MNLI/test_{genre}.tsv",)}
    return glue_task(name, "MNLI", PAIR, "gold_label", MNLI_LABELS, files=files, submission=submission)
