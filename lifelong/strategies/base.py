"""What a strategy against forgetting is: what happens before, in and after each task of a sequence."""

import json
import textwrap

from versatile.utils.errors import UserError, first_line


class Strategy:
    """A strategy; the methods do nothing against forgetting.

    Args:
        sequence: `learning.Sequence`, with what a strategy may use: `args` (the flags), `model`, `tokenizer`,
            `encoder`, `data` ({task: its samples}), `sizes`, `folder`, `dtype`, `rank`, `world`,
            `encode(task, indices, replayed)` and `make_batches(rows, objective, ...)`.

    Attributes of a class:
        name: of --seq_train_type; "": an abstract class.
        order: its position in `--help`.
        summary, published: what it does, with its formula and paper; the published settings.
        flags: {flag: options of `add_argument`} of train_lifelong.py. Strategies may share one.
        naming_flags: the same for flags that make another run, with a directory of its own; both scripts have them.
        titles: {such a flag's name: words for the title of a picture}.
        is_published: it is one of LAMOL's, whose scripts give every strategy's settings to all.
        joint: all tasks are trained at once, as one stage.
        generates_samples: the model is trained to generate samples, too: the loss has its λ·lm.
        no_teacher, no_own_adapters: why --distil, --own_adapters do not go with it, or None: they do.
        replay_weight: see `losses.Objective`.
        chained: a task's rows go through the adapters of the tasks before, too (`adapters.attach.chain_tasks`).
        memory_share: share of the device's memory in MiB that a batch's budget is (LAMOL).
        state_file: name of the file in a stage's directory that keeps `state_dict()`: .json or .pt; None: no state.
        transient_state: only the newest stage's state is kept, and none after the last.
    """

    name, order, summary, published = "", 100, "", ""
    flags, naming_flags, titles = {}, {}, {}
    joint = generates_samples = transient_state = chained = is_published = False
    memory_share = 0.58
    state_file = no_teacher = no_own_adapters = replay_weight = None

    def __init__(self, sequence):
        self.sequence, self.settings = sequence, sequence.args

    # ---- what the flags mean

    @classmethod
    def help_text(cls):
        """The description in `--help`."""
        text = cls.summary + (f" Published: {cls.published}." if cls.published else "")
        return textwrap.fill(text, 100)

    @classmethod
    def complete(cls, settings):
        """Set the flags that it implies, before they are checked."""

    @classmethod
    def attached_method(cls, method, tasks):
        """How the backbone is adapted for a sequence of so many tasks, where --method (a complete dict) was given."""
        return method

    @classmethod
    def check(cls, settings):
        """Refuse flags that do not go with this strategy.

        Raises:
            UserError: with the flag and the reason.
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
                            expected=f"--{flag} goes with --seq_train_type {' or '.join(names)}",
                            remedy="leave it out")  # fmt: skip
        if cls.joint:
            cls.check_joint(settings)
        cls.check_training(settings)

    @classmethod
    def chosen_flags(cls, settings):
        """Names of its flags that have another value than by default; of settings that the originals' scripts pass to
        every strategy (`is_published`) only those that were off."""
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
        """Refuse ways of training that it does not go with: of adapting, of teaching."""
        reasons = {
            "distil": (settings.distil, cls.no_teacher, "use --seq_distil, or leave it out"),
            "own_adapters": (settings.own_adapters, cls.no_own_adapters, "leave it out"),
        }
        for flag, (is_given, reason, remedy) in reasons.items():
            if is_given and reason:
                raise UserError(f"does not go with --seq_train_type {cls.name}: {reason}", location=f"--{flag}",
                                remedy=remedy)  # fmt: skip
        cls.check_method(settings)

    @classmethod
    def check_method(cls, settings):
        """Refuse a way of adapting that it does not go with."""
        from versatile.adapters.methods.registry import FULL
        from versatile.lifelong.sequence import choose_method

        chosen = choose_method(settings)
        method = chosen["method"] if chosen else FULL
        if refusal := cls.method_refusal(method):
            adaptation = "training the whole model" if method == FULL else f"the method {method}"
            raise UserError(f"does not go with {adaptation}: {refusal[0]}", location=f"--seq_train_type {cls.name}",
                            remedy=refusal[1])  # fmt: skip

    @classmethod
    def method_refusal(cls, method):
        """(why it does not go with a way of adapting, what to do), or None: it does.

        Args:
            method: its name; "full": the whole model is trained.
        """

    @classmethod
    def check_joint(cls, settings):
        """Refuse what needs one task after another."""
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
        """What follows the tasks in the name of a sequence's directory."""
        return f"seed_{settings.seed}"

    @classmethod
    def describe_variant(cls, settings):
        """Words for the title of a picture, beside the strategy's name."""
        return [words for flag, words in cls.titles.items() if getattr(settings, flag, None)]

    # ---- training

    def training_rows(self, rows):
        """What a stage's own samples add to its training.

        Args:
            rows: {task: encoded rows of its samples} of the stage's tasks.

        Returns:
            a sequence of rows.
        """
        from versatile.data.row_store import RowChain

        return RowChain(rows.values())

    def before_task(self, seen, new):
        """Rows that are trained on beside the new task's own: what is replayed.

        Args:
            seen: names of the tasks trained so far, in order.
            new: names of the tasks of the coming stage: one, or all where the strategy is `joint`.

        Returns:
            a list of rows, `replayed` set.
        """
        return []

    def companions(self, epoch, step, count):
        """Rows that are trained on in the same batch as `count` of the stage's own.

        Args:
            epoch, step: of the batch; with the seed and the stage they decide what is random.

        Returns:
            a list of rows, `replayed` set; the same in every process.
        """
        return []

    def loss_terms(self):
        """What is added to the coming stage's loss: see `losses.WeightedLoss`."""
        return []

    def callbacks(self):
        """What acts on the coming stage's gradients and steps: a list of
        `training.callbacks.Callback`."""
        return []

    def after_task(self, task, batches):
        """Take note of a task that has been trained; not called after the last.

        Args:
            task: its name.
            batches: called without arguments: `LifelongBatches` of all rows that the stage was trained on, with the
                answers alone as labels, whole in every process.
        """

    def metrics(self):
        """What a stage's training_metrics.json says of it."""
        return {}

    # ---- state

    def kept_bytes(self):
        """Bytes of the samples that it keeps for the tasks to come."""
        return 0

    def state_dict(self):
        """What the next task has to know: of tensors (.pt) or of what json can tell (.json)."""
        return {}

    def load_state_dict(self, state):
        """From one."""

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
        """What a state file holds; `load_state` makes an error of whatever is raised."""
        if path.suffix == ".json":
            return json.loads(path.read_text(encoding="utf-8"))
        import torch

        return torch.load(path, "cpu", weights_only=True)

    def load_state(self, folder, remedy):
        """Read what `save_state` wrote.

        Args:
            folder: the directory of the stage that was finished last.
            remedy: for the error.

        Raises:
            UserError: the file is missing, damaged, or of another model.
        """
        path = folder / self.state_file
        try:
            self.load_state_dict(self.read_state(path))
        except UserError:
            raise
        except FileNotFoundError:
            raise UserError(f"missing: {self.name} keeps there what it knows of the tasks trained", location=path,
                            remedy=remedy) from None  # fmt: skip
        except Exception as error:
            # Whatever is wrong with the file: torch's readers raise of many kinds.
            raise UserError(f"damaged, or of another model: {first_line(error)}", location=path, remedy=remedy,
                            expected=f"what train_lifelong.py wrote for {self.name}") from error  # fmt: skip
