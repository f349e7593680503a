"""--own_adapters: each task of a sequence has its own adapter, next to shared rows of special tokens."""

import itertools
import json
from argparse import Namespace

import pytest
import quick
import torch
from lifelong_data import command, questions, report, write
from safetensors.torch import load_file
from scripts import run, tensors
from training_runs import different, in_two_processes, killed_and_resumed, on_seeing, refused, trained
from versatile.adapters import checkpoint
from versatile.data import question_samples as samples
from versatile.data.encoders.question_answer import gen_token
from versatile.data.question_samples import QA
from versatile.data.question_tasks import TASKS
from versatile.lifelong import learning, replay, routing, scoring, sequence
from versatile.lifelong.answers import Predictor, answer, log_probabilities
from versatile.lifelong.losses import Objective, WeightedLoss
from versatile.training.objectives import cross_entropy

import evaluate_lifelong
import train_lifelong

SCRIPT, ROWS = "train_lifelong", "rows.lifelong"
OWN = ("--adapter_bottleneck", 4, "--own_adapters")
# A dot in a task's name does not appear in its adapter's.
TASKS_LEARNT, NAMES = ("ag", "rnnlg.tv", "sst"), ("ag", "rnnlg_tv", "sst")
MODES = {
    "finetune": ("--save_steps", 1), "lll": ("--real_sample",), "multitask": (), "multilm": ("--add_task_tokens",),
    "mas": ("--reg_lambda", 1e8), "ewc": ("--reg_lambda", 1000), "gem": ("--save_steps", 1),
}  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = write(tmp_path_factory.mktemp("data"))
    for split, count, start in (("train", 10, 0), ("test", 4, 10)):
        tv = [QA(qa.context, "what of tv?", (f"{qa.context} .",), qa.id) for qa in questions("sst", count, start)]
        samples.save_samples(folder / TASKS["rnnlg.tv"].filename(split), tv)
    return folder


@pytest.fixture(scope="module")
def learnt(data, tmp_path_factory):
    """Called with a mode and further flags: the directory of that run, which is made once, in this process."""
    made, folder = {}, tmp_path_factory.mktemp("runs")

    def of(mode, *more):
        if (mode, more) not in made:
            out = made[mode, more] = folder / str(len(made))
            train_lifelong.main(arguments(data, out, mode, *more))
        return made[mode, more]

    return of


def arguments(data, out, mode, *more, **how):
    return command(data, out, mode, *OWN, *more, *MODES[mode], **{"tasks": TASKS_LEARNT, **how})


def state(folder):
    return load_file(folder / "adapter_model.safetensors")


def task_of(key):
    """The task to which a key of such a file belongs."""
    return key.split(".")[2 if key.startswith("blocks.") else 1]


def moved(one, other):
    """The parts of two models that differ in any bit: "rows", and names of adapters."""
    parts = {task_of(key) for key in different(tensors(one), tensors(other))}
    return sorted("rows" if part == "lifelong" else part for part in parts)


def start(data, out, mode, *more):
    """A model with these flags before any learning: (flags, `LifelongModel`)."""
    args = train_lifelong.parser().parse_args(arguments(data, out, mode, *more))
    return args, learning.load_model(args)


# --- what is trained, what rests --------------------------------------------------------------------------


@pytest.mark.parametrize("more", [(), pytest.param(("--own_adapters", "previous"), marks=pytest.mark.slow)])
def test_learning_a_task_moves_its_adapter_and_the_shared_rows_alone(more, learnt, data, tmp_path):
    out = learnt("finetune", *more)
    _, learner = start(data, tmp_path, "finetune", *more)
    checkpoint.save_checkpoint(learner.model, learner.tokenizer, tmp_path / "start")
    models = [tmp_path / "start", *(out / task for task in TASKS_LEARNT)]
    for i, (before, after) in enumerate(itertools.pairwise(models)):
        # With "previous" the later ones are initialised from this one.
        assert moved(before, after) == sorted(["rows", *(NAMES[i:] if more else NAMES[i : i + 1])])
    for i, task in enumerate(TASKS_LEARNT[:-1]):
        found = state(out / task)
        for kind in ("up.weight", "norm.bias"):
            here, behind = (found[f"blocks.1.{name}.{kind}"] for name in NAMES[i : i + 2])
            assert torch.equal(here, behind) == bool(more)


@pytest.mark.parametrize("mode", quick.every(2, ["lll", "ewc", "mas", "gem"]))
def test_what_holds_a_task_holds_what_it_is_made_of(mode, learnt, data, tmp_path):
    """Replayed rows, and a memory that a step would harm, move their own task's adapter; a penalty moves none."""
    out = learnt(mode)
    assert moved(out / "ag", out / "rnnlg.tv") == sorted(
        ["rows", "rnnlg_tv", *(["ag"] if mode in ("lll", "gem") else [])]
    )
    assert report(out / "sst")["replayed"] == ({"ag": 2, "rnnlg.tv": 2} if mode == "lll" else {})
    rows = [state(out / task)[ROWS] for task in TASKS_LEARNT[:2]]
    free = [state(learnt("finetune") / task)[ROWS] for task in TASKS_LEARNT[:2]]
    assert mode == "lll" or torch.equal(rows[0], free[0])
    assert not torch.equal(rows[1], free[1])
    if mode in ("ewc", "mas"):
        assert (rows[1] - rows[0]).square().sum() < (free[1] - free[0]).square().sum()


@pytest.mark.parametrize("mode", ["multitask", "multilm"])
def test_tasks_learnt_at_once_learn_an_adapter_each(mode, learnt, data, tmp_path):
    _, learner = start(data, tmp_path, mode)
    checkpoint.save_checkpoint(learner.model, learner.tokenizer, tmp_path / "start")
    assert moved(tmp_path / "start", learnt(mode)) == sorted(["rows", *NAMES])


def test_a_task_rests_in_a_step_without_a_row_of_it(data, tmp_path):
    """Not even weight decay or momentum moves it."""
    args, learner = start(data, tmp_path / "run", "multitask", "--train_batch_size", 2, "--weight_decay", 0.5)
    work = learning.Sequence(args, learner, learning.read_tasks(args), tmp_path / "run", torch.float32)
    rows = [row for name in TASKS_LEARNT for row in work.encode(name)]
    run = work.open_run(tmp_path / "run")
    trainer = work.make_trainer(run, rows, list(TASKS_LEARNT), None)
    owners, seen = routing.parameters_of_tasks(learner.model, TASKS_LEARNT), set()
    assert {task: len(own) for task, own in owners.items()} == dict.fromkeys(TASKS_LEARNT, 12)

    class Engine:
        state = Namespace(iteration=0, output=None)

    for callback in trainer.callbacks:
        callback.before_training(trainer)
    for step, window in enumerate(trainer.windows(0)):
        before = {task: [p.clone() for p in own] for task, own in owners.items()}
        Engine.state.iteration = step + 1
        trainer.step(Engine, window)
        present = trainer.batches.present(*trainer.plan.micro_batches(step)[0])
        for task, own in owners.items():
            still = [torch.equal(p, old) for p, old in zip(own, before[task])]
            assert all(still) if task not in present else not any(still)
        seen.add(len(present))
    assert seen >= {1, 2}


@pytest.mark.parametrize("weighted", [True, False])
def test_a_batch_that_mixes_tasks_is_its_tasks_one_by_one(weighted, data, tmp_path):
    args, learner = start(data, tmp_path, "multitask")
    work = learning.Sequence(args, learner, learning.read_tasks(args), tmp_path, torch.float32)
    rows = [row for name in TASKS_LEARNT for row in work.encode(name)[:3]]
    rows = [rows[i] for i in (0, 3, 6, 1, 4, 7, 2, 5, 8)]
    model = learner.model.eval()
    WeightedLoss(model)
    made = work.make_batches(rows, Objective(0.25), weighted=weighted)

    def gradients(share):
        """Gradients from a share of the rows, weighted as among all of them; and the ids of their tasks."""
        batch, divisor = made.collate(rows, share)
        model.zero_grad()
        cross_entropy(model, batch, divisor).backward()
        found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        return found, batch["task_ids"].tolist()

    whole, ids = gradients(slice(None))
    assert ids == ([1, 1, 2, 2, 3, 3] * 3 if weighted else [1, 2, 3] * 3)
    total = {}
    for i, name in enumerate(NAMES):
        own, ids = gradients(slice(i, None, 3))
        assert set(ids) == {i + 1} and all(key.split(".")[4] == name or ".rows." in key for key in own)
        for key, value in own.items():
            total[key] = total.get(key, 0) + value
    assert total.keys() == whole.keys() and len(whole) == 12 * 3 + 1
    for key, value in whole.items():
        torch.testing.assert_close(total[key], value, atol=1e-6, rtol=1e-4, msg=lambda text, k=key: f"{k}: {text}")


# --- as files ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["tiny-gpt2", "tiny-llama"])
def test_a_model_read_back_answers_as_it_did_and_is_saved_as_it_was(model, data, tmp_path):
    """Empty tables survive it, next to a tied head and an untied one."""
    _, learner = start(data, tmp_path, "finetune", "--model_name", model)
    checkpoint.save_checkpoint(learner.model, learner.tokenizer, tmp_path / "one")
    assert {
        key: len(t) for key, t in state(tmp_path / "one").items() if "rows" in key and task_of(key) == "ag"
    }
    again, tokenizer = checkpoint.load_checkpoint(tmp_path / "one")
    assert again.info.tasks == ["lifelong", *NAMES] and again.info.bottlenecks == {
        "lifelong": 0,
        **dict.fromkeys(NAMES, 4),
    }
    checkpoint.save_checkpoint(again, tokenizer, tmp_path / "two")
    assert different(tensors(tmp_path / "one"), tensors(tmp_path / "two")) == []
    ids = torch.randint(0, 200, (4, 9))
    given = dict(input_ids=ids, task_ids=torch.tensor([0, 1, 2, 3]))
    scores = [held.eval()(**given).logits for held in (learner.model, again)]
    assert torch.equal(*scores) and torch.isfinite(scores[0][..., -4:]).all()
    own = learner.model(input_ids=ids[1:2], task_ids=torch.tensor([1])).logits
    torch.testing.assert_close(own, scores[0][1:2], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(learner.model(input_ids=ids[1:2], task_ids=torch.tensor([2])).logits, own)
    learner.model.requires_grad_(True)
    checkpoint.load_weights(learner.model, tmp_path / "two")


def test_directories_of_their_own_and_old_ones_as_they_were(learnt):
    def named(*more):
        argv = ["--tasks", "ag", "sst", "--data_dir", "d", "--model_dir_root", "m", "--adapter_bottleneck", "8", *more]
        return str(sequence.directory(train_lifelong.parser().parse_args(argv)))

    assert named() == "m/gpt2_adapter_8/lll/ag_sst_0.05_42" and named("--own_adapters") == named() + "_own"
    assert named("--own_adapters", "previous") == named() + "_own_previous"
    out = learnt("finetune")
    record = json.loads((out / "run.json").read_text())
    assert record["flags"]["own_adapters"] == "fresh" == scoring.open_sequence_run(out).flags.own_adapters
    del record["flags"]["own_adapters"]
    (out / "run.json").write_text(json.dumps(record))
    try:
        assert scoring.open_sequence_run(out).flags.own_adapters is None
    finally:
        record["flags"]["own_adapters"] = "fresh"
        (out / "run.json").write_text(json.dumps(record))


@pytest.mark.slow
@pytest.mark.parametrize("mode, more, kills", [
    ("finetune", ("--own_adapters", "previous"), ("ag/checkpoints/step_*2", "rnnlg.tv/checkpoints/step_*3")),
    ("gem", (), ("ag/memory.json", "rnnlg.tv/checkpoints/step_*4")),
])  # fmt: skip
def test_killed_and_resumed_is_the_uninterrupted_run(mode, more, kills, data, tmp_path):
    # In a process like those that are killed: with the same number of threads, sums have the same order.
    whole, out = tmp_path / "whole", tmp_path / "run"
    trained(arguments(data, whole, mode, *more), tmp_path / "whole.log", SCRIPT)
    struck = killed_and_resumed(arguments(data, out, mode, *more), out, tmp_path / "log",
                                [on_seeing(pattern) for pattern in kills], SCRIPT)  # fmt: skip
    assert struck >= 1
    for task in TASKS_LEARNT:
        assert different(tensors(whole / task), tensors(out / task)) == []
        assert different(tensors(whole / task / "epoch_1"), tensors(out / task / "epoch_1")) == []
        assert report(whole / task)["history"]["train"] == report(out / task)["history"]["train"]


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["lll", "ewc", "gem"])
def test_two_processes_learn_what_one_does(mode, data, tmp_path):
    how = dict(tasks=("ag", "sst"), model="tiny-llama")
    trained(arguments(data, tmp_path / "one", mode, **how), tmp_path / "log", SCRIPT)
    in_two_processes(arguments(data, tmp_path / "two", mode, batch=2, **how), tmp_path / "logs", SCRIPT)
    for task in ("ag", "sst"):
        one, two = (state(tmp_path / name / task) for name in ("one", "two"))
        assert one.keys() == two.keys()
        for key in one:
            torch.testing.assert_close(one[key], two[key], atol=2e-5, rtol=1e-4, msg=lambda m, k=key: f"{k}: {m}")


def test_other_scripts_are_not_misled(learnt, tmp_path):
    """Tasks of a sequence are not among their tasks."""
    held = learnt("finetune") / "sst"
    mixed = dict(model_checkpoint=held, output_dir=tmp_path / "out")
    flags = [word for name, value in mixed.items() for word in (f"--{name}", value)]
    said = "this is a model of train_lifelong.py"
    for more in ([], ["--task", "nlg"]):
        refused(run("evaluate_vlm", [*flags, *more], tmp_path / "log"), said, held.parent)
    out = tmp_path / "vlm"
    for task in ("nlg", "ag"):
        argv = ["--checkpoints", f"{task}={held}", "--output", out]
        refused(run("combine_all", argv, tmp_path / "log"), f"--checkpoints {task}={held}: {said}", out=out)
    assert not out.exists()


# --- teachers, generated samples --------------------------------------------------------------------------


def test_samples_are_generated_and_taught_through_the_right_adapters(data, tmp_path, monkeypatch):
    """A model is accepted as a teacher whether its only task has its own adapter or shares it."""
    tasks = dict(tasks=("ag", "sst"))
    common = ("--add_task_tokens", "--n_train_epochs", 1)
    folder = tmp_path / "teachers"
    for task in ("ag", "sst"):
        argv = command(data, folder, "lll", *(OWN if task == "sst" else OWN[:2]), *common, tasks=(task,))
        train_lifelong.main([*argv, "--output_dir", str(folder / task)])
    asked, drawn, generate = [], [], replay.generate_samples
    teach = learning.load_teacher
    monkeypatch.setattr(learning, "load_teacher", lambda *given: asked.append(teach(*given)) or asked[-1])
    monkeypatch.setattr(replay, "generate_samples",
                        lambda *a, **how: drawn.append((a[3], how["task_id"])) or generate(*a, **how))  # fmt: skip
    more = ("--distil", "--seq_distil", "--teacher_dir", folder)
    train_lifelong.main(command(data, tmp_path / "run", "lll", *OWN, *common, *more, **tasks))
    assert [(teacher.model.info.tasks, teacher.task) for teacher in asked] == [
        (["lifelong"], None), (["lifelong", "sst"], 1)]  # fmt: skip
    assert drawn == [("__ag__", 1)] and report(tmp_path / "run" / "sst")["steps"]
    (folder / "sst").rename(folder / "other"), (folder / "other" / "sst").rename(folder / "sst")
    (folder / "ag" / "ag").rename(folder / "old"), (folder / "sst").rename(folder / "ag" / "ag")
    argv = command(
        data, tmp_path / "wrong", "lll", *OWN, *common, "--distil", "--teacher_dir", folder / "ag", tasks=["ag"]
    )
    refused(
        run(SCRIPT, argv, tmp_path / "log"),
        "it holds the tasks lifelong, sst",
        "a teacher of ag",
        out=tmp_path / "wrong",
    )


def test_teachers_that_are_trained_are_those_of_a_shared_adapter(data, tmp_path):
    more = ("--distil", "--train_teachers", "--n_train_epochs", 1)
    train_lifelong.main(arguments(data, tmp_path / "run", "lll", *more, tasks=TASKS_LEARNT[:2]))
    teachers = sorted((tmp_path / "run" / "tiny-gpt2_adapter_4" / "teachers").iterdir())
    assert [folder.name.rsplit("_", 1)[0] for folder in teachers] == list(TASKS_LEARNT[:2])
    for folder, task in zip(teachers, TASKS_LEARNT):
        manifest = checkpoint.peek(folder / task)
        assert manifest.methods == {"lifelong": dict(method="bottleneck", adapter_bottleneck=4)}
        assert manifest.encoder == "question_answer"
    # The shared rows, two empty tables, and the parts of two adapters in each of two blocks.
    assert len(state(tmp_path / "run" / "rnnlg.tv")) == 1 + 2 + 2 * 2 * 6


# --- answers ----------------------------------------------------------------------------------------------


def test_every_question_goes_through_its_tasks_adapter(learnt, data):
    answerer = Predictor.load(learnt("finetune") / "ag", torch.device("cpu"), torch.float32, 48)
    model, eos = answerer.model, answerer.encoder.eos
    # So that no two adapters give the same answers.
    torch.manual_seed(0)
    for own in routing.parameters_of_tasks(model.requires_grad_(True), TASKS_LEARNT).values():
        for p in own:
            p.detach().normal_(std=0.5)
    model.requires_grad_(False)
    qas, found = questions("ag", 5), {}
    for i, task in enumerate(TASKS_LEARNT, 1):
        found[task], pairs = answer(answerer, qas, batch_size=3, task=task)
        logs = log_probabilities(answerer, pairs, batch_size=3, task=task)
        for (prompt, ids), log in zip(pairs, logs):
            tokens = torch.tensor([[*prompt, *ids, eos]])
            scores = model(input_ids=tokens, task_ids=torch.tensor([i])).logits[0, len(prompt) - 1 : -1]
            wanted = tokens[0, len(prompt) :]
            assert log == pytest.approx(float(scores.log_softmax(-1).gather(1, wanted[:, None]).sum()), abs=1e-3)
            scores[:, [token for token in answerer.tokenizer.added_tokens_decoder if token != eos]] = float("-inf")
            assert scores.argmax(-1)[: len(ids)].tolist() == ids
    assert len({tuple(texts) for texts in found.values()}) == 3
    with pytest.raises(KeyError):
        answer(answerer, qas, task="yelp")


def test_the_matrix_is_told_from_the_run_alone(learnt, data):
    out = learnt("finetune", "--own_adapters", "previous")
    evaluate_lifelong.main(["--model_dirs", str(out), "--before", "--test_all", "--fp32", "--samples", "0"])
    matrix = json.loads((out / "matrix.json").read_text())
    (found,) = matrix["runs"]
    assert len(found["rows"]) == 3 and all(None not in row for row in found["rows"]) and len(found["before"]) == 3
    assert found["forward_transfer"] is not None
    for task in TASKS_LEARNT:
        for epoch in ("1", "final"):
            assert (out / "ag" / f"qa_{task}_{epoch}.csv").is_file()


@pytest.mark.slow
def test_a_task_is_kept_whose_adapter_is_its_own(tmp_path):
    """The shared rows move, so there is some forgetting, but far less than with a shared adapter."""
    folder = write(tmp_path / "data", train=40, test=8)
    forgotten = {}
    for name, more in (("shared", ()), ("own", ("--own_adapters",))):
        train_lifelong.main([*command(folder, tmp_path / name, "finetune", "--adapter_bottleneck", 16, *more, batch=8),
                             "--n_train_epochs", "40", "--lr", "1e-2", "--only_final"])  # fmt: skip
        evaluate_lifelong.main(["--model_dirs", str(tmp_path / name), "--fp32", "--samples", "0"])
        (found,) = json.loads((tmp_path / name / "matrix.json").read_text())["runs"]
        forgotten[name] = found["forgetting"], found["average_accuracy"]
    assert forgotten["own"][0] < forgotten["shared"][0] - 20 and forgotten["own"][1] > forgotten["shared"][1]


# --- what is refused --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "more, fragment",
    [
        (("--own_adapters",), "requires --adapter_bottleneck N"),
        (("--own_adapters", "--adapter_bottleneck", "0"), "requires --adapter_bottleneck N"),
        ((*OWN, "--unbound", "2"), "no adapter belongs to a question"),
        ((*OWN, "previous", "--seq_train_type", "multitask"), "none comes first"),
        ((*OWN, "all"), "invalid choice: 'all'"),
    ],
)
@pytest.mark.parametrize("script", [train_lifelong, evaluate_lifelong])
def test_flags_without_a_meaning_are_refused(script, more, fragment, data, tmp_path, capsys):
    argv = ["--data_dir", data, "--model_dir_root", tmp_path, "--tasks", "ag", "sst", *more]
    with pytest.raises(SystemExit) as stopped:
        script.main(list(map(str, argv)))
    assert stopped.value.code == 2 and fragment in capsys.readouterr().err


def test_names_of_adapters_are_names_of_modules_and_no_two_are_the_same():
    names = [routing.adapter_name(task) for task in TASKS]
    assert len(set(names)) == len(names) and not any("." in name for name in names) and routing.SHARED not in names
    assert gen_token("rnnlg.tv", True) == "__rnnlg.tv__"


def test_shared_adapters_are_routed_as_before(data, tmp_path):
    args = train_lifelong.parser().parse_args(command(data, tmp_path, "finetune", "--adapter_bottleneck", 4))
    learner = learning.load_model(args)
    assert learner.model.info.tasks == ["lifelong"] and learner.model.info.mask_other_tasks
    assert routing.task_id(learner.model, "ag") is None and routing.parameters_of_tasks(learner.model, ["ag"]) == {}
    assert routing.row_task_ids(learner.model, ["ag"] * 3) == [0] * 3
