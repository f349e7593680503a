"""Model directories with damaged json load, or are refused with one message: never a traceback, never a hang.

    python -m pytest tests/test_model_directories.py
"""

import contextlib
import copy
import importlib
import json
import math
import os
import random
import shutil

import pytest
import quick
import torch
from saved_models import TASKS, changed, save_bert, save_marked, save_t5
from versatile.adapters import attach, bert, checkpoint, t5
from versatile.adapters.backbones import loading as backbones
from versatile.utils.errors import UserError
from versatile.utils.screen import escape_controls

DEEP = json.loads("[" * 300 + "]" * 300)
WRONG = [None, True, False, 0, -1, 1, 1.5, -0.0, float("nan"), float("inf"), 2**31, 2**63, 10**30, "", "x", "\ud800",
         "\u2028", "../../etc/passwd", "a\0b", "n" * 5000, [], [[]], {}, {"a": 1}, [None], [{"name": "x"}], "keys",
         DEEP]  # fmt: skip


KINDS = {
    "adapter": (lambda path: save_marked(path, {"nlg": 8, "mt": 4}), checkpoint.load_checkpoint, "adapter_config.json"),
    "full": (lambda path: save_marked(path, None), checkpoint.load_checkpoint, "config.json"),
    "bert": (lambda path: save_bert(path, "base", {"cola-b": "cola"}), bert.load_classifier, "adapter_config.json"),
    "t5": (lambda path: save_t5(path, "hyperformer++"), t5.load_t5, "adapter_config.json"),
    "t5_full": (lambda path: save_t5(path, "finetune"), t5.load_t5, "config.json"),
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """{kind: its directory}"""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("models")
    for kind, (save, _, _) in KINDS.items():
        save(folder / kind)
    return {kind: folder / kind for kind in KINDS}


def keys(value, path=()):
    """The paths of all values in a json value."""
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
        yield (*path, key)
        if isinstance(inner, (dict, list)):
            yield from keys(inner, (*path, key))


def mutated(value, path, new, remove=False):
    """A copy in which one value is replaced or missing."""
    value = copy.deepcopy(value)
    *above, last = path
    held = value
    for key in above:
        held = held[key]
    if remove:
        del held[last]
    else:
        held[last] = new
    return value


def outcome(load, directory):
    """None if a directory loads, else its message; any other exception is the test's."""
    try:
        load(directory)
    except UserError as error:
        str(error).encode("utf-8")
        assert escape_controls(str(error)) == str(error)
        return str(error)


@pytest.mark.parametrize("values", quick.only([1], [1, 2]))
@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_json_file_is_one_message_or_loads(kind, values, saved, tmp_path):
    _, load, name = KINDS[kind]
    directory = shutil.copytree(saved[kind], tmp_path / "model")
    good = json.loads((directory / name).read_text())
    assert outcome(load, directory) is None
    draw = random.Random(kind)
    for path in keys(good):
        for new in [*draw.sample(WRONG, values), "remove"]:
            value = mutated(good, path, new, new == "remove")
            (directory / name).write_text(json.dumps(value))
            try:
                outcome(load, directory)
            except Exception as error:
                raise AssertionError(f"{path} as {str(new)[:40]!r}: {error!r}") from error


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", ["", "[]", "{", "null", "[" * 100_000, '{"a": ' + "9" * 5000 + "}", "\x00\x01"])
def test_a_file_that_is_no_json_object_is_one_message(kind, text, saved, tmp_path):
    _, load, name = KINDS[kind]
    directory = shutil.copytree(saved[kind], tmp_path / "model")
    (directory / name).write_text(text)
    assert outcome(load, directory)


@pytest.mark.parametrize("kind, path, new, says", [
    ("adapter", ("methods", "nlg", "adapter_bottleneck"), 9, "the bottleneck of 'nlg' is 9, that of its tensors 8"),
    ("adapter", ("methods",), None, "methods is None"),
    ("adapter", ("tasks", 1, "markers", 0), "<bos_nlg>", "'<bos_nlg>' appears twice"),
    ("adapter", ("tasks", 1, "markers", 0), "a", "'a' is already a token of the backbone"),
    ("adapter", ("base_model_name_or_path",), "/gone/gpt2", "has moved"),
    ("full", ("n_embd",), 32, "in model.safetensors"),
    ("full", ("n_layer",), 10**9, "n_layer is 1000000000"),
    ("full", ("versatile", "tasks", 0, "markers", 0), "<unknown>", "config.json is not among the tokens added"),
    ("bert", ("tasks", 0, "labels"), 90_000, "decoders.0.model.bias has shape [2]"),
    ("bert", ("aliases", "cola-b"), "gone", "which is not one of its tasks"),
    ("t5", ("settings", "task_hidden_dim"), 900_000, "has shape"),
    ("t5", ("settings", "task_embedding_dim"), 2**31, "settings.task_embedding_dim is 2147483648"),
    ("t5", ("layers",), [2], "layers is [2]"),
    ("adapter", ("encoder",), "prefix", "encoder is 'prefix'"),
    ("bert", ("format",), 3, "format is 3"),
])  # fmt: skip
def test_the_message_names_the_key_and_what_is_wrong(kind, path, new, says, saved, tmp_path):
    _, load, name = KINDS[kind]
    directory = shutil.copytree(saved[kind], tmp_path / "model")
    (directory / name).write_text(json.dumps(mutated(json.loads((directory / name).read_text()), path, new)))
    message = outcome(load, directory)
    assert says in message and (name in message or "model.safetensors" in message), message


@pytest.mark.parametrize("text", ["[]", "{", '{"watermarking_config": "x"}', '{"cache_implementation": "x"}',
                                  '{"forced_eos_token_id": 999999}', '{"suppress_tokens": [1, 999999]}'])  # fmt: skip
def test_a_damaged_generation_config_is_not_put_down_to_the_weights(text, saved, tmp_path):
    directory = shutil.copytree(saved["full"], tmp_path / "model")
    (directory / "generation_config.json").write_text(text)
    message = outcome(checkpoint.load_checkpoint, directory)
    assert "generation_config.json" in message and "weights" not in message


def test_a_token_without_a_row_is_named(saved, tmp_path):
    directory = shutil.copytree(saved["full"], tmp_path / "model")
    tokenizer = json.loads((directory / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"]["a"] = 99_999
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert "'a' has the id 99999" in outcome(checkpoint.load_checkpoint, directory)


def test_a_directory_whose_name_is_not_text_is_named_not_its_file(saved, tmp_path):
    directory = shutil.copytree(saved["adapter"], tmp_path / os.fsdecode(b"n\xff"))
    with pytest.raises(UserError, match=r"the name is not UTF-8 text(.|\n)*rename its directory"):
        checkpoint.load_checkpoint(directory)


def test_numbers_of_8_bits_are_finite_or_not():
    ones = torch.ones(4).to(torch.float8_e4m3fn)
    assert backbones.not_finite({"a": ones}) is None
    assert backbones.not_finite({"a": ones, "b": torch.tensor([1.0, math.nan]).to(torch.float8_e4m3fn)}) == "b"


def test_a_backbone_beside_its_moved_adapters_is_found(saved, tmp_path):
    model, tokenizer = backbones.load_backbone("tiny-gpt2")
    for location in (tmp_path / "there" / "base", tmp_path / "here" / "base"):
        model.save_pretrained(location)
        tokenizer.save_pretrained(location)
    model, tokenizer = backbones.load_backbone(str(tmp_path / "there" / "base"))
    attach.attach(model, tokenizer, TASKS, {"nlg": 8, "mt": 4})
    checkpoint.save_checkpoint(changed(model), tokenizer, tmp_path / "here" / "adapters")
    shutil.rmtree(tmp_path / "there")
    assert checkpoint.load_checkpoint(tmp_path / "here" / "adapters")[0].info.tasks == ["nlg", "mt"]
    shutil.rmtree(tmp_path / "here" / "base")
    message = outcome(checkpoint.load_checkpoint, tmp_path / "here" / "adapters")
    assert "adapter_config.json: base_model_name_or_path" in message


FOREIGN = "open({ran!r}, 'w').write('ran')\nfrom transformers import PretrainedConfig\n"\
          "class Foreign(PretrainedConfig):\n    model_type = 'foreignmodel'\n"


@pytest.mark.parametrize("load", [backbones.load_backbone, checkpoint.load_checkpoint, t5.load_t5_of_name,
                                  lambda name: bert.build_classifier(name, {"cola": 2})])  # fmt: skip
def test_code_that_comes_with_a_model_never_runs(load, tmp_path, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    model = tmp_path / "m"
    model.mkdir()
    (model / "config.json").write_text(json.dumps(dict(model_type="foreignmodel",
                                                       auto_map=dict(AutoConfig="foreign.Foreign"))))  # fmt: skip
    (model / "foreign.py").write_text(FOREIGN.format(ran=str(tmp_path / "ran")))
    assert "foreignmodel" in outcome(load, str(model))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("kind", ["bert", "t5"])
def test_code_of_a_tokenizer_never_runs(kind, saved, tmp_path, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    directory = shutil.copytree(saved[kind], tmp_path / "model")
    path = directory / "tokenizer_config.json"
    said = json.loads(path.read_text()) | dict(
        tokenizer_class="Foreign", auto_map=dict(AutoTokenizer=["foreign.Foreign", "foreign.Foreign"])
    )
    path.write_text(json.dumps(said))
    (directory / "foreign.py").write_text(FOREIGN.format(ran=str(tmp_path / "ran")))
    outcome(KINDS[kind][1], directory)
    assert not (tmp_path / "ran").exists()


def save_old(model, tokenizer, path, drop):
    """As in pytorch_transformers 1.x: pytorch_model.bin, and a config.json without model_type and newer keys."""
    tokenizer.save_pretrained(path)
    torch.save(model.state_dict(), path / "pytorch_model.bin")
    values = json.loads(model.config.to_json_string())
    (path / "config.json").write_text(json.dumps({k: v for k, v in values.items() if k not in drop}))


NEWER = ("model_type", "architectures", "transformers_version", "dtype", "activation_function")


def test_backbones_of_pytorch_transformers_load(tmp_path):
    from transformers import OpenAIGPTConfig, OpenAIGPTLMHeadModel

    gpt2, tokenizer = backbones.load_backbone("tiny-gpt2")
    save_old(gpt2, tokenizer, tmp_path / "gpt2", NEWER)
    again, _ = backbones.load_backbone(str(tmp_path / "gpt2"))
    ids = torch.arange(20)[None]
    with torch.no_grad():
        assert torch.equal(again(ids).logits, gpt2(ids).logits)
    gpt = OpenAIGPTLMHeadModel(OpenAIGPTConfig(vocab_size=len(tokenizer), n_positions=64, n_embd=32, n_layer=2,
                                               n_head=2)).eval()  # fmt: skip
    (tmp_path / "gpt").mkdir()
    save_old(gpt, tokenizer, tmp_path / "gpt", NEWER)
    assert backbones.read_config(tmp_path / "gpt", "--model_checkpoint gpt").model_type == "openai-gpt"
    model, tokenizer = bert._pretrained("tiny-bert", "--model_name_or_path tiny-bert", 0)[:2]
    save_old(model, tokenizer, tmp_path / "bert", NEWER)
    again, _ = bert.build_classifier(str(tmp_path / "bert"), {"cola": 2}, "plain")
    with torch.no_grad():
        assert torch.equal(again.bert(ids).last_hidden_state, model.eval()(ids).last_hidden_state)


def test_what_is_no_known_old_backbone_is_said(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(dict(n_embd=8, n_layer=2, n_head=2, dff=3)))
    assert "no 'model_type'" in outcome(backbones.load_backbone, str(tmp_path))


def test_messages_never_reach_a_terminal_raw():
    error = UserError("a\x1b[2Jb\ud800\u2028c\u202ed", location="caf\u00e9 \u65e5\u672c")
    assert str(error) == "caf\u00e9 \u65e5\u672c: a\\x1b[2Jb\\ud800\\u2028c\\u202ed"


@pytest.mark.parametrize("script", ["train", "train_vlm", "train_lifelong", "train_camtl", "evaluate", "evaluate_vlm",
                                    "evaluate_lifelong", "interact", "combine_all", "compute_task_embeddings",
                                    "sentence_distiller"])  # fmt: skip
def test_every_script_takes_device_and_keeps_it_out_of_its_settings(script, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    monkeypatch.setenv("PJRT_DEVICE", "")
    p = importlib.import_module(script).parser()
    for action in p._actions:
        action.required = False
    with contextlib.suppress(SystemExit):
        # The scripts' own checks may ask for more; the device is chosen all the same.
        assert "device" not in vars(p.parse_args(["--device", "cpu"]))
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""


@pytest.mark.parametrize("words", [["--no_cuda"], ["--use-cpu", "true"], ["--device=cpu"]])
def test_each_spelling_of_no_gpu_hides_it_and_is_no_setting(words, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    monkeypatch.setenv("PJRT_DEVICE", "")
    args = importlib.import_module("train").parser().parse_args([*words, "--seed", "1"])
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "" and not {"device", "no_cuda"} & vars(args).keys()


def test_a_gpu_stays_where_it_is_not_turned_down(monkeypatch, capsys):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    p = importlib.import_module("train").parser()
    p.parse_args(["--no_cuda", "false"])
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "0"
    with pytest.raises(SystemExit):
        p.parse_args(["--device", "tpu"])
    assert capsys.readouterr().err.startswith("error: --device: ")
