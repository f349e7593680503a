"""Isolated adapters: the upper bound when the task of every question is known and nothing is shared."""

from versatile.lifelong.strategies.base import Strategy


class IsolatedAdapters(Strategy):
    """Each task trains its own adapter (--own_adapters); the special tokens' embeddings are trained with the first
    task only. No parameter of an earlier task ever changes, so nothing is forgotten."""

    name, order = "isolated", 94
    summary = ("One adapter per task (as --own_adapters); the special tokens' rows are trained with the first task "
               "only. If the task of every question is known, nothing is forgotten and nothing shared (the upper bound "
               "of isolation).")  # fmt: skip

    @classmethod
    def method_refusal(cls, method):
        """See `Strategy`."""
        from versatile.adapters.methods.registry import BARE, FULL

        return ("no parameters belong to a single task", "use --adapter_bottleneck N or --method") if method in (
            FULL, BARE) else None  # fmt: skip

    @classmethod
    def complete(cls, settings):
        """Give each task its own adapter."""
        from versatile.lifelong.sequence import FRESH

        cls.check_method(settings)
        settings.own_adapters = settings.own_adapters or FRESH

    def before_task(self, seen, new):
        """Train only the task's own adapter, and in the first stage also the shared embeddings."""
        from versatile.lifelong import routing

        model = self.sequence.model
        routing.train_rows(model, not seen)
        routing.train_adapters(model, new)
        return []
