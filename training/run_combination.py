"""combine_all.py for models of train_camtl.py and train_t5.py: single-task adapters of one frozen backbone. Each
model's run.json records how inputs are made and where the data are."""

from argparse import Namespace
from pathlib import Path

import ignite.distributed as idist
import torch
from versatile.adapters import bert, t5
from versatile.adapters.backbones import loading as backbones
from versatile.adapters.classifier import TaskClassifier
from versatile.adapters.combine import (
    compare_scores,
    missing_task,
    refuse_shared,
    repeated_task,
    source_flag,
    tokenizer_hash,
)
from versatile.adapters.manifest import peek
from versatile.adapters.methods.registry import get_method, method_of
from versatile.adapters.schemas import COMBINED_T5
from versatile.adapters.tensors import copy_tensors
from versatile.data import glue
from versatile.data.encoders import sentence_pair
from versatile.data.files import SAMPLES
from versatile.data.own_tasks import get_own_task, register_own_tasks, relocate
from versatile.data.padding import tensors
from versatile.data.pair_batches import pair_inputs
from versatile.training import evaluation, runs, text_to_text_arguments, text_to_text_evaluation
from versatile.training.text_to_text_model import TextToTextModel
from versatile.training.verification import verify_groups
from versatile.utils import devices
from versatile.utils.errors import UserError


class Combination:
    """Combines tasks of several models of one kind into one model.

    Args:
        into: a combined model whose tasks come first, or None.
        checkpoints: {task: its model's directory}, in the order of their ids.

    Attributes:
        sources: {task: its model's directory}, those of `into` first, each checked by its manifest.
        typed: {task: how the user named it, for errors}.
        requested: the tasks of `checkpoints`.
        flags: {directory: the flags of its run}.
        own: {task: `OwnTask`} of the user's own tasks, with the data that `find_data` was given.
        encoder, script, backbone: of this kind of model: its encoder, training script and backbone.
        kept: flags that the result takes from the runs if they all agree.

    Raises:
        UserError: a directory of another kind, a task it does not hold, a method whose parameters tasks share, or a
            repeated task.
    """

    encoder = script = backbone = None
    kept = ()

    def __init__(self, into, checkpoints):
        self.sources, self.typed, self.flags, self.own, self.requested = {}, {}, {}, {}, set(checkpoints)
        tasks_of_into = self.read_manifest(into, source_flag(into)).tasks if into else ()
        sources = [(task, into, source_flag(into)) for task in tasks_of_into]
        sources += [(task, directory, source_flag(directory, task)) for task, directory in checkpoints.items()]
        for task, directory, flag in sources:
            self.check_source(task, directory, flag)
            if task in self.sources:
                raise repeated_task(flag, task, self.typed[task])
            self.sources[task], self.typed[task] = directory, flag
            if directory not in self.flags:
                self.flags[directory] = self.read_flags(directory)
                register_own_tasks(self.flags[directory].get("task_definitions") or ())
        self.own = {task: own for task in self.sources if (own := get_own_task(task))}

    def read_manifest(self, directory, flag):
        """The `Manifest` of a model of this kind; a `UserError` for any other kind."""
        backbones.need_directory(directory, flag, f"a run directory of {self.script}")
        manifest = peek(directory)
        if manifest is None:
            backbones.require_config(Path(directory), flag, self.script,
                                     f"a run directory of {self.script} that has saved a model")
            raise self.not_adapters(flag, "bare backbone")
        if manifest.encoder != self.encoder:
            raise UserError(f"this is not a model of {self.script}, as another source is", location=flag,
                            expected="models of one kind")  # fmt: skip
        return manifest

    def check_source(self, task, directory, flag):
        """Raise a `UserError` if, according to its manifest, a task cannot be taken out of a directory."""
        manifest = self.read_manifest(directory, flag)
        if task not in manifest.tasks:
            raise missing_task(flag, manifest.tasks, task)
        refuse_shared(manifest, [task], directory)
        if manifest.mode == "full":
            raise self.not_adapters(flag, "fully fine-tuned model")

    def not_adapters(self, flag, what):
        return UserError(f"this is a {what}: a task cannot be taken out of it", location=flag,
                         expected=f"adapters on a frozen {self.backbone}",
                         remedy="train it with --method bottleneck")  # fmt: skip

    def by_directory(self):
        """[(directory, its tasks)], so that each model is loaded only once."""
        return [(directory, [task for task, own in self.sources.items() if own == directory])
                for directory in dict.fromkeys(self.sources.values())]  # fmt: skip

    def build(self):
        """(a model that holds the sources' tasks, in the order of their ids; its tokenizer).

        Raises:
            UserError: two sources differ in their backbone or in how their inputs are made, or a requested task's
                adapter changes nothing.
        """
        known, states, methods, first = {}, {}, {}, None
        for directory, tasks in self.by_directory():
            # Of requested tasks each is checked below; the others are not used.
            model, tokenizer = self.load(directory, allow_idle=not self.requested.isdisjoint(tasks))
            first = first or (model, tokenizer)
            for task in tasks:
                flag = self.typed[task]
                facts = {"backbone's fingerprint": model.backbone_fingerprint,
                         "tokenizer (hash)": tokenizer_hash(tokenizer, len(tokenizer)),
                         **self.facts(model, task, self.flags[directory])}  # fmt: skip
                for what, value in facts.items():
                    expected, earlier = known.setdefault(what, (value, flag))
                    if value != expected:
                        raise UserError(f"its {what} is {value}", location=flag,
                                        expected=f"{expected}, as in {earlier}",
                                        remedy="combine tasks that were trained alike, on the same frozen "
                                        + self.backbone)  # fmt: skip
                methods[task] = self.method(model, task)
                if task in self.requested:
                    model.added[get_method(methods[task]["method"]).name].refuse_idle(task, flag)
                states[task] = {name: state for name, method in model.added.items()
                                if (state := method.task_state(task))}  # fmt: skip
            del model
        model, tokenizer = self.attach(*first, {task: methods[task] for task in self.sources}, states, known)
        for task, state in states.items():
            for name, own in state.items():
                copy_tensors(own, model.added[name].task_state(task), "the combined model")
        return model.eval(), tokenizer

    def find_data(self, named):
        """{task: its data folder, or None if its run does not record one}; a `UserError` if it does not exist.

        Args:
            named: {task: folder} from --data.
        """
        for task in set(self.own) & set(named):
            relocate(task, named[task], "--data")
            self.own[task] = get_own_task(task)
        return {task: own.source for task, own in self.own.items()} | {
            task: evaluation.find_data_folder(
                named.get(task), runs.trained_on(source, task) or self.flags[source].get("data_dir"),
                f"--data {task}=DIR",
            ) for task, source in self.sources.items() if task not in self.own
        }  # fmt: skip

    def result_flags(self, folders):
        """{name: value} of the flags that the result takes from its runs; `folders`: see `find_data`."""
        flags = list(self.flags.values())
        same = {name: flags[0][name] for name in self.kept
                if all(name in own and own[name] == flags[0].get(name) for own in flags)}  # fmt: skip
        data_dirs = {folder for task, folder in folders.items() if task not in self.own}
        return same | dict(task_definitions=[own.to_json() for own in self.own.values()],
                           data_dir=data_dirs.pop() if len(data_dirs) == 1 else None)

    @torch.no_grad()
    def verify(self, directory, args, folders):
        """Compare the model in `directory` with every source, loaded on its own.

        Args:
            args: the flags of combine_all.py.
            folders: see `find_data`; the samples are used for a run that records no folder.

        Returns:
            {task: dict(data, examples, max_abs_difference, and outputs_equal if there are outputs)}

        Raises:
            UserError: a score or an output differs from the source's.
        """
        # The sources' adapters have been checked.
        ours = self.load(directory, allow_idle=True)
        devices.prepare_for_device(ours[0], idist.device(), torch.float32)

        def open_source(source, tasks):
            theirs = self.load(source, allow_idle=True)
            devices.prepare_for_device(theirs[0], idist.device(), torch.float32)
            # Both models registered their own tasks where their runs read them.
            register_own_tasks(self.own.values())
            return theirs

        def compare(theirs, task):
            folder = folders[task] or str(SAMPLES / "glue")
            with evaluation.naming_the_flag(f"--data {task}=DIR"):
                proof, share = self.compare(ours, theirs, task, folder, args)
            return dict(data=folder, **proof), share

        proofs = verify_groups(self.by_directory(), open_source, compare, self.typed)
        return {task: proofs[task] for task in self.sources}

    # ---- of each kind

    def load(self, directory, *, allow_idle):
        """(a trained model, its tokenizer); `allow_idle`: as in `checkpoint.load_checkpoint`."""
        raise NotImplementedError

    def read_flags(self, directory):
        """The flags of a model's run."""
        raise NotImplementedError

    def facts(self, model, task, flags):
        """{what: value} that must be the same in all sources."""
        raise NotImplementedError

    def method(self, model, task):
        """A task's method with all its settings."""
        return model.methods[task]

    def attach(self, first, tokenizer, methods, states, facts):
        """(a new model of all tasks on the backbone of the first source, its tokenizer).

        Args:
            first, tokenizer: the loaded first source.
            methods: {task: method}.
            states: {task: {method: `Method.task_state`}}.
            facts: {what: (value, its source)}, see the method `facts`.
        """
        raise NotImplementedError

    def save(self, model, tokenizer, directory):
        """Write the result."""
        raise NotImplementedError

    def compare(self, ours, theirs, task, folder, args):
        """(a task's entry for `verify`, the difference of scores as a share of the largest); `ours` and `theirs` are
        (model, tokenizer)."""
        raise NotImplementedError


class SentencePairs(Combination):
    """Models of train_camtl.py."""

    encoder, script, backbone = "sentence_pair", "train_camtl.py", "BERT"
    kept = ("freeze_encoder_layers",)
    load, save = staticmethod(bert.load_classifier), staticmethod(bert.save_classifier)

    def read_flags(self, directory):
        return runs.stored_record(directory).get("flags", {})

    def facts(self, model, task, flags):
        return {"longest row": model.max_seq_length}

    def attach(self, first, tokenizer, methods, states, facts):
        # A head has one row per label.
        labels = {task: len(states[task]["heads"]["bias"]) for task in methods}
        model = TaskClassifier(first.bert, labels, "plain", first.max_seq_length, methods)
        for name in ("backbone_fingerprint", "random_init_seed"):
            setattr(model, name, getattr(first, name))
        return model, tokenizer

    def compare(self, ours, theirs, task, folder, args):
        (combined, tokenizer), (single, _) = ours, theirs
        longest, labels = combined.max_seq_length, len(glue.get_task(task).labels or "1")
        split = sentence_pair.load_split(folder, task, "dev", tokenizer, longest, limit=args.proof_examples)
        arrays = pair_inputs([split[i] for i in range(len(split))], tokenizer.pad_token_id, longest)
        scores = [[model(**tensors(arrays), task_ids=torch.full((len(split),), model.task_id(task))).scores[:, :labels]]
                  for model in (combined, single)]  # fmt: skip
        gap, share = compare_scores(zip(*scores))
        return dict(examples=len(split), max_abs_difference=gap), share


class TextToText(Combination):
    """Models of train_t5.py."""

    encoder, script, backbone = "text_to_text", "train_t5.py", "T5"
    kept = ("adapter_config_name", "max_source_length", "val_max_target_length", "test_max_target_length", "data_seed",
            "train_adapters", "split_validation_test", "eval_beams", "load_best_model_at_end")  # fmt: skip
    load, save = staticmethod(t5.load_t5), staticmethod(t5.save_t5)

    def read_flags(self, directory):
        return text_to_text_arguments.restored(*runs.run_flags(directory))

    def facts(self, model, task, flags):
        facts = {f"--{name}": flags.get(name) for name in ("max_source_length", "train_adapters",
                                                           "split_validation_test")}  # fmt: skip
        if flags.get("split_validation_test"):
            facts["--data_seed"] = flags.get("data_seed")
        if model.methods[task]["method"] == "adapters":
            facts |= {f"--{name}": getattr(model.settings, name) for name in _OF_ALL_ADAPTERS}
        return facts

    def method(self, model, task):
        method = model.methods[task]
        if method["method"] == "adapters":
            method = dict(reduction_factor=model.settings.reduction_factor) | method
        return method_of(method)

    def attach(self, first, tokenizer, methods, states, facts):
        model, tokenizer = t5.load_frozen(next(iter(self.sources.values())))
        settings = {name: facts[f"--{name}"][0] for name in _OF_ALL_ADAPTERS if f"--{name}" in facts}
        settings = t5.T5Settings(method=COMBINED_T5, **settings)
        return t5.attach(model, list(methods), settings, methods=methods), tokenizer

    def compare(self, ours, theirs, task, folder, args):
        outputs, scores, source = [], [], self.sources[task]
        for model, tokenizer in (ours, theirs):
            text_model = TextToTextModel(model, tokenizer)
            text_model.bind_run(source, self.flags[source])
            flags, data = text_model.flags, Namespace(data_dir=folder, eval_beams=1)
            lengths = (text_model.longest, flags.get("val_max_target_length", 128))
            split = text_to_text_evaluation.read_splits(
                [task], "validation", data, tokenizer, {task: model.task_id(task)}, lengths=lengths,
                limit=args.proof_examples, seed=flags.get("data_seed", 42),
                held_out=flags.get("split_validation_test", False), prefix=text_model.has_prefix,
                print_line=lambda line: None,
            )[task]  # fmt: skip
            rows, sources = split.rows, split.rows.sources.lengths()
            outputs.append(text_model.generate(rows, sources, min(split.length, args.proof_tokens), 1))
            scores.append([model(**batch).logits for _, batch in text_model.batches(rows, sources)])
        gap, share = compare_scores(zip(*scores))
        return dict(examples=len(outputs[0]), max_abs_difference=gap,
                    outputs_equal=sum(a == b for a, b in zip(*outputs))), share  # fmt: skip


# Settings shared by all published adapters of a T5.
_OF_ALL_ADAPTERS = ("non_linearity", "add_layer_norm_before_adapter", "add_layer_norm_after_adapter")
KINDS = (SentencePairs, TextToText)


def combination_class(directories):
    """The `Combination` for the first model in these directories that has one, or None."""
    encoders = [manifest.encoder for manifest in map(peek, directories) if manifest]
    return next((kind for encoder in encoders for kind in KINDS if kind.encoder == encoder), None)
