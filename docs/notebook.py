# ---
# jupyter:
#   jupytext:
#     formats: py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # From a data file to one model of two tasks
#
# Each cell is a few lines: train an adapter, ask it, score it, train another task, put both into one model. Install the
# toolkit first (`pip install -e .` in a checkout). With `BACKBONE = "smollm2"` and no limits the answers are sentences;
# the random `tiny-gpt2` shows in seconds that all of it runs.

# %%
from pathlib import Path

import torch

import versatile

BACKBONE = "tiny-gpt2"
QUICK = dict(limit=16, n_epochs=1, train_batch_size=8, gradient_accumulation_steps=1, lr=1e-3)
RUNS = Path("runs/notebook")

# %% [markdown]
# ## One task
#
# `train` takes the flags of `train.py` as a dict and returns the run's directory: a README.md, the trained tensors, the
# flags, the metrics. A directory is trained once; `dict(resume=run)` resumes it.

# %%
nlg = versatile.train(dict(QUICK, task="nlg", dataset_path=versatile.SAMPLES / "nlg.json", method="lora",
                           model_checkpoint=BACKBONE, output_dir=RUNS / "nlg"))  # fmt: skip

# %%
model = versatile.load(nlg)
model.generate_text("nlg", "name[The Punter], eatType[pub], food[Italian], near[the river]", max_length=40)

# %% [markdown]
# ## Scores
#
# The same scores, with the same signatures, as `evaluate.py` writes.

# %%
scores = versatile.evaluate(dict(task="nlg", dataset_path=versatile.SAMPLES / "nlg.json", model_checkpoint=nlg,
                                 no_sample=True, limit=4, max_length=20))  # fmt: skip
scores["nlg"]["scores"]["sacreBLEU"]

# %% [markdown]
# ## A second task, and one model for both
#
# Combining verifies that every task answers as before, and writes nothing otherwise.

# %%
qa = versatile.train(dict(QUICK, task="qa", dataset_path=versatile.SAMPLES / "qa.json", adapter_bottleneck=16,
                          model_checkpoint=BACKBONE, output_dir=RUNS / "qa"))  # fmt: skip
both = versatile.combine({"nlg": nlg, "qa": qa}, RUNS / "both", proof_examples=2, proof_tokens=10,
                         data={"nlg": versatile.SAMPLES / "nlg.json", "qa": versatile.SAMPLES / "qa.json"})

# %%
model = versatile.load(both, precision="fp32")
conversation = ["document: The Severn is 354 kilometres long. It rises in Wales.", "How long is it?"]
model.generate_text("qa", [conversation], max_length=10)

# %% [markdown]
# ## The transformers model inside
#
# `model.model` is an ordinary transformers model whose `forward` and `generate` take one task id per row, so that a
# batch may mix the tasks.

# %%
ids = torch.tensor([[1, 2, 3], [1, 2, 3]])
tasks = torch.tensor([model.model.task_id("nlg"), model.model.task_id("qa")])
logits = model.model(input_ids=ids, task_ids=tasks).logits
assert not torch.equal(logits[0], logits[1])
