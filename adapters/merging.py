"""Merge several adapters into one: a weighted sum of their tensors, which may be sparsified first.

    linear, task_arithmetic     sum_i w_i t_i                      (Ilharco et al. 2023, "Editing Models with Task
                                                                   Arithmetic", equation 1; linear: weights add up to 1)
    ties                        keep each tensor's largest entries, then average those that agree with the majority sign
                                (Yadav et al. 2023, "TIES-Merging", algorithm 1)
    dare_linear, dare_ties      drop entries at random and divide the others by the share kept, before the sum or TIES
                                (Yu et al. 2024, "Language Models are Super Mario", equation 4)

The tensor functions follow peft (`peft.utils.merge_utils`), and a merged LoRA equals that of peft's
`add_weighted_adapter`: A and B are each scaled by the square root of weight times scale, so that the mean of n LoRAs
has the weights 1/n². Differences from a method's initial value are merged, then added back to it: one for (IA)3's
vectors and layer-norm weights, zero elsewhere.
"""

from dataclasses import replace

import torch
from versatile.utils.errors import UserError
from versatile.utils.screen import counted


def prune_by_magnitude(tensor, density):
    """A tensor with all but its largest entries set to zero; `density` is the share kept."""
    mask = torch.zeros(tensor.numel())
    mask[tensor.abs().flatten().topk(int(density * tensor.numel())).indices] = 1
    return tensor * mask.view_as(tensor)


def prune_at_random(tensor, density):
    """A tensor with entries dropped at random; the share `density` is kept and divided by `density`."""
    return tensor * torch.bernoulli(torch.full_like(tensor, density)) / density


def merge_tensors(tensors, weights, method, density=1.0, majority="total"):
    """Merge several tensors of the same shape into one.

    Args:
        tensors: a list.
        weights: a number for each.
        method: see above; the dare methods draw from torch's generator.
        density: share of entries kept by ties and dare.
        majority: which sign TIES takes as the majority: "total", that of the sum, or "frequency", that of most entries.
    """
    if method not in ("linear", "task_arithmetic") and density < 1:
        prune = prune_by_magnitude if method == "ties" else prune_at_random
        tensors = [prune(tensor, density) for tensor in tensors]
    stacked = torch.stack(tensors)
    weighted = stacked * torch.tensor(weights).view(-1, *[1] * tensors[0].dim())
    if not method.endswith("ties"):
        return weighted.sum(0)
    total = (stacked if majority == "total" else stacked.sign()).sum(0)
    agrees = stacked.sign() == torch.where(total >= 0, 1, -1)
    return (weighted * agrees).sum(0) / agrees.sum(0).clamp(min=1)


def merge_sources(sources, task, method, weights=None, density=0.5, majority="total", seed=0):
    """Merge the adapters of several tasks or models into the `combine.Source` of one task.

    Its embeddings are the weighted mean over the sources of the same task.

    Args:
        sources: as returned by `combine.read_sources`, on the same backbone.
        task: the resulting task; one of the sources' tasks.
        method, density, majority: see `merge_tensors`.
        weights: a number for each source; None: see `_default_weights`.
        seed: random seed for the entries that dare drops.

    Raises:
        UserError: methods or sizes that differ, or weights that do not fit.
    """
    _check(sources)
    weights = weights or _default_weights(sources, method)
    if len(weights) != len(sources):
        found = f"{counted(len(weights), 'weight')} for {counted(len(sources), 'adapter')}"
        raise UserError(found, location="--weights", expected="one for each")
    first = next(source for source in sources if source.task == task)
    lora, state, settings = first.method["method"] == "lora", {}, dict(first.method)
    if lora:
        # The scales are folded into the matrices.
        settings["lora_alpha"] = float(settings["lora_rank"])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for key in sorted(first.state):
            if not _is_embedding(key):
                tensors = [source.state[_key_of(key, source)] for source in sources]
                own = [_lora_weight(key, w, s.method) for w, s in zip(weights, sources)] if lora else weights
                start = _start_of(key, first.method["method"])
                merged = merge_tensors([tensor - start for tensor in tensors], own, method, density, majority)
                state[key] = merged + start
    state |= _merge_embeddings([(source, w) for source, w in zip(sources, weights) if source.task == task])
    return replace(first, state=state, method=settings)


def _default_weights(sources, method):
    """Weights that leave equal adapters unchanged, as TIES averages by itself; with task arithmetic those of a sum."""
    share = 1 / len(sources) if method.endswith("linear") else 1.0
    # Each LoRA matrix is scaled by the square root of its weight.
    return [share**2 if sources[0].method["method"] == "lora" else share] * len(sources)


def _check(sources):
    """Check that adapters have the same method and size."""
    first = sources[0]
    for source in sources:
        sizes = [{k: v for k, v in s.method.items() if k != "lora_alpha"} for s in (first, source)]
        if sizes[0] != sizes[1]:
            found, expected = (", ".join(f"{k} {v}" for k, v in size.items()) for size in (sizes[1], sizes[0]))
            raise UserError(f"was trained with {found}", location=source.flag,
                            expected=f"{expected}, as {first.flag}",
                            remedy="merge adapters of the same method and size")  # fmt: skip
        if source.self_copy:
            raise UserError("trained with --self_copy: its gate cannot be merged", location=source.flag,
                            expected="tasks trained without it")  # fmt: skip
    if not any(not _is_embedding(key) for key in first.state):
        raise UserError("has only task embeddings: there is no adapter to merge", location=first.flag,
                        expected="a task with an adapter")  # fmt: skip


def _is_embedding(key):
    return key.split(".")[0] in ("rows", "output_rows")


def _key_of(key, source):
    """The key of a block's tensor in another source, whose task may differ."""
    parts = key.split(".")
    parts[2] = source.task
    return ".".join(parts)


def _lora_weight(key, weight, settings):
    """A LoRA's weight for one of its matrices; A carries the sign."""
    scaled = weight * settings["lora_alpha"] / settings["lora_rank"]
    return abs(scaled) ** 0.5 * (-1 if scaled < 0 and key.endswith(".A") else 1)


def _start_of(key, method):
    """The value that a tensor is merged relative to: 1 for (IA)3 and norm weights, else 0."""
    return 1.0 if method == "ia3" or key.endswith("norm.weight") else 0.0


def _merge_embeddings(sources):
    """The embeddings of one task: the mean over its sources, with weights normalised to add up to 1."""
    total = sum(weight for _, weight in sources)
    if len(sources) > 1 and not total:
        raise UserError("the weights of one task's embeddings add up to 0", location="--weights",
                        expected="weights whose sum is not 0")  # fmt: skip
    shares = [1.0] if len(sources) == 1 else [weight / total for _, weight in sources]
    return {key: sum(share * source.state[key] for share, (source, _) in zip(shares, sources))
            for key in sources[0][0].state if _is_embedding(key)}  # fmt: skip
