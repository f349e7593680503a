"""--push_to_hub: what is uploaded, and the messages before anything is trained.

    python -m pytest tests/test_hub.py
"""

import json
import re
from pathlib import Path
from typing import ClassVar

import huggingface_hub
import pytest
import quick
from scripts import SAMPLES, without_java
from test_cards import TRAINED
from versatile.training import hub
from versatile.utils.errors import UserError

import versatile
from versatile.api import command_line


@pytest.fixture
def api(monkeypatch):
    """The hub, switched on, with a token; a list of its requests, {name: files as uploaded} in `api.models`."""

    class Api:
        asked: ClassVar = []
        models: ClassVar = {}
        broken = None

        def _ask(self, what):
            Api.asked.append(what)
            if what[0] == Api.broken:
                raise ConnectionError("403 Forbidden: you have no right to write here")

        def create_repo(self, name, exist_ok):
            self._ask(("create", name, exist_ok))

        def upload_folder(self, *, repo_id, folder_path, ignore_patterns, commit_message):
            self._ask(("upload", repo_id))
            files = [p for p in sorted(Path(folder_path).rglob("*")) if p.is_file()]
            names = huggingface_hub.utils.filter_repo_objects([str(p.relative_to(folder_path)) for p in files],
                                                              ignore_patterns=ignore_patterns)  # fmt: skip
            Api.models[repo_id] = {name: (Path(folder_path) / name).read_bytes() for name in names}

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(huggingface_hub, "is_offline_mode", lambda: False)
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    monkeypatch.setenv("PATH", without_java()["PATH"])
    return Api


@pytest.mark.parametrize("script", quick.every(3, TRAINED))
def test_a_finished_run_is_uploaded_with_lines_that_fetch_it(api, script, tmp_path):
    run = versatile.train(dict(TRAINED[script], output_dir=tmp_path / "run", push_to_hub="me/model"), script)
    assert api.asked == [("create", "me/model", True), ("upload", "me/model")]
    files = api.models["me/model"]
    assert {"run.json", "README.md"} <= set(files) and [f for f in files if f.endswith("model.safetensors")]
    # Files needed only for resuming are not uploaded.
    assert (run / "run.json").is_file() and not [f for f in files if re.search(r"checkpoints|events\.|\.part", f)]
    assert "snapshot_download('me/model')" in files["README.md"].decode()
    assert json.loads(files["run.json"])["flags"]["push_to_hub"] == "me/model"


def test_a_combined_model_is_uploaded(api, tmp_path):
    run = versatile.train(dict(TRAINED["train"], output_dir=tmp_path / "run"))
    assert not api.asked
    data = {"nlg": SAMPLES / "nlg.json"}
    versatile.combine({"nlg": run}, tmp_path / "VLM", proof_examples=1, proof_tokens=2, data=data, push_to_hub="me/vlm")
    assert "adapter_config.json" in api.models["me/vlm"] and api.asked[0] == ("create", "me/vlm", True)


def test_a_run_is_uploaded_when_it_is_resumed_to_its_end(api, tmp_path):
    run = versatile.train(dict(TRAINED["train"], output_dir=tmp_path / "run"))
    versatile.train(dict(resume=run, push_to_hub="me/later"))
    assert api.asked == [("create", "me/later", True), ("upload", "me/later")]


@pytest.mark.parametrize(("name", "change", "words"), [
    ("me/my model", {}, "me/my model"),
    ("me/model", {"is_offline_mode": lambda: True}, "switched off by HF_HUB_OFFLINE"),
    ("me/model", {"get_token": lambda: None}, "there is no token"),
    ("me/model", {"create": True}, "403 Forbidden"),
])  # fmt: skip
def test_what_stands_against_it_is_one_message_before_anything_is_trained(
    api, tmp_path, monkeypatch, capsys, name, change, words
):
    import train

    for attribute, value in change.items():
        if attribute == "create":
            monkeypatch.setattr(api, "broken", "create")
        else:
            monkeypatch.setattr(huggingface_hub, attribute, value)
    flags = dict(TRAINED["train"], output_dir=tmp_path / "run", push_to_hub=name)
    with pytest.raises(SystemExit) as leave:
        train.main(command_line(flags))
    err = capsys.readouterr().err
    assert leave.value.code == 2 and err.startswith(f"error: --push_to_hub {name}: ") and words in err
    assert not (tmp_path / "run").exists()


def test_an_upload_that_fails_says_where_the_run_is(api, tmp_path, monkeypatch):
    monkeypatch.setattr(api, "broken", "upload")
    with pytest.raises(UserError, match="hf upload me/model") as error:
        versatile.train(dict(TRAINED["train"], output_dir=tmp_path / "run", push_to_hub="me/model"))
    assert f"the run is complete in {tmp_path / 'run'}" in str(error.value)
    assert versatile.load(tmp_path / "run").tasks


def test_nothing_is_asked_without_the_flag(api, tmp_path):
    hub.check_repository(None)
    hub.push(tmp_path, None)
    assert not api.asked
