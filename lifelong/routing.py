"""Which adapter a task's rows go through: the one shared by all tasks, or the task's own (--own_adapters).

An attached model consists of "tasks", each with embeddings of special tokens, an adapter, or both. A sequence is
attached as

    SHARED                  the special tokens' embeddings, and the adapter if all tasks share one
    <task>, <task>, …       with --own_adapters: one adapter each and no embeddings; SHARED then has no adapter

so banks, routing and checkpoints work as in every attached model. In both cases all rows are scored against all special
tokens, and a task's own adapter is not updated in a step in which no row goes through it.
"""

from versatile.adapters import attach
from versatile.adapters.methods.base import added_parameters, copy_adapter
from versatile.adapters.methods.registry import BARE
from versatile.utils.errors import UserError

SHARED = "lifelong"


def layout(tokens, tasks, method, own):
    """What to attach: (markers, methods, mask_other_tasks) as `adapters.attach.attach` takes them.

    Args:
        tokens: the special tokens of the sequence.
        tasks: names of its tasks, in order.
        method: the adaptation method, or a number, the adapter's width; None: the whole model is trained.
        own: whether each task has its own adapter.
    """
    if not own:
        return {SHARED: tokens}, None if method is None else {SHARED: method}, True
    names = [adapter_name(task) for task in tasks]
    if SHARED in names:
        raise UserError(f"the task {SHARED!r}", location="--tasks",
                        expected="another name: this one is reserved for what tasks share",
                        remedy=f"call it {SHARED}_task, for example")  # fmt: skip
    return {SHARED: tokens} | {name: [] for name in names}, {SHARED: 0} | dict.fromkeys(names, method), False


def adapter_name(task):
    """Name of a task's own adapter; torch does not allow dots in module names."""
    return task.replace(".", "_")


def freeze_empty_tables(model):
    """Freeze tables without rows, so that optimizers and processes need not handle them."""
    for name, p in model.named_parameters():
        if "rows.tasks." in name and not p.numel():
            p.requires_grad_(False)


def is_shared(model):
    """Whether the tasks share all parameters, so that a row's task makes no difference."""
    return len(model.info.tasks) == 1


def task_id(model, task):
    """The id of a task's rows in a model, or None if its tasks share all parameters.

    Raises:
        KeyError: the tasks have their own adapters, and this is not one of them.
    """
    return None if is_shared(model) else model.task_id(adapter_name(task))


def task_ids(model, tasks):
    """{task: `task_id`} for `LifelongBatches`, or None if the tasks share all parameters."""
    return None if is_shared(model) else {task: task_id(model, task) for task in tasks}


def train_rows(model, are_trained):
    """Train or freeze the special tokens' embeddings."""
    for name, p in model.named_parameters():
        if "rows.tasks." in name and p.numel():
            p.requires_grad_(are_trained)


def train_adapters(model, tasks):
    """Train only these tasks' own adapters, and freeze those of other tasks."""
    trained = {adapter_name(task) for task in tasks}
    for method, name, p in added_parameters(model):
        if method.name != BARE:
            p.requires_grad_(method.owner(name) in trained)


def parameters_of_tasks(model, tasks):
    """{task: the parameters that only its rows go through}; {} if the tasks share all parameters."""
    if is_shared(model):
        return {}
    parameters = attach.parameters_of_tasks(model)
    return {task: parameters[adapter_name(task)] for task in tasks}


def copy_adapter_forward(model, task, later):
    """Copy the adapter of `task` to the tasks that are not trained yet."""
    copy_adapter(model, adapter_name(task), [adapter_name(name) for name in later])


def row_task_ids(model, tasks):
    """Ids of the rows' tasks, given as names or None; 0 if the tasks share all parameters, and for None."""
    ids = {task: 0 if task is None else task_id(model, task) or 0 for task in set(tasks)}
    return [ids[task] for task in tasks]
