"""The one training loop.

An iteration is one optimizer step: `accumulation` micro-batches, each loss averaged over its labels in all
processes, their gradients averaged, clipped once, applied once. Everything random depends on (seed, step)
alone, so a run resumed from a checkpoint repeats the run that was never stopped, bit for bit on a CPU.
"""

import contextlib
import math
import signal
import sys
import time
from dataclasses import dataclass

import ignite.distributed as idist
import numpy as np
import torch
from ignite.engine import Engine, Events
from ignite.handlers import ProgressBar
from versatile.training.board import Board
from versatile.training.objectives import CrossEntropy, negative_log_likelihood
from versatile.training.optimizers import AdamW, parameter_groups
from versatile.training.trainer_state import check_state, load_optimizer
from versatile.utils.devices import autocast, peak_memory_mb
from versatile.utils.errors import UserError, first_line
from versatile.utils.interrupts import Signals, say_above_bar


@dataclass
class Settings:
    """How to train. Flags of the same names set these; see `train.py --help`."""

    lr: float
    n_epochs: int
    gradient_accumulation_steps: int = 1
    max_norm: float = 1.0
    warmup_steps: int = 0
    weight_decay: float = 0.0
    adam_eps: float = 1e-6
    max_steps: int | None = None
    seed: int = 42
    save_steps: int | None = None
    early_stopping: int | None = None
    select: str = "best"
    eval_before_start: bool = False
    log_every: int = 10
    # A point of the curve is the mean loss of the steps since the one before, not the step's own.
    mean_loss: bool = False
    log_first: bool = False
    # The model is evaluated after each epoch and at the end, and after so many steps.
    eval_epochs: bool = True
    eval_steps: int | None = None
    dtype: torch.dtype = torch.float32
    # What the flags are called, for messages.
    rate_flag: str = "--lr"
    batch_flag: str = "--train_batch_size"


@dataclass
class Report:
    """What an evaluation found.

    Attributes:
        scores: {task: a number, the lower the better}; of what is judged together under `TOGETHER`.
        row: what the history holds of it.
        line: what is printed; "%s" is where it says that this is the best so far.
        scalars: {group: {name: number}} for TensorBoard.
        loss: must be a finite number.
        loss: the loss, which must be a finite number.
    """

    scores: dict
    row: dict
    line: str
    scalars: dict
    loss: float = 0.0


TOGETHER = "all"
# Without a terminal there is no bar; a line is printed this often instead.
QUIET_SECONDS = 20


def refuse_other_data(stored, found, location):
    """A `UserError` where the data of a run are not those that a checkpoint was trained with.

    Args:
        stored, found: keys of their content: strings, or {split: string}.
        location: the checkpoint.
    """
    if stored == found:
        return
    which = ""
    if isinstance(stored, dict) and isinstance(found, dict):
        changed = [split for split in {**stored, **found} if stored.get(split) != found.get(split)]
        which = f" ({' and '.join({'train': 'training', 'valid': 'validation'}.get(s, s) for s in changed)})"
    raise UserError(f"the data have changed since this run was started{which}", location=location,
                    expected="the same data files, tokenizer and limits",
                    remedy="put them back, or start a new run")  # fmt: skip


class Diverged(Exception):
    """The loss is no longer a number."""


class Trainer:
    """Trains a model and keeps its run directory.

    Args:
        model: its parameters with `requires_grad` are trained.
        train: batches: `plan(epoch)` of some length, `batch(epoch, step)` -> (tensors, labels in all processes). What
            it has to remember, if anything, is in its `state_dict()`.
        valid: {task: the same for validation}, whose negative log-likelihood decides which model is the best; or None.
        settings: `Settings`.
        run: `training.runs.Run`.
        save_model: called with a directory, writes the model files there.
        load_model: called with a directory, loads what `save_model` wrote.
        data_key: names the content of the data, a string or {split: string}; a checkpoint of other data is refused.
        separate: tasks share no trained parameter: each keeps its own best epoch, and stops by itself.
        save_best: called with (directory, tasks that have a new best), instead of `save_model` for the best model.
        objective: see `training.objectives`; default: cross-entropy.
        owners: {task: parameters that only its rows use}: they rest in a step without such rows.
        resume_command: printed when the run is stopped early.
        optimizer: what is stepped (default: `AdamW` of the settings).
        schedule: called with an optimizer step's number, from 0, returns its rate (default: see `learning_rate`).
        evaluate: called without arguments, returns a `Report`, in place of `valid`.
        project: called with an optimizer step's number when its gradients are clipped; may change them.
        smaller: called with the error of a step that failed; True: its batches are now lists of smaller parts, whose
            losses add up to theirs, and the step is taken again.
    """

    def __init__(self, model, train, valid, settings, run, save_model, load_model, data_key="", separate=False,
                 save_best=None, objective=None, owners=None, resume_command="", schedule=None, project=None,
                 smaller=None, optimizer=None, evaluate=None):  # fmt: skip
        self.model, self.train, self.valid, self.settings, self.run = model, train, valid, settings, run
        self.save_model, self.load_model, self.data_key = save_model, load_model, data_key
        self.separate, self.objective, self.resume_command = separate, objective or CrossEntropy(), resume_command
        self.schedule, self.project, self.smaller = schedule, project, smaller
        self.owners = owners if owners and len(owners) > 1 else {}
        self.save_best = save_best or (lambda folder, tasks: save_model(folder))
        self.device, self.world = idist.device(), idist.get_world_size()
        self.rank0 = idist.get_rank() == 0
        self.batches = len(train.plan(0))
        self.epoch_steps = math.ceil(self.batches / settings.gradient_accumulation_steps)
        self.total_steps = self.epoch_steps * settings.n_epochs
        if settings.max_steps:
            self.total_steps = min(self.total_steps, settings.max_steps)
        self.epochs = math.ceil(self.total_steps / self.epoch_steps)
        model.to(self.device)
        self.params = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = optimizer or AdamW(
            parameter_groups(model, settings.weight_decay), lr=settings.lr, eps=settings.adam_eps,
            fused=self.device.type != "xla",
        )  # fmt: skip
        self.evaluate = evaluate or (self.validate if valid is not None else None)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=settings.dtype == torch.float16)
        self.parallel = model
        if self.world > 1:
            # Buffers never change in training: there is nothing in them to pass on.
            # A batch without rows of a task leaves that task's parameters without a gradient.
            several = len(train.splits) > 1
            self.parallel = idist.auto_model(model, find_unused_parameters=several, forward_sync_buffers=False)
        # Losses since the last point of the curve are in the history, which a checkpoint carries.
        # What a checkpoint carries beside weights and optimizer.
        # The first three are by task, or by TOGETHER where tasks are judged by their mean.
        self.best, self.best_step, self.waited, self.seconds, self.tokens = {}, {}, {}, 0.0, 0
        self.history = {"train": [], "valid": []} | ({"since": []} if settings.mean_loss else {})
        self.stop = None
        self.signals = Signals()
        # Where TensorBoard's events go; None: into the run's directory.
        self.board_folder = None
        self._mark, self._logged, self._told = None, (0.0, 0), time.monotonic()

    # ---- one optimizer step

    def learning_rate(self, step):
        """Rate of optimizer step `step` (from 0): linear warm-up, then linear decay to 0 at the end."""
        if self.schedule:
            return self.schedule(step)
        warmup = self.settings.warmup_steps
        if step < warmup:
            return self.settings.lr * (step + 1) / warmup
        return self.settings.lr * (self.total_steps - step) / max(1, self.total_steps - warmup)

    def windows(self, first):
        """Micro-batches of each optimizer step from `first` on; a window never crosses an epoch's end."""
        for step in range(first, self.total_steps):
            yield [self.train.batch(epoch, i) for epoch, i in self.micro_batches(step)]

    def micro_batches(self, step):
        """[(epoch, number in the epoch)] of an optimizer step's micro-batches."""
        size = self.settings.gradient_accumulation_steps
        epoch, start = divmod(step, self.epoch_steps)
        return [(epoch, i) for i in range(start * size, min((start + 1) * size, self.batches))]

    def rest(self, step):
        """Drop the gradients of tasks without a row in this step, in any process.

        They are zeros where a table is looked up as a whole; momentum and weight decay would move what stands still.
        """
        if self.owners:
            present = set().union(*(self.train.present(epoch, i) for epoch, i in self.micro_batches(step)))
            for task, parameters in self.owners.items():
                if task not in present:
                    for p in parameters:
                        p.grad = None

    def take_step(self, engine, window):
        """`step`, whose loss is noted for the next point of the curve."""
        output = self.step(engine, window)
        if self.settings.mean_loss:
            self.history["since"].append(output["loss"])
        return output

    def step(self, engine, window):
        """One optimizer step over a window of micro-batches."""
        step = engine.state.iteration - 1
        self.model.train()
        seed_step(self.settings.seed, step, idist.get_rank())
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate(step)
        window = [(batch, labels) for batch, labels in window if labels]
        if not window:
            # Only rows of tasks that have stopped.
            return engine.state.output or dict(loss=0.0, ppl=1.0, lr=self.learning_rate(step), grad_norm=0.0)
        while True:
            try:
                total, tokens = self.backward(window)
                break
            except RuntimeError as error:
                # Other processes would wait for this one's gradients.
                if self.world > 1 or not (self.smaller and self.smaller(error)):
                    raise
            self.optimizer.zero_grad(set_to_none=True)
            window = [self.train.batch(*location) for location in self.micro_batches(step)]
        self.rest(step)
        self.scaler.unscale_(self.optimizer)
        norm = torch.nn.utils.clip_grad_norm_(self.params, self.settings.max_norm)
        if self.project:
            self.project(step)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.gather(total)
        if not math.isfinite(loss):
            raise Diverged(f"the loss is {loss} at step {step + 1} (epoch {step // self.epoch_steps + 1})")
        if not math.isfinite(norm) and not self.scaler.is_enabled():
            raise Diverged(f"the gradient norm is {float(norm)} at step {step + 1}")
        self.tokens += self.gather(tokens, int)
        return dict(loss=loss, ppl=math.exp(min(loss, 50)), lr=self.learning_rate(step), grad_norm=float(norm))

    def backward(self, window):
        """Add up a window's gradients; returns (its loss, its tokens), this process's share."""
        total, tokens = torch.zeros((), device=self.device), 0
        parts = [(part, labels) for batch, labels in window for part in (batch if isinstance(batch, list) else [batch])]
        for i, (batch, labels) in enumerate(parts):
            tokens += int(batch["attention_mask"].sum())
            wait = self.world > 1 and i + 1 < len(parts)
            with self.parallel.no_sync() if wait else contextlib.nullcontext():
                with autocast(self.device, self.settings.dtype):
                    loss = self.objective(self.parallel, batch, labels)
                # DDP averages gradients over processes; each holds its share of one global mean.
                self.scaler.scale(loss * self.world / len(window)).backward()
            total += loss.detach() / len(window)
        return total, tokens

    @torch.no_grad()
    def refuse_diverged(self, step):
        """`Diverged` where a trained weight is not a finite number; they are the same in all processes."""
        sums = [p.float().sum() for p in self.params]
        if sums and not bool(torch.stack(sums).isfinite().all()):
            raise Diverged(f"a trained weight is inf or nan at step {step}")

    def gather(self, value, kind=float):
        """The sum of a number over all processes."""
        return kind(idist.all_reduce(value)) if self.world > 1 else kind(value)

    # ---- validation

    def validate(self):
        """The `Report` of the negative log-likelihoods per token of all tasks' validation sets."""
        started, scores = time.monotonic(), {}
        for task, batches in self.valid.items():
            total, count = negative_log_likelihood(self.model, batches, self.settings.dtype)
            scores[task] = self.gather(total) / count
        mean = _scores(sum(scores.values()) / len(scores))
        tasks = {task: _scores(nll) for task, nll in scores.items()} if len(scores) > 1 else {}
        parts = ", ".join(f"{task} {s['nll']:.4f}" for task, s in tasks.items())
        line = (f"valid NLL {mean['nll']:.4f}{' = mean of ' if parts else ''}{parts}, PPL {mean['ppl']:.3f}%s, "
                f"{time.monotonic() - started:.0f} s")  # fmt: skip
        scalars = {"valid": mean, **{f"valid/{task}": own for task, own in tasks.items()}}
        return Report(scores if self.separate else {TOGETHER: mean["nll"]},
                      mean | (dict(tasks=tasks) if tasks else {}), line, scalars, mean["nll"])  # fmt: skip

    def check(self, step):
        """Evaluate, keep the best model, decide on early stopping. Without an evaluation: keep the last."""
        if self.evaluate is None:
            return self.keep_last(step)
        report = self.evaluate()
        if not math.isfinite(report.loss):
            raise Diverged(f"the validation loss is {report.loss} after step {step}")
        self.history["valid"].append(dict(step=step, **report.row))
        better = self.update_best(step, report.scores)
        if self.settings.select == "last":
            self.on_rank0(lambda: self.run.save_best(self.save_model))
        elif better:
            self.on_rank0(lambda: self.run.save_best(lambda folder: self.save_best(folder, better)))
        of = f": {', '.join(better)}" if self.separate and len(better) < len(report.scores) else ""
        self.say(f"step {step}: " + report.line.replace("%s", f" (best so far{of})" if better else ""))
        if self.board:
            for group, scalars in report.scalars.items():
                self.board.add(step, group, scalars)
        self.stop_tasks(step)

    def keep_last(self, step):
        """Keep the model as it stands."""
        self.best_step = self.best_step or {TOGETHER: step}
        self.on_rank0(lambda: self.run.save_best(self.save_model))

    def update_best(self, step, scores):
        """Note each task's (or all tasks' mean) best score; returns the names that have a new one."""
        better = [name for name, score in scores.items() if score < self.best.get(name, math.inf)]
        for name, score in scores.items():
            self.waited[name] = self.waited.get(name, 0) + 1
            if name in better:
                self.best[name], self.best_step[name], self.waited[name] = score, step, 0
        return better

    def stop_tasks(self, step=None):
        """Leave out the tasks that --early_stopping has come true for; stop when none is left."""
        patience = self.settings.early_stopping
        done = {name for name, waited in self.waited.items() if patience and waited >= patience}
        if step is not None and step < self.total_steps and done - self.train.skip - {TOGETHER}:
            self.say(f"no better validation loss for {patience} epochs: stopping {', '.join(sorted(done))}")
        if done and len(done) == len(self.waited):
            if step is not None and step < self.total_steps:
                self.say(f"no better validation loss for {patience} epochs: stopping early")
            self.stop = "early"
        elif self.separate:
            self.train.skip = done

    # ---- checkpoints

    def state(self, step):
        """All a resumed run needs beside the model files."""
        return dict(
            step=step, optimizer=self.optimizer.state_dict(), scaler=self.scaler.state_dict(), data_key=self.data_key,
            world=self.world, best=self.best, best_step=self.best_step, waited=self.waited, tokens=self.tokens,
            seconds=self.seconds, history=self.history,
            batches=self.train.state_dict() if hasattr(self.train, "state_dict") else None,
        )  # fmt: skip

    def save(self, step):
        """Write a checkpoint of this moment."""
        self.on_rank0(lambda: self.run.save_checkpoint(step, self.state(step), self.save_model))

    def restore(self):
        """Load the newest checkpoint of the run; returns the optimizer steps already taken."""
        step, state = self.run.load_checkpoint(self.load_model, check_state)
        if state is None:
            return 0
        location = self.run.checkpoint(step)
        refuse_other_data(state["data_key"], self.data_key, location)
        if state["world"] != self.world:
            raise UserError(f"the run had {state['world']} processes, now there are {self.world}", location=location,
                            remedy=f"resume with torchrun --nproc_per_node {state['world']}")  # fmt: skip
        if step > self.total_steps:
            raise UserError(f"it is of step {step}, the run has {self.total_steps}", location=location,
                            remedy="remove it: the run resumes from the checkpoint before")  # fmt: skip
        load_optimizer(state, self.optimizer, self.scaler, location)
        for name in ("best", "best_step", "waited", "tokens", "seconds", "history"):
            setattr(self, name, state[name])
        if state.get("batches") is not None:
            self.train.load_state_dict(state["batches"])
        self.stop_tasks()
        return step

    def on_rank0(self, work):
        """Do something in the first process while the others wait."""
        if self.rank0:
            work()
        if self.world > 1:
            idist.barrier()

    def clock(self):
        """Add the time since the last call to the run's training seconds."""
        now = time.monotonic()
        self.seconds += now - (self._mark or now)
        self._mark = now

    # ---- the loop

    def fit(self):
        """Train to the end, or to an interruption.

        Returns:
            dict for metrics.json.

        Raises:
            SystemExit: 128 + the signal's number, after SIGINT or SIGTERM saved a checkpoint.
            UserError: the loss is not a number.
        """
        first = self.restore()
        self._logged = (self.seconds, self.tokens)
        engine = Engine(self.take_step)
        engine.logger.disabled = True
        self.board = Board(self.board_folder or self.run.directory, first) if self.rank0 else None
        self._attach(engine)
        self._mark = time.monotonic()
        if first:
            over = first >= self.total_steps or self.stop == "early"
            self.say("this run is already finished" if over else f"resuming after step {first} of {self.total_steps}")
            # Without max_epochs ignite would take this for a new run and count from 0.
            engine.load_state_dict(dict(iteration=first, epoch_length=self.epoch_steps, max_epochs=self.epochs))
        if first < self.total_steps and self.stop != "early":
            with self.signals:
                self._run(engine, first)
        if isinstance(self.stop, int):
            raise SystemExit(128 + self.stop)
        return self.summary(engine.state.iteration)

    def _run(self, engine, first):
        try:
            if first == 0 and self.settings.eval_before_start and self.evaluate:
                self.check(0)
            engine.run(self.windows(first), max_epochs=self.epochs, epoch_length=self.epoch_steps)
        except Diverged as error:
            raise UserError(
                str(error), location=self.run.directory,
                remedy=f"lower {self.settings.rate_flag} (it was {self.settings.lr:g}) or --max_norm, or train in "
                       "--fp32; the checkpoints written before are still there",
            ) from error  # fmt: skip
        except torch.OutOfMemoryError as error:
            raise UserError(
                f"out of memory: {first_line(error)}", location=str(self.device),
                remedy=f"lower {self.settings.batch_flag} and raise --gradient_accumulation_steps, or "
                       "--gradient_checkpointing",
            ) from error  # fmt: skip

    def _attach(self, engine):
        # The last step, too: a short run would otherwise leave no trace.
        due = Events.ITERATION_COMPLETED(event_filter=lambda _, step: self.log_due(step))
        engine.add_event_handler(due, self._log)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._after_step)
        if self.rank0 and sys.stderr.isatty():
            bar = ProgressBar(persist=False)
            bar.attach(engine, output_transform=lambda o: dict(loss=o["loss"], ppl=o["ppl"]))

    def log_due(self, step):
        """Whether a point of the curve belongs behind optimizer step `step` (from 1)."""
        first = self.settings.log_first and step == 1
        return first or step % self.settings.log_every == 0 or step == self.total_steps

    def check_due(self, step):
        """Whether the model is evaluated after optimizer step `step` (from 1)."""
        every = self.settings.eval_steps if self.evaluate else None
        if every and (step % every == 0 or (self.settings.log_first and step == 1)):
            return True
        return self.settings.eval_epochs and (step % self.epoch_steps == 0 or step >= self.total_steps)

    def words(self, row):
        """A logged row, as it is printed."""
        return f"loss {row['loss']:.4f}" + (f", PPL {row['ppl']:.2f}" if "ppl" in row else "")

    def _log(self, engine):
        """Scalars to TensorBoard and the history; without a terminal, and so without a bar, a line now and then."""
        self.clock()
        step, (seconds, tokens) = engine.state.iteration, self._logged
        speed = (self.tokens - tokens) / max(self.seconds - seconds, 1e-9)
        self._logged = (self.seconds, self.tokens)
        row = {k: engine.state.output[k] for k in ("loss", "ppl", "lr", "grad_norm")}
        if self.settings.mean_loss:
            # The exponential of sums, or of cross-entropies and squared errors together, means nothing.
            row |= dict(loss=sum(self.history["since"]) / max(len(self.history["since"]), 1))
            row.pop("ppl")
            self.history["since"] = []
        self.history["train"].append(dict(step=step, **row))
        if self.board:
            self.board.add(step, "train", row | dict(tokens_per_second=speed))
        if not sys.stderr.isatty() and time.monotonic() - self._told > QUIET_SECONDS:
            self._told = time.monotonic()
            left = (self.total_steps - step) * self.seconds / step
            self.say(f"step {step}/{self.total_steps}: {self.words(row)}, {speed:.0f} tokens/s, "
                     f"about {left / 60:.1f} min left")  # fmt: skip

    def _after_step(self, engine):
        self.clock()
        step = engine.state.iteration
        done = step >= self.total_steps
        epoch_end = step % self.epoch_steps == 0
        caught, check_due, every = self._caught(), self.check_due(step), self.settings.save_steps
        save_due = bool(epoch_end or done or caught or (every and step % every == 0))
        if check_due or save_due:
            self.refuse_diverged(step)
        if check_due:
            self.check(step)
        elif done and (self.settings.select == "last" or not self.best):
            self.keep_last(step)
        caught = caught or self._caught()
        if save_due or caught:
            self.save(step)
        if caught:
            self.stop = caught
            name = signal.Signals(caught).name
            self.say(f"{name}: saved after step {step} of {self.total_steps}. To go on:\n  {self.resume_command}")
        if caught or done or self.stop == "early":
            engine.terminate()
        # Validation and saving are not training time.
        self._mark = time.monotonic()

    def _caught(self):
        """The signal that any process has caught, or 0."""
        return int(idist.all_reduce(self.signals.caught, "MAX")) if self.world > 1 else self.signals.caught

    def summary(self, step):
        """What metrics.json says of the training."""
        best = {name: _scores(nll) for name, nll in self.best.items()} if self.valid is not None else {}
        mean = sum(self.best.values()) / len(self.best) if best else None
        by_task = {name: dict(valid_nll=s["nll"], valid_ppl=s["ppl"], best_step=self.best_step[name])
                   for name, s in best.items()}  # fmt: skip
        return dict(
            steps=step, total_steps=self.total_steps, stopped_early=step < self.total_steps,
            best_step=max(self.best_step.values(), default=0), valid_nll=mean,
            valid_ppl=None if mean is None else _scores(mean)["ppl"],
            trained_parameters=sum(p.numel() for p in self.params), tokens=self.tokens, seconds=round(self.seconds, 1),
            tokens_per_second=round(self.tokens / max(self.seconds, 1e-9), 1),
            peak_memory_mb=round(peak_memory_mb(self.device)), processes=self.world, device=str(self.device),
            precision=str(self.settings.dtype).removeprefix("torch."),
            history={name: rows for name, rows in self.history.items() if name != "since"},
            **(dict(tasks=by_task) if len(by_task) > 1 else {}),
        )  # fmt: skip

    def say(self, line):
        """Print from the first process, above the progress bar."""
        if self.rank0:
            say_above_bar(line)


def _scores(nll):
    return dict(nll=nll, ppl=math.exp(min(nll, 50)) if math.isfinite(nll) else nll)


def seed_step(seed, step, rank):
    """Make torch's randomness a function of (seed, step, rank): nothing of it needs saving."""
    value = int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0])
    torch.manual_seed(value >> 1)
