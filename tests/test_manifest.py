"""One manifest, whichever script trained a model, and one probe that reads it.

    python -m pytest tests/test_manifest.py
"""

import json
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from saved_models import save_bert, save_marked, save_t5
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM
from versatile.adapters import bert, checkpoint, manifest, t5
from versatile.utils.errors import UserError

from tests.conftest import ROOT

SAVED = ROOT / "tests" / "saved"
HEAD = {"library_name", "format", "encoder", "mode", "tasks", "methods", "model_type", "base_model_name_or_path",
        "base_model_fingerprint", "checksum"}  # fmt: skip
# For older directories: the probe's expected result (encoder, mode, tasks, methods).
OLDER = {
    "adapter_gpt2_mt": ("markers", "adapter", ("mt",), {"bottleneck"}),
    "adapter_gpt2_dialogue": ("markers", "adapter", ("dialogue",), {"bottleneck"}),
    "rows_gpt2_nlg": ("markers", "adapter", ("nlg",), {"task_embeddings"}),
    "full_gpt2_mt": ("markers", "full", ("mt",), {"full"}),
    "vlm_unfrozen": ("markers", "adapter", ("nlg", "mt"), {"bottleneck"}),
    "lifelong_adapter/ag": ("question_answer", "adapter", ("lifelong",), {"bottleneck"}),
    "lifelong_full/ag": ("question_answer", "full", ("lifelong",), {"full"}),
    "lifelong_own/ag": ("question_answer", "adapter", ("lifelong", "ag", "e2enlg"), {"task_embeddings", "bottleneck"}),
    "t5_adapters": ("text_to_text", "adapter", ("rte",), {"adapters"}),
    "t5_full": ("text_to_text", "full", ("rte", "cola"), {"full"}),
    "t5_hyperformerpp": ("text_to_text", "adapter", ("rte", "cola"), {"hyperformer++"}),
    "camtl_base": ("sentence_pair", "full", ("cola", "sts-b", "rte"), {"conditional"}),
    "camtl_plain": ("sentence_pair", "full", ("cola", "sts-b", "rte"), {"full"}),
}


KINDS = {
    "markers": (lambda path: save_marked(path, {"nlg": 8, "mt": "lora"}), checkpoint.load_checkpoint),
    "full": (lambda path: save_marked(path, None), checkpoint.load_checkpoint),
    "t5": (lambda path: save_t5(path, "hyperformer"), t5.load_t5),
    "t5_lora": (lambda path: save_t5(path, "lora"), t5.load_t5),
    "t5_full": (lambda path: save_t5(path, "finetune"), t5.load_t5),
    "camtl": (lambda path: save_bert(path, "base"), bert.load_classifier),
    "plain_bert": (lambda path: save_bert(path, "plain"), bert.load_classifier),
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """{kind: its directory}"""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("models")
    for kind, (save, _) in KINDS.items():
        save(folder / kind)
    return {kind: folder / kind for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_every_directory_carries_one_manifest(kind, saved):
    found = checkpoint.peek(saved[kind])
    assert found.format == 2 and found.config.keys() >= HEAD and "peft_type" not in found.config
    assert found.config["library_name"] == "versatile" and found.backbone.startswith("tiny-")
    assert found.tasks == tuple(found.methods) and len(found.fingerprint) == 16
    encoders = {"t5": "text_to_text", "ca": "sentence_pair", "pl": "sentence_pair"}
    assert found.encoder == encoders.get(kind[:2], "markers")
    full = kind in ("full", "t5_full")
    assert (found.path.name, found.mode == "full") == (("config.json", True) if full else
                                                       ("adapter_config.json", kind in ("camtl", "plain_bert")))
    if kind == "markers":
        assert found.methods["nlg"] == dict(method="bottleneck", adapter_bottleneck=8)
        assert found.methods["mt"].items() >= dict(method="lora", lora_rank=8, lora_alpha=16.0).items()


@pytest.mark.parametrize("name", OLDER)
def test_older_directories_are_read_as_the_same(name):
    found = checkpoint.peek(SAVED / name)
    methods = {method["method"] for method in found.methods.values()}
    assert (found.encoder, found.mode, found.tasks, methods) == OLDER[name] and found.format == 1
    assert found.config["format"] == 2 and found.config["library_name"] == "versatile"


def test_what_a_manifest_remembers_of_tasks_is_read_without_the_model():
    assert checkpoint.peek(SAVED / "adapter_gpt2_dialogue").histories["dialogue"] == 2
    assert checkpoint.peek(SAVED / "adapter_gpt2_mt").definitions == {}


def test_what_holds_no_trained_model_has_no_manifest(tmp_path):
    assert checkpoint.peek(tmp_path) is None and checkpoint.peek("no/such/place") is None
    assert checkpoint.peek("tiny-gpt2") is None and checkpoint.peek("n" * 5000) is None
    assert checkpoint.peek(SAVED / "vlm_unfrozen" / "backbone") is None


def test_foreign_formats_are_told_by_name(tmp_path):
    (tmp_path / "adapter_config.json").write_text(json.dumps(dict(peft_type="LORA", r=8)))
    found = checkpoint.peek(tmp_path)
    assert (found.format, found.released, found.tasks) == ("peft", False, ())
    (tmp_path / "adapter_config.json").unlink()
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<bos_dial>": 50258}))
    found = checkpoint.peek(tmp_path)
    assert (found.format, found.released, found.encoder) == ("vlm", True, "markers")


@pytest.mark.parametrize("text", ["{", "[]", '{"peft_type": ["LORA"]}', '{"library_name": "peft"}', "{}",
                                  '{"library_name": "versatile", "format": 3, "encoder": "markers"}',
                                  '{"peft_type": "VERSATILE_OTHER"}'])  # fmt: skip
def test_a_damaged_manifest_is_one_message(text, tmp_path):
    (tmp_path / "adapter_config.json").write_text(text)
    with pytest.raises(UserError, match=r"adapter_config\.json"):
        checkpoint.peek(tmp_path)


def test_the_probe_loads_no_library(saved):
    folders = [str(path) for path in saved.values()] + [str(SAVED / name) for name in OLDER]
    code = ("import sys; from versatile.adapters.manifest import peek; assert all(map(peek, sys.argv[1:])); "
            "assert not {'torch', 'transformers', 'numpy'} & set(sys.modules)")  # fmt: skip
    subprocess.run([sys.executable, "-c", code, *folders], cwd=ROOT, check=True)


@pytest.mark.parametrize("kind", KINDS)
def test_weights_of_another_saving_are_noticed(kind, saved, tmp_path):
    folder = shutil.copytree(saved[kind], tmp_path / "model")
    load = KINDS[kind][1]
    load(folder)
    (path,) = folder.glob("*.safetensors")
    state = load_file(path)
    save_file({key: tensor * 1.5 for key, tensor in state.items()}, path, {"format": "pt"})
    with pytest.raises(UserError, match=rf"{path.name}: its checksum is sha256:\w+(.|\n)*saved at different times"):
        load(folder)


@pytest.mark.parametrize("kind, auto", [("full", AutoModelForCausalLM), ("t5_full", AutoModelForSeq2SeqLM)])
def test_a_fine_tuned_model_stays_an_ordinary_transformers_directory(kind, auto, saved):
    # Even where peft is installed, to which transformers would pass any adapter_config.json next to the model.
    plain, (model, _) = auto.from_pretrained(saved[kind]).eval(), KINDS[kind][1](saved[kind])
    ids = torch.arange(5)[None]
    more = dict(decoder_input_ids=ids) if kind == "t5_full" else {}
    with torch.no_grad():
        assert torch.equal(plain(input_ids=ids, **more).logits,
                           model(input_ids=ids, task_ids=torch.zeros(1, dtype=torch.long), **more).logits)  # fmt: skip


@pytest.mark.parametrize(
    "kind, script",
    [("t5", "train_t5.py"), ("t5_full", "train_t5.py"), ("camtl", "train_camtl.py"), ("plain_bert", "train_camtl.py")],
)
def test_a_model_of_other_tasks_is_refused_with_its_own_script(kind, script, saved):
    with pytest.raises(UserError, match=rf"--model_checkpoint {saved[kind]}: this is a model of {script}"):
        checkpoint.load_checkpoint(saved[kind])
    assert manifest.need_language_model(saved["markers"]).tasks == ("nlg", "mt")
