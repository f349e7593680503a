"""Inferring the task of a question when it is not given (--infer_task).

    perplexity   the trained task under whose own parameters the question is most likely: the lowest exp(-1/n Σ log p)
                 of its n tokens, preceded by the task's start token if the model generates samples
    embedding    the trained task with the nearest embedding (by cosine similarity): the mean over its training
                 questions of the backbone's last hidden states, averaged over each question's tokens, without adapters
"""

import torch
from versatile.adapters.pooling import mean_pool
from versatile.adapters.routing import NO_TASK
from versatile.data.encoders.question_answer import gen_token
from versatile.data.padding import pad, tensors, token_mask
from versatile.lifelong import routing
from versatile.lifelong.answers import ids_before_gen, log_probabilities
from versatile.utils.devices import autocast

WORDS = {"perplexity": "lowest perplexity of the question", "embedding": "nearest task embedding"}
# Number of training questions averaged into a task embedding.
EXAMPLES = 200


class PerplexityInference:
    """See above.

    Args:
        is_generator: the model is trained to generate samples.
        add_task_tokens: each task has its own start token.
        lead_bos: the start token follows the backbone's own first token.
    """

    def __init__(self, is_generator, add_task_tokens, lead_bos=False):
        self.is_generator, self.add_task_tokens, self.lead_bos = is_generator, add_task_tokens, lead_bos

    def can_distinguish_tasks(self, model):
        """Whether anything distinguishes the tasks in a model: parameters, or start tokens that the model reads."""
        reads_start = self.is_generator or model.config.is_encoder_decoder
        return not routing.is_shared(model) or (self.add_task_tokens and reads_start)

    def infer(self, predictor, qas, candidates, batch_size):
        """The task of each question.

        Args:
            predictor: `Predictor`.
            qas: a list of `QA`.
            candidates: names of the possible tasks, at least one.
            batch_size: questions per batch.

        Returns:
            a list of names.
        """
        values = torch.stack([self.perplexities(predictor, qas, task, batch_size) for task in candidates])
        return [candidates[i] for i in values.argmin(0).tolist()]

    def perplexities(self, predictor, qas, task, batch_size):
        """[n] log-perplexities of the questions under a task's own parameters."""
        encoder = predictor.encoder
        # Without __ans__, which is not part of the question.
        questions = [ids[:-1] for ids in encoder.prompts(qas, 1)]
        # An encoder-decoder's decoder reads nothing before its first token.
        if self.is_generator or predictor.model.config.is_encoder_decoder:
            before = ids_before_gen(predictor.model, predictor.tokenizer, self.lead_bos)
            start = [*before, encoder.vocabulary[gen_token(task, self.add_task_tokens)]]
            pairs = [(start, ids) for ids in questions]
        else:
            pairs = [(ids[:1], ids[1:]) for ids in questions]
        logs = log_probabilities(predictor, pairs, batch_size, task, has_end=False)
        return -torch.tensor(logs) / torch.tensor([max(len(ids), 1) for _, ids in pairs])


class EmbeddingInference:
    """See above.

    Args:
        examples: {task: a list of `QA`} from which the task embeddings are computed.
    """

    def __init__(self, examples):
        self.examples = examples

    def can_distinguish_tasks(self, model):
        """See `PerplexityInference`."""
        return True

    def infer(self, predictor, qas, candidates, batch_size):
        """See `PerplexityInference.infer`."""
        centres = torch.stack([self.embed(predictor, self.examples[task], batch_size).mean(0) for task in candidates])
        embeddings = torch.nn.functional.normalize(self.embed(predictor, qas, batch_size), dim=-1)
        nearest = (embeddings @ torch.nn.functional.normalize(centres, dim=-1).T).argmax(-1)
        return [candidates[i] for i in nearest.tolist()]

    @torch.no_grad()
    def embed(self, predictor, qas, batch_size):
        """[n, hidden size] embeddings of questions."""
        model, rows = predictor.model, predictor.encoder.prompts(qas, 1)
        device, parts = next(model.parameters()).device, []
        for first in range(0, len(rows), batch_size):
            chunk = rows[first : first + batch_size]
            width = max(map(len, chunk))
            arrays = dict(ids=pad(chunk, width, predictor.tokenizer.pad_token_id), mask=token_mask(chunk, width))
            ids, mask = (tensor.to(device) for tensor in tensors(arrays).values())
            with autocast(device, predictor.dtype):
                states = model.input_states(ids, mask, torch.full((len(ids),), NO_TASK))
            parts.append(mean_pool(states.float(), mask).cpu())
        return torch.cat(parts)
