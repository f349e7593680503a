"""Manifests of our older format 1: three kinds of adapter_config.json, and two keys in config.json."""

from versatile.adapters.methods.registry import BARE, FULL

_ANSWER = "__ans__"


def upgrade(kind, config):
    """Convert a manifest from format 1 to format 2.

    Args:
        kind: `peft_type`, or the key in config.json of a fully fine-tuned model.
        config: its json, checked by `schemas.FORMAT_1`.
    """
    return _KINDS[kind](dict(config)) | dict(library_name="versatile", format=2)


def _marked(config):
    """A model whose tasks have markers, or the special tokens of lifelong learning."""
    methods = dict(config.pop("methods", {}))
    for task, width in config.pop("bottlenecks").items():
        methods.setdefault(task, dict(method="bottleneck", adapter_bottleneck=width) if width else dict(method=BARE))
    if "rows" in config:
        config["task_embeddings"] = config.pop("rows")
    for task in config["tasks"]:
        methods.setdefault(task["name"], dict(method=BARE))
    return _of_tokens(config) | dict(mode="adapter", methods=methods)


def _fine_tuned(config):
    return _of_tokens(config) | _full(config["tasks"])


def _of_tokens(config):
    tokens = {marker for task in config["tasks"] for marker in task["markers"]}
    config.setdefault("encoder", "question_answer" if _ANSWER in tokens else "markers")
    config["mask_other_tasks"] = config.pop("own_columns", True)
    return config


def _full(tasks):
    return dict(mode="full", methods={task["name"]: dict(method=FULL) for task in tasks})


def _text_to_text(config):
    """A T5 of train_t5.py."""
    tasks, method = [dict(name=name) for name in config["tasks"]], config["settings"].get("method", "finetune")
    config |= dict(encoder="text_to_text", tasks=tasks)
    if method == "finetune":
        return config | _full(tasks)
    method = dict(method=method, **config["settings"].get("method_settings", {}))
    return config | dict(mode="adapter", methods={task["name"]: method for task in tasks})


def _sentence_pairs(config):
    """A BERT of train_camtl.py."""
    method = dict(method=FULL if config["form"] == "plain" else "conditional")
    return config | dict(encoder="sentence_pair", mode="full",
                         methods={task["name"]: method for task in config["tasks"]})  # fmt: skip


_KINDS = {
    "VERSATILE_BOTTLENECK": _marked,
    "VERSATILE_T5": _text_to_text,
    "VERSATILE_CONDITIONAL_BERT": _sentence_pairs,
    "versatile": _fine_tuned,
    "versatile_t5": _text_to_text,
}
