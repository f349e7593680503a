"""Flags of train_camtl.py: the original's by their old names, one json file, and combinations that are refused."""

import argparse
import json

import pytest
from versatile.training import classification_flags
from versatile.utils import flags
from versatile.utils.errors import UserError

NEEDED = ["--model_name_or_path", "CA-MTL-base", "--data_dir", "glue", "--output_dir", "out", "--do_train"]
# The usage text of the original: every flag with a valid value.
ORIGINAL = {
    "model_name_or_path": "CA-MTL-base", "data_dir": "glue", "tasks": "cola", "overwrite_cache": None,
    "max_seq_length": "64", "output_dir": "out", "overwrite_output_dir": None, "do_train": None, "do_eval": None,
    "do_predict": None, "evaluate_during_training": None, "per_device_train_batch_size": "4",
    "per_device_eval_batch_size": "4", "per_gpu_train_batch_size": "4", "per_gpu_eval_batch_size": "4",
    "gradient_accumulation_steps": "2", "learning_rate": "2e-5", "weight_decay": "0.1", "adam_epsilon": "1e-6",
    "max_grad_norm": "2.0", "num_train_epochs": "5", "max_steps": "10", "warmup_steps": "3", "logging_dir": "log",
    "logging_first_step": None, "logging_steps": "7", "save_steps": "9", "save_total_limit": "2", "no_cuda": None,
    "seed": "12", "fp16": None, "fp16_opt_level": "O1", "local_rank": "-1", "tpu_num_cores": "8",
    "tpu_metrics_debug": None, "use_mt_uncertainty": None, "uniform_mt_sampling": None,
    "freeze_encoder_layers": "0-5", "percent_of_max_data_size": "0.5", "warmup_proportion": "0.2",
}  # fmt: skip


def parsed(*words):
    """Flags completed by `check`, in addition to those that are always needed."""
    p = classification_flags.parser("x")
    args = p.parse_args([*NEEDED, *words])
    classification_flags.check_flags(p, args)
    return args


def refusal(capsys, *words, bare=False):
    """The single message of a command line that is refused with exit code 2."""
    p = classification_flags.parser("x")
    with pytest.raises(SystemExit) as stop:
        args = p.parse_args([*(() if bare else NEEDED), *words])
        classification_flags.check_flags(p, args)
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") <= 2, said
    return said


@pytest.mark.parametrize("flag", ORIGINAL)
def test_every_flag_of_the_original_is_taken_or_refused_in_one_sentence(flag, capsys):
    value = ORIGINAL[flag]
    words = [f"--{flag}", *([] if value is None else [value])]
    if flag in classification_flags.REFUSED:
        assert f"--{flag}: " in refusal(capsys, *words) and flag.startswith("tpu")
    else:
        parsed(*words)


def test_the_defaults_are_the_published_ones():
    args = parsed()
    assert (args.lr, args.n_epochs, args.train_batch_size, args.valid_batch_size) == (5e-5, 3.0, 8, 8)
    assert (args.max_norm, args.adam_eps, args.weight_decay, args.warmup_ratio) == (1.0, 1e-8, 0.0, 0.1)
    assert (args.seed, args.gradient_accumulation_steps, args.max_steps, args.warmup_steps) == (42, 1, -1, None)
    assert args.tasks is None and args.form is None and args.max_seq_length is None


def test_the_command_of_the_publication_is_taken_as_it_stands():
    words = ["--do_eval", "--num_train_epochs", "5", "--learning_rate", "2e-5", "--seed", "12", "--overwrite_cache"]
    args = parsed(*words)
    assert (args.model_checkpoint, args.n_epochs, args.lr, args.seed) == ("CA-MTL-base", 5.0, 2e-5, 12)
    assert args.overwrite_cache and args.do_eval and args.do_train


def test_old_names_mean_what_the_new_ones_mean():
    args = parsed("--per_gpu_train_batch_size", "4", "--per_gpu_eval_batch_size", "6", "--save_total_limit", "1")
    assert (args.train_batch_size, args.valid_batch_size, args.keep_checkpoints) == (4, 6, 1)
    assert parsed("--fp16_opt_level", "O0").fp32 and parsed("--fp16_opt_level", "O1").fp16
    assert parsed("--max_steps", "-5").max_steps == -1


def test_names_of_tasks_are_taken_in_any_spelling_and_keep_their_order():
    assert parsed("--tasks", "STS-B", "CoLA", "mrpc").tasks == ["sts-b", "cola", "mrpc"]
    assert parsed("--tasks", "stsb,sst2", "QNLI").tasks == ["sts-b", "sst-2", "qnli"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--tasks", "cola", "COLA"], "named twice"),
        (["--tasks", "mnli-mm"], "evaluated with mnli"),
        (["--per_gpu_train_batch_size", "4", "--per_device_train_batch_size", "2"], "give one of them"),
        (["--fp16_opt_level", "O2"], "give O1"),
        (["--fp16_opt_level", "O0", "--bf16"], "leave --fp16 and --bf16 out"),
        (["--fp16_opt_level", "O1", "--fp32"], "leave --fp32 and --bf16 out"),
        (["--percent_of_max_data_size", "0"], "a number above 0"),
        (["--local_rank", "0"], "torchrun"),
        (["--percent_of_max_data_size", "nan"], "a number above 0"),
        (["--learning_rate", "0"], "above 0"),
        (["--warmup_proportion", "2"], "from 0 to 1"),
        (["--form", "huge"], "invalid choice"),
        (["--num_epochs", "3"], "did you mean --n_epochs?"),
        (["--fp16", "--bf16"], "not allowed with"),
    ],
)
def test_what_does_not_go_together_is_refused(words, said, capsys, monkeypatch):
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert said in refusal(capsys, *words)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--data_dir", "x", "--do_train"], "--model_name_or_path is needed"),
        (["--model_name_or_path", "minilm", "--do_train"], "--data_dir is needed"),
        (["--model_name_or_path", "minilm", "--data_dir", "x"], "nothing to do"),
        (["--model_name_or_path", "minilm", "--data_dir", "x", "--do_eval"], "--output_dir is needed"),
        (["--model_name_or_path", "m", "--data_dir", "x", "--output_dir", "o", "--do_eval", "--use_mt_uncertainty"],
         "requires --do_train"),
    ],
)  # fmt: skip
def test_what_is_needed_is_asked_for(words, said, capsys):
    assert said in refusal(capsys, *words, bare=True)


def test_local_rank_of_an_old_launcher_is_taken(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert parsed("--local_rank", "0").local_rank == 0


# --- one json file


def written(folder, content):
    path = folder / "camtl.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return str(path)


def test_a_json_file_says_what_flags_would(tmp_path):
    content = dict(model_name_or_path="minilm", form="base", data_dir="glue data", output_dir="out", do_train=True,
                   do_eval=False, tasks=["cola", "sts-b"], max_steps=-1, learning_rate=2e-5, warmup_steps=None,
                   use_mt_uncertainty=True, per_device_train_batch_size=16, tpu_metrics_debug=False)  # fmt: skip
    p = classification_flags.parser("x")
    one = p.parse_args([written(tmp_path, content)])
    words = ["--model_name_or_path", "minilm", "--form", "base", "--data_dir", "glue data", "--output_dir", "out",
             "--do_train", "--tasks", "cola", "sts-b", "--max_steps", "-1", "--learning_rate", "2e-5",
             "--use_mt_uncertainty", "--per_device_train_batch_size", "16"]  # fmt: skip
    assert vars(one) == vars(p.parse_args(words))


def test_flags_behind_a_json_file_override_it(tmp_path):
    path = written(tmp_path, dict(seed=3, bf16=True, data_dir="a", tasks=["cola", "rte"]))
    args = classification_flags.parser("x").parse_args([path, "--seed", "4", "--fp32", "--do_train", "--tasks", "mrpc"])
    assert (args.seed, args.fp32, args.bf16, args.do_train) == (4, True, False, True)
    assert args.tasks == ["mrpc"] and args.data_dir == "a"


def test_the_originals_default_level_in_a_json_file_means_nothing_without_its_fp16(tmp_path):
    p = classification_flags.parser("x")
    args = p.parse_args([written(tmp_path, dict(fp16=False, fp16_opt_level="O1", seed=1)), *NEEDED])
    classification_flags.check_flags(p, args)
    assert not args.fp16 and args.seed == 1


def test_tasks_of_a_json_file_may_be_one_text(tmp_path):
    path = written(tmp_path, {"tasks": "cola rte"})
    assert classification_flags.parser("x").parse_args([path]).tasks == ["cola", "rte"]


def test_a_refused_flag_in_a_json_file_is_refused_with_its_key(tmp_path):
    path = written(tmp_path, {"tpu_num_cores": 8})
    with pytest.raises(UserError, match="tpu_num_cores: TPU processes are started by"):
        classification_flags.parser("x").parse_args([path])


def test_every_flag_has_a_help_text_and_none_is_hidden_but_the_refused():
    for action in classification_flags.parser("x")._actions:
        hidden = action.help == argparse.SUPPRESS
        assert hidden == (action.option_strings[0].removeprefix("--") in classification_flags.REFUSED) and action.help


def test_given_are_only_the_flags_that_were_typed():
    typed = flags.typed_flags(lambda: classification_flags.parser("x"), ["--seed", "3", "--lr", "1"])
    assert typed == dict(seed=3, lr=1.0)


def test_an_unknown_task_is_refused_with_those_known():
    p = classification_flags.parser("x")
    args = p.parse_args(["--model_name_or_path", "x", "--data_dir", "x", "--do_train", "--tasks", "cola", "squad"])
    with pytest.raises(UserError, match=r"unknown task 'squad'\n.*one of cola, mnli"):
        classification_flags.check_flags(p, args)
