"""Base class of all strategies against forgetting: hooks before, during and after each task of a sequence."""

import json
import textwrap

from versatile.utils.errors import UserError, first_line


class Strategy:
    """A strategy whose hooks do nothing; subclasses override what they need.

    Args:
        sequence: `learning.Sequence`, of which a strategy may use `args` (the flags), `model`, `tokenizer`,
            `encoder`, `data` ({task: its samples}), `sizes`, `folder`, `dtype`, `rank`, `world`,
            `encode(task, indices, replayed)` and `make_batches(rows, objective, ...)`.

    Class attributes:
        name: value of --seq_train_type; "" for an abstract class.
        order: position in `--help`.
        summary, published: description with formula and paper; the published settings.
        flags: {flag: options of `add_argument`} for train_lifelong.py. Strategies may share flags.
        naming_flags: the same for flags that define a separate run with its own directory; both scripts take them.
        titles: {name of a naming flag: words for the title of a plot}.
        is_published: one of LAMOL's strategies, whose scripts pass every strategy's settings to all of them.
        joint: all tasks are trained at once, as one stage.
        generates_samples: the model is also trained to generate samples: the loss includes λ·lm.
        no_teacher, no_own_adapters: why the strategy does not support --distil or --own_adapters; None: it does.
        replay_weight: see `losses.Objective`.
        chained: a task's rows also go through the adapters of earlier tasks (`adapters.attach.chain_tasks`).
        memory_share: share of the device's memory in MiB that is used as the budget of a batch (LAMOL).
        state_file: name of the file in a stage's directory that holds `state_dict()`: .json or .pt; None: no state.
        transient_state: only the newest stage's state is kept, and none after the last stage.
    """

    name, order, summary, published = "", 100, "", ""
    flags, naming_flags, titles = {}, {}, {}
    joint = generates_samples = transient_state = chained = is_published = False
    memory_share = 0.58
    state_file = no_teacher = no_own_adapters = replay_weight = None

    def __init__(self, sequence):
        self.sequence, self.settings = sequence, sequence.args

    # ---- flags

    @classmethod
    def help_text(cls):
        """The description in `--help`."""
        text = cls.summary + (f" Published: {cls.published}." if cls.published else "")
        return textwrap.fill(text, 100)

    @classmethod
    def complete(cls, settings):
        """Set the flags that the strategy implies, before they are checked."""

    @classmethod
    def attached_method(cls, method, tasks):
        """The adaptation method to attach for this number of tasks, given the complete dict of --method."""
        return method

    @classmethod
    def check(cls, settings):
        """Reject flags that are incompatible with this strategy.

        Raises:
            UserError: names the flag and the reason.
        """
        from versatile.lifelong.strategies import STRATEGIES

        own, others = {flag.lstrip("-") for flag in cls.flags | cls.naming_flags}, {}
        for other in STRATEGIES.values():
            for flag in other.chosen_flags(settings):
                others.setdefault(flag, []).append(other.name)
        for flag, names in others.items():
            if flag in own:
                continue
            raise UserError(f"{cls.name} does not use it", location=f"--{flag}",
                            expected=f"--{flag} requires --seq_train_type {' or '.join(names)}",
                            remedy="leave it out")  # fmt: skip
        if cls.joint:
            cls.check_joint(settings)
        cls.check_training(settings)

    @classmethod
    def chosen_flags(cls, settings):
        """Names of its flags that differ from their defaults; for `is_published` strategies, whose settings the
        original scripts pass to every strategy, only flags that are off by default."""
        chosen = []
        for flag, options in (cls.naming_flags | cls.flags).items():
            name, default = flag.lstrip("-"), options.get("default")
            was_off = default is None or default is False
            value = getattr(settings, name, default)
            if value not in (None, False) if was_off else value != default and not cls.is_published:
                chosen.append(name)
        return chosen

    @classmethod
    def check_training(cls, settings):
        """Reject adaptation methods and forms of distillation that the strategy does not support."""
        reasons = {
            "distil": (settings.distil, cls.no_teacher, "use --seq_distil, or leave it out"),
            "own_adapters": (settings.own_adapters, cls.no_own_adapters, "leave it out"),
        }
        for flag, (is_given, reason, remedy) in reasons.items():
            if is_given and reason:
                raise UserError(f"cannot be combined with --seq_train_type {cls.name}: {reason}", location=f"--{flag}",
                                remedy=remedy)  # fmt: skip
        cls.check_method(settings)

    @classmethod
    def check_method(cls, settings):
        """Reject an adaptation method that the strategy does not support."""
        from versatile.adapters.methods.registry import FULL
        from versatile.lifelong.sequence import choose_method

        chosen = choose_method(settings)
        method = chosen["method"] if chosen else FULL
        if refusal := cls.method_refusal(method):
            adaptation = "training the whole model" if method == FULL else f"the method {method}"
            raise UserError(f"cannot be combined with {adaptation}: {refusal[0]}",
                            location=f"--seq_train_type {cls.name}", remedy=refusal[1])  # fmt: skip

    @classmethod
    def method_refusal(cls, method):
        """(why an adaptation method is not supported, what to do instead), or None if it is.

        Args:
            method: its name; "full": the whole model is trained.
        """

    @classmethod
    def check_joint(cls, settings):
        """Reject flags that require tasks to be trained one after another."""
        at_once = f"{cls.name} trains all tasks at once"
        reasons = {
            "distil": (settings.distil, "a teacher knows one task", "use --seq_distil"),
            "unbound": (settings.unbound, "there is no first part", "leave it out"),
            "dynamic_epochs": (settings.dynamic_epochs, "no task has epochs of its own", "leave it out"),
        }
        for flag, (is_given, reason, remedy) in reasons.items():
            if is_given:
                raise UserError(f"{at_once}, {reason}", location=f"--{flag}", remedy=remedy)

    @classmethod
    def directory_ending(cls, settings):
        """The part of a sequence directory's name that follows the tasks."""
        return f"seed_{settings.seed}"

    @classmethod
    def describe_variant(cls, settings):
        """Words for the title of a plot, in addition to the strategy's name."""
        return [words for flag, words in cls.titles.items() if getattr(settings, flag, None)]

    # ---- training

    def training_rows(self, rows):
        """Rows of the stage's own samples to train on.

        Args:
            rows: {task: encoded rows of its samples} for the stage's tasks.

        Returns:
            a sequence of rows.
        """
        from versatile.data.row_store import RowChain

        return RowChain(rows.values())

    def before_task(self, seen, new):
        """Replayed rows, trained on in addition to the new task's own.

        Args:
            seen: names of the tasks trained so far, in order.
            new: names of the tasks of the next stage: one, or all if the strategy is `joint`.

        Returns:
            a list of rows with `replayed` set.
        """
        return []

    def companions(self, epoch, step, count):
        """Rows added to a batch of `count` of the stage's own rows.

        Args:
            epoch, step: of the batch; together with the seed and the stage they determine all randomness.

        Returns:
            a list of rows with `replayed` set; the same in every process.
        """
        return []

    def loss_terms(self):
        """Terms added to the next stage's loss: see `losses.WeightedLoss`."""
        return []

    def callbacks(self):
        """Callbacks that act on the next stage's gradients and steps: a list of
        `training.callbacks.Callback`."""
        return []

    def after_task(self, task, batches):
        """Record what later tasks need of a task that has been trained; not called after the last.

        Args:
            task: its name.
            batches: function without arguments that returns `LifelongBatches` of all rows the stage was trained on,
                with only the answers as labels, not sharded over processes.
        """

    def metrics(self):
        """The strategy's entries in a stage's training_metrics.json."""
        return {}

    # ---- state

    def kept_bytes(self):
        """Size in bytes of the samples kept for later tasks."""
        return 0

    def state_dict(self):
        """The state that the next task needs: tensors (.pt) or json values (.json)."""
        return {}

    def load_state_dict(self, state):
        """Restore what `state_dict` returned."""

    def save_state(self, folder):
        """Write `state_dict()` into a stage's directory."""
        from versatile.utils.files import atomic_write, write_json

        path = folder / self.state_file
        if path.suffix == ".json":
            return write_json(path, self.state_dict())
        import torch

        with atomic_write(path, "wb") as file:
            torch.save(self.state_dict(), file)

    def read_state(self, path):
        """Contents of a state file; `load_state` turns any exception into a `UserError`."""
        if path.suffix == ".json":
            return json.loads(path.read_text(encoding="utf-8"))
        import torch

        return torch.load(path, "cpu", weights_only=True)

    def load_state(self, folder, remedy):
        """Read what `save_state` wrote.

        Args:
            folder: the directory of the last finished stage.
            remedy: the remedy that an error suggests.

        Raises:
            UserError: the file is missing, damaged, or belongs to another model.
        """
        path = folder / self.state_file
        try:
            self.load_state_dict(self.read_state(path))
        except UserError:
            raise
        except FileNotFoundError:
            raise UserError(f"missing: {self.name} keeps its state of the trained tasks there", location=path,
                            remedy=remedy) from None  # fmt: skip
        except Exception as error:
            # Any damage to the file: torch's readers raise many kinds of exceptions.
            raise UserError(f"damaged, or of another model: {first_line(error)}", location=path, remedy=remedy,
                            expected=f"the file that train_lifelong.py wrote for {self.name}") from error  # fmt: skip
