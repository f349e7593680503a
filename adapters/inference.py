"""A trained model made ready to answer."""

import torch
from versatile.adapters.attach import halve_frozen, ledger
from versatile.adapters.backbones.family import backbone_of
from versatile.utils import devices


def ready(model, device, dtype):
    """Freeze everything, move to the device, choose what is fastest there.

    Args:
        model: an attached model; it is changed in place.
        device: where it is to run.
        dtype: precision of the matrix products.

    Returns:
        (the model's `ledger` as it was trained, its longest sequence)
    """
    parameters = ledger(model)
    model.requires_grad_(False).to(device).eval()
    if dtype != torch.float32:
        halve_frozen(model, dtype)
    devices.settle(model, device, dtype)
    return parameters, backbone_of(model.config).max_length(model.config)
