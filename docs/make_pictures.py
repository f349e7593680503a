#!/usr/bin/env python
"""Draw the pictures of the idea and of the rooms: python docs/make_pictures.py"""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

FROZEN, NLG, MT, INK = "#e8eaee", "#f4a259", "#5b8e7d", "#333333"


def box(ax, x, y, w, h, text, color, size=9, ink=INK):
    ax.add_patch(FancyBboxPatch((x, y), w, h, boxstyle="round,pad=0.02,rounding_size=0.08", fc=color, ec=INK, lw=0.8))
    ax.text(x + w / 2, y + h / 2, text, ha="center", va="center", fontsize=size, color=ink)


def arrow(ax, start, end, color=INK):
    ax.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=10, color=color, lw=1))


def main():
    draw_idea()
    draw_rooms()


def draw_rooms():
    """Each room above those that it may import."""
    figure, ax = plt.subplots(figsize=(10, 5), dpi=130)
    ax.set(xlim=(0, 13), ylim=(0, 6.6))
    ax.axis("off")
    rooms = [
        (0.3, 5.5, 12.4, 0.8, "white", "scripts: train.py  train_vlm.py  train_lifelong.py  train_t5.py  …\n"
         "flags of a published system -> the common settings"),
        (0.3, 4.2, 12.4, 0.8, "#dfe7f2", "lifelong/\nstrategies (one file each), replay, teachers, scores"),
        (0.3, 2.9, 12.4, 0.8, "#dfe7f2", "training/\none loop, objectives, optimizers, distillation, decoding, runs"),
        (0.3, 1.6, 6.0, 0.8, NLG, "data/\ntasks  encoders  converters  cache  batching"),
        (6.7, 1.6, 6.0, 0.8, MT, "adapters/\nbackbones  methods  imports  checkpoint  combine"),
        (0.3, 0.3, 12.4, 0.8, FROZEN, "utils/\nerrors, files, devices, metrics, plots"),
    ]  # fmt: skip
    for x, y, w, h, color, text in rooms:
        box(ax, x, y, w, h, text, color, 9, "white" if color == MT else INK)
    for x, top in ((6.5, 5.5), (6.5, 4.2), (3.3, 2.9), (9.7, 2.9), (3.3, 1.6), (9.7, 1.6)):
        arrow(ax, (x, top - 0.03), (x, top - 0.47))
    ax.text(6.5, 2.0, "|", ha="center", va="center", fontsize=14)
    figure.savefig(Path(__file__).parent / "rooms.png", bbox_inches="tight")


def draw_idea():
    figure, ax = plt.subplots(figsize=(10, 4.6), dpi=130)
    ax.set(xlim=(0, 13), ylim=(0, 6))
    ax.axis("off")
    # Left: the input, every token with the embedding of its kind added.
    tokens = ["<bos_nlg>", "<name>", "The Vaults", "<food>", "English", "<response>", "The Vaults serves …"]
    for i, token in enumerate(tokens):
        special = token.startswith("<")
        box(ax, 0.1, 5.1 - i * 0.62, 2.5, 0.48, token, NLG if special else FROZEN, 8.5)
    caption = "task embeddings: the only new rows\n(token, type and output row in one)"
    ax.text(1.35, 0.62, caption, ha="center", fontsize=8)
    arrow(ax, (2.75, 3.4), (3.7, 3.4))
    # Middle: one block of the frozen backbone and its bank of adapters.
    box(ax, 3.8, 1.1, 2.6, 4.5, "", FROZEN)
    ax.text(5.1, 5.3, "frozen block × n", ha="center", fontsize=9)
    box(ax, 4.1, 1.4, 2.0, 0.8, "attention", "white")
    box(ax, 4.1, 2.6, 2.0, 0.8, "feed-forward", "white")
    arrow(ax, (5.1, 2.25), (5.1, 2.58))
    arrow(ax, (5.1, 3.42), (5.1, 3.72))
    box(ax, 4.1, 3.75, 0.95, 0.85, "adapter\nnlg", NLG, 8)
    box(ax, 5.15, 3.75, 0.95, 0.85, "adapter\nmt", MT, 8, "white")
    ax.text(5.1, 4.82, "row by row, by task_ids", ha="center", fontsize=8, style="italic")
    arrow(ax, (6.5, 3.4), (7.3, 3.4))
    # Right: inside an adapter.
    box(ax, 7.4, 1.1, 2.5, 4.5, "", "#fff6ec")
    ax.text(8.65, 5.3, "one adapter", ha="center", fontsize=9)
    for i, text in enumerate(["layer norm", "down: width → r", "ReLU", "up: r → width"]):
        box(ax, 7.75, 1.5 + i * 0.78, 1.8, 0.5, text, "white" if text == "ReLU" else NLG, 8.5)
    arrow(ax, (8.65, 4.42), (8.65, 4.72))
    ax.text(8.65, 4.85, "+ its input", ha="center", fontsize=8.5)
    # Far right: what a task costs.
    box(ax, 10.3, 3.6, 2.5, 1.7, "GPT-2, nlg, r = 10\n\n220,536 trained\n= 0.18 % of 124.4M", "white", 9)
    box(ax, 10.3, 1.3, 2.5, 1.7, "adapter file: 0.9 MB\ninstead of 500 MB", "white", 9)
    figure.savefig(Path(__file__).parent / "idea.png", bbox_inches="tight")


if __name__ == "__main__":
    main()
