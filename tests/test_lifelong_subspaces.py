"""Parameters that belong to single tasks: O-LoRA's subspaces, isolated adapters, progressive prompts."""

import numpy as np
import pytest
import quick
import torch
from lifelong_data import command, questions, write
from safetensors.torch import load_file
from scripts import tensors
from training_runs import different
from versatile.adapters import checkpoint
from versatile.lifelong import learning, sequence
from versatile.lifelong.answers import Predictor, answer, log_probabilities
from versatile.lifelong.subspaces import OrthogonalityLoss, Subspaces

import evaluate_lifelong
import train_lifelong

TASKS, RANK = ("ag", "sst", "schema"), 2
FLAGS = {
    "olora": ("--method", "lora", "--lora_rank", RANK), "isolated": ("--method", "lora", "--lora_rank", RANK),
    "progprompt": ("--method", "prefix", "--prefix_length", 3),
    "progprompt of tokens": ("--method", "prompt", "--prompt_length", 3),
}  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write(tmp_path_factory.mktemp("data"), tasks=TASKS, train=8)


def flags(data, out, name, *more):
    return command(data, out, name.split()[0], *FLAGS[name], "--only_final", "--weight_decay", 0.5, *more, tasks=TASKS)


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    """Called with a strategy: the directory of its run."""
    directories, folder = {}, tmp_path_factory.mktemp("runs")

    def of(name):
        if name not in directories:
            directories[name] = folder / name
            train_lifelong.main(flags(data, folder / name, name))
        return directories[name]

    return of


def state(folder):
    return load_file(folder / "adapter_model.safetensors")


def fresh(data, out, name, *more):
    return learning.load_model(train_lifelong.parser().parse_args(flags(data, out, name, *more))).model


# --- O-LoRA -----------------------------------------------------------------------------------------------


def test_the_penalty_is_the_squared_overlap_of_the_new_basis_with_each_earlier_one(data, tmp_path):
    model = fresh(data, tmp_path, "olora")
    bases = [p.detach().double().numpy() for name, p in model.added["lora"].named_parameters() if name.endswith(".A")]
    assert bases and all(len(basis) == RANK * len(TASKS) for basis in bases)

    class Share:
        def share(self):
            return torch.tensor(0.25)

    for number in range(3):
        subspaces, expected = Subspaces(model, RANK, number), 0.0
        for basis in bases:
            parts = basis.reshape(len(TASKS), RANK, -1)
            for earlier in parts[:number]:
                for a in earlier:
                    for b in parts[number]:
                        expected += float(np.dot(a, b)) ** 2
        loss = OrthogonalityLoss(subspaces, 0.5)(None, Share(), None)
        assert loss.item() == pytest.approx(0.5 * 0.25 * expected, rel=1e-5) and (expected > 0) == (number > 0)


def test_olora_trains_a_tasks_own_subspace_alone_and_the_shared_rows_at_first(run):
    out = run("olora")
    states = [state(out / task) for task in TASKS]
    for number in (1, 2):
        before, after = states[number - 1], states[number]
        assert torch.equal(before["rows.lifelong"], after["rows.lifelong"])
        own = slice(number * RANK, (number + 1) * RANK)
        for key in before:
            if not key.endswith((".A", ".B")):
                continue
            old, new = (s[key] if key.endswith(".A") else s[key].T for s in (before, after))
            moved = (old != new).any(1)
            # A weight decay of 0.5 does not move the others either.
            assert moved[own].all() and int(moved.sum()) == RANK


def test_olora_becomes_more_orthogonal_than_training_without_its_term(data, run, tmp_path):
    def overlap(folder):
        model, _ = checkpoint.load_checkpoint(folder)
        return Subspaces(model, RANK, 2).overlap().item()

    out = tmp_path / "free"
    for strength, folder in ((0, out), (100, tmp_path / "strong")):
        train_lifelong.main(flags(data, folder, "olora", "--olora_lambda", strength))
    assert overlap(tmp_path / "strong" / "schema") < 0.9 * overlap(out / "schema")


def test_olora_adds_all_tasks_updates_up_whatever_task_a_row_is_of(run):
    """W x + alpha / r · Σ_i B_i A_i x, against the matrices themselves."""
    model, _ = checkpoint.load_checkpoint(run("olora") / "sst")
    update = next(m for m in model.added["lora"].modules() if hasattr(m, "delta"))
    x = torch.randn(2, 5, update.A.shape[1])
    expected = sum(x @ update.A[i * RANK : (i + 1) * RANK].T @ update.B[:, i * RANK : (i + 1) * RANK].T
                   for i in range(2)) * (16.0 / RANK)  # fmt: skip
    torch.testing.assert_close(update.delta(x), expected, atol=1e-5, rtol=1e-4)
    assert not update.B[:, 2 * RANK :].any()


# --- nothing shared ---------------------------------------------------------------------------------------


def scores(folder, task):
    """A model's answers to a task's questions, with the task known: texts and their log-probabilities."""
    predictor = Predictor.load(folder, torch.device("cpu"), torch.float32, 48)
    texts, pairs = answer(predictor, questions(task, 3), task=task)
    return texts, log_probabilities(predictor, pairs, task=task)


@pytest.mark.parametrize("name", quick.only(["progprompt"], ["isolated", "progprompt", "progprompt of tokens"]))
def test_nothing_of_an_earlier_task_is_forgotten(name, run):
    out = run(name)
    for earlier, later in (("ag", "sst"), ("ag", "schema"), ("sst", "schema")):
        assert scores(out / earlier, earlier) == scores(out / later, earlier)
    assert scores(out / "ag", "sst")[1] != scores(out / "sst", "sst")[1]


@pytest.mark.parametrize("name", ["isolated", "progprompt", "progprompt of tokens"])
def test_a_task_moves_its_own_adapter_alone(name, run):
    out = run(name)
    for number in (1, 2):
        before, after = (tensors(out / task) for task in TASKS[number - 1 : number + 1])
        assert {key.split(".")[2] for key in different(before, after)} == {TASKS[number]}


def test_isolated_implies_adapters_of_their_own_and_is_evaluated_before_the_last_is_trained(run):
    """The LoRA of a task not trained yet changes nothing; this is not a damaged file."""
    import json

    out = run("isolated")
    assert json.loads((out / "run.json").read_text())["flags"]["own_adapters"] == "fresh"
    # Its default location without --output_dir is derived from the flags as typed.
    typed = train_lifelong.parser().parse_args(list(map(str, flags("d", "m", "isolated"))))
    assert sequence.directory(typed).name.endswith("_seed_42_own") and not typed.own_adapters
    evaluate_lifelong.main(["--model_dirs", str(out), "--fp32"])
    assert json.loads((out / "matrix.json").read_text())["mean"]["forgetting"] == 0


def test_progressive_prompts_are_one_prompt_behind_the_other(run, data, tmp_path):
    """[P_k, …, P_1]: the same as a model whose only task has the concatenated prefix."""
    model, _ = checkpoint.load_checkpoint(run("progprompt") / "schema")
    assert model.info.chained and model.router.chain("sst") == ["sst", "ag", "lifelong"]
    ids = torch.arange(8).repeat(2, 1) + 5
    for task, parts in (("ag", ("ag",)), ("sst", ("sst", "ag")), ("schema", ("schema", "sst", "ag"))):
        more = ("--own_adapters", "--tasks", task, "--prefix_length", 3 * len(parts))
        single = fresh(data, tmp_path, "progprompt", *more)
        with torch.no_grad():
            for key, p in single.named_parameters():
                if ".prefix." in key:
                    names = [key.replace(f".{task}.", f".{part}.") for part in parts]
                    p.copy_(torch.cat([model.get_parameter(name) for name in names], 1))
            chained = model(input_ids=ids, task_ids=torch.full((2,), model.task_id(task))).logits
            alone = single.eval()(input_ids=ids, task_ids=torch.full((2,), single.task_id(task))).logits
        columns = min(chained.shape[-1], alone.shape[-1]) - 10
        torch.testing.assert_close(chained[..., :columns], alone[..., :columns], atol=1e-5, rtol=1e-4)
        # A batch that mixes tasks equals its tasks one by one.
        mixed = model(input_ids=ids, task_ids=torch.tensor([model.task_id("ag"), model.task_id(task)])).logits
        torch.testing.assert_close(mixed[1], chained[1], atol=1e-5, rtol=1e-4)
