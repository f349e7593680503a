"""Checkpoints of the published CA-MTL code: a BERT directory whose weights include conditional modules and heads."""

import torch
from versatile.adapters.classifier import TaskClassifier, check_shape, keyed_parameters
from versatile.adapters.manifest import MODEL_WEIGHTS
from versatile.adapters.tensors import copy_tensors, read_safetensors
from versatile.utils.errors import UserError, first_line


def is_published(keys):
    """Whether these weight names, unknown to a plain BERT, come from the published code."""
    return any("task_type_embeddings." in key or "decoders." in key for key in keys)


def read_state(folder, location):
    """The state dict in a directory written by the original code; nothing in it is run."""
    if (folder / MODEL_WEIGHTS).is_file():
        return read_safetensors(folder / MODEL_WEIGHTS)
    try:
        return torch.load(folder / "pytorch_model.bin", map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(f"its weights cannot be read: {first_line(error)}", location=location,
                        expected="model.safetensors or pytorch_model.bin") from error  # fmt: skip


def load_original(state, config, tasks, location="the original's state dict"):
    """A model from a state dict of the original code.

    Form, length and numbers of labels are inferred from its keys (`bert.*`, `decoders.<i>.model.*`) and shapes.

    Args:
        state: {key: tensor}.
        config: BertConfig.
        tasks: names of the tasks in the order of their ids.
        location: name of the state dict in errors.

    Returns:
        `TaskClassifier` in eval mode.
    """
    from transformers import AutoModel

    # Remove the prefix of a model wrapped for several devices, and a buffer stored by other transformers releases.
    state = {key.removeprefix("module."): tensor for key, tensor in state.items()}
    state = {key: tensor for key, tensor in state.items() if not key.endswith("embeddings.position_ids")}
    heads = [state[key].shape[0] for i in range(len(state)) if (key := f"decoders.{i}.model.weight") in state]
    if len(heads) != len(tasks):
        raise UserError(f"{len(heads)} heads", location=location, expected=f"{len(tasks)}: " + ", ".join(tasks),
                        remedy="name the tasks it was trained on, in their order")  # fmt: skip
    lengths = [tensor.shape[0] for key, tensor in state.items() if key.endswith(".random_weight_matrix")]
    form = "large" if any(".adapter_layer." in key for key in state) else "base" if lengths else "plain"
    length = lengths[0] if lengths else min(128, config.max_position_embeddings)
    check_shape(config, form, length, location)
    bert = AutoModel.from_config(config, dtype=torch.float32)
    model = TaskClassifier(bert, dict(zip(tasks, heads)), form, length)
    copy_tensors(state, keyed_parameters(model), location)
    return model.eval()
