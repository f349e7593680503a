"""Tensor files: written whole, and checked against the model before anything is copied. Nothing is ever unpickled."""

import hashlib
from pathlib import Path

import torch
from versatile.adapters.backbones import loading as backbones
from versatile.utils.errors import UserError, brief
from versatile.utils.files import atomic_write, check_name


def read_safetensors(path):
    """{key: tensor} of a safetensors file; any problem with it raises a `UserError`."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = Path(path)
    if not path.is_file():
        raise UserError("no such file", location=path, expected="the weights next to their config",
                        remedy="the run may not have saved a model yet: see its checkpoints/")  # fmt: skip
    check_name(path, path, "rename its directory")
    try:
        # The library calls a file that may not be read a missing one.
        path.open("rb").close()
        state = load_file(path)
    except (SafetensorError, ValueError, OSError) as error:
        raise UserError(
            f"not a readable safetensors file: {brief(str(error), 120)}",
            location=path,
            expected="a whole file",
            remedy="copy it again, or use an older checkpoint of the run",
        ) from error
    if bad := backbones.not_finite(state):
        raise UserError(f"holds values that are not numbers (first in {bad})", location=path, expected="finite numbers",
                        remedy="copy it again, or use an older checkpoint of the run")  # fmt: skip
    return state


def write_tensors(path, state):
    """Write {key: tensor} as a safetensors file, whole or not at all; returns its checksum."""
    from safetensors.torch import save

    state = {key: tensor.detach().cpu().contiguous() for key, tensor in state.items()}
    content = save(state, {"format": "pt"})
    with atomic_write(path, "wb") as file:
        file.write(content)
    return checksum_of(content)


def checksum_of(content):
    """The checksum of a file's bytes, as recorded in a manifest."""
    return "sha256:" + hashlib.sha256(content).hexdigest()


def check_checksum(path, expected):
    """Raise a `UserError` if a file does not match its manifest's checksum; None if the manifest has none."""
    if expected is None:
        return
    with open(path, "rb") as file:
        checksum = "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()
    if checksum != expected:
        raise UserError(f"its checksum is {checksum[:23]}…", location=path,
                        expected=f"{expected[:23]}…, as the manifest next to it says",
                        remedy="the files were saved at different times: copy the directory again, or use an older "
                               "checkpoint of the run")  # fmt: skip


def copy_tensors(state, wanted, location):
    """Copy a file's tensors into `wanted`; names and shapes must be the same."""
    check_fit(state, wanted, location)
    with torch.no_grad():
        for key, tensor in state.items():
            wanted[key].copy_(tensor)


def check_fit(state, wanted, location):
    """Check that a file's tensors have the names and shapes of `wanted`."""
    require_same_keys(set(wanted) - set(state), set(state) - set(wanted), location)
    for key, tensor in state.items():
        if tensor.shape != wanted[key].shape:
            raise UserError(
                f"{key} has shape {list(tensor.shape)}", location=location, expected=str(list(wanted[key].shape)),
                remedy="load it onto the backbone it was trained on",
            )  # fmt: skip


def require_same_keys(missing, unexpected, location):
    if missing or unexpected:
        parts = [f"{len(missing)} missing (first {min(missing)})"] if missing else []
        parts += [f"{len(unexpected)} not expected (first {min(unexpected)})"] if unexpected else []
        raise UserError("its keys do not fit the model: " + ", ".join(parts), location=location,
                        expected="exactly the model's trained tensors")  # fmt: skip
