"""Which tasks had rows in training."""

import ignite.distributed as idist


def undrawn_tasks(trainer, steps):
    """Names of the tasks of which the first `steps` steps of a `Trainer` over `Batches` had no row."""
    batches = trainer.batches
    left = set(batches.tasks)
    for epoch, number in (micro_batch for step in range(steps) for micro_batch in trainer.plan.micro_batches(step)):
        if not left:
            break
        left -= {batches.tasks[i] for i in batches.owners(batches.plan(epoch)[number])}
    return [task for task in batches.tasks if task in left]


def warn_of_undrawn(tasks):
    """Print a warning that names the tasks whose rows were never drawn in training, if there are any."""
    if tasks and idist.get_rank() == 0:
        them = "it" if len(tasks) == 1 else "them"
        print(f"warning: no row of {', '.join(tasks)} was drawn, so nothing was trained for {them}: train for "
              "longer, or draw the tasks more evenly")  # fmt: skip
