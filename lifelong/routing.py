"""Which adapter a task's rows go through: the one that all tasks share, or the task's own (--own_adapters).

An attached model is one of "tasks", each with rows of special tokens, an adapter, or both. A sequence is attached as

    SHARED                  the special tokens' rows, and the adapter of this width where all tasks share it
    <task>, <task>, …       with --own_adapters: an adapter of this width each, and no rows; SHARED then has no adapter

so banks, routing and checkpoints are those of every attached model. All tasks' rows are scored against all special
tokens either way, and a task whose own adapter no row of a step goes through rests in it.
"""

from versatile.adapters.attach import owners as owned
from versatile.adapters.methods.base import added_parameters, copy_adapter
from versatile.adapters.methods.registry import BARE
from versatile.utils.errors import UserError

SHARED = "lifelong"


def layout(tokens, tasks, method, own):
    """What to attach: (markers, methods, mask_other_tasks) as `adapters.attach.attach` takes them.

    Args:
        tokens: the special tokens of the sequence.
        tasks: its names, in order.
        method: of an adapter, or a number, its width; None: there is none, the whole model is trained.
        own: whether each task has its own.
    """
    if not own:
        return {SHARED: tokens}, None if method is None else {SHARED: method}, True
    names = [adapter_name(task) for task in tasks]
    if SHARED in names:
        raise UserError(f"the task {SHARED!r}", location="--tasks",
                        expected="another name: this one stands for what is shared",
                        remedy=f"call it {SHARED}_task, for example")  # fmt: skip
    return {SHARED: tokens} | {name: [] for name in names}, {SHARED: 0} | dict.fromkeys(names, method), False


def adapter_name(task):
    """What a task's own adapter is called; torch allows no dot in the name of a module."""
    return task.replace(".", "_")


def hold_empty_rows(model):
    """Nothing is trained of a table of no rows: optimizers and processes need not know of it."""
    for name, p in model.named_parameters():
        if "rows.tasks." in name and not p.numel():
            p.requires_grad_(False)


def is_shared(model):
    """Whether the tasks share all there is: a row's task is of no consequence."""
    return len(model.info.tasks) == 1


def task_id(model, task):
    """The id of a task's rows in a model, or None where its tasks share all there is.

    Raises:
        KeyError: the tasks have adapters of their own, and this is none of them.
    """
    return None if is_shared(model) else model.task_id(adapter_name(task))


def task_ids(model, tasks):
    """{task: `task_id`} for `LifelongBatches`, or None where the tasks share all there is."""
    return None if is_shared(model) else {task: task_id(model, task) for task in tasks}


def train_rows(model, are_trained):
    """Train the special tokens' rows, or let them stand still."""
    for name, p in model.named_parameters():
        if "rows.tasks." in name and p.numel():
            p.requires_grad_(are_trained)


def train_adapters(model, tasks):
    """Of tasks' own adapters train those of these tasks alone."""
    trained = {adapter_name(task) for task in tasks}
    for method, name, p in added_parameters(model):
        if method.name != BARE:
            p.requires_grad_(method.owner(name) in trained)


def owners(model, tasks):
    """{task: the parameters that only its rows go through}; {} where the tasks share all there is."""
    if is_shared(model):
        return {}
    parameters = owned(model)
    return {task: parameters[adapter_name(task)] for task in tasks}


def copy_adapter_forward(model, task, later):
    """Let the adapters of tasks that are not trained yet be that of `task`."""
    copy_adapter(model, adapter_name(task), [adapter_name(name) for name in later])


def row_task_ids(model, tasks):
    """The ids of rows' tasks, by name or None, as a list; 0 where the tasks share all there is, or one is None."""
    ids = {task: 0 if task is None else task_id(model, task) or 0 for task in set(tasks)}
    return [ids[task] for task in tasks]
