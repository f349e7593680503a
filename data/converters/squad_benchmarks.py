"""squad-superni, -classification, -trace: continual-learning benchmarks, all tasks of one at once.

Except for TRACE's, their released dev files equal their test files: these are not read, and validation rows are held
out from the training rows instead.
"""

import os
import random

from versatile.data.converters.base import SPLITS, find_file, usable
from versatile.data.converters.squad_style import sample, squad_format
from versatile.data.converters.superni import superni_instances
from versatile.data.files import text_field
from versatile.data.json_files import list_items
from versatile.data.task_orders import CLASSIFICATION, SUPERNI, TRACE
from versatile.utils.errors import UserError, brief
from versatile.utils.flags import not_negative

# Validation rows by default: a tenth of the training rows, at most this many.
MOST_HELD_OUT = 100


def _flags(tasks, folder, held_out=True):
    def add(parser):
        parser.add_argument("--folder", required=True, metavar="DIR", help=f"{folder} (required)")
        parser.add_argument("--tasks", nargs="+", choices=tasks, metavar="TASK",
                            help=f"any of {', '.join(tasks)} (default: those found in the folder)")  # fmt: skip
        if held_out:
            parser.add_argument("--valid_from_train", type=not_negative, metavar="N",
                                help="hold out N randomly drawn training rows of each task as validation rows "
                                     f"(default: a tenth, at most {MOST_HELD_OUT}; 0: none)")  # fmt: skip

    return add


def _folders(args, places, report, sources=None):
    """{task: its folder} of the tasks asked for, or of those found.

    Args:
        places: {task: its folder below --folder}.
        sources: {task: where its rows come from}, for messages.
    """
    folders = {task: os.path.join(args.folder, *place.split("/")) for task, place in places.items()}
    missing = [task for task in args.tasks or folders if not os.path.isdir(folders[task])]
    tasks = [task for task in args.tasks or folders if task not in missing]
    names = "; ".join(f"{task} ({sources[task]})" if sources else task for task in missing)
    if missing and (args.tasks or not tasks):
        raise UserError(f"no folder {places[missing[0]]}", location=f"--folder {args.folder}",
                        expected=f"a folder of each task: {', '.join(places[task] for task in args.tasks or places)}",
                        remedy=f"get what is missing: {names}")  # fmt: skip
    if missing:
        report.notes.append(f"not in the folder, so not written: {names}")
    return {task: folders[task] for task in tasks}


def _held_out(args, report, task, train):
    """(training samples, validation samples drawn at random); training samples that share a text are dropped."""
    requested = args.valid_from_train
    number = min(max(len(train) // 10, 1), MOST_HELD_OUT) if requested is None else requested
    if number >= len(train):
        raise UserError(f"{number} rows of {task} are to be held out, and it has {len(train)}",
                        location=f"--valid_from_train {number}" if requested else f"--folder {args.folder}",
                        expected=f"fewer than {len(train)}", remedy="hold fewer out")  # fmt: skip
    chosen = set(random.Random(f"{args.seed} {task}").sample(range(len(train)), number))
    valid = [train[i] for i in sorted(chosen)]
    texts = {_context(item) for item in valid}
    training_items = [item for i, item in enumerate(train) if i not in chosen and _context(item) not in texts]
    if dropped := len(train) - number - len(training_items):
        report.dropped["train"]["sharing a text with one held out"] += dropped
    if not training_items:
        raise UserError(f"all training rows of {task} share a text with those held out",
                        location=f"--folder {args.folder}", expected="rows of different texts",
                        remedy="hold fewer out: --valid_from_train")  # fmt: skip
    return training_items, valid


def _context(item):
    return item["article"]["paragraphs"][0]["context"]


def _divided(args, report, read, folders):
    """{task: {split: samples}} from train.json and test.json, with the validation rows taken from the former."""
    splits = {}
    for task, folder in folders.items():
        train, test = (read(task, folder, split) for split in ("train", "test"))
        train, valid = _held_out(args, report, task, train)
        splits[task] = dict(zip(SPLITS, (train, valid, test))) if valid else dict(train=train, test=test)
    if args.valid_from_train != 0:
        report.notes.append("the validation rows (dev files) are held out of the training rows: the released dev files "
                            "equal the test files and are not read")  # fmt: skip
    return splits


def _not_empty(samples, path):
    if not samples:
        raise UserError("holds no rows", location=path, expected="at least one", remedy="fetch the file again")
    return samples


# --- Super-NaturalInstructions ---------------------------------------------------------------------------


@squad_format("superni", _flags(SUPERNI, "SuperNI with a folder of each task that holds train.json and test.json"))
def superni(args, report):
    """Super-NaturalInstructions as in SAPT: fifteen tasks, orders superni-order1 and superni-order2.

    The context is an instance's input, the question its task's definition, and the answers its outputs: the first one
    in training, all of them in the test files. Scored by ROUGE-L.
    """

    def read(task, folder, split):
        path, samples = find_file([folder], f"{split}.json"), []
        for number, (_, instance) in enumerate(superni_instances(path)):
            if isinstance(instance, UserError):
                raise instance
            answers = instance.outputs
            if not answers:
                report.dropped[split]["without an output"] += 1
                continue
            if split == "train":
                report.facts["train"]["further outputs, left out"] = (
                    report.facts["train"].get("further outputs, left out", 0) + len(answers) - 1)  # fmt: skip
                answers = answers[:1]
            name = f"{task}-{split}-{number}" if instance.id is None else instance.id
            samples.append(sample(instance.input, instance.definition, answers, name))
        return _not_empty(samples, path)

    return _divided(args, report, read, _folders(args, dict(zip(SUPERNI, SUPERNI)), report))


# --- the standard and the long benchmark -----------------------------------------------------------------

# O-LoRA's questions, by the parent of a task's folder; COPA's sentences contain their own.
_ASKED = {
    "SC": "What is the sentiment of the following paragraph? Choose one from the option.",
    "TC": "What is the topic of the following paragraph? Choose one from the option.",
    "NLI": 'What is the logical relationship between the "sentence 1" and the "sentence 2"? Choose one from the '
           "option.",
    "QQP": 'Whether the "first sentence" and the "second sentence" have the same meaning? Choose one from the option.',
    "BoolQA": "According to the following passage, is the question true or false? Choose one from the option.",
    "MultiRC": "According to the following passage and question, is the candidate answer true or false? Choose one "
               "from the option.",
    "WiC": "Given a word and two sentences, whether the word is used with the same sense in both sentence? Choose one "
           "from the option.",
}  # fmt: skip


@squad_format("classification", _flags(tuple(CLASSIFICATION), "O-LoRA's CL_Benchmark: SC/yelp, NLI/MNLI, …, each with "
              "train.json, test.json and labels.json"))  # fmt: skip
def classification(args, report):
    """The standard (4 tasks) and the long (15 tasks) classification benchmark, in O-LoRA's files.

    Orders: standard-order1 to -order3, long-order4 and -order5. The context is a row's sentence, the question O-LoRA's
    instruction with the options, and the answer the label. Some of O-LoRA's files are too large for its repository:
    missing ones are listed with the data set on the hub that they were sampled from.
    """

    def read(task, folder, split):
        labels_path, path = (find_file([folder], name) for name in ("labels.json", f"{split}.json"))
        labels = [usable(label, "a label", location) for location, label in list_items(labels_path)]
        question_start = _ASKED.get(CLASSIFICATION[task][0].split("/")[0])
        question, samples = f"{question_start} Option: {', '.join(labels)}" if question_start else "", []
        for location, record in list_items(path):
            sentence, label = (_text(record, name, location) for name in ("sentence", "label"))
            if label == "-":
                # MNLI's annotators did not agree.
                report.dropped[split]["without an agreed label"] += 1
                continue
            if label not in labels:
                raise UserError(f"the label is {brief(label)}", location=location,
                                expected=f"one of {', '.join(labels)}, as in {labels_path}",
                                remedy="correct it")  # fmt: skip
            samples.append(sample(sentence, question, [label]))
        return _not_empty(samples, path)

    places, sources = ({task: pair[i] for task, pair in CLASSIFICATION.items()} for i in (0, 1))
    return _divided(args, report, read, _folders(args, places, report, sources))


def _text(record, name, location):
    if not isinstance(record, dict):
        raise UserError(f"is {brief(record)}", location=location, expected="an object", remedy="correct it")
    return usable(text_field(record, name, location), f"{name!r}", location)


# --- TRACE -----------------------------------------------------------------------------------------------


@squad_format("trace", _flags(tuple(TRACE), "TRACE: C-STANCE, FOMC, …, each with train.json, eval.json and test.json",
                              held_out=False))  # fmt: skip
def trace(args, report):
    """TRACE: eight tasks, in the order named trace.

    The context is a row's prompt, which includes the instruction; the question is empty, and the answer is the row's.
    The validation rows are those of eval.json.
    """

    def read(folder, name):
        path = find_file([folder], f"{name}.json")
        rows = ((_text(row, "prompt", place), _text(row, "answer", place)) for place, row in list_items(path))
        return _not_empty([sample(prompt, "", [answer]) for prompt, answer in rows], path)

    names = dict(zip(SPLITS, ("train", "eval", "test")))
    return {task: {split: read(folder, name) for split, name in names.items()}
            for task, folder in _folders(args, TRACE, report).items()}  # fmt: skip
