"""Upload of run directories to the Hugging Face hub (`--push_to_hub NAME`)."""

import json
from pathlib import Path

from versatile.training.cards import write_model_card
from versatile.training.runs import stored_record
from versatile.utils.errors import UserError, first_line
from versatile.utils.screen import shell_words

# Files needed only for resuming or only locally are not uploaded.
IGNORED = ["*checkpoints/*", "*checkpoint-*/*", "events.*", "*/events.*", ".*", "*/.*", "*.part"]


def check_repository(name):
    """Create the repository unless it exists, so that any obstacle is reported before anything is trained.

    Args:
        name: value of --push_to_hub; None: nothing is pushed.

    Raises:
        UserError: an invalid name, no token, no network or no permission.
    """
    if not name:
        return
    from huggingface_hub import get_token, is_offline_mode
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    location = f"--push_to_hub {name}"
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise UserError(first_line(error), location=location, expected="owner/name, as on the hub") from error
    if is_offline_mode():
        raise UserError("the hub is switched off by HF_HUB_OFFLINE", location=location,
                        remedy="unset HF_HUB_OFFLINE, or leave --push_to_hub out and upload the run directory later: "
                        + _upload_command(name, "RUN"))  # fmt: skip
    if get_token() is None:
        raise UserError("there is no token for the hub", location=location,
                        remedy="log in once (hf auth login), or set HF_TOKEN")  # fmt: skip
    _call_hub(location, "give a name that you may write to", lambda api: api.create_repo(name, exist_ok=True))


def push(directory, name):
    """Upload a finished run directory, with a README.md that says how to load it from the hub.

    Args:
        name: value of --push_to_hub; None: nothing is done.

    Raises:
        UserError: the upload failed; the directory itself is intact.
    """
    if not name:
        return
    path = Path(directory) / "metrics.json"
    metrics = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    write_model_card(directory, stored_record(directory), metrics, hub_name=name)
    remedy = f"the run is complete in {directory}; upload it later: {_upload_command(name, directory)}"
    _call_hub(f"--push_to_hub {name}", remedy,
              lambda api: api.upload_folder(repo_id=name, folder_path=str(directory), ignore_patterns=IGNORED,
                                            commit_message=f"Upload {Path(directory).name}"))  # fmt: skip
    print(f"uploaded: {directory} as {name}", flush=True)


def _call_hub(location, remedy, request):
    """Call `request` with the hub's `HfApi`; any failure becomes a `UserError`."""
    from huggingface_hub import HfApi

    try:
        request(HfApi())
    except Exception as error:
        # The library and the network raise many kinds of errors; none can be handled here.
        raise UserError(f"the hub rejected the request: {first_line(error)}", location=location,
                        remedy=remedy) from error  # fmt: skip


def _upload_command(name, directory):
    return shell_words("hf", "upload", name, directory)
