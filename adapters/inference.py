"""A trained model made ready to answer."""

import torch
from versatile.adapters.attach import count_parameters, halve_frozen
from versatile.adapters.backbones.family import backbone_of
from versatile.utils import devices


def prepare_for_inference(model, device, dtype):
    """Freeze everything, move to the device, choose what is fastest there.

    Args:
        model: an attached model; it is changed in place.
        device: where it is to run.
        dtype: precision of the matrix products.

    Returns:
        (the model's `count_parameters` as it was trained, its longest sequence)
    """
    parameters = count_parameters(model)
    freeze_for_inference(model, device, dtype)
    return parameters, backbone_of(model.config).max_length(model.config)


def freeze_for_inference(model, device, dtype):
    """What `prepare_for_inference` does to a model, a T5 with tasks as well."""
    model.requires_grad_(False).to(device).eval()
    if dtype != torch.float32:
        halve_frozen(model, dtype)
    devices.prepare_for_device(model, device, dtype)
