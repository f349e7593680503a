"""The training loop that all scripts share.

An iteration is one optimizer step: `accumulation` micro-batches, each loss averaged over its labels in all
processes; their gradients are averaged, clipped once and applied once. All randomness depends only on (seed, step),
so a run resumed from a checkpoint reproduces an uninterrupted run, bit for bit on a CPU.
"""

import contextlib
import math
import os
import signal
import sys
import time
from functools import partial

import ignite.distributed as idist
import numpy as np
import torch
from ignite.engine import Engine, Events
from ignite.handlers import ProgressBar
from versatile.training.profiling import profile_steps
from versatile.training.reporters import Reporters
from versatile.training.settings import StepPlan
from versatile.training.sharding import gathered, is_sharded, load_sharded, local, whole
from versatile.training.trainer_state import (
    check_state,
    load_callbacks,
    load_optimizer,
    refuse_other_backbone,
    refuse_other_data,
)
from versatile.training.validation import TOGETHER, capped_perplexity, sum_over_processes
from versatile.utils.devices import PROFILE, autocast, out_of_memory, peak_memory_mb
from versatile.utils.errors import UserError, first_line
from versatile.utils.interrupts import Signals, say_above_bar
from versatile.utils.progress import QUIET_SECONDS
from versatile.utils.screen import format_number


class Diverged(Exception):
    """Training diverged: a loss, a gradient norm or a weight is not finite."""


class Trainer:
    """Trains a model and maintains its run directory.

    Args:
        model: its parameters with `requires_grad` are trained.
        batches: `plan(epoch)`, whose length is the number of micro-batches, and `batch(epoch, step)` -> (tensors,
            number of labels in all processes).
        objective: see `training.objectives`.
        optimizer: a torch optimizer of the model's trained parameters.
        schedule: maps the number of an optimizer step (from 0) to its learning rate.
        run: `training.runs.Run`, bound to the model's files.
        evaluate: `training.validation.Evaluator`, whose scores select the best model; None: the last is kept.
        callbacks: a list of `training.callbacks.Callback`.
        settings: `training.settings.Settings`.
    """

    def __init__(self, model, batches, objective, optimizer, schedule, run, evaluate=None, callbacks=(), *, settings):
        self.model, self.batches, self.objective = model, batches, objective
        self.optimizer, self.schedule, self.run = optimizer, schedule, run
        self.evaluate, self.callbacks, self.settings = evaluate, list(callbacks), settings
        self.device, self.world = idist.device(), idist.get_world_size()
        self.rank0 = idist.get_rank() == 0
        self.plan = StepPlan(batches, settings)
        self.epoch_steps, self.total_steps = self.plan.epoch_steps, self.plan.total_steps
        self.params = [p for p in model.parameters() if p.requires_grad]
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=settings.dtype == torch.float16)
        self.parallel = model
        if self.world > 1 and not is_sharded(model):
            # Buffers never change during training, so they need not be synchronised.
            # A batch without rows of a task leaves that task's parameters without a gradient.
            several = len(batches.splits) > 1
            self.parallel = idist.auto_model(model, find_unused_parameters=several, forward_sync_buffers=False)
        # All processes of a sharded model must run the same number of forward passes.
        self.merges = hasattr(batches, "merged") and getattr(objective, "by_row", False) and not is_sharded(model)
        # Signals are exchanged between hosts: nccl would make every host wait for its GPU at each step.
        self.signal_group = torch.distributed.new_group(backend="gloo") if idist.backend() == "nccl" else None
        # Stored in a checkpoint in addition to weights and optimizer.
        # The first three are keyed by task, or by TOGETHER where the tasks are evaluated by their mean.
        self.best, self.best_step, self.waited, self.seconds, self.tokens = {}, {}, {}, 0.0, 0
        # The history also holds the losses since the last point of the curve.
        self.history = {"train": [], "valid": []} | ({"since": []} if settings.mean_loss else {})
        self.stop, self.reporters, self.signals = None, None, Signals()
        self._clock_start, self._logged, self._resumed, self._last_print = None, (0.0, 0), (0, 0.0), time.monotonic()
        # Output of the last step read, and the steps not read yet: (number, loss and gradient norm, tokens, rate).
        self.output, self._unread = dict(loss=0.0, ppl=1.0, lr=0.0, grad_norm=0.0), []

    # ---- one optimizer step

    def windows(self, first):
        """Yield the micro-batches of each optimizer step from `first` on."""
        for step in range(first, self.total_steps):
            yield self.window(step)

    def window(self, step):
        """[(batch, labels)] of an optimizer step, without micro-batches that have no row in any process."""
        micro_batches = self.plan.micro_batches(step)
        if self.merges and len(micro_batches) > 1:
            return self.batches.merged(micro_batches)
        built = (self.batches.batch(*batch) for batch in micro_batches)
        return [micro_batch for micro_batch in built if micro_batch[1]]

    def step(self, engine, window):
        """One optimizer step over a window of micro-batches; returns the `output` of the last step that was read.

        It waits neither for a GPU nor for other processes: results are read only when a point of the curve, an
        evaluation or a checkpoint is due, see `read_steps`.
        """
        step = engine.state.iteration - 1
        lr = self.schedule(step)
        self.model.train()
        seed_step(self.settings.seed, step, idist.get_rank())
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        if not window:
            # All rows belong to tasks that have stopped.
            return self.output
        total, tokens = self.backward_within_memory(step, window)
        for callback in self.callbacks:
            callback.after_backward(step)
        self.scaler.unscale_(self.optimizer)
        norm = whole(torch.nn.utils.clip_grad_norm_(self.params, self.settings.max_norm))
        for callback in self.callbacks:
            callback.on_gradients(step)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self._unread.append((step, torch.stack([total, norm]), tokens, lr))
        if self.device.type == "cpu" and self.world == 1:
            self.read_steps()
        return self.output

    def read_steps(self):
        """Read the losses and gradient norms of all steps since the last read, in all processes.

        Raises:
            Diverged: one of them is not finite.
        """
        if not self._unread:
            return
        steps, values, tokens, rates = zip(*self._unread)
        self._unread, values = [], torch.stack(values)
        losses = (idist.all_reduce(values[:, 0].contiguous()) if self.world > 1 else values[:, 0]).unsqueeze(1)
        for step, (loss, norm), lr in zip(steps, torch.cat([losses, values[:, 1:]], 1).tolist(), rates):
            if not math.isfinite(loss):
                raise Diverged(f"the loss is {loss} at step {step + 1} (epoch {step // self.epoch_steps + 1})")
            if not math.isfinite(norm) and not self.scaler.is_enabled():
                raise Diverged(f"the gradient norm is {norm} at step {step + 1}")
            self.output = dict(loss=loss, ppl=capped_perplexity(loss), lr=lr, grad_norm=norm)
            if self.settings.mean_loss:
                self.history["since"].append(loss)
        self.tokens += sum_over_processes(sum(tokens), int)

    def backward_within_memory(self, step, window):
        """`backward`, repeated when memory runs out and a callback makes the batches smaller."""
        while True:
            try:
                return self.backward(window)
            except RuntimeError as error:
                # Other processes would wait for this one's gradients.
                if self.world > 1 or not any(callback.on_out_of_memory(error) for callback in self.callbacks):
                    raise
            self.optimizer.zero_grad(set_to_none=True)
            window = self.window(step)

    def backward(self, window):
        """Accumulate a window's gradients; returns this process's share of (loss, tokens)."""
        total, tokens = torch.zeros((), device=self.device), 0
        parts = [(part, labels) for batch, labels in window for part in (batch if isinstance(batch, list) else [batch])]
        for i, (batch, labels) in enumerate(parts):
            tokens += int(batch["attention_mask"].sum())
            wait = self.parallel is not self.model and i + 1 < len(parts)
            with self.parallel.no_sync() if wait else contextlib.nullcontext():
                with autocast(self.device, self.settings.dtype):
                    loss = self.objective(self.parallel, batch, labels)
                # DDP averages gradients over processes, but each holds its share of one global mean.
                self.scaler.scale(loss * self.world / len(window)).backward()
            total += loss.detach() / len(window)
        return total, tokens

    @torch.no_grad()
    def refuse_diverged(self, step):
        """Raise `Diverged` if a trained weight is not finite in any process."""
        sums = [local(p).float().sum() for p in self.params]
        if sums and sum_over_processes(int(not torch.stack(sums).isfinite().all()), int):
            raise Diverged(f"a trained weight is inf or nan at step {step}")

    # ---- evaluation

    def run_evaluation(self, step):
        """Evaluate, keep the best model and decide on early stopping. Without an evaluation, keep the last model."""
        if self.evaluate is None:
            return self.keep_last(step)
        report = self.evaluate()
        if not math.isfinite(report.loss):
            raise Diverged(f"the validation loss is {report.loss} after step {step}")
        self.history["valid"].append(dict(step=step, **report.row))
        better = self.update_best(step, report.scores)
        if self.settings.select == "last":
            self.on_rank0(lambda: self.run.save_best(self.run.files.save))
        elif better:
            self.on_rank0(lambda: self.run.save_best(lambda folder: self.run.files.save_best(folder, better)))
        names = f": {', '.join(better)}" if len(better) < len(report.scores) else ""
        self.print_line(f"step {step}: " + report.line.replace("%s", f" (best so far{names})" if better else ""))
        if self.reporters:
            for group, scalars in report.scalars.items():
                self.reporters.add(step, group, scalars)
        self.stop_tasks(step)

    def keep_last(self, step):
        """Keep the current model."""
        self.best_step = self.best_step or {TOGETHER: step}
        self.on_rank0(lambda: self.run.save_best(self.run.files.save))

    def update_best(self, step, scores):
        """Record the best score of each task (or of their mean); returns the names that have a new best."""
        better = [name for name, score in scores.items() if score < self.best.get(name, math.inf)]
        for name, score in scores.items():
            self.waited[name] = self.waited.get(name, 0) + 1
            if name in better:
                self.best[name], self.best_step[name], self.waited[name] = score, step, 0
        return better

    def stop_tasks(self, step=None):
        """Leave out the tasks that have met --early_stopping; stop when none is left."""
        patience = self.settings.early_stopping
        done = {name for name, waited in self.waited.items() if patience and waited >= patience}
        if step is not None and step < self.total_steps and done - self.batches.skip - {TOGETHER}:
            self.print_line(f"no better validation loss for {patience} epochs: stopping {', '.join(sorted(done))}")
        if done and len(done) == len(self.waited):
            if step is not None and step < self.total_steps:
                self.print_line(f"no better validation loss for {patience} epochs: stopping early")
            self.stop = "early"
        else:
            self.batches.skip = done

    # ---- checkpoints

    def state(self, step):
        """Everything a resumed run needs in addition to the model files."""
        return dict(
            step=step, optimizer=self.optimizer.state_dict(), scaler=self.scaler.state_dict(),
            data_key=self.run.data_key, backbone=self.run.backbone, world=self.world,
            best=self.best, best_step=self.best_step, waited=self.waited, tokens=self.tokens,
            seconds=self.seconds, history=self.history,
            callbacks=[callback.state_dict() for callback in self.callbacks],
        )  # fmt: skip

    def save(self, step):
        """Write a checkpoint."""
        # All processes take part in gathering a sharded model's state.
        state = self.state(step) if self.rank0 or is_sharded(self.model) else None
        self.on_rank0(lambda: self.run.save_checkpoint(step, state, self.run.files.save))

    def restore(self):
        """Load the run's newest checkpoint; returns the number of optimizer steps already taken."""
        load = self.run.files.load
        if is_sharded(self.model):
            load = partial(load_sharded, self.model, load)
        step, state = self.run.load_checkpoint(load, check_state)
        if state is None:
            return 0
        location = self.run.checkpoint(step)
        refuse_other_data(state["data_key"], self.run.data_key, location)
        refuse_other_backbone(state.get("backbone"), self.run.backbone, location)
        if state["world"] != self.world:
            raise UserError(f"the run had {state['world']} processes when it was started, now {self.world}",
                            location=location,
                            remedy=f"resume with torchrun --nproc_per_node {state['world']}")  # fmt: skip
        if step > self.total_steps:
            raise UserError(f"it is from step {step}, the run has {self.total_steps} steps", location=location,
                            remedy="remove it: the run resumes from the checkpoint before")  # fmt: skip
        load_optimizer(state, self.optimizer, self.scaler, location)
        load_callbacks(state, self.callbacks, location)
        for name in ("best", "best_step", "waited", "tokens", "seconds", "history"):
            setattr(self, name, state[name])
        self.stop_tasks()
        return step

    def on_rank0(self, work):
        """Call `work` in the first process while the others wait."""
        with gathered(self.model):
            if self.rank0:
                work()
        if self.world > 1:
            idist.barrier()

    def clock(self):
        """Add the time since the last call to the run's training seconds."""
        now = time.monotonic()
        self.seconds += now - (self._clock_start or now)
        self._clock_start = now

    # ---- the loop

    def fit(self):
        """Train to the end or until interrupted.

        Returns:
            dict for metrics.json.

        Raises:
            SystemExit: 128 + the signal's number, after a checkpoint was saved on SIGINT, SIGTERM or SIGHUP.
            UserError: training diverged or ran out of memory.
        """
        for callback in self.callbacks:
            callback.before_training(self)
        first = self.restore()
        self._logged = (self.seconds, self.tokens)
        self._resumed = (first, self.seconds)
        engine = Engine(self.step)
        engine.logger.disabled = True
        if self.rank0:
            self.reporters = Reporters(self.run.directory, first, self.settings.report_to, self.run.events_folder)
        self._attach(engine)
        self._clock_start = time.monotonic()
        if first:
            over = first >= self.total_steps or self.stop == "early"
            resuming = f"resuming after step {first} of {self.total_steps}"
            self.print_line("this run is already finished" if over else resuming)
            # Without max_epochs, ignite would take this for a new run and count from 0.
            engine.load_state_dict(dict(iteration=first, epoch_length=self.epoch_steps, max_epochs=self.plan.epochs))
        if first < self.total_steps and self.stop != "early":
            with self.signals:
                self._run(engine, first)
            # The signal may have come while the last checkpoint was saved.
            if not isinstance(self.stop, int) and (caught := self._caught()):
                self._stop_on(caught, engine.state.iteration)
        if self.reporters:
            self.reporters.close()
        if isinstance(self.stop, int):
            raise SystemExit(128 + self.stop)
        for callback in self.callbacks:
            callback.after_training(self)
        return self.summary(engine.state.iteration)

    def _run(self, engine, first):
        try:
            if first == 0 and self.settings.eval_before_start and self.evaluate:
                self.run_evaluation(0)
            folder = os.environ.get(PROFILE) if self.rank0 else None
            name = self.run.directory.name
            with profile_steps(folder, name, first, self.total_steps, self.device, self.print_line) as done:
                engine.add_event_handler(Events.ITERATION_COMPLETED, lambda: done())
                engine.run(self.windows(first), max_epochs=self.plan.epochs, epoch_length=self.epoch_steps)
        except Diverged as error:
            lr, kept = self.optimizer.defaults["lr"], self.run.saved_steps()
            raise UserError(
                str(error), location=self.run.directory,
                remedy=f"lower {self.settings.rate_flag} (it was {lr:g}) or --max_norm, or train in "
                       "--fp32" + ("; the checkpoints written before are still there" if kept else ""),
            ) from error  # fmt: skip
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            raise UserError(
                f"out of memory: {first_line(error)}", location=str(self.device),
                remedy=f"lower {self.settings.batch_flag} and raise --gradient_accumulation_steps, or "
                       "--gradient_checkpointing",
            ) from error  # fmt: skip

    def _attach(self, engine):
        # The last step is logged too: a short run would otherwise leave no trace.
        due = Events.ITERATION_COMPLETED(event_filter=lambda _, step: self.log_due(step))
        engine.add_event_handler(due, self._log)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._after_step)
        if self.rank0 and sys.stderr.isatty():
            bar = ProgressBar(persist=False)
            bar.attach(engine, output_transform=lambda o: dict(loss=o["loss"], ppl=o["ppl"]))

    def log_due(self, step):
        """Whether a point of the curve is due after optimizer step `step` (from 1)."""
        first = self.settings.log_first and step == 1
        return first or step % self.settings.log_every == 0 or step == self.total_steps

    def evaluation_due(self, step):
        """Whether the model is evaluated after optimizer step `step` (from 1)."""
        every = self.settings.eval_steps if self.evaluate else None
        if every and (step % every == 0 or (self.settings.eval_first and step == 1)):
            return True
        return self.settings.eval_epochs and (step % self.epoch_steps == 0 or step >= self.total_steps)

    def format_log(self, row):
        """A logged row as printed."""
        return f"loss {row['loss']:.4f}" + (f", PPL {format_number(row['ppl'], 2)}" if "ppl" in row else "")

    def _log(self, engine):
        """Log scalars to the reporters and the history; without a terminal, print a line now and then (no bar)."""
        self.read_steps()
        self.clock()
        step, (seconds, tokens) = engine.state.iteration, self._logged
        speed = (self.tokens - tokens) / max(self.seconds - seconds, 1e-9)
        self._logged = (self.seconds, self.tokens)
        row = dict(self.output)
        if self.settings.mean_loss:
            # The exponential of a sum, or of a mix of cross-entropies and squared errors, is meaningless.
            row |= dict(loss=sum(self.history["since"]) / max(len(self.history["since"]), 1))
            row.pop("ppl")
            self.history["since"] = []
        self.history["train"].append(dict(step=step, **row))
        if self.reporters:
            self.reporters.add(step, "train", row | dict(tokens_per_second=speed))
        for callback in self.callbacks:
            callback.on_log(step)
        if not sys.stderr.isatty() and time.monotonic() - self._last_print > QUIET_SECONDS:
            self._last_print = time.monotonic()
            # This process's pace: an interrupted run may go on on another machine, or an idle one.
            first, before = self._resumed
            left = (self.total_steps - step) * (self.seconds - before) / (step - first)
            self.print_line(f"step {step}/{self.total_steps}: {self.format_log(row)}, {speed:.0f} tokens/s, "
                            f"about {left / 60:.1f} min left")  # fmt: skip

    def _after_step(self, engine):
        self.clock()
        step = engine.state.iteration
        done = step >= self.total_steps
        epoch_end = step % self.epoch_steps == 0
        caught, evaluation_due, every = self._caught(), self.evaluation_due(step), self.settings.save_steps
        save_due = bool(epoch_end or done or caught or (every and step % every == 0))
        if evaluation_due or save_due:
            self.read_steps()
            self.refuse_diverged(step)
        if evaluation_due:
            self.run_evaluation(step)
        elif done and (self.settings.select == "last" or not self.best):
            self.keep_last(step)
        if evaluation_due:
            caught = caught or self._caught()
        if save_due or caught:
            self.save(step)
        if caught:
            self._stop_on(caught, step)
        if caught or done or self.stop == "early":
            engine.terminate()
        # Validation and saving do not count as training time.
        self._clock_start = time.monotonic()

    def _stop_on(self, number, step):
        """Stop because of a signal, with everything up to `step` saved."""
        self.stop, name = number, signal.Signals(number).name
        command = self.run.resume_command
        self.print_line(f"{name}: saved after step {step} of {self.total_steps}. To resume:\n  {command}")

    def _caught(self):
        """The signal caught by any process, or 0."""
        if self.world == 1 or self.device.type == "xla":
            return int(idist.all_reduce(self.signals.caught, "MAX")) if self.world > 1 else self.signals.caught
        caught = torch.tensor(self.signals.caught)
        torch.distributed.all_reduce(caught, torch.distributed.ReduceOp.MAX, self.signal_group)
        return int(caught)

    def summary(self, step):
        """The part of metrics.json about training."""
        return dict(
            steps=step, total_steps=self.total_steps, stopped_early=step < self.total_steps,
            best_step=max(self.best_step.values(), default=0),
            trained_parameters=sum(p.numel() for p in self.params), tokens=self.tokens, seconds=round(self.seconds, 1),
            tokens_per_second=round(self.tokens / max(self.seconds, 1e-9), 1),
            steps_per_second=round(step / max(self.seconds, 1e-9), 3),
            peak_memory_mb=round(peak_memory_mb(self.device)), processes=self.world, device=str(self.device),
            precision=str(self.settings.dtype).removeprefix("torch."),
            history={name: rows for name, rows in self.history.items() if name != "since"},
        ) | (self.evaluate.summary(self) if self.evaluate else {})  # fmt: skip

    def print_line(self, line):
        """Print from the first process, above the progress bar."""
        if self.rank0:
            say_above_bar(line)


def seed_step(seed, step, rank):
    """Make torch's randomness a function of (seed, step, rank), so that no generator state needs saving."""
    value = int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0]) >> 1
    # torch.manual_seed would also record the stack for each kind of accelerator that is not in use, at every step.
    torch.default_generator.manual_seed(value)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(value)
