"""Schemas of the json files in model directories: key -> type and range, for every kind of directory."""

from versatile.adapters.methods.registry import ALIASES, BARE, all_methods
from versatile.utils.errors import UserError
from versatile.utils.schema import Choice, Flag, ListOf, MapOf, Number, Record, Text, Whole

# Far beyond every published model, yet small enough that building a model to compare its weights does not take hours.
_MOST_LAYERS, _MOST_WIDTH, _MOST_TOKENS = 1000, 1_000_000, 100_000_000

# How an example becomes ids; data/encoders/ has a file for each.
ENCODERS = ("markers", "question_answer", "text_to_text", "sentence_pair")
FORMS = ("base", "large", "plain")
# The published adaptation methods for T5, by their published names.
PUBLISHED_T5 = ("finetune", "adapters", "hyperformer", "hyperformer++", "meta")
# The other methods of adapters/methods/, except those that need BERT's heads or markers.
_NOT_OFFERED = {"conditional", BARE, *(ALIASES.get(name, name) for name in PUBLISHED_T5)}
PORT_METHODS = tuple(name for name in all_methods() if name not in _NOT_OFFERED)
# Method of a T5 whose tasks were trained separately; the manifest's `methods` has one for each task.
COMBINED_T5 = "combined"
ACTIVATIONS = ("relu", "swish", "gelu", "gelu_new")

NAME = Text(says="a name", longest=200)
TASK_NAME = Text(lambda name: "." not in name, "a name without dots", longest=200)
MARKER = Text(lambda text: text != "<pad>", "a text that is not <pad>", longest=200)
_BACKBONE = Text(says="the name or directory of the backbone", null=True)
_METHODS = MapOf(Record(dict(method=Text(says="a method's name", longest=200, required=True))))


def _tasks(**fields):
    """A list of tasks, in the order of their ids."""
    name = Text(TASK_NAME.allows, TASK_NAME.says, longest=200, required=True)
    return ListOf(Record(dict(name=name, **fields)), 1, 10_000, unique=lambda task: task["name"], required=True)


# Markers are [] if a task's prompts are plain text, as in lifelong learning.
_MARKED = _tasks(markers=ListOf(MARKER, 0, 10_000, unique=str, required=True),
                 max_history=Whole(0, 1_000_000, null=True), definition=MapOf())  # fmt: skip

_MANIFEST = dict(
    library_name=Choice(("versatile",), required=True),
    format=Choice((2,), required=True),
    encoder=Choice(ENCODERS, required=True),
    mode=Choice(("adapter", "full"), required=True),
    model_type=NAME,
    base_model_name_or_path=_BACKBONE,
    base_model_fingerprint=Text(says="a fingerprint", null=True),
    random_init_seed=Whole(-(2**63), 2**64 - 1, null=True),
    quantization=Choice(("4bit", "8bit")),
    checksum=Text(says="a checksum", null=True),
    methods=MapOf(_METHODS.item, required=True),
)
MARKERS = dict(
    tasks=_MARKED,
    freeze=Flag(),
    task_embeddings=ListOf(_MARKED.item, 1, 10_000, unique=lambda task: task["name"]),
    spare_scores=Flag(),
    first=Whole(0, _MOST_TOKENS, required=True),
    mask_other_tasks=Flag(),
    self_copy=Flag(),
    chained=Flag(),
)


def _t5_settings():
    size, names = Whole(1, _MOST_WIDTH), ListOf(TASK_NAME, 1, 10_000, null=True)
    switches = (
        "add_layer_norm_before_adapter add_layer_norm_after_adapter conditional_layer_norm "
        "unique_hyper_net_layer_norm parametric_task_embedding train_task_embeddings freeze_model "
        "freeze_model_but_lm_head freeze_embeds freeze_encoder freeze_model_but_task_embeddings unfreeze_lm_head "
        "unfreeze_layer_norms unfreeze_model"
    )
    settings = dict(
        method=Choice((*PUBLISHED_T5, *PORT_METHODS, COMBINED_T5)),
        method_settings=MapOf(),
        non_linearity=Choice(ACTIVATIONS),
        reduction_factor=size,
        adapters=names,
        task_embeddings=names,
        task_embedding_dim=size,
        task_embedding_dir=Text(says="a directory", null=True),
        projected_task_embedding_dim=size,
        task_hidden_dim=size,
        **{name: Flag() for name in switches.split()},
    )
    return Record(settings, closed=True, required=True)


_T5_SHAPE = dict(d_model=Whole(1, _MOST_WIDTH), layers=ListOf(Whole(1, _MOST_LAYERS), 2, 2),
                 trained_backbone=ListOf(Text(says="a parameter's name")))  # fmt: skip


def _each(kind, names):
    return dict.fromkeys(names.split(), kind)


# config.json of transformers: the keys that the supported families read. Other keys are left to transformers.
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

_CONDITIONAL_BERT = dict(
    form=Choice(FORMS, required=True),
    max_seq_length=Whole(3, _MOST_WIDTH, required=True),
    aliases=MapOf(NAME),
    backbone=Record(TRANSFORMERS.fields, required=True),
)
_HEADS = ListOf(Record(dict(name=Text(says="a name", longest=200, required=True),
                            labels=Whole(1, 100_000, required=True))),
                1, 10_000, unique=lambda task: task["name"], required=True)  # fmt: skip

# Format 2, by the manifest's encoder.
MANIFESTS = {
    "markers": Record(_MANIFEST | MARKERS),
    "question_answer": Record(_MANIFEST | MARKERS),
    "text_to_text": Record(_MANIFEST | _T5_SHAPE | dict(tasks=_tasks(definition=MapOf()), settings=_t5_settings())),
    "sentence_pair": Record(_MANIFEST | _CONDITIONAL_BERT | dict(tasks=_HEADS)),
}

# Format 1, by `peft_type` or, for fully fine-tuned models, by the key in config.json.
_COMMON = dict(
    task_type=NAME,
    model_type=NAME,
    format=Choice((1,)),
    base_model_name_or_path=_BACKBONE,
    base_model_fingerprint=Text(says="a fingerprint", null=True),
    random_init_seed=Whole(-(2**63), 2**64 - 1, null=True),
)
_FULL = dict(first=Whole(0, _MOST_TOKENS, required=True), own_columns=Flag(required=True), self_copy=Flag(),
             tasks=_MARKED)  # fmt: skip
_T5 = dict(tasks=ListOf(TASK_NAME, 1, 10_000, unique=str, required=True), settings=_t5_settings())
FORMAT_1 = {
    "VERSATILE_BOTTLENECK": Record(
        _COMMON
        | _FULL
        | dict(
            bottlenecks=MapOf(Whole(0, _MOST_WIDTH), required=True),
            methods=_METHODS,
            freeze=Flag(),
            rows=ListOf(_MARKED.item, 1, 10_000, unique=lambda task: task["name"]),
            spare_scores=Flag(),
            own_columns=Flag(),
            encoder=Choice(("markers", "question_answer")),
            chained=Flag(),
        )
    ),
    "VERSATILE_T5": Record(_COMMON | _T5_SHAPE | _T5),
    "VERSATILE_CONDITIONAL_BERT": Record(_COMMON | _CONDITIONAL_BERT | dict(tasks=_HEADS)),
    "versatile": Record(_FULL),
    "versatile_t5": Record(_T5),
}


def check_tasks(config, location):
    """Check that the tasks of a manifest with markers are consistent."""
    check_module_names([task["name"] for task in config.get("task_embeddings", config["tasks"])], location)
    markers = [m for task in config["tasks"] for m in task["markers"]]
    if repeated := next((m for m in markers if markers.count(m) > 1), None):
        raise UserError(f"the marker {repeated!r} appears twice", location=location, expected="each once")
    rows = {task["name"]: task["markers"] for task in config.get("task_embeddings", config["tasks"])}
    if bad := next((task["name"] for task in config["tasks"] if rows.get(task["name"]) != task["markers"]), None):
        raise UserError(f"the markers of {bad!r} with embeddings are not those in 'tasks'", location=location,
                        expected="the same ones")  # fmt: skip


def check_module_names(names, location, what="name"):
    """Check that names can be part of parameter names.

    torch rejects dots, empty names and the names of its modules' own attributes ("train", "keys").

    Args:
        names: names of tasks, or of whatever `what` says.
        location: where they were read, for the error.

    Raises:
        UserError: a name that torch rejects.
    """
    from torch import nn

    for name in names:
        if not name or "." in name:
            raise UserError(f"the {what} {name!r}", location=location,
                            expected="a name without dots: it becomes part of a parameter's name")  # fmt: skip
        if any(hasattr(kind(), name) for kind in (nn.ModuleDict, nn.ParameterDict)):
            raise UserError(f"the {what} {name!r}", location=location, remedy=f"call it {name}_task, for example",
                            expected="a name that is not an attribute of a torch module")  # fmt: skip


def check_sizes(methods, state, location):
    """Check that the sizes in a config match the file's tensors, so that wrong sizes allocate nothing.

    Args:
        methods: {task: its method}, with all settings filled in.
        state: {file key: tensor}.
    """
    known = {name: method.load_class().sizes for name, method in all_methods().items()}
    for task, method in methods.items():
        held = [(key, t) for key, t in state.items() if not key.startswith("blocks.") or key.split(".")[2] == task]
        for name, sizes in known.items():
            for setting, (ending, axis) in sizes.items():
                stored_sizes = {t.shape[axis] for key, t in held if key.endswith(ending) and t.dim() > axis}
                config_sizes = {method[setting]} if name == method["method"] else set()
                if config_sizes != stored_sizes and (config_sizes or method["method"] == BARE):
                    sizes = [min(size, default=0) for size in (config_sizes, stored_sizes)]
                    what = setting.removeprefix("adapter_")
                    raise UserError(f"the {what} of {task!r} is {sizes[0]}, that of its tensors {sizes[1]}",
                                    location=location, expected="a config and weights saved together",
                                    remedy="copy both again")  # fmt: skip
