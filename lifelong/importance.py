"""The importance of each parameter to earlier tasks, and the penalty that holds it in place: EWC and MAS.

    EWC (Kirkpatrick et al. 2017)   ω += 1/N · Σ_batches (∂ mean cross-entropy / B)²
    MAS (Aljundi et al. 2018)       ω += 1/N · Σ_batches |∂ mean(softmax(logits after the question)²) / B|

over batches of B samples of a task of N samples, computed after training on it. From then on every step moves each
parameter p by -lr · 2 · reg_lambda · ω · (p - p*), in addition to the optimizer's update and outside its moments.

Published importances are tiny and differ by orders of magnitude between models. Normalised, a task's ω is divided by
its mean over all trained parameters, and reg_lambda by 2 · Σ lr, the sum over the steps of the next task. Over the
whole of that task, a parameter of mean importance is then pulled back to e^-reg_lambda of its displacement, and one a
hundred times as important to e^-(100 reg_lambda), whatever the model, the learning rate and the number of steps.

p* is the value of the parameter at the end of the previous task. In LAMOL it stays at the value before the first task,
a fault that pulls everything trained back to the start. Another fault there: EWC's last gradient is not cleared before
the next task, and is added to that of its first step.
"""

import torch
from versatile.adapters.labels import IGNORE
from versatile.adapters.trained import trainable
from versatile.training.objectives import cross_entropy, move_to_device
from versatile.training.prompt_batches import left_padded
from versatile.training.validation import sum_over_processes
from versatile.utils.devices import autocast
from versatile.utils.errors import UserError, first_line

EWC, MAS = "ewc", "mas"


class Importance:
    """The importance of a model's trained parameters, and the penalty for moving away from their anchors.

    Parameters first trained in a later task have no importance yet; neither have new rows of a table that has grown.

    Args:
        model: an attached model.
        mode: "ewc" or "mas".
        reg_lambda: regularisation strength.
        is_normalized: see above.

    Attributes:
        omega, anchor: {parameter name: tensor}, empty until the end of the first task.
    """

    def __init__(self, model, mode, reg_lambda=1.0, is_normalized=False):
        if mode not in (EWC, MAS):
            raise ValueError(f"mode {mode!r}: ewc or mas")
        self.model, self.mode, self.reg_lambda, self.is_normalized = model, mode, reg_lambda, is_normalized
        self.strength = reg_lambda
        self.omega, self.anchor = {}, {}

    def finish_task(self, batches, samples, dtype=torch.float32):
        """Add the importance of a task that has been trained, and set p* to the current parameters.

        Args:
            batches: this process's batches of the task, each once: for EWC dicts of tensors with `labels` on the
                answers, for MAS left-padded prompts; see `task_batches`.
            samples: N, over all processes.
            dtype: precision of the matrix products.
        """
        was_training = self.model.training
        # The originals leave dropout on, so their importance is that of a model with random units missing.
        self.model.eval()
        added = {name: torch.zeros_like(p, dtype=torch.float32) for name, p in trainable(self.model).items()}
        for batch in batches:
            self.model.zero_grad(set_to_none=True)
            self.objective(batch, dtype).backward()
            for name, p in trainable(self.model).items():
                if p.grad is not None:
                    added[name] += p.grad.float().square() if self.mode == EWC else p.grad.float().abs()
        self.model.zero_grad(set_to_none=True)
        self.model.train(was_training)
        added = {name: sum_over_processes(value, torch.as_tensor) / samples for name, value in added.items()}
        if self.is_normalized:
            mean = sum(v.double().sum() for v in added.values()) / sum(v.numel() for v in added.values())
            added = {name: (value / mean.clamp(min=1e-300)).float() for name, value in added.items()}
        for name, value in added.items():
            self.omega[name] = value + extend_rows(self.omega[name], value) if name in self.omega else value
        self.anchor = {name: p.detach().clone() for name, p in trainable(self.model).items()}

    def objective(self, batch, dtype):
        """The function of one batch whose gradient determines the importance."""
        device = next(self.model.parameters()).device
        count = len(batch["input_ids"])
        with autocast(device, dtype):
            if self.mode == EWC:
                labels = int((batch["labels"][:, 1:] != IGNORE).sum())
                return cross_entropy(self.model, batch, max(labels, 1)) / count
            inputs, _ = self.model.decoding_inputs(move_to_device(batch, device))
            # In an encoder-decoder, the decoder has only read the start token and __ans__.
            last = {} if self.model.config.is_encoder_decoder else dict(logits_to_keep=1)
            scores = self.model(**inputs, **last, use_cache=False).logits[:, -1]
        return scores.float().softmax(-1).square().mean() / count

    def begin_task(self, rates):
        """Set the penalty's strength from the learning rates of all steps of the next task."""
        if self.is_normalized:
            # A task whose only steps have a rate of 0 moves nothing that a penalty could hold.
            self.strength = self.reg_lambda / (2 * total) if (total := sum(rates)) else 0.0

    def penalize(self, optimizer):
        """Move every parameter back towards p*, each at its group's learning rate; call it after a step.

        If lr·2·λ·ω is above 1, the parameter would overshoot p*, by more at each step: it is then moved to p* exactly.
        """
        if not self.omega:
            return
        rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
        with torch.no_grad():
            for name, p in trainable(self.model).items():
                if name not in self.omega or id(p) not in rates:
                    continue
                omega, anchor = self.on(p, name)
                share = (omega * (rates[id(p)] * 2 * self.strength)).clamp_(max=1.0)
                p.lerp_(anchor, share.to(p.dtype))

    def on(self, p, name):
        """(ω, p*) of a parameter, on its device and in its current shape."""
        for tensors in (self.omega, self.anchor):
            if tensors[name].shape != p.shape or tensors[name].device != p.device:
                new_rows = p.detach() if tensors is self.anchor else torch.zeros_like(p)
                tensors[name] = extend_rows(tensors[name].to(p.device), new_rows)
        return self.omega[name], self.anchor[name]

    def attach(self, optimizer):
        """Apply the penalty after every step that an optimizer actually takes; returns a handle with `remove()`."""
        return optimizer.register_step_post_hook(lambda stepped, args, kwargs: self.penalize(stepped))

    def state_dict(self):
        """The state for a checkpoint."""
        return dict(mode=self.mode, omega=self.omega, anchor=self.anchor)

    def load_state_dict(self, state):
        """Restore what `state_dict` returned.

        Raises:
            UserError: the state is of another mode.
        """
        if state["mode"] != self.mode:
            raise UserError(f"the checkpoint was made with {state['mode']}", location=f"--seq_train_type {self.mode}",
                            remedy=f"resume with --seq_train_type {state['mode']}, or start over")  # fmt: skip
        self.omega, self.anchor = (
            {k: v.to(self.model.device) for k, v in state[part].items()} for part in ("omega", "anchor")
        )


def read_importance(path, importance):
    """The state of an `Importance` in a file, which must match the given one.

    Raises:
        UserError: the file is missing, cannot be read, or belongs to another model.
    """
    trained = {name: p.shape for name, p in trainable(importance.model).items()}
    remedy = f"copy it again from where the sequence was trained, or remove {path.parent.parent} and train it again"
    expected = "the importances of the tasks trained so far, written when the previous task was finished"
    try:
        state = torch.load(path, "cpu", weights_only=True)
        fits = isinstance(state, dict) and state.get("mode") in (EWC, MAS) and all(
            isinstance(state.get(part), dict) and {name: t.shape for name, t in state[part].items()} == trained
            for part in ("omega", "anchor"))  # fmt: skip
    except Exception as error:
        # Any damage to the file: torch raises many kinds of exceptions.
        problem = "missing" if isinstance(error, FileNotFoundError) else f"cannot be read ({first_line(error)})"
        raise UserError(problem, location=path, expected=expected, remedy=remedy) from error
    if not fits:
        raise UserError("does not belong to this model", location=path, expected=expected, remedy=remedy)
    return state


def task_batches(mode, batches, rank=0, world=1):
    """A task's batches, as `finish_task` takes them.

    Args:
        mode: "ewc" or "mas".
        batches: `LifelongBatches` of the task's rows, with `weighted=False`, not sharded: the importance depends on the
            composition of batches, so each process takes whole ones.
        rank, world: this process and the number of processes.
    """
    plan = batches.plan()
    for step in range(rank, len(plan), world):
        rows = [batches.rows[i] for i in plan[step]]
        if mode == EWC:
            yield batches.collate(rows)[0]
            continue
        batch = left_padded([(row.cq, None) for row in rows], batches.pad_id)
        if batches.task_ids is not None:
            batch["task_ids"] = torch.tensor([batches.task_ids[row.task] for row in rows])
        yield batch


def extend_rows(held, like):
    """`held` extended by the additional rows of `like`, for a vocabulary that has grown."""
    if held.shape == like.shape:
        return held
    if held.shape[1:] != like.shape[1:] or len(held) > len(like):
        raise ValueError(f"a parameter of shape {list(held.shape)} has become {list(like.shape)}")
    return torch.cat([held, like[len(held) :].to(held)])
