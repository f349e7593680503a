"""Arguments of train_t5.py: configs, flags over configs, today's names for the original's, errors with their place."""

import json

import pytest
from conftest import ROOT
from training_runs import parse_t5
from versatile.training import text_to_text_arguments, text_to_text_flags
from versatile.utils.errors import UserError
from versatile.utils.parser import raising_errors

import train_t5

BASE = {"model_name_or_path": "t5-base", "output_dir": "out", "do_train": True, "use_cpu": True, "fp32": True}
CONFIGS = sorted((ROOT / "configs").glob("*.json"))


def config(tmp_path, **values):
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**BASE, **values}))
    return str(path)


def parse(tmp_path, *flags, **values):
    return parse_t5([config(tmp_path, **values), *flags])


def refused(tmp_path, *flags, **values):
    """The message of a refused command line and config."""
    with raising_errors(), pytest.raises(UserError) as error:
        parse(tmp_path, *flags, **values)
    return str(error.value)


def test_flags_go_before_the_config(tmp_path):
    found = parse(tmp_path, "--learning_rate", "1e-3", "--tasks", "rte", "cola", learning_rate=3e-4, tasks=["mrpc"])
    assert (found.lr, found.tasks) == (1e-3, ["rte", "cola"])
    assert parse(tmp_path, learning_rate=3e-4).lr == 3e-4


@pytest.mark.parametrize(("metric", "greater"), [
    ("loss", False), ("eval_perplexity", False), ("average_metrics", True),
])  # fmt: skip
def test_a_typed_metric_has_a_direction_of_its_own(tmp_path, metric, greater):
    best = dict(load_best_model_at_end=True, eval_strategy="steps", save_strategy="steps", eval_steps=2, save_steps=2)
    found = parse(tmp_path, "--metric_for_best_model", metric, greater_is_better=not greater, **best)
    assert found.greater_is_better == greater
    found = parse(tmp_path, "--metric_for_best_model", metric, f"--greater_is_better={not greater}".lower(), **best)
    assert found.greater_is_better != greater


def test_booleans_are_switched_either_way(tmp_path):
    adapter = parse(tmp_path, "--unique_hyper_net", "--no_add_layer_norm_after_adapter")
    assert adapter.unique_hyper_net and not adapter.add_layer_norm_after_adapter
    adapter = parse(tmp_path, "--unique_hyper_net=false", unique_hyper_net=True)
    assert not adapter.unique_hyper_net


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_every_config_is_read_and_says_nothing_twice(path):
    pairs = json.loads(path.read_text(), object_pairs_hook=lambda pairs: pairs)
    assert len(dict(pairs)) == len(pairs)
    found = parse_t5([str(path), "--use_cpu", "true"])
    assert found.eval_tasks == found.tasks


def test_the_published_settings():
    shared = dict(learning_rate=3e-4, warmup_steps=500, max_steps=65536, per_device_train_batch_size=32,
                  label_smoothing=0.1, temperature=10, eval_steps=1000, save_steps=1000, save_total_limit=1,
                  metric_for_best_model="average_metrics", split_validation_test=True, data_seed=42,
                  loss_reduction="sum", load_best_model_at_end=True)  # fmt: skip
    eight = ["rte", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "cola"]
    hyper = dict(train_adapters=True, reduction_factor=32, non_linearity="gelu_new", task_embedding_dim=64,
                 projected_task_embedding_dim=64, task_hidden_dim=128, unfreeze_layer_norms=True)  # fmt: skip
    adapter = dict(train_adapters=True, reduction_factor=32, non_linearity="gelu_new", adapter_config_name="adapter",
                   unfreeze_layer_norms=True)  # fmt: skip
    expected = {
        "finetune_single_task": dict(tasks=["mrpc"]),
        "finetune": dict(tasks=eight),
        "adapters": dict(tasks=["mrpc"], **adapter),
        "adapters_dagger": dict(tasks=eight, **adapter),
        "hyperformer": dict(tasks=eight, unique_hyper_net=True, **hyper),
        "hyperformer-per-layer": dict(tasks=eight, train_task_embeddings=True, **hyper),
        "hyperformer++": dict(tasks=eight, efficient_unique_hyper_net=True, **hyper),
    }
    assert {p.stem for p in CONFIGS} == {*expected, "test"}
    for name, own in expected.items():
        held = json.loads((ROOT / "configs" / f"{name}.json").read_text())
        assert {k: held[k] for k in [*shared, *own]} == {**shared, **own}, name


def test_the_originals_configs_are_read_as_they_are(tmp_path):
    """Its own keys, among them names that transformers has changed since."""
    found = parse(tmp_path, evaluation_strategy="steps", eval_steps=5, save_steps=5, sortish_sampler=False,
                  overwrite_output_dir=True, do_test=True, adafactor=True, lr_scheduler="cosine_w_restarts",
                  adapter_config_name="meta-adapter", ignore_pad_token_for_loss=True, seed_data=7)  # fmt: skip
    assert found.eval_strategy == "steps" and found.lr_scheduler_type == "cosine_with_restarts"
    assert found.optim == "adafactor" and found.data_seed == 7 and found.do_test


ORIGINAL = """adam_beta1 adam_beta2 adam_epsilon adapter_config_name adapters adafactor add_layer_norm_after_adapter
add_layer_norm_before_adapter attention_dropout cache_dir compute_memory compute_time conditional_layer_norm config_name
data_seed dataloader_drop_last dataloader_num_workers debug decoder_layerdrop disable_tqdm do_eval do_predict do_test
do_train dropout efficient_unique_hyper_net encoder_layerdrop eval_accumulation_steps eval_beams eval_output_dir
eval_steps eval_tasks evaluate_during_training evaluation_strategy fp16 fp16_opt_level freeze_embeds freeze_encoder
freeze_model freeze_model_but_lm_head freeze_model_but_task_embeddings generate_classifier_weights
gradient_accumulation_steps greater_is_better hidden_dim ignore_pad_token_for_loss label_names label_smoothing
learning_rate load_best_model_at_end local_rank logging_dir logging_first_step logging_steps lr_scheduler max_grad_norm
max_source_length max_steps max_target_length metric_for_best_model model_name_or_path model_parallel n_test n_train
n_val no_cuda non_linearity not_load_t5_checkpoint num_train_epochs optimize_from_scratch
optimize_from_scratch_with_loading_model output_dir overwrite_output_dir past_index per_device_eval_batch_size
per_device_train_batch_size per_gpu_eval_batch_size per_gpu_train_batch_size predict_with_generate prediction_loss_only
print_num_parameters projected_task_embedding_dim reduction_factor remove_unused_columns run_name save_steps
save_total_limit seed split_validation_test task_embedding_dim task_embeddings task_hidden_dim tasks temperature
test_max_target_length tokenizer_name tpu_metrics_debug tpu_num_cores train_adapters train_adapters_blocks
train_task_embeddings unfreeze_layer_norms unfreeze_lm_head unfreeze_model unique_hyper_net unique_hyper_net_layer_norm
val_max_target_length warmup_steps weight_decay"""


def test_every_flag_of_the_original_is_taken_translated_or_refused_in_a_sentence():
    known = {option.removeprefix("--") for option in train_t5.parser()._option_string_actions}
    assert set(ORIGINAL.split()) - known == set()
    assert all(len(why) > 10 for why in text_to_text_flags.REFUSED.values())


@pytest.mark.parametrize("name", sorted(text_to_text_flags.REFUSED))
def test_what_is_refused_is_so_when_asked_for_and_not_when_switched_off(tmp_path, name):
    assert text_to_text_flags.REFUSED[name] in refused(tmp_path, f"--{name}", "1")
    assert "config.json: " + name in refused(tmp_path, **{name: "something"})
    assert not hasattr(parse(tmp_path, **{name: False}), name)
    assert not hasattr(parse(tmp_path, **{name: None}), name)


def test_an_unknown_key_or_flag_names_its_place_and_the_nearest(tmp_path):
    said = refused(tmp_path, lerning_rate=1)
    assert "config.json: lerning_rate" in said and "learning_rate" in said
    said = refused(tmp_path, "--tempreature", "10")
    assert "--tempreature" in said and "did you mean --temperature?" in said


@pytest.mark.parametrize(
    ("flags", "values", "fragments"),
    [
        (["--learning_rate", "fast"], {}, ["--learning_rate", "fast", "expected a number"]),
        (["--seed", "1.5"], {}, ["--seed", "expected a whole number"]),
        ([], {"seed": "x"}, ["config.json: seed", "expected: a whole number"]),
        ([], {"tasks": {"a": [1, 2]}, "learning_rate": [1, 2]}, ["learning_rate", "expected: one value"]),
        ([], {"tasks": [["rte"]]}, ["config.json: tasks", "expected: one value or a list of them"]),
        (["--tasks"], {}, ["--tasks", "expected at least one argument"]),
        (["--lr_scheduler", "wavy"], {}, ["--lr_scheduler", "constant_with_warmup"]),
        (["--eval_strategy", "sometimes"], {}, ["--eval_strategy", "steps"]),
        (["--learning_rate", "nan"], {}, ["--learning_rate", "expected a number above 0"]),
        (["--n_train", "0"], {}, ["--n_train", "-1 for all"]),
        ([], {"n_train": -2}, ["config.json: n_train", "-1 for all"]),
        (["--label_smoothing", "1"], {}, ["--label_smoothing", "below 1"]),
        (["--temperature", "-1"], {}, ["--temperature", "0 or more"]),
        (["--reduction_factor", "0"], {}, ["--reduction_factor", "above 0"]),
        (["--unique_hyper_net", "--efficient_unique_hyper_net"], {}, ["HyperFormer++"]),
        (["--tasks", "rte", "rte"], {}, ["named twice"]),
        (["--adapters", "a"], {"tasks": ["rte", "cola"]}, ["--adapters", "1 names for 2 tasks"]),
        (["--eval_tasks", "cola"], {"tasks": ["rte"], "train_adapters": True}, ["cola is not trained"]),
        (["--do_train", "false"], {}, ["nothing to do"]),
        (["--load_best_model_at_end"], {"eval_strategy": "steps", "eval_steps": 7, "save_steps": 10}, ["multiple"]),
        (["stray"], {}, ["stray", "neither a config file nor a flag"]),
    ],
    ids=lambda v: " ".join(map(str, v))[:40] if isinstance(v, list) else None,
)
def test_bad_values_are_met_with_their_place(tmp_path, flags, values, fragments):
    said = refused(tmp_path, *flags, **values)
    for fragment in fragments:
        assert fragment in said, said


@pytest.mark.parametrize("content", ["", "{", "[]", '"tasks"', '{"tasks": }'])
def test_a_file_that_is_no_json_object_is_said_so(tmp_path, content):
    path = tmp_path / "broken.json"
    path.write_text(content)
    with pytest.raises(UserError, match=r"broken\.json"):
        parse_t5([str(path)])
    with pytest.raises(UserError, match="cannot be read"):
        parse_t5([str(tmp_path / "absent.json")])


def test_the_loss_is_reduced_as_in_the_original(tmp_path):
    assert parse(tmp_path).loss_reduction == "mean"
    assert parse(tmp_path, label_smoothing=0.1).loss_reduction == "sum"
    assert parse(tmp_path, label_smoothing=0.1, loss_reduction="mean").loss_reduction == "mean"


def test_flags_of_run_json_give_the_same_arguments_again(tmp_path):
    found = parse(tmp_path, "--tasks", "rte", "mrpc", temperature=10, label_smoothing=0.1, evaluation_strategy="steps",
                  eval_steps=5, save_steps=5, adapters=["a", "a"], lr_scheduler="polynomial")  # fmt: skip
    stored = json.loads(json.dumps(found.flags()))
    assert text_to_text_arguments.restored(stored, "run.json") == stored


def test_float16_on_a_cpu_is_refused_before_anything_is_loaded(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(UserError, match="--fp16: float16 needs a GPU"):
        text_to_text_arguments.check_before_loading(parse(tmp_path, "--fp16"))


@pytest.mark.parametrize("name", ["nonsense", "galore_adamw"])
def test_an_optimizer_that_cannot_be_built_is_refused_before_anything_is_loaded(tmp_path, name):
    with pytest.raises(UserError, match=f"--optim {name}: it cannot be used"):
        text_to_text_arguments.check_before_loading(parse(tmp_path, optim=name))
