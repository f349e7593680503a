"""Which rows of a batch's candidates are learned: those that the model is least certain about."""

import torch
from versatile.data.glue import ENTROPY_PROXY
from versatile.data.pair_batches import tensors
from versatile.training.classification import gather_rows
from versatile.utils import uncertainty


class UncertaintySampler:
    """Chooses the rows of a batch by the uncertainty of the model as it stands.

    Every process scores its share of the candidates, all choose the same.

    Args:
        model: `TaskBert`.
        dtype: precision of the matrix products.
    """

    def __init__(self, model, dtype):
        self.model, self.dtype = model, dtype
        ids = {task: i for i, task in enumerate(model.tasks)}
        self.regression = {i: ids.get(ENTROPY_PROXY.get(task)) for task, i in ids.items() if model.tasks[task] == 1}

    def __call__(self, batches, candidates, keep):
        """Positions of the rows to keep among the candidates, which are numbers of rows in `batches`."""
        mine = candidates[batches.rank :: batches.world]
        batch = tensors(batches.inputs(mine if len(mine) else candidates[:1]))
        entropies = uncertainty.candidate_entropies(self.model, batch, dtype=self.dtype).cpu()[: len(mine)]
        even = torch.nn.functional.pad(entropies, (0, -(-len(candidates) // batches.world) - len(mine)))
        entropies = gather_rows(even)[: len(candidates)]
        task_ids = torch.from_numpy(batches.task_ids[batches.owners(candidates)])
        return uncertainty.choose(entropies, task_ids, keep, self.regression).numpy()
