"""One file a task; each is found and imported by `data.task.all_tasks`."""
