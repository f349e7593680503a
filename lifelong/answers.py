"""Answers of a trained model to a task's questions."""

from dataclasses import dataclass

import torch
from versatile.adapters import checkpoint
from versatile.adapters.backbones.family import max_length_of
from versatile.adapters.inference import prepare_for_inference
from versatile.data.encoders.question_answer import SEP, QuestionEncoder, first_token
from versatile.data.padding import IGNORE, causal_arrays, tensors
from versatile.lifelong import routing
from versatile.training.decoding import Decoding, Prompt, decode
from versatile.training.evaluation import Predictions
from versatile.training.objectives import move_to_device
from versatile.utils.devices import autocast
from versatile.utils.errors import UserError
from versatile.utils.progress import Progress

EOS = "<|endoftext|>"


@dataclass
class Predictor:
    """A model that answers questions.

    Attributes:
        model, tokenizer: ready for inference.
        encoder: the `QuestionEncoder` the model was trained with.
        positions: maximum sequence length in tokens.
        dtype: precision of the matrix products.
    """

    model: object
    tokenizer: object
    encoder: object
    positions: int
    dtype: torch.dtype

    @classmethod
    def of(cls, model, tokenizer, device, dtype, max_len):
        """From an attached model, which is frozen and moved to the device.

        Args:
            max_len: maximum sequence length in tokens, capped at the model's positions.
        """
        prepare_for_inference(model, device, dtype)
        max_positions = max_length_of(model)
        positions = min(max_positions, max_len)
        encoder = make_encoder(tokenizer, positions, SEP in tokenizer.get_vocab(), max_positions)
        return cls(model, tokenizer, encoder, positions, dtype)

    @classmethod
    def load(cls, folder, device, dtype, max_len):
        """From a directory that train_lifelong.py wrote."""
        return cls.of(*checkpoint.load_checkpoint(folder, allow_idle=True), device, dtype, max_len)

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


# Tokens of --max_len: the minimum for a question and its answer, and those needed besides the longest answer.
MIN_TOKENS, EXTRA_TOKENS = 9, 3


def ids_before_gen(model, tokenizer, lead_bos):
    """`QuestionEncoder`'s `before_gen`; an encoder-decoder's decoder has a first token of its own."""
    return first_token(tokenizer) if lead_bos and not model.config.is_encoder_decoder else ()


def check_lead_bos(model, tokenizer):
    """Refuse --lead_bos where it has no effect."""
    if ids_before_gen(model, tokenizer, lead_bos=True):
        return
    reason = "the tokenizer has neither a bos nor an eos token"
    if model.config.is_encoder_decoder:
        reason = "the decoder of an encoder-decoder begins with a token of its own"
    raise UserError(reason, location="--lead_bos", remedy="leave the flag out")


def make_encoder(tokenizer, positions, use_sep, max_positions, before_gen=()):
    """The `QuestionEncoder` for sequences of `positions` tokens, one of which is needed by the last label.

    Args:
        max_positions: the model's number of positions.
        before_gen: see `QuestionEncoder`.
    """
    if (room := positions - len(before_gen)) < MIN_TOKENS:
        short = max_positions < MIN_TOKENS
        raise UserError(f"{positions} tokens are too few for a question and its answer",
                        location="--model_checkpoint" if short else f"--max_len {positions}",
                        expected=f"at least {MIN_TOKENS}",
                        remedy="use a backbone with more positions" if short else "raise --max_len")  # fmt: skip
    eos = EOS if tokenizer.eos_token_id is None else None
    return QuestionEncoder(tokenizer, room - 1, use_sep, eos, max_positions, before_gen)


class TooLong(UserError):
    """An answer does not fit. `needed`: the --max_len it needs."""

    needed = 0


def check_fit(encoder, qas):
    """Reject answers that do not fit even without a context.

    Args:
        encoder: `QuestionEncoder` made by `make_encoder`.
        qas: a list of `QA`.

    Returns:
        number of tokens of the longest answer.

    Raises:
        TooLong: the longest answer does not fit.
    """
    # What stands before a start token takes up positions too.
    led = len(encoder.before_gen)
    longest, where, room = 0, None, encoder.max_len + 1 - EXTRA_TOKENS
    for first in range(0, len(qas), 2000):
        chunk = [(qa, text) for qa in qas[first : first + 2000] for text in qa.answers]
        for (qa, _), ids in zip(chunk, encoder.tokenize([text for _, text in chunk])):
            if len(ids) > longest:
                longest, where = len(ids), qa.location
    if longest <= room:
        return longest
    needed = longest + EXTRA_TOKENS + led
    if needed <= encoder.max_positions:
        expected = f"at most {room} with --max_len {encoder.max_len + 1 + led}"
        remedy = f"--max_len {needed}, or more for its context; or remove the sample"
    else:
        positions = encoder.max_positions
        expected = f"at most {positions - EXTRA_TOKENS - led}: the model has {positions} positions"
        remedy = "shorten it, or remove the sample"
    error = TooLong(f"an answer has {longest} tokens", location=where, expected=expected, remedy=remedy)
    error.needed = needed
    raise error


def answer(predictor, qas, sampling=None, batch_size=32, progress=None, task=None):
    """Answer questions, greedily or by sampling. No answer is longer than the longest true one.

    Args:
        predictor: `Predictor`.
        qas: a list of `QA`.
        sampling: None: greedy; or dict(top_k, top_p, temperature, seed).
        batch_size: questions answered together.
        progress: called with the number of answers so far.
        task: name of the task, or a list with that of each question; needed if the model's tasks have their own
            adapters.

    Returns:
        (texts, pairs of prompt ids and answer ids)
    """
    encoder, tokenizer = predictor.encoder, predictor.tokenizer
    limit = max(1, check_fit(encoder, qas))
    prompts = encoder.prompts(qas, limit)
    # The end of an answer also takes a position.
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
    """Log-probabilities of answers under the model, summed over each answer's tokens and its end.

    Args:
        predictor: `Predictor`.
        pairs: a list of (ids of the prompt, ids of the answer).
        batch_size, task: as in `answer`.
        has_end: whether the end of the answer counts.

    Returns:
        a list of floats, natural logarithms.
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
            output = predictor.model(use_cache=False, **move_to_device(batch, device))
        rows, targets = output.rows.cpu(), output.targets.cpu()
        real = targets != IGNORE
        logs = output.scores.float().log_softmax(-1).cpu()[real].gather(1, targets[real, None]).squeeze(1)
        sums = torch.zeros(len(chosen)).index_add(0, rows[real], logs)
        for i, value in zip(chosen, sums.tolist()):
            totals[i] = value
    return totals


def _labelled(pairs, end, pad_id):
    """Prompts with their answers and `end`, padded on the right; the answers and their ends are the labels."""
    width = max(len(prompt) + len(ids) for prompt, ids in pairs) + 1
    lists = [[*prompt, *ids, *end] for prompt, ids in pairs]
    return tensors(causal_arrays(lists, [len(prompt) for prompt, _ in pairs], width, pad_id))
