"""README.md of run directories: what it says is true, and its lines load the model.

    python -m pytest tests/test_cards.py
"""

import json
import re
import shlex

import pytest
import quick
from huggingface_hub import ModelCard
from scripts import SAMPLES, done, run, without_java
from versatile.adapters.backbones import bundled
from versatile.training import cards

import versatile

TRAINED = {
    "train": dict(
        task="nlg", dataset_path=SAMPLES / "nlg.json", model_checkpoint="tiny-gpt2", method="lora", limit=8,
        train_batch_size=4, gradient_accumulation_steps=1, max_steps=1, n_epochs=1, lr=1e-3, fp32=True,
    ),
    "train_vlm": dict(
        tasks=["qa", "mt"], data={"qa": SAMPLES / "qa.json", "mt": SAMPLES / "mt.json"}, model_checkpoint="tiny-gpt2",
        adapter_bottleneck=["qa=4", "mt=8"], limit=8, max_steps=2, train_batch_size=4, fp32=True,
    ),
    "train_lifelong": dict(
        data_dir=SAMPLES / "lifelong", tasks=["ag", "e2enlg"], model_name="tiny-gpt2", seq_train_type="finetune",
        adapter_bottleneck=4, add_task_tokens=True, limit=8, n_train_epochs=1, train_batch_size=4, fp32=True,
        only_final=True,
    ),
    "train_t5": dict(
        config="configs/test.json", max_steps=1, eval_steps=1, save_steps=1, n_train=16, fp32=True, do_test=False,
        n_val=4,
    ),
    "train_camtl": dict(
        model_name_or_path="tiny-bert", form="base", data_dir=SAMPLES / "glue", tasks=["rte", "mrpc"], limit=8,
        max_seq_length=32, do_train=True, do_eval=True, max_steps=1, fp32=True,
    ),
}  # fmt: skip
SAYS = {
    "train": ("`tiny-gpt2`", "| method | lora", "valid NLL", "evaluate.py --task nlg"),
    "train_vlm": ("| tasks | qa, mt |", "valid qa: NLL", "evaluate_vlm.py --task all"),
    "train_lifelong": ("| tasks | ag, e2enlg |", "| method | finetune |", "evaluate_lifelong.py --model_dirs"),
    "train_t5": ("`tiny-t5`", "validation rte: acc", "evaluate.py --task all"),
    "train_camtl": ("`tiny-bert`", "dev mrpc: f1", "train_camtl.py --model_name_or_path"),
}


def lines_of_python(card):
    (code,) = re.findall(r"```python\n(.*?)```", card.text, re.S)
    return code


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """{script: a run of it}, trained on first use."""
    folder, done = tmp_path_factory.mktemp("runs"), {}

    def run(script):
        if script not in done:
            done[script] = versatile.train(dict(TRAINED[script], output_dir=folder / script), script)
        return done[script]

    return run


@pytest.mark.parametrize("script", quick.only(("train_vlm", "train_camtl"), TRAINED))
def test_a_runs_card_says_what_it_is_and_its_lines_load_it(runs, script, capsys):
    run = runs(script)
    card = ModelCard.load(run / "README.md")
    # Random backbones are on no hub.
    assert card.data.library_name == "versatile" and card.data.base_model is None
    record = json.loads((run / "run.json").read_text())
    assert {"versatile", *cards.tasks_of_run(record)} <= set(card.data.tags)
    for text in (*SAYS[script], f"| made by | `{script}.py` |", record["command"], str(run)):
        assert text in card.text, text
    names = {}
    capsys.readouterr()
    exec(lines_of_python(card), names)
    assert names["model"] is not None
    if script in ("train", "train_vlm"):
        assert capsys.readouterr().out.strip()


def test_a_stage_of_a_sequence_has_a_card_of_its_own(runs):
    stage = runs("train_lifelong") / "ag"
    with pytest.raises(versatile.UserError, match=r"a model of train_lifelong\.py"):
        versatile.load(stage)
    names = {}
    exec(lines_of_python(ModelCard.load(stage / "README.md")), names)
    assert set(names["model"].info.markers) and names["directory"] == str(stage)


def test_a_combined_models_card_names_its_own_place_and_outlives_another_task(runs, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", without_java()["PATH"])
    quick = dict(proof_examples=1, proof_tokens=2, data={"nlg": SAMPLES / "nlg.json"})
    vlm = versatile.combine({"nlg": runs("train")}, tmp_path / "VLM", **quick)
    card = ModelCard.load(vlm / "README.md")
    assert f"directory = '{vlm}'" in card.text and "| made by | `combine_all.py` |" in card.text
    names = {}
    exec(lines_of_python(card), names)
    assert list(names["model"].tasks) == ["nlg"]
    assert "nlg: there is no data/NLG/data.json; using the data it was trained on" in evaluated(vlm, tmp_path)
    versatile.combine({"mt": runs("train_vlm")}, into=vlm, proof_examples=1, proof_tokens=2,
                      data={task: SAMPLES / f"{task}.json" for task in ("nlg", "mt")})  # fmt: skip
    assert "| tasks | nlg, mt |" in (vlm / "README.md").read_text()
    # A user's own text is kept.
    (vlm / "README.md").write_text("# My model\n")
    with pytest.raises(versatile.UserError, match=r"README\.md, which would be lost"):
        versatile.combine({"qa": runs("train_vlm")}, into=vlm)


def evaluated(run_directory, folder):
    """The output of the command in a card, started in a folder without data of the tasks' own."""
    card = (run_directory / "README.md").read_text()
    ((script, flags),) = re.findall(r"```console\npython (evaluate\w*)\.py (.*?)\n```", card)
    return done(run(script, [*shlex.split(flags), "--limit", "2", "--max_length", "3"], folder / "log", cwd=folder)).out


def test_the_command_of_a_trained_tasks_card_evaluates_on_the_data_of_its_run(runs, tmp_path):
    printed = evaluated(runs("train"), tmp_path)
    assert f"using the data it was trained on, {SAMPLES / 'nlg.json'}" in printed and "results in " in printed


def test_somebodys_own_readme_stays(tmp_path):
    (tmp_path / "README.md").write_text("# Mine\n")
    cards.write_model_card(tmp_path, dict(flags={}, command="train.py"))
    assert (tmp_path / "README.md").read_text() == "# Mine\n"


def test_a_packaged_backbone_is_written_with_its_name_on_the_hub(tmp_path, monkeypatch):
    assert cards.hub_id("smollm2") == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert cards.hub_id("gpt2") == "gpt2" and cards.hub_id("EleutherAI/pythia-70m") == "EleutherAI/pythia-70m"
    for own in ("tiny-gpt2", str(tmp_path), "/nowhere/model", None):
        assert cards.hub_id(own) is None
    # As if the random one were packaged.
    monkeypatch.setitem(bundled.HUB_IDS, "tiny-gpt2", "somebody/tiny")
    run = versatile.train(dict(TRAINED["train"], output_dir=tmp_path / "run"))
    config = json.loads((run / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["base_model_hub_id"]) == ("tiny-gpt2", "somebody/tiny")
    assert ModelCard.load(run / "README.md").data.base_model == "somebody/tiny"
    assert versatile.load(run).tasks
