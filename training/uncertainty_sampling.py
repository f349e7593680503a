"""Choosing which of a batch's candidate rows to train on: those the model is least certain about."""

import numpy as np
import torch
from versatile.data.glue import ENTROPY_PROXY
from versatile.data.padding import tensors
from versatile.training.classification import gather_rows
from versatile.utils import uncertainty


class UncertaintySampler:
    """Chooses the rows of a batch by the current model's uncertainty.

    Every process scores its share of the candidates, and all choose the same rows.

    Args:
        model: `TaskClassifier`.
        dtype: precision of the matrix products.
    """

    def __init__(self, model, dtype):
        self.model, self.dtype = model, dtype
        ids = {task: i for i, task in enumerate(model.tasks)}
        self.regression = {i: ids.get(ENTROPY_PROXY.get(task)) for task, i in ids.items() if model.tasks[task] == 1}

    def __call__(self, batches, candidates, keep):
        """Positions of the rows to keep among the candidates, which are row numbers in `batches`."""
        task_ids = batches.task_ids[batches.owners(candidates)]
        # A regression has no entropy, so its rows need no forward pass.
        scored = (~np.isin(task_ids, list(self.regression))).nonzero()[0]
        mine = scored[batches.rank :: batches.world]
        even = torch.zeros(-(-len(scored) // batches.world))
        if len(mine):
            batch = tensors(batches.inputs(candidates[mine]))
            even[: len(mine)] = uncertainty.candidate_entropies(self.model, batch, dtype=self.dtype).cpu()
        entropies = torch.zeros(len(candidates))
        if len(scored):
            entropies[scored] = gather_rows(even)[: len(scored)]
        return uncertainty.choose_rows(entropies, torch.from_numpy(task_ids), keep, self.regression).numpy()
