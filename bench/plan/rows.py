"""Plans of the published rows: what the recipes' flags mean for the data, the steps and the trained model."""

import difflib
import math
import re
from dataclasses import replace

from versatile.utils import recipes
from versatile.utils.errors import UserError

from bench.plan.arithmetic import DECODING, Phase, Plan, Shape
from bench.plan.tables import GLUE, MARKED, QUESTIONS, T5_LENGTH, WEIGHTS

PUBLISHED = ("vlm-", "lifelong-", "t5-", "camtl-")


def make_plan(row):
    """`Plan` of a published row.

    Raises:
        UserError: there is no such row, or it is not published.
    """
    command = recipes.read_recipe(row)
    if command is None:
        near = difflib.get_close_matches(row, recipes.read_recipe_names(PUBLISHED), n=4, cutoff=0.5)
        raise UserError("there is no such row", location=row,
                        expected=" or ".join(near) or "a name that ./run.sh list prints",
                        remedy="./run.sh list prints them all")  # fmt: skip
    if not row.startswith(PUBLISHED):
        # Those on SmolLM2 read data whose rows are only counted in conversion.
        raise UserError("it is not a published row, and only these are planned", location=row,
                        expected=f"a row that starts with {', '.join(PUBLISHED)}, whose data have a known size",
                        remedy=f"run it: ./run.sh {row}")  # fmt: skip
    plan = Plan(row, command, precision="fp32" if "--fp32" in command else "bf16")
    plan.notes += name_earlier_rows(row, command)
    PLANNERS[command[0]](plan, command[1:])
    return plan


def name_earlier_rows(row, command):
    """Recipes to run first, from the directories that the command reads."""
    read = [word for flag, word in zip(["", *command], command) if flag not in ("--output_dir", "--output")]
    names = re.findall(r"\bruns/([\w+-]+)", " ".join(read))
    # The combined model is that of vlm-combine; a teacher's texts are written by its task's row.
    names = ["vlm-combine" if name == "VLM" else name for name in names]
    names += [row.replace("-distilled", "-distil")] if "--distillation" in command else []
    names = [name for name in dict.fromkeys(names) if name != row and recipes.read_recipe(name)]
    return [f"first: {', '.join(f'./run.sh {name}' for name in names)} (each has a plan of its own)"] if names else []


def plan_train(plan, words):
    """A row of train.py: one task."""
    from versatile.adapters import attach as adapting
    from versatile.data.task import get_task

    import train

    args = train.parser().parse_args(words)
    task = get_task(args.task)
    train.check_flags(args, {})
    train.fill_published(args, task)
    data = MARKED[task.name]
    plan.data = {task.name: data}
    plan.weights = find_weights(args.model_checkpoint)
    chosen = train.choose_method(args, task)

    def prepare(model, tokenizer):
        adapting.attach(model, tokenizer, {task.name: task.markers}, chosen and {task.name: chosen})
        train.apply_ablations(args, model)

    plan.shape = shape_of(decoder(plan.weights, prepare))
    add_training(plan, args.n_epochs, args.train_batch_size, args.gradient_accumulation_steps)


def plan_train_vlm(plan, words):
    """A row of train_vlm.py: many tasks at once."""
    from versatile.adapters import attach as adapting
    from versatile.data.task import get_task

    import train_vlm

    args = train_vlm.parser().parse_args(words)
    tasks = {name: get_task(name) for name in args.tasks}
    methods = train_vlm.choose_methods(args, tasks)
    plan.data = {name: MARKED[name] for name in tasks}
    plan.weights = find_weights(args.model_checkpoint)
    markers = {name: task.markers for name, task in tasks.items()}
    plan.shape = shape_of(decoder(plan.weights, lambda model, words: adapting.attach(
        model, words, markers, methods, freeze=not args.unfreeze_backbone)))  # fmt: skip
    add_training(plan, args.n_epochs, args.train_batch_size, args.gradient_accumulation_steps)


def add_training(plan, epochs, batch, accumulation):
    """Add epochs of training over a plan's data."""
    rows = sum(data.rows for data in plan.data.values())
    passes = choose_passes(plan.shape)
    for name, data in plan.data.items():
        plan.phases.append(Phase(f"training on {name}", data.rows * epochs, data.source, data.target, passes,
                                 why=f"{data.rows:,} rows x {epochs} epochs", batch=batch))  # fmt: skip
    steps = math.ceil(rows / batch / accumulation) * epochs
    plan.steps = f"{rows:,} rows / ({batch} x {accumulation}) x {epochs} epochs = {steps:,}"
    plan.batch = (batch, max(data.longest for data in plan.data.values()),
                  max(data.target for data in plan.data.values()))  # fmt: skip


def choose_passes(shape):
    """The cost of training in forward passes: backward to activations and weights, or only to activations if most
    weights are frozen."""
    return 3 if 2 * shape.trained > shape.total else 2


def plan_distiller(plan, words):
    """A row of sentence_distiller.py: a teacher writes the training targets."""
    import sentence_distiller

    args = sentence_distiller.parser().parse_args(words)
    data = MARKED[args.task]
    plan.data = {args.task: data}
    teacher = recipes.read_recipe(args.model_checkpoint.removeprefix("runs/"))
    plan.weights = find_weights(teacher[teacher.index("--model_checkpoint") + 1])
    plan.shape = shape_of(decoder(plan.weights, lambda model, words: model.requires_grad_(False)))
    plan.phases.append(Phase("the teacher writes", data.rows, data.source, data.target, 1, DECODING,
                             f"{data.rows:,} rows once", args.batch_size))  # fmt: skip
    plan.batch = (args.batch_size, data.longest, 1)


def plan_without_training(plan, words):
    """combine_all.py, evaluate_vlm.py."""
    plan.notes.append("nothing is trained: it takes minutes, and the memory of one GPT-2 with its adapters")


def plan_lifelong(plan, words):
    """A row of train_lifelong.py: tasks one after another, the whole model."""
    from versatile.lifelong import strategies
    from versatile.lifelong.batches import most_samples

    import train_lifelong

    args = train_lifelong.parser().parse_args(words)
    plan.data = {name: QUESTIONS[name] for name in args.tasks}
    plan.weights = find_weights(args.model_checkpoint)
    plan.shape = shape_of(decoder(plan.weights, lambda model, words: None))
    sizes, strategy = [data.rows for data in plan.data.values()], strategies.get_strategy(args)
    rows = [sum(sizes)] if strategy.joint else sizes
    caps = [most_samples(size, args.min_n_steps, args.min_batch_size) for size in rows]
    steps = sum(math.ceil(size / cap) for size, cap in zip(rows, caps)) * args.n_epochs
    limits = " or ".join(map(str, sorted(set(caps))))
    plan.steps = f"about {steps:,}: {args.n_epochs} epochs of batches of at most {limits} samples"
    for name, data in plan.data.items():
        plan.phases.append(Phase(f"training on {name}", data.rows * args.n_epochs, data.source, data.target, 3,
                                 why=f"{data.rows:,} rows x {args.n_epochs} epochs"))  # fmt: skip
    plan.phases += forgetting_phases(args, plan.data, caps)
    # The number of samples in a batch is limited by the device's memory, and by the cap.
    plan.phases = [replace(phase, batch=64 if phase.kind == DECODING else min(caps)) for phase in plan.phases]
    plan.batch = (max(caps), max(data.longest for data in plan.data.values()),
                  max(data.target for data in plan.data.values()))  # fmt: skip


def forgetting_phases(args, data, caps):
    """What a lifelong method does in addition to training on each task.

    Args:
        args: flags of train_lifelong.py.
        data: {task: `DataSet`}, in order.
        caps: maximum samples per batch, for each task.
    """
    share, epochs, sets = args.gen_lm_sample_percentage, args.n_epochs, list(data.values())
    source, target = (sum(getattr(one, part) * one.rows for one in sets) / sum(one.rows for one in sets)
                      for part in ("source", "target"))  # fmt: skip
    phases, rows = [], sum(one.rows for one in sets)
    if args.seq_train_type == "lll":
        replayed = share * sum(one.rows for one in sets[1:])
        phases += [Phase("replayed samples", replayed * epochs, source, target, 3,
                         why=f"{share} of the later tasks' rows x {epochs} epochs"),
                   Phase("the model writes them", replayed, 1, source + target, 1, DECODING)]  # fmt: skip
    if args.distil or args.seq_distil:
        phases.append(Phase("a teacher of each task", rows * epochs, source, target, 3,
                            why="as long as the tasks themselves"))  # fmt: skip
    if args.distil:
        phases.append(Phase("teachers' distributions", rows * epochs, source, target, 1, why="for each row"))
    if args.seq_distil:
        phases.append(Phase("teachers' texts", rows, source, target, 1, DECODING))
    if args.seq_train_type in ("ewc", "mas"):
        phases.append(Phase("importances", rows - sets[-1].rows, source, target, 3, why="each task once more"))
    if args.seq_train_type == "gem":
        steps = [math.ceil(one.rows / cap) * epochs for one, cap in zip(sets, caps)]
        for number, ((name, one), following) in enumerate(zip(data.items(), sets[1:])):
            kept = int(share * following.rows)
            phases.append(Phase(f"gradients of kept samples of {name}", kept * sum(steps[number + 1 :]), one.source,
                                one.target, 3, why=f"{kept:,} samples in every later step"))  # fmt: skip
    return phases


def plan_t5(plan, words):
    """A row of train_t5.py: text to text, some of GLUE."""
    from versatile.adapters import t5
    from versatile.training import text_to_text_arguments

    import train_t5

    args = text_to_text_arguments.parse(train_t5.parser, words)
    plan.data = {name: GLUE[name] for name in args.tasks}
    plan.weights = find_weights(args.model_name_or_path)
    model = build_on_meta(plan.weights, "AutoModelForSeq2SeqLM")
    t5.attach(model, args.tasks, train_t5.t5_settings(args))
    plan.shape = shape_of(model)
    # Tasks are drawn in proportion to size^(1 / temperature).
    chances = {name: data.rows ** (1 / (args.sampling_temperature or 1)) for name, data in plan.data.items()}
    total = sum(chances.values())
    source, target = (sum(chances[name] / total * getattr(data, part) for name, data in plan.data.items())
                      for part in ("source", "target"))  # fmt: skip
    rows = args.max_steps * args.train_batch_size * args.gradient_accumulation_steps
    plan.phases.append(Phase("training", rows, T5_LENGTH * source, target, choose_passes(plan.shape),
                             why=f"{rows:,} rows", batch=args.train_batch_size))  # fmt: skip
    plan.steps = f"{args.max_steps:,} of {args.train_batch_size} rows on each device (--max_steps)"
    plan.batch = (args.train_batch_size, args.max_source_length, 8)
    plan.notes.append("published on 4 GPUs: torchrun --nproc_per_node 4 sees four times the rows in the same hours")


def plan_camtl(plan, words):
    """A row of train_camtl.py: all of GLUE."""
    import torch
    from versatile.adapters import bert
    from versatile.adapters.classifier import TaskClassifier
    from versatile.data import glue
    from versatile.training import classification_flags

    import train_camtl

    args = train_camtl.parser().parse_args(words)
    names = {"sts-b": "stsb", "sst-2": "sst2"}
    tasks = args.tasks or list(classification_flags.TASKS)
    plan.data = {name: GLUE[names.get(name, name)] for name in tasks}
    backbone, form = bert.PUBLISHED.get(args.model_checkpoint, (args.model_checkpoint, args.form or "plain"))
    plan.weights = find_weights(backbone)
    heads = {task: len(glue.get_task(task).labels or "1") for task in tasks}
    with torch.device("meta"):
        model = TaskClassifier(build_on_meta(plan.weights, "AutoModel"), heads, form,
                               args.max_seq_length or 128)
    if args.freeze_encoder_layers:
        bert.freeze(model, args.freeze_encoder_layers)
    plan.shape = shape_of(model)
    rows = sum(data.rows for data in plan.data.values())
    source = sum(data.rows * data.source for data in plan.data.values()) / rows
    epochs = round(args.n_epochs)
    plan.phases.append(Phase("training", rows * epochs, source, 0, 3, why=f"{rows:,} rows x {epochs} epochs; "
                             "frozen layers need fewer", batch=args.train_batch_size))  # fmt: skip
    if args.use_mt_uncertainty:
        plan.phases.append(Phase("judging candidates", rows * epochs * len(tasks), source, 0, 1,
                                 why=f"{len(tasks)} candidates for every row kept",
                                 batch=len(tasks) * args.train_batch_size))  # fmt: skip
    batch = args.train_batch_size * args.gradient_accumulation_steps
    plan.steps = f"{rows:,} rows / {batch} x {epochs} epochs = {math.ceil(rows / batch) * epochs:,}"
    plan.batch = (args.train_batch_size, args.max_seq_length or 128, 0)


PLANNERS = {"train.py": plan_train, "train_vlm.py": plan_train_vlm, "sentence_distiller.py": plan_distiller,
            "combine_all.py": plan_without_training, "evaluate_vlm.py": plan_without_training,
            "train_lifelong.py": plan_lifelong, "train_t5.py": plan_t5, "train_camtl.py": plan_camtl}  # fmt: skip


# --- models without weights ------------------------------------------------------------------------------


def find_weights(name):
    """`tables.Weights` of a backbone, by its name."""
    if name not in WEIGHTS:
        raise UserError("the sizes of this backbone are not known here", location=name,
                        expected=f"one of {', '.join(WEIGHTS)}",
                        remedy="leave MODEL out, or add it to bench/plan/tables.py")  # fmt: skip
    return WEIGHTS[name]


def build_on_meta(weights, kind):
    """A model with these sizes, on the meta device."""
    import torch
    import transformers

    config = transformers.AutoConfig.for_model(weights.model_type, **weights.config)
    with torch.device("meta"):
        return getattr(transformers, kind).from_config(config)


def decoder(weights, prepare):
    """A decoder in which `prepare` has set up what is trained, as its script does.

    Args:
        prepare: called with (model, tokenizer).
    """
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    model = build_on_meta(weights, "AutoModelForCausalLM")
    words = WordLevel({f"w{i}": i for i in range(model.config.vocab_size)}, unk_token="w0")
    prepare(model, PreTrainedTokenizerFast(tokenizer_object=Tokenizer(words), bos_token="w0", eos_token="w0"))
    return model


def shape_of(model):
    """`Shape` of a model."""
    config = model.config
    parameters = dict(model.named_parameters())
    trained = sum(p.numel() for p in parameters.values() if p.requires_grad)
    total = sum(p.numel() for p in parameters.values())
    # Every token passes through the matrices; embedding tables are only looked up.
    matrices = {name: p.numel() for name, p in parameters.items()
                if p.ndim > 1 and not re.search(r"embed|shared|wte|wpe|lm_head|decoders\.", name)}  # fmt: skip
    reading = writing = sum(matrices.values())
    head = config.hidden_size * config.vocab_size
    layers = config.num_hidden_layers
    if config.is_encoder_decoder:
        reading = sum(n for name, n in matrices.items() if not name.startswith("decoder."))
        writing, layers = writing - reading, 2 * layers
    has_scores = config.model_type != "bert"
    return Shape(total, trained, reading, writing + head * has_scores, layers, config.hidden_size,
                 config.vocab_size * has_scores)  # fmt: skip
