"""Preparing a trained model for inference."""

import torch
from versatile.adapters.attach import halve_frozen
from versatile.utils import devices


def prepare_for_inference(model, device, dtype):
    """Freeze everything, move to the device and choose what is fastest there.

    Args:
        model: an attached model, or a T5 with tasks; it is changed in place.
        device: the device to run on.
        dtype: precision of the matrix products.
    """
    model.requires_grad_(False).to(device).eval()
    if dtype != torch.float32:
        halve_frozen(model, dtype)
    devices.prepare_for_device(model, device, dtype)
