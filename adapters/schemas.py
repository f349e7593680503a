"""What the json files of model directories hold: key -> type and range, for every kind of directory."""

from torch import nn
from versatile.adapters.methods.registry import all_methods
from versatile.utils.errors import UserError
from versatile.utils.schema import Choice, Flag, ListOf, MapOf, Number, Record, Text, Whole

# Far beyond every published model, and small enough that nothing is built for hours before its weights are compared.
_MOST_LAYERS, _MOST_WIDTH, _MOST_TOKENS = 1000, 1_000_000, 100_000_000


def _can_be_module_name(name):
    """A task's name becomes a part of its parameters' names, and a key beside torch's own attributes."""
    return "." not in name and not any(hasattr(kind(), name) for kind in (nn.ModuleDict, nn.ParameterDict))


TASK_NAME = Text(_can_be_module_name, "a name without dots that is no attribute of a torch module", longest=200)
NAME = Text(says="a name", longest=200)
_MARKER = Text(lambda text: text != "<pad>", "a text that is not <pad>", longest=200)

TASKS = ListOf(
    Record(
        dict(
            name=Text(_can_be_module_name, TASK_NAME.says, longest=200, required=True),
            # None where the task's prompts are plain text, as in lifelong learning.
            markers=ListOf(_MARKER, 0, 10_000, unique=str, required=True),
            max_history=Whole(0, 1_000_000, null=True),
            definition=MapOf(),
        )
    ),
    1,
    10_000,
    unique=lambda task: task["name"],
    required=True,
)

# Every adapter_config.json.
_COMMON = dict(
    peft_type=NAME,
    task_type=NAME,
    model_type=NAME,
    format=Choice((1,)),
    base_model_fingerprint=Text(says="a fingerprint", null=True),
    random_init_seed=Whole(-(2**63), 2**64 - 1, null=True),
)
_BACKBONE = Text(says="the name or directory of the backbone", required=True)

BOTTLENECK = Record(
    dict(
        **_COMMON,
        base_model_name_or_path=_BACKBONE,
        bottlenecks=MapOf(Whole(0, _MOST_WIDTH), required=True),
        methods=MapOf(Record(dict(method=Text(says="a method's name", longest=200, required=True)))),
        freeze=Flag(),
        rows=ListOf(TASKS.item, 1, 10_000, unique=lambda task: task["name"]),
        spare_scores=Flag(),
        first=Whole(0, _MOST_TOKENS, required=True),
        own_columns=Flag(),
        self_copy=Flag(),
        encoder=Choice(("markers", "question_answer")),
        chained=Flag(),
        tasks=TASKS,
    )
)

# "versatile" in the config.json of a fully fine-tuned model.
FULL = Record(dict(first=Whole(0, _MOST_TOKENS, required=True), own_columns=Flag(required=True), self_copy=Flag(),
                   tasks=TASKS))  # fmt: skip


def t5(methods, activations):
    """The tasks and settings of a T5 with tasks."""
    size, names = Whole(1, _MOST_WIDTH), ListOf(TASK_NAME, 1, 10_000, null=True)
    switches = (
        "add_layer_norm_before_adapter add_layer_norm_after_adapter conditional_layer_norm "
        "unique_hyper_net_layer_norm parametric_task_embedding train_task_embeddings freeze_model "
        "freeze_model_but_lm_head freeze_embeds freeze_encoder freeze_model_but_task_embeddings unfreeze_lm_head "
        "unfreeze_layer_norms unfreeze_model"
    )
    settings = dict(
        method=Choice(tuple(methods)),
        method_settings=MapOf(),
        non_linearity=Choice(tuple(activations)),
        reduction_factor=size,
        adapters=names,
        task_embeddings=names,
        task_embedding_dim=size,
        task_embedding_dir=Text(says="a directory", null=True),
        projected_task_embedding_dim=size,
        task_hidden_dim=size,
        **{name: Flag() for name in switches.split()},
    )
    tasks = ListOf(TASK_NAME, 1, 10_000, unique=str, required=True)
    return Record(dict(tasks=tasks, settings=Record(settings, closed=True, required=True)))


def t5_adapters(methods, activations):
    """adapter_config.json of a T5 with adapters."""
    return Record(
        dict(
            **_COMMON,
            **t5(methods, activations).fields,
            base_model_name_or_path=_BACKBONE,
            d_model=Whole(1, _MOST_WIDTH, required=True),
            layers=ListOf(Whole(1, _MOST_LAYERS), 2, 2, required=True),
            trained_backbone=ListOf(Text(says="a parameter's name")),
        )
    )


def _each(kind, names):
    return dict.fromkeys(names.split(), kind)


# config.json of transformers: what the supported families read. Other keys are transformers' own business.
TRANSFORMERS = Record(
    dict(
        model_type=NAME,
        dtype=Text(says="the name of a dtype", null=True),
        torch_dtype=Text(says="the name of a dtype", null=True),
        **_each(Whole(1, _MOST_LAYERS), "num_hidden_layers n_layer num_layers"),
        num_decoder_layers=Whole(1, _MOST_LAYERS, null=True),
        **_each(Whole(1, _MOST_WIDTH), "hidden_size n_embd d_model d_ff d_kv intermediate_size n_head "
                                       "num_attention_heads num_heads type_vocab_size relative_attention_num_buckets "
                                       "relative_attention_max_distance"),
        **_each(Whole(1, _MOST_WIDTH, null=True), "n_inner num_key_value_heads head_dim"),
        **_each(Whole(1, _MOST_TOKENS), "vocab_size"),
        **_each(Whole(1, _MOST_TOKENS, null=True), "n_positions n_ctx max_position_embeddings"),
        **_each(Number(0, 1), "attn_pdrop embd_pdrop resid_pdrop dropout_rate hidden_dropout_prob "
                              "attention_probs_dropout_prob"),
        **_each(Number(0, 1, null=True), "attention_dropout classifier_dropout"),
        **_each(Number(0, 1), "layer_norm_epsilon layer_norm_eps rms_norm_eps"),
        **_each(Number(0, 1e4), "initializer_range initializer_factor"),
        **_each(Flag(), "tie_word_embeddings use_cache scale_attn_weights scale_attn_by_inverse_layer_idx "
                        "reorder_and_upcast_attn is_decoder is_encoder_decoder scale_decoder_outputs "
                        "output_attentions output_hidden_states add_cross_attention"),
        **_each(Text(says="an activation's name"), "activation_function hidden_act afn feed_forward_proj"),
        pad_token_id=Whole(-1, _MOST_TOKENS, null=True),
        bos_token_id=Whole(-1, _MOST_TOKENS, null=True),
        decoder_start_token_id=Whole(-1, _MOST_TOKENS, null=True),
    )
)  # fmt: skip

CONDITIONAL_BERT = Record(
    dict(
        **_COMMON,
        base_model_name_or_path=Text(says="the name or directory of the backbone", null=True),
        form=Choice(("base", "large", "plain"), required=True),
        max_seq_length=Whole(3, _MOST_WIDTH, required=True),
        tasks=ListOf(Record(dict(name=Text(says="a name", longest=200, required=True),
                                 labels=Whole(1, 100_000, required=True))),
                     1, 10_000, unique=lambda task: task["name"], required=True),
        aliases=MapOf(NAME),
        backbone=Record(TRANSFORMERS.fields, required=True),
    )
)  # fmt: skip


def check_tasks(config, location):
    """Whether the tasks of an adapter_config.json agree with each other."""
    markers = [m for task in config["tasks"] for m in task["markers"]]
    if repeated := next((m for m in markers if markers.count(m) > 1), None):
        raise UserError(f"the marker {repeated!r} stands twice", location=location, expected="each once")
    rows = {task["name"]: task["markers"] for task in config.get("rows", config["tasks"])}
    if bad := next((task["name"] for task in config["tasks"] if rows.get(task["name"]) != task["markers"]), None):
        raise UserError(
            f"'rows' holds other markers of {bad!r} than 'tasks'", location=location, expected="the same ones"
        )


def check_sizes(methods, state, location):
    """Whether the sizes that a config says are those of the file's tensors: a made-up size is not allocated.

    Args:
        methods: {task: its method, complete}.
        state: {file key: tensor}.
    """
    known = {name: method.load_class().sizes for name, method in all_methods().items()}
    for task, method in methods.items():
        held = [(key, t) for key, t in state.items() if not key.startswith("blocks.") or key.split(".")[2] == task]
        for name, sizes in known.items():
            for setting, (ending, axis) in sizes.items():
                found = {tensor.shape[axis] for key, tensor in held if key.endswith(ending) and tensor.dim() > axis}
                said = {method[setting]} if name == method["method"] else set()
                if said != found and (said or name == "bottleneck"):
                    sizes = [min(size, default=0) for size in (said, found)]
                    what = setting.removeprefix("adapter_")
                    raise UserError(f"the {what} of {task!r} is {sizes[0]}, that of its tensors {sizes[1]}",
                                    location=location, expected="a config and weights of one saving",
                                    remedy="copy both again")  # fmt: skip
