"""Interchange with peft: models loaded in either direction have equal logits; clear errors.

    python -m pytest tests/test_peft.py
"""

import json
import shutil

import lifelong_data
import pytest
import torch
from combining import lively
from safetensors.torch import load_file, save_file
from scripts import metrics, small
from training_runs import refused_here
from versatile.adapters import checkpoint
from versatile.adapters.attach import attach, trainable
from versatile.adapters.backbones import loading as backbones
from versatile.adapters.imports import peft as exchange
from versatile.adapters.imports import peft_export
from versatile.data import own_tasks
from versatile.data.task import get_task

import combine_all
import evaluate_vlm
import train
import train_lifelong
import train_vlm
from versatile import peft as command

peft = pytest.importorskip("peft", reason="the package peft is not installed: interchange with it is not tested")
METHODS = {"lora": dict(method="lora", lora_rank=3, lora_targets="q,v,down"), "ia3": dict(method="ia3")}


def ours(folder, name, methods, token_types=True, markers=True):
    """A directory as training leaves it."""
    model, tokenizer = backbones.load_backbone(lively(name))
    torch.manual_seed(0)
    attach(model, tokenizer, {task: list(get_task(task).markers) if markers else [] for task in methods}, methods)
    model.info.encoder = "markers" if token_types else "question_answer"
    for p in trainable(model).values():
        p.data.add_(0.2 * torch.randn_like(p))
    checkpoint.save_checkpoint(model, tokenizer, folder)
    return folder


def theirs(folder, name, seed=0, **config):
    """A directory as peft saves it, its matrices away from their initial values."""
    base, _ = backbones.load_backbone(lively(name))
    kind = peft.LoraConfig if "r" in config else peft.IA3Config
    task_type = "SEQ_2_SEQ_LM" if "t5" in name else "CAUSAL_LM"
    model = peft.get_peft_model(base, kind(task_type=task_type, **config))
    torch.manual_seed(seed)
    for p in model.parameters():
        if p.requires_grad:
            p.data.add_(0.2 * torch.randn_like(p))
    model.save_pretrained(folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | dict(base_model_name_or_path=lively(name))))
    return folder


def refused(capsys, argv, *fragments, out=None):
    refused_here(capsys, lambda: command.main([str(word) for word in argv]), *fragments, out=out)


@torch.no_grad()
def by_readme(directory, inputs):
    """Logits of the model that the lines in an exported directory's README.md load."""
    lines = (directory / "README.md").read_text().split("```python\n")[1].split("```")[0]
    names = dict(directory=str(directory))
    exec(lines, names)
    return names["model"].eval()(**inputs(names["tokenizer"])).logits, names["tokenizer"]


# ---- export


@torch.no_grad()
@pytest.mark.parametrize("name, types", [("tiny-gpt2", True), ("tiny-gpt2", False), ("tiny-llama", False)])
@pytest.mark.parametrize("method", METHODS)
def test_peft_gives_the_logits_of_an_exported_task(name, types, method, tmp_path):
    run = ours(tmp_path / "run", name, {"mt": 4, "nlg": METHODS[method]}, types)
    command.main(["export", str(run), str(tmp_path / "out"), "--task", "nlg"])
    model, words = checkpoint.load_checkpoint(run)
    markers = model.info.markers["nlg"]
    spoken = words("the golden palace is a cheap restaurant", add_special_tokens=False).input_ids

    def inputs(tokenizer):
        own = tokenizer.convert_tokens_to_ids(markers)
        ids = torch.tensor([[own[0], *spoken, own[-1]], [own[2], *spoken, own[1]]])
        kinds = torch.tensor([[own[0]] * len(ids[0]), [own[3]] * len(ids[0])])
        return dict(input_ids=ids) | (dict(token_type_ids=kinds) if types else {})

    found, tokenizer = by_readme(tmp_path / "out", inputs)
    expected = model(**inputs(words), task_ids=torch.tensor([1, 1])).logits
    first = model.info.first
    torch.testing.assert_close(found[..., :first], expected[..., :first], atol=1e-4, rtol=1e-4)
    columns = [tokens.convert_tokens_to_ids(markers) for tokens in (tokenizer, words)]
    torch.testing.assert_close(found[..., columns[0]], expected[..., columns[1]], atol=1e-4, rtol=1e-4)
    # Another task, or none, would not pass.
    other = model(**inputs(words), task_ids=torch.tensor([-1, -1])).logits
    assert (other[..., :first] - expected[..., :first]).abs().max() > 1e-2


@pytest.mark.parametrize("method", METHODS)
def test_a_task_without_embeddings_is_exported_without_a_table(method, tmp_path, capsys):
    run = ours(tmp_path / "run", "tiny-llama", {"nlg": METHODS[method]}, markers=False)
    command.main(["export", str(run), str(tmp_path / "out")])
    assert "no task embeddings: the task has none" in capsys.readouterr().out
    found = checkpoint.read_safetensors(tmp_path / "out" / exchange.ADAPTER_WEIGHTS)
    assert found and not [key for key in found if "embed" in key or "head" in key]


def test_a_lifelong_run_on_llama_has_no_token_types_and_is_exported(tmp_path):
    data, out = tmp_path / "data", tmp_path / "run"
    data.mkdir()
    lifelong_data.write(data)
    lora = ["--real_sample", "--method", "lora"]
    train_lifelong.main(lifelong_data.command(data, out, "lll", *lora, model="tiny-llama"))
    adapter, share = peft_export.export_task(out / "sst", tmp_path / "out")
    assert share <= peft_export.LOGIT_TOLERANCE and "__ans__" in adapter.tokens


@pytest.mark.parametrize("method", METHODS)
def test_a_run_of_train_t5_is_exported(method, tmp_path):
    from versatile.adapters import t5

    model, tokenizer = t5.load_t5_of_name("tiny-t5")
    t5.attach(model, ["rte", "mrpc"], t5.T5Settings(method=method))
    torch.manual_seed(0)
    for p in model.added.parameters():
        p.data.add_(0.2 * torch.randn_like(p))
    t5.save_t5(model, tokenizer, tmp_path / "run")
    adapter, share = peft_export.export_task(tmp_path / "run", tmp_path / "out", "mrpc")
    assert share <= peft_export.LOGIT_TOLERANCE and adapter.tokens == []
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["task_type"] == "SEQ_2_SEQ_LM"


def test_a_t5_with_tokens_is_exported_and_comes_back(tmp_path):
    run = ours(tmp_path / "run", "tiny-t5", {"nlg": "lora"}, token_types=False)
    adapter, share = peft_export.export_task(run, tmp_path / "out")
    assert share <= peft_export.LOGIT_TOLERANCE and adapter.tokens
    command.main(["import", str(tmp_path / "out"), str(tmp_path / "back"), "--task", "nlg"])
    files = (folder / checkpoint.ADAPTER_WEIGHTS for folder in (run, tmp_path / "back"))
    before, after = map(checkpoint.read_safetensors, files)
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)


def test_what_peft_could_not_give_the_same_logits_for_is_refused(tmp_path, capsys):
    out = tmp_path / "out"
    typed = ours(tmp_path / "typed", "tiny-llama", {"nlg": "lora"})
    refused(capsys, ["export", typed, out], "token-type embeddings", "Llama", out=out)
    bottleneck = ours(tmp_path / "bottleneck", "tiny-gpt2", {"nlg": 4, "mt": "lora"})
    refused(capsys, ["export", bottleneck, out, "--task", "nlg"], "trained with the method bottleneck", out=out)
    refused(capsys, ["export", bottleneck, out], "holds the tasks nlg, mt", "--task TASK", out=out)
    refused(capsys, ["export", bottleneck, out, "--task", "qa"], "holds the task(s) nlg, mt", out=out)
    refused(capsys, ["export", tmp_path / "none", out], "no such directory", out=out)
    rescaled = ours(tmp_path / "rescaled", "tiny-t5", {"nlg": "ia3"}, token_types=False)
    refused(capsys, ["export", rescaled, out], "encoder and decoder would not use", "lora", out=out)
    out.mkdir()
    (out / "mine").touch()
    refused(capsys, ["export", bottleneck, out, "--task", "mt"], "this path already exists")
    assert [p.name for p in out.iterdir()] == ["mine"]


# ---- import

THEIRS = {
    "tiny-gpt2": dict(target_modules=["c_attn"], fan_in_fan_out=True),
    "tiny-llama": dict(target_modules=["q_proj", "o_proj", "up_proj"]),
    "tiny-t5": dict(target_modules=["q", "v", "wo"]),
}


@torch.no_grad()
@pytest.mark.parametrize("name", THEIRS)
@pytest.mark.parametrize("more", [{}, dict(use_rslora=True, rank_pattern={"0.*": 2}, alpha_pattern={"0.*": 3})])
def test_a_lora_of_pefts_is_a_task_of_ours(name, more, tmp_path):
    source = theirs(tmp_path / "lora", name, r=4, lora_alpha=6, **THEIRS[name], **more)
    exchange.import_adapter(source, tmp_path / "out", "mine", ["<a>", "<b>"])
    model, _ = checkpoint.load_checkpoint(tmp_path / "out")
    base, _ = backbones.load_backbone(lively(name))
    their = peft.PeftModel.from_pretrained(base, source).eval()
    ids = torch.arange(5, 25).view(2, 10)
    given = dict(input_ids=ids) | (dict(decoder_input_ids=ids.flip(1)) if "t5" in name else {})
    expected, found = their(**given).logits, model(**given, task_ids=torch.tensor([0, 0])).logits
    first = model.info.first
    torch.testing.assert_close(found[..., :first], expected[..., :first], atol=1e-4, rtol=1e-4)
    assert model.info.markers == {"mine": ["<a>", "<b>"]} and model.info.methods["mine"]["lora_rank"] == 4


@torch.no_grad()
@pytest.mark.parametrize("name", ["tiny-gpt2", "tiny-llama", "tiny-t5"])
def test_an_ia3_of_pefts_is_a_task_of_ours(name, tmp_path):
    # peft's own choice of modules for the architecture.
    source = theirs(tmp_path / "ia3", name)
    exchange.import_adapter(source, tmp_path / "out", "mine", ["<a>"])
    assert checkpoint.load_checkpoint(tmp_path / "out")[0].info.methods["mine"] == dict(method="ia3")


@pytest.mark.parametrize("method", METHODS)
def test_what_was_exported_comes_back(method, tmp_path):
    run = ours(tmp_path / "run", "tiny-gpt2", {"nlg": METHODS[method]})
    command.main(["export", str(run), str(tmp_path / "out")])
    command.main(["import", str(tmp_path / "out"), str(tmp_path / "back"), "--task", "nlg"])
    files = (folder / checkpoint.ADAPTER_WEIGHTS for folder in (run, tmp_path / "back"))
    before, after = map(checkpoint.read_safetensors, files)
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)
    run, back = (checkpoint.peek(folder).config["tasks"] for folder in (run, tmp_path / "back"))
    assert run == back


def test_loras_of_pefts_combine_evaluate_and_train_in_mixed_batches(tmp_path, capsys):
    files = {task: str(small(tmp_path / f"{task}.json", task, train=8, valid=2, test=2)) for task in ("nlg", "mt")}
    data, runs = [f"{task}={path}" for task, path in files.items()], []
    for seed, task in enumerate(files):
        source = theirs(tmp_path / f"lora{seed}", "tiny-llama", seed, r=4, target_modules=["q_proj", "v_proj"])
        like = ours(tmp_path / f"like-{task}", "tiny-gpt2", {task: 4})
        command.main(["import", str(source), str(tmp_path / task), "--task", task, "--like", str(like)])
        runs.append(f"{task}={tmp_path / task}")
    combine_all.main(["--checkpoints", *runs, "--output", str(tmp_path / "vlm"), "--data", *data,
                      "--proof_examples", "2", "--proof_tokens", "4"])  # fmt: skip
    assert capsys.readouterr().out.count("2 of 2 equal") == 2
    evaluate_vlm.main(["--task", "all", "--model_checkpoint", str(tmp_path / "vlm"), "--data", *data, "--no_sample",
                       "--max_length", "5", "--fp32", "--output_dir", str(tmp_path / "results")])  # fmt: skip
    assert list((tmp_path / "results").rglob("*nlg*"))
    train_vlm.main(["--tasks", *files, "--data", *data, "--model_checkpoint", lively("tiny-llama"), "--method", "lora",
                    "--lora_rank", "4", "--lora_alpha", "8", "--init_from", str(tmp_path / "vlm"), "--lr", "1e-2",
                    "--eval_before_start", "--n_epochs", "3", "--train_batch_size", "8", "--fp32",
                    "--gradient_accumulation_steps", "1", "--output_dir", str(tmp_path / "run")])  # fmt: skip
    losses = [row["tasks"] for row in metrics(tmp_path / "run")["history"]["valid"]]
    assert all(losses[-1][task]["nll"] < losses[0][task]["nll"] for task in files)
    weights = (tmp_path / name / checkpoint.ADAPTER_WEIGHTS for name in ("vlm", "run"))
    before, after = map(checkpoint.read_safetensors, weights)
    assert all((before[key] - after[key]).abs().max() > 0 for key in before if key.startswith("blocks."))


DAMAGED = [
    # (what is wrong with the weights, the config's changes, words of the error)
    (lambda state: {k: v for k, v in state.items() if ".layers.1." not in k}, {}, "no matrices for model.layers.1."),
    (lambda state: {k: v for k, v in state.items() if "v_proj" not in k}, {}, "no matrices for model.layers.0."),
    (lambda state: {}, {}, "it holds no adapter"),
    (lambda state: {k: v[None] for k, v in state.items()}, {}, "unknown key", "of shape [1, "),
    (None, dict(peft_type="IA3"), "unknown key", "expected: ia3_l, as adapter_config.json says"),
    (None, dict(rank_pattern={"*q": 4}), "'*q' (str) is no regular expression"),
    (None, dict(target_modules="q_proj("), "'q_proj(' (str) is no regular expression"),
    (None, dict(init_lora_weights=["?"]), "peft cannot load it"),
    (None, dict(kasa_config=dict(a=1)), "kasa_config is"),
]


@pytest.fixture(scope="module")
def lora(tmp_path_factory):
    return theirs(tmp_path_factory.mktemp("peft") / "lora", "tiny-llama", r=4, target_modules=["q_proj", "v_proj"])


@pytest.mark.parametrize("damage, change, words", [(damage, change, words) for damage, change, *words in DAMAGED])
def test_a_damaged_directory_is_one_message(damage, change, words, lora, tmp_path, capsys):
    source, out = shutil.copytree(lora, tmp_path / "lora"), tmp_path / "out"
    if damage:
        save_file(damage(load_file(source / "adapter_model.safetensors")), source / "adapter_model.safetensors")
    config = json.loads((source / "adapter_config.json").read_text())
    (source / "adapter_config.json").write_text(json.dumps(config | change))
    refused(capsys, ["import", source, out, "--task", "mine", "--markers", "<a>"], *words, out=out)


@pytest.mark.parametrize("selected", [
    dict(layers_to_transform=[1]), dict(layers_to_transform=1, layers_pattern="layers"),
    dict(exclude_modules=["layers.0.self_attn.v_proj"]), dict(target_modules=r".*\.1\..*_proj"),
    dict(target_modules="all-linear"),
])  # fmt: skip
def test_the_modules_that_a_config_selects_are_those_that_peft_selects(selected, tmp_path):
    source = theirs(tmp_path / "lora", "tiny-llama", **{**dict(r=4, target_modules=["q_proj", "v_proj"]), **selected})
    config, model = exchange.read_config(source), backbones.load_backbone("tiny-llama")[0]
    keys = load_file(source / "adapter_model.safetensors")
    held = {key.split(".lora_")[0].removeprefix(exchange.PREFIX) for key in keys}
    assert held == {n for n in peft_export.projection_names(model).values() if exchange._is_selected(n, config)}
    exchange.import_adapter(source, tmp_path / "out", "mine", ["<a>"])


@pytest.mark.parametrize("task, markers", [("mine", ["<a>", "<a>"]), ("mine", [""]), ("mine", ["<pad>"]),
                                           ("mine", ["a"]), ("m" * 201, ["<a>"]), ("a.b", ["<a>"])])  # fmt: skip
def test_names_that_a_task_cannot_have_are_refused_by_flag(task, markers, lora, tmp_path, capsys):
    out, flag = tmp_path / "out", "--markers: " if task == "mine" else "--task: "
    refused(capsys, ["import", lora, out, "--task", task, "--markers", *markers], flag, out=out)


def test_a_row_of_the_input_alone_is_refused_where_the_head_has_its_own(tmp_path, capsys):
    base, tokenizer = peft_export.bare_backbone(lively("tiny-llama"), ["<a>"])
    model = peft.get_peft_model(base, peft.LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj"],
                                                      trainable_token_indices=[len(tokenizer) - 1]))  # fmt: skip
    source, out = tmp_path / "lora", tmp_path / "out"
    model.save_pretrained(source, save_embedding_layers=False)
    tokenizer.save_pretrained(source)
    argv = ["import", source, out, "--task", "mine", "--model_checkpoint", lively("tiny-llama")]
    refused(capsys, argv, "only one row of the token '<a>' was trained", out=out)
    config = json.loads((source / "adapter_config.json").read_text())
    for ids in (None, 7, ["a"], [1, 2], {"lm_head": [1]}):
        (source / "adapter_config.json").write_text(json.dumps(config | dict(trainable_token_indices=ids)))
        refused(capsys, argv, "model.embed_tokens has 1 trained rows", "trainable_token_indices", out=out)


def test_a_directory_that_cannot_be_a_task_of_ours_is_refused(tmp_path, capsys):
    out, source = tmp_path / "out", theirs(tmp_path / "lora", "tiny-llama", r=4, target_modules=["q_proj"])
    common, tokens = ["import", source, out, "--task", "mine"], ["--markers", "<a>"]
    refused(capsys, ["import", source, out, "--task", "mine=no/such/data"], "no such file or folder", out=out)
    (tmp_path / "own").mkdir()
    (tmp_path / "own/task.json").write_text(json.dumps({"prompt": "text", "answer": "label"}))
    (tmp_path / "own/train.jsonl").write_text('{"text": "a", "label": "b"}\n')
    capsys.readouterr()
    command.main(["import", str(source), str(tmp_path / "imported"), "--task", f"mine={tmp_path / 'own'}"])
    printed = capsys.readouterr().out
    assert f"{tmp_path / 'imported'}: mine, lora (lora_" in printed and "{" not in printed
    assert "4 task embeddings" in printed
    found = checkpoint.peek(tmp_path / "imported").definitions["mine"]
    assert found == own_tasks.define("mine", tmp_path / "own").to_json() and found["prompt"] == ["text"]
    data = f"{tmp_path / 'own'}"
    refused(capsys, ["import", source, out, "--task", f"nlg={data}"], "a task of the toolkit", out=out)
    refused(capsys, ["import", source, out, "--task", f"mine={data}", *tokens], "--markers has no effect", out=out)
    refused(capsys, [*common, *tokens, "--like", source], "--markers and --like", out=out)
    refused(capsys, common, "does not say which special tokens", "--like RUN", out=out)
    refused(capsys, [*common, *tokens, "--model_checkpoint", "tiny-gpt2"], "is not a linear map of a block", out=out)
    wide = tmp_path / "wide"
    from transformers import LlamaConfig, LlamaForCausalLM

    LlamaForCausalLM(LlamaConfig(vocab_size=500, hidden_size=32, intermediate_size=16, num_hidden_layers=2,
                                 num_attention_heads=2)).save_pretrained(wide)  # fmt: skip
    backbones.load_backbone("tiny-llama")[1].save_pretrained(wide)
    refused(capsys, [*common, *tokens, "--model_checkpoint", wide], "(64, 64)", "expected: (32, 32)", out=out)
    config = json.loads((source / "adapter_config.json").read_text())
    for change, words in (
        (dict(r=8), "have the ranks 4 and 4"),
        (dict(use_dora=True), "use_dora is true"),
        (dict(bias="all"), 'bias is "all"'),
        (dict(init_lora_weights="pissa"), "changed the backbone's own weights"),
        (dict(peft_type="VERA"), "peft_type is 'VERA'"),
        (dict(base_model_name_or_path=str(tmp_path / "gone")), "no such directory"),
    ):
        (source / "adapter_config.json").write_text(json.dumps(config | change))
        refused(capsys, [*common, *tokens], words, out=out)
    (source / "adapter_config.json").write_text(json.dumps(config))
    whole = theirs(tmp_path / "whole", "tiny-llama", r=4, target_modules=["q_proj"], modules_to_save=["lm_head"])
    refused(capsys, ["import", whole, out, "--task", "mine", *tokens], "lm_head was trained as a whole", out=out)
    refused(capsys, ["import", tmp_path, out, "--task", "mine"], "no adapter_config.json", out=out)
    data = str(small(tmp_path / "nlg.json", "nlg", train=2, valid=1, test=1))
    with pytest.raises(SystemExit):
        train.main(["--task", "nlg", "--dataset_path", data, "--model_checkpoint", lively("tiny-llama"), "--method",
                    "lora", "--init_from", str(source), "--output_dir", str(out)])  # fmt: skip
    assert "python -m versatile.peft import" in capsys.readouterr().err and not out.exists()
