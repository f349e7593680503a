"""transformers' `Seq2SeqTrainer` with the habits of this toolkit's own training loop.

- A run killed at any moment and resumed is the run that was never stopped: checkpoints are written beside their names
  and moved into place, everything random depends on (seed, step, process) alone, the best model lies in the run
  directory, and what was logged so far is part of a checkpoint.
- SIGTERM and Ctrl-C finish the step, save, say how to go on, and leave with 128 + the signal's number.
- TensorBoard events, a line now and then where there is no terminal, errors in words.
"""

import contextlib
import json
import math
import shutil
import signal
import sys
import time
from pathlib import Path

import torch
from transformers import Seq2SeqTrainer, TrainerCallback
from transformers.trainer_callback import PrinterCallback, ProgressCallback, TrainerState
from transformers.utils import is_torch_xla_available
from versatile.training.board import Board
from versatile.training.optimizer import AdamW
from versatile.training.trainer import QUIET_SECONDS, Diverged, refuse_other_data, seed_step
from versatile.utils import screen
from versatile.utils.devices import peak_memory_mb
from versatile.utils.errors import UserError, first_line
from versatile.utils.files import disk_errors, move_into_place, remove_leftovers
from versatile.utils.interrupts import Signals, say_above_bar

STATE, OPTIMIZER, SCHEDULER = "trainer_state.json", "optimizer.pt", "scheduler.pt"


class ResumableTrainer(Seq2SeqTrainer):
    """Trains a model and keeps its run directory.

        <output_dir>/              the best model so far (the last one, without --load_best_model_at_end)
        <output_dir>/checkpoint-N/ model, optimizer.pt, scheduler.pt, trainer_state.json, progress_<process>.pt

    Args:
        run: `training.runs.Run` of `args.output_dir`.
        save_to: called with a directory, writes the model files there.
        load_from: called with a directory, loads what `save_to` wrote into the model.
        data_key: names the training data; checkpoints of other data are refused.
        resume_command: printed when the run is stopped early.
        others: as `Seq2SeqTrainer` takes them.
    """

    def __init__(self, *, run, save_to, load_from, data_key="", resume_command="", **others):
        self.run, self.save_to, self.load_from = run, save_to, load_from
        self.data_key, self.resume_command = data_key, resume_command
        self.history = {"train": [], "valid": []}
        self.seconds, self.caught, self.board, self.sampler = 0.0, 0, None, None
        self.signals = Signals()
        self.best_saved = False
        self._losses = []
        super().__init__(**others)
        # The trainer switches the cache off for training, and would so in the saved model, where decoding needs it.
        self.model.config.use_cache = True
        # The loss is divided by what `compute_loss` of this trainer says, for which labels must be counted.
        self.model_accepts_loss_kwargs = True
        for callback in (ProgressCallback, PrinterCallback):
            self.remove_callback(callback)
        self.add_callback(_Flow(self))
        self.add_callback(_Report(self))

    # ---- from the first step to the last

    @property
    def rank0(self):
        return self.is_world_process_zero()

    def plan(self):
        """Work out how many optimizer steps there will be."""
        args = self.args
        each = math.ceil(len(self.sampler) / args.gradient_accumulation_steps)
        self.total_steps = args.max_steps if args.max_steps > 0 else math.ceil(args.num_train_epochs * each)

    def fit(self, fresh=True):
        """Train to the end, or to an interruption.

        Args:
            fresh: the run has just been created; otherwise it goes on after its newest checkpoint that can be read.

        Returns:
            optimizer steps taken.

        Raises:
            SystemExit: 128 + the signal's number, after SIGINT or SIGTERM saved a checkpoint.
            UserError: the loss is not a number, memory is out, the checkpoints are of no use.
        """
        folder = None if fresh else self.newest()
        if folder is not None:
            self.state = TrainerState.load_from_json(str(folder / STATE))
            if self.state.global_step >= self.total_steps:
                self._restore_progress(folder)
                self.say("this run is already trained to its end")
                return self.state.global_step
            self.say(f"resuming after step {self.state.global_step} of {self.total_steps}")
        self.board = Board(self.args.output_dir, self.state.global_step if folder else 0) if self.rank0 else None
        self._resume_folder = folder
        with self.signals, self._errors():
            self.train(resume_from_checkpoint=str(folder) if folder else None)
            self.refuse_diverged()
        if self.caught:
            raise SystemExit(128 + self.caught)
        return self.state.global_step

    @contextlib.contextmanager
    def _errors(self):
        """Diverging and running out of memory, in words."""
        args = self.args
        try:
            yield
        except Diverged as error:
            raise UserError(str(error), place=args.output_dir, remedy=f"lower --learning_rate (it was "
                            f"{args.learning_rate:g}), or train with --fp32 true; the checkpoints written before are "
                            "still there") from error  # fmt: skip
        except torch.OutOfMemoryError as error:
            raise UserError(f"out of memory: {first_line(error)}", place=str(args.device), remedy="lower "
                            "--per_device_train_batch_size and raise --gradient_accumulation_steps, or lower "
                            "--per_device_eval_batch_size") from error  # fmt: skip

    def any_signal(self):
        """The signal that any process has caught, or 0."""
        if self.args.world_size == 1:
            return self.signals.caught
        mine = torch.tensor([self.signals.caught], device=self.args.device)
        return int(self.accelerator.gather(mine).max())

    def say(self, line):
        """Print from the first process, above the progress bar."""
        if self.rank0:
            say_above_bar(line)

    def barrier(self):
        """Wait for the other processes."""
        self.accelerator.wait_for_everyone()

    @staticmethod
    def get_optimizer_cls_and_kwargs(args, model=None):
        """The optimizer that the arguments name; for torch's AdamW that with the original's update."""
        cls, options = Seq2SeqTrainer.get_optimizer_cls_and_kwargs(args, model)
        return AdamW if cls is torch.optim.AdamW else cls, options

    # ---- batches

    def get_train_dataloader(self):
        """Batches of `self.sampler`, which knows the processes: accelerate must not share them out once more."""
        loader = torch.utils.data.DataLoader(
            self.train_dataset, batch_sampler=self.sampler, collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers, pin_memory=self.args.device.type == "cuda",
        )  # fmt: skip
        loader = self.accelerator.prepare(loader)
        shard = getattr(loader, "batch_sampler", None)
        if getattr(shard, "batch_sampler", None) is self.sampler:
            shard.num_processes, shard.process_index = 1, 0
        return loader

    # ---- what is no number

    def training_step(self, *given, **more):
        """One micro-batch; its loss is looked at later, as reading it would make the device wait."""
        loss = super().training_step(*given, **more)
        self._losses.append((self.state.global_step + 1, loss.detach()))
        return loss

    def _maybe_log_save_evaluate(self, *given, **more):
        control = self.control
        if control.should_log or control.should_evaluate or control.should_save or len(self._losses) >= 1000:
            self.refuse_diverged(weights=control.should_evaluate or control.should_save)
        super()._maybe_log_save_evaluate(*given, **more)

    def refuse_diverged(self, weights=True):
        """`Diverged` where a loss since the last call, or a trained weight, is not a finite number in any process."""
        steps, losses = zip(*self._losses) if self._losses else ((0,), (torch.zeros((), device=self.args.device),))
        self._losses = []
        values = torch.stack([loss.float().reshape(()) for loss in losses])
        # The place of the first that is none, or one behind the last: one number a process.
        places = torch.arange(len(values), device=values.device).masked_fill(values.isfinite(), len(values))
        first = int(self.accelerator.gather(places.min().reshape(1)).min())
        if first < len(steps):
            value = float(values[first])
            # It may have been another process's.
            raise Diverged(f"the loss is {value if not math.isfinite(value) else 'nan'} at step {steps[first]}")
        if weights and not self.finite_weights():
            raise Diverged(f"a trained weight is inf or nan at step {self.state.global_step}")

    @torch.no_grad()
    def finite_weights(self):
        """Whether all trained weights are finite; they are the same in all processes."""
        sums = [p.float().sum() for p in self.model.parameters() if p.requires_grad]
        return not sums or bool(torch.stack(sums).isfinite().all())

    # ---- checkpoints

    def save_model(self, output_dir=None, _internal_call=False):
        """The model files alone, into `output_dir` (default: the run directory), each moved into place."""
        if output_dir is None or Path(output_dir) == Path(self.args.output_dir):
            if self.rank0:
                self.run.save_best(self.save_to)
            self.barrier()
        elif self.rank0:
            self.save_to(output_dir)

    def _save_checkpoint(self, model, trial=None):
        """A whole checkpoint, or none: it gets its name when all processes have written their part of it."""
        self.store_flos()
        folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        beside = folder.with_name(f".{folder.name}.part")
        if self.rank0:
            shutil.rmtree(beside, ignore_errors=True)
            with disk_errors(folder):
                beside.mkdir(parents=True)
                self.save_to(beside)
                self.state.save_to_json(str(beside / STATE))
        self.barrier()
        with disk_errors(folder):
            if is_torch_xla_available():
                self._save_optimizer_and_scheduler(str(beside))
                self._save_scaler(str(beside))
            elif self.rank0:
                _save(self.optimizer.state_dict(), beside / OPTIMIZER)
                _save(self.lr_scheduler.state_dict(), beside / SCHEDULER)
                self._save_scaler(str(beside))
            _save(self._progress(), beside / f"progress_{self.args.process_index}.pt")
        self.barrier()
        if self.rank0:
            with disk_errors(folder):
                move_into_place(beside, folder)
            self._forget()
        self.barrier()

    def _progress(self):
        """What transformers does not write down of this process, or of the run."""
        mine = dict(loss=float(self._tr_loss), logged=self._globalstep_last_logged, world=self.args.world_size,
                    seconds=self.seconds, data_key=self.data_key, best_saved=self.best_saved)  # fmt: skip
        return mine | (dict(history=json.dumps(self.history)) if self.rank0 else {})

    def _restore_progress(self, folder):
        state = torch.load(folder / f"progress_{self.args.process_index}.pt", weights_only=True)
        self.seconds, self.best_saved = state["seconds"], state["best_saved"]
        if "history" in state:
            self.history = json.loads(state["history"])
        return state

    def _forget(self):
        """Drop the oldest checkpoints beyond --save_total_limit; the best model lies in the run directory."""
        limit = self.args.save_total_limit
        for old in self.checkpoints()[: -limit if limit else 0]:
            # Renamed first: a half-removed directory must not look like a checkpoint.
            doomed = old.with_name(f".{old.name}.old")
            old.rename(doomed)
            shutil.rmtree(doomed, ignore_errors=True)

    def checkpoints(self):
        """The whole checkpoints on disk, oldest first."""
        found = [f for f in Path(self.args.output_dir).glob("checkpoint-*") if f.name.split("-")[1].isdigit()]
        return sorted(found, key=lambda f: int(f.name.split("-")[1]))

    def newest(self):
        """The newest checkpoint that can be read, or None where there is none yet.

        Raises:
            UserError: none can be read, or it is of other data or of another number of processes.
        """
        if self.rank0:
            remove_leftovers(self.args.output_dir)
        self.barrier()
        folders = self.checkpoints()
        for folder in reversed(folders):
            try:
                TrainerState.load_from_json(str(folder / STATE))
                progress = torch.load(folder / "progress_0.pt", weights_only=True)
                for name in (OPTIMIZER, SCHEDULER):
                    torch.load(folder / name, map_location="cpu", weights_only=True, mmap=name == OPTIMIZER)
                self.load_from(folder)
            except Exception as error:
                # Whatever is wrong with these files, an older checkpoint may be whole.
                self.say(f"{folder} cannot be read: going back to the checkpoint before\n  ({first_line(error)})")
                continue
            refuse_other_data(progress["data_key"], self.data_key, folder)
            if progress["world"] != self.args.world_size:
                raise UserError(f"the run had {progress['world']} processes, now there are {self.args.world_size}",
                                place=folder,
                                remedy=f"resume with torchrun --nproc_per_node {progress['world']}")  # fmt: skip
            return folder
        if folders:
            raise UserError("none of the checkpoints can be read", place=self.args.output_dir,
                            remedy="remove them to start this run from its beginning")  # fmt: skip
        return None

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        """`newest` has loaded the model already."""

    def _load_rng_state(self, checkpoint):
        """Every step seeds itself: see `_Flow.on_step_begin`."""

    def _load_best_model(self):
        """The best model is loaded from the run directory, by whoever needs it."""

    def _determine_best_metric(self, metrics, trial):
        """Keep the best model in the run directory."""
        better = super()._determine_best_metric(metrics, trial)
        if better and self.args.load_best_model_at_end:
            self.save_model()
            self.best_saved = True
        return better

    def log(self, logs, start_time=None):
        """Only what a step or an evaluation has found; the summary that transformers logs at the end is not kept."""
        if "train_runtime" not in logs:
            super().log(logs, start_time)


def _save(value, path):
    # Given a path, torch writes by itself and does not say why it could not.
    with open(path, "wb") as file:
        torch.save(value, file)


class _Flow(TrainerCallback):
    """Seeds every step, tells the sampler its epoch, and stops after a signal."""

    def __init__(self, trainer):
        self.trainer, self.mark = trainer, None

    def on_train_begin(self, args, state, control, **more):
        trainer = self.trainer
        if trainer._resume_folder is not None:
            progress = trainer._restore_progress(trainer._resume_folder)
            trainer._tr_loss += progress["loss"]
            trainer._globalstep_last_logged = progress["logged"]
        self.mark = time.time()

    def on_epoch_begin(self, args, state, control, **more):
        # Accelerate's wrappers do not pass the epoch on to a batch sampler.
        self.trainer.sampler.set_epoch(int(state.epoch or 0))

    def on_step_begin(self, args, state, control, **more):
        seed_step(args.seed, state.global_step, args.process_index)
        if is_torch_xla_available():
            import torch_xla.core.xla_model as xm

            # torch.manual_seed leaves XLA's own generator as it is.
            xm.set_rng_state(torch.initial_seed() % 2**31)
        self.mark = time.time()

    def on_step_end(self, args, state, control, **more):
        self.trainer.seconds += time.time() - self.mark
        caught = self.trainer.any_signal()
        if caught and not self.trainer.caught:
            self.trainer.caught = caught
            control.should_save = control.should_training_stop = True
        return control

    def on_save(self, args, state, control, **more):
        trainer = self.trainer
        if trainer.caught:
            name = signal.Signals(trainer.caught).name
            trainer.say(f"{name}: saved after step {state.global_step} of {state.max_steps}. To go on:\n"
                        f"  {trainer.resume_command}")  # fmt: skip

    def on_epoch_end(self, args, state, control, **more):
        if self.trainer.caught:
            # The epoch has not ended, it was left.
            control.should_evaluate = control.should_save = control.should_log = False
        return control


class _Report(TrainerCallback):
    """Logged numbers go into the history, TensorBoard and, where there is no terminal, a line now and then."""

    def __init__(self, trainer):
        self.trainer, self.bar, self.told, self.last = trainer, None, time.time(), (0, 0.0)

    def on_train_begin(self, args, state, control, **more):
        self.last = (state.global_step, self.trainer.seconds)
        if self.trainer.rank0 and sys.stderr.isatty():
            from tqdm import tqdm

            self.bar = tqdm(total=state.max_steps, initial=state.global_step, desc="training")

    def on_step_end(self, args, state, control, **more):
        if self.bar:
            self.bar.update(state.global_step - self.bar.n)

    def on_log(self, args, state, control, logs=None, **more):
        if "loss" not in logs:
            return
        step, trainer = state.global_step, self.trainer
        row = dict(loss=logs["loss"], lr=logs["learning_rate"], grad_norm=logs.get("grad_norm"))
        if not math.isfinite(row["loss"]):
            raise Diverged(f"the loss is {row['loss']} at step {step}")
        if row["grad_norm"] is not None and not math.isfinite(row["grad_norm"]) and not args.fp16:
            raise Diverged(f"the gradient norm is {row['grad_norm']} at step {step}")
        trainer.history["train"].append(dict(step=step, **row))
        if trainer.board:
            speed = (step - self.last[0]) / max(trainer.seconds - self.last[1], 1e-9)
            numbers = {k: v for k, v in row.items() if v is not None}
            trainer.board.add(step, "train", numbers | dict(steps_per_second=speed))
        self.last = (step, trainer.seconds)
        if not self.bar and time.time() - self.told > QUIET_SECONDS:
            self.told = time.time()
            left = (state.max_steps - step) * trainer.seconds / max(step, 1)
            trainer.say(f"step {step}/{state.max_steps}: loss {row['loss']:.4f}, about {left / 60:.1f} min left")

    def on_train_end(self, args, state, control, **more):
        if self.bar:
            self.bar.close()


def resume_command(script, directory, world):
    """What to type to go on with a run, with as many processes as it has."""
    import os

    each = int(os.environ.get("LOCAL_WORLD_SIZE") or world)
    return screen.resume_command(script, directory, each if world > 1 else 1)


def summary(trainer, steps):
    """What metrics.json says of a training: steps, best score, time, memory, and what was logged."""
    args, state = trainer.args, trainer.state
    return dict(
        steps=steps, total_steps=trainer.total_steps, best_step=state.best_global_step, best_metric=state.best_metric,
        metric_for_best_model=args.metric_for_best_model, seconds=round(trainer.seconds, 1),
        steps_per_second=round(steps / max(trainer.seconds, 1e-9), 3),
        peak_memory_mb=round(peak_memory_mb(args.device)),
        processes=args.world_size, device=str(args.device),
        precision=dict(bf16="bfloat16", fp16="float16").get(args.mixed_precision, "float32"), history=trainer.history,
    )  # fmt: skip
