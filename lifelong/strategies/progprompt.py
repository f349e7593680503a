"""Progressive prompts (Razdaibiedina et al. 2023)."""

from versatile.lifelong.strategies.isolated import IsolatedAdapters


class ProgressivePrompts(IsolatedAdapters):
    """The rows of task k see [P_k, P_(k-1), …, P_1, x] (equation 3): their own prompt and the frozen prompts of
    earlier tasks. Only P_k is trained. The published prompts are soft tokens before the input (--method prompt);
    those of --method prefix are keys and values in every block."""

    name, order = "progprompt", 92
    summary = ("ProgressivePrompts, Razdaibiedina et al. 2023: task k trains a prompt P_k; its rows read "
               "[P_k, …, P_1, x], the earlier prompts frozen.")  # fmt: skip
    published = "--method prompt, --prompt_length 10, --learning_rate 0.3 (T5-large)"
    chained = True

    @classmethod
    def method_refusal(cls, method):
        """See `Strategy`."""
        from versatile.adapters.methods.registry import all_methods

        prompts = [name for name, description in all_methods().items() if description.load_class().chains]
        if method in prompts:
            return None
        return "it trains one prompt per task", f"use {' or '.join(f'--method {name}' for name in prompts)}"
