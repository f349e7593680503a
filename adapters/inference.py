"""Preparing a trained model for inference."""

import torch
from versatile.adapters.attach import count_parameters, halve_frozen
from versatile.adapters.backbones.family import backbone_of
from versatile.utils import devices


def prepare_for_inference(model, device, dtype):
    """Freeze everything, move to the device and choose what is fastest there.

    Args:
        model: an attached model; it is changed in place.
        device: the device to run on.
        dtype: precision of the matrix products.

    Returns:
        (`count_parameters` of the model before freezing, its maximum sequence length)
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
