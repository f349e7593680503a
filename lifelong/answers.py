"""Answers of a trained model to a task's questions."""

from dataclasses import dataclass

import torch
from versatile.adapters import checkpoint, inference
from versatile.data.encoders.question_answer import SEP, QuestionEncoder
from versatile.data.padding import IGNORE, causal_arrays, tensors
from versatile.lifelong import routing
from versatile.training.decoding import Decoding, Prompt, decode
from versatile.training.evaluation import Predictions
from versatile.training.objectives import move
from versatile.utils.devices import autocast
from versatile.utils.errors import UserError
from versatile.utils.progress import Progress

EOS = "<|endoftext|>"


@dataclass
class Predictor:
    """A model that answers.

    Attributes:
        model, tokenizer: ready for inference.
        encoder: `QuestionEncoder` as it was trained with.
        positions: tokens of the longest sequence.
        dtype: precision of the matrix products.
    """

    model: object
    tokenizer: object
    encoder: object
    positions: int
    dtype: torch.dtype

    @classmethod
    def of(cls, model, tokenizer, device, dtype, max_len):
        """Of an attached model; it is frozen and moved.

        Args:
            max_len: tokens of the longest sequence, the model's positions at the most.
        """
        most = inference.prepare_for_inference(model, device, dtype)[1]
        positions = min(most, max_len)
        encoder = make_encoder(tokenizer, positions, SEP in tokenizer.get_vocab(), most)
        return cls(model, tokenizer, encoder, positions, dtype)

    @classmethod
    def load(cls, folder, device, dtype, max_len):
        """Of a directory that train_lifelong.py wrote."""
        return cls.of(*checkpoint.load(folder, allow_idle=True), device, dtype, max_len)

    def predict(self, splits, decoding):
        """See `training.text_model.TextModel.predict`; the likelihoods are those of the model's own answers.

        Args:
            splits: a list of `lifelong.scoring.QuestionSplit`.
            decoding: dict(sampling, batch_size, task), as `answer` takes them.
        """
        predictions, (size, task) = {}, (decoding["batch_size"], decoding["task"])
        for split in splits:
            with Progress(len(split.qas), f"answering {split.name}") as done:
                texts, pairs = answer(self, split.qas, progress=done, **decoding)
            logs = log_probabilities(self, pairs, size, task)
            tokens = sum(len(ids) + 1 for _, ids in pairs)
            predictions[split.name] = Predictions(texts, -sum(logs), tokens, logs)
        return predictions, {}


# Of --max_len: what a question and its answer need at the least, and what stands beside the longest answer.
LEAST, BESIDE = 9, 3


def make_encoder(tokenizer, positions, use_sep, most):
    """The `QuestionEncoder` of sequences of so many positions; the last label needs one of them.

    Args:
        most: positions that the model has.
    """
    if positions < LEAST:
        short = most < LEAST
        raise UserError(f"{positions} tokens are too few for a question and its answer",
                        location="--model_checkpoint" if short else f"--max_len {positions}",
                        expected=f"at least {LEAST}",
                        remedy="use a backbone with more positions" if short else "raise --max_len")  # fmt: skip
    return QuestionEncoder(tokenizer, positions - 1, use_sep, EOS if tokenizer.eos_token_id is None else None, most)


class TooLong(UserError):
    """An answer that does not fit. `needed`: the --max_len it needs."""

    needed = 0


def check_fit(encoder, qas):
    """Refuse answers that do not fit even without a context.

    Args:
        encoder: `QuestionEncoder`, of `make_encoder`.
        qas: a list of `QA`.

    Returns:
        tokens of the longest one.

    Raises:
        TooLong: of the longest one.
    """
    longest, where, room = 0, None, encoder.max_len + 1 - BESIDE
    for first in range(0, len(qas), 2000):
        chunk = [(qa, text) for qa in qas[first : first + 2000] for text in qa.answers]
        for (qa, _), ids in zip(chunk, encoder.tokenize([text for _, text in chunk])):
            if len(ids) > longest:
                longest, where = len(ids), qa.location
    if longest <= room:
        return longest
    needed = longest + BESIDE
    if needed <= encoder.most:
        expected = f"at most {room} with --max_len {encoder.max_len + 1}"
        remedy = f"--max_len {needed}, or more for its context; or take the sample out"
    else:
        expected = f"at most {encoder.most - BESIDE}: the model has {encoder.most} positions"
        remedy = "shorten it, or take the sample out"
    error = TooLong(f"an answer has {longest} tokens", location=where, expected=expected, remedy=remedy)
    error.needed = needed
    raise error


def answer(predictor, qas, sampling=None, batch_size=32, progress=None, task=None):
    """Answer questions, greedily or by chance. An answer is as long as the longest true one at the most.

    Args:
        predictor: `Predictor`.
        qas: a list of `QA`.
        sampling: None: greedy; or dict(top_k, top_p, temperature, seed).
        batch_size: questions at once.
        progress: called with the number of answers so far.
        task: its name, or a list of each question's, which a model whose tasks have adapters of their own has to know.

    Returns:
        (texts, prompts and answers as lists of ids)
    """
    encoder, tokenizer = predictor.encoder, predictor.tokenizer
    limit = max(1, check_fit(encoder, qas))
    prompts = encoder.prompts(qas, limit)
    # The end of an answer takes a position, too.
    limit = min(limit, predictor.positions - 1 - max(map(len, prompts)))
    sampling = dict(no_sample=False, **sampling) if sampling else dict(no_sample=True)
    decoding = Decoding(max_length=limit, min_length=0, batch_size=batch_size, **sampling)
    task_ids = routing.row_task_ids(predictor.model, task if isinstance(task, list) else [task] * len(qas))
    starts = [Prompt(ids, None, task_id, encoder.eos) for ids, task_id in zip(prompts, task_ids)]
    outputs = decode(predictor.model, tokenizer, starts, decoding, dtype=predictor.dtype, progress=progress)
    texts = [tokenizer.decode(ids, clean_up_tokenization_spaces=False).strip() for ids in outputs]
    return texts, list(zip(prompts, outputs))


@torch.no_grad()
def log_probabilities(predictor, pairs, batch_size=32, task=None, has_end=True):
    """What the model gives its answers: the sum over an answer's tokens and its end of their log-probabilities.

    Args:
        predictor: `Predictor`.
        pairs: a list of (ids of the prompt, ids of the answer).
        batch_size, task: as in `answer`.
        has_end: the end counts.

    Returns:
        a list of floats, in natural logarithms.
    """
    device = next(predictor.model.parameters()).device
    order = sorted(range(len(pairs)), key=lambda i: len(pairs[i][0]) + len(pairs[i][1]))
    totals = [0.0] * len(pairs)
    task_ids = routing.row_task_ids(predictor.model, task if isinstance(task, list) else [task] * len(pairs))
    end = [predictor.encoder.eos] if has_end else []
    for first in range(0, len(order), batch_size):
        chosen = order[first : first + batch_size]
        batch = _labelled([pairs[i] for i in chosen], end, predictor.tokenizer.pad_token_id)
        batch["task_ids"] = torch.tensor([task_ids[i] for i in chosen])
        with autocast(device, predictor.dtype):
            output = predictor.model(use_cache=False, **move(batch, device))
        rows, targets = output.rows.cpu(), output.targets.cpu()
        real = targets != IGNORE
        logs = output.scores.float().log_softmax(-1).cpu()[real].gather(1, targets[real, None]).squeeze(1)
        sums = torch.zeros(len(chosen)).index_add(0, rows[real], logs)
        for i, value in zip(chosen, sums.tolist()):
            totals[i] = value
    return totals


def _labelled(pairs, end, pad_id):
    """Prompts with their answers and `end`, padded on the right; the answers and their ends are labels."""
    width = max(len(prompt) + len(ids) for prompt, ids in pairs) + 1
    lists = [[*prompt, *ids, *end] for prompt, ids in pairs]
    return tensors(causal_arrays(lists, [len(prompt) for prompt, _ in pairs], width, pad_id))
