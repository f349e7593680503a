"""What the process that tests fork scripts from has done in advance: imports and tables that every script needs.

Each import below is one that a script makes only when it comes to need it, and that takes a second or so.
"""

import importlib
import os

_MODULES = [
    "train", "evaluate", "train_vlm", "evaluate_vlm", "sentence_distiller", "combine_all", "interact",
    "train_lifelong", "evaluate_lifelong", "train_t5", "pretrain_t5", "compute_task_embeddings", "train_camtl",
    "versatile.training.experiment", "versatile.training.evaluation", "versatile.training.trainer",
    "versatile.training.decoding", "versatile.training.text_to_text_training",
    "versatile.training.span_corruption_pretraining", "versatile.training.task_embeddings",
    "versatile.training.classification", "versatile.training.uncertainty_sampling",
    "versatile.training.classification_text_model", "versatile.training.run_combination",
    "versatile.adapters.checkpoint", "versatile.adapters.inference", "versatile.adapters.imports.camtl",
    "versatile.data.encoders.markers", "versatile.data.encoders.sentence_pair", "versatile.data.batching",
    "versatile.lifelong.learning", "versatile.lifelong.scoring", "versatile.utils.plots",
    "versatile.utils.caption_metrics", "versatile.utils.original_metrics", "tensorboardX", "matplotlib.pyplot",
    "matplotlib.backends.backend_agg", "PIL.features", "PIL.PngImagePlugin", "safetensors.torch", "sacrebleu",
    "ijson", "sklearn.metrics", "scipy.stats", "ignite.distributed", "datasets", "sentencepiece", "nltk.corpus",
    "nltk.translate.meteor_score", "rouge_score.rouge_scorer", "transformers.trainer",
    "transformers.generation.utils", "transformers.convert_slow_tokenizer", "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto", "transformers.models.gpt2.modeling_gpt2",
    "transformers.models.llama.modeling_llama", "transformers.models.t5.modeling_t5",
    "transformers.models.bert.modeling_bert", "transformers.models.t5.tokenization_t5",
    "transformers.models.bert.tokenization_bert", "transformers.models.gpt2.tokenization_gpt2",
]  # fmt: skip

for _name in _MODULES:
    importlib.import_module(_name)


def _fill_tables():
    """Compute what is computed once per process, without starting a thread: a fork does not inherit threads."""
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping
    from versatile.adapters.backbones.family import all_backbones
    from versatile.adapters.methods.registry import all_methods
    from versatile.data.task import load_tasks
    from versatile.training.runs import versions

    load_tasks()
    all_backbones()
    for method in all_methods().values():
        method.load_class()
    get_checkpoint_conversion_mapping("gpt2")
    versions()


_fill_tables()
# As in conftest.py; a script that a test starts as a user does waits for the disk.
os.fsync = lambda handle: None
