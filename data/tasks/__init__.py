"""The tasks, one per file; `data.task.load_tasks` finds and imports them."""
