"""Prompt tuning: learned tokens before the input (Lester et al. 2021, "The Power of Scale for Parameter-Efficient
Prompt Tuning").

    Pr(Y | [P ; X])

Each task has its own P [length, width], initialised from vocabulary embeddings (sections 2 and 2.1).

An encoder reads P before X, and its decoder attends to both. In a decoder-only model P precedes the input and never
sees it, so P passes through the blocks alone, once per batch, and its keys and values are prepended to the input's
inside the attention function, like a prefix (prefix.py). The input keeps its positions; with rotary positions P is at
-length to -1.
"""

import contextlib
import functools

import torch
import torch.nn.functional as F
from torch import nn
from versatile.adapters.methods.base import TaskModules, refuse_without_port
from versatile.adapters.methods.prefix import IMPLEMENTATION, join_attention
from versatile.utils.errors import UserError

METHODS = {"prompt": "Prompt"}
SETTINGS = {"prompt_length": ("positive", 20, "learned tokens before the input")}


class Prompt(TaskModules):
    """The prompts of a model's tasks, stored as modules of the first block. Tasks may have different lengths."""

    chains, sizes = True, {"prompt_length": (".tokens", 0)}

    def __init__(self, model, name):
        super().__init__(model, name)
        del self.blocks[1:]
        self.in_encoder = self.backbone.encoder_decoder
        self.attention = None if self.in_encoder else IMPLEMENTATION
        self.recorded, self._latest = None, (None, None)

    @classmethod
    def check(cls, name, backbone, settings, location):
        if not backbone.encoder_decoder:
            refuse_without_port(backbone, "attention", name, location)
            refuse_without_port(backbone, "attention_interface", name, location)

    @classmethod
    def check_model(cls, model, backbone, settings):
        cls.check_chain(model, backbone, [settings])

    @classmethod
    def check_chain(cls, model, backbone, chain):
        longest, lengths = backbone.max_length(model.config), [settings["prompt_length"] for settings in chain]
        # The prompts themselves have the positions from 0 on, of which a learned table holds only so many.
        if not backbone.encoder_decoder and not hasattr(model.base_model, "rotary_emb") and sum(lengths) > longest:
            together = f", and the last task reads the prompts of all {len(chain)}" * (len(chain) > 1)
            raise UserError(f"this {backbone.name} has {longest} positions{together}",
                            location=f"--prompt_length {max(lengths)}", expected=f"at most {longest // len(chain)}",
                            remedy="choose a shorter prompt")  # fmt: skip

    def create(self, model, settings):
        table = model.get_input_embeddings().weight.detach()
        rows = torch.randint(len(table), (settings["prompt_length"],), device=table.device)
        return [nn.ParameterDict(dict(tokens=nn.Parameter(table[rows].float().clone())))]

    def hook(self, model):
        if self.in_encoder:
            model.encoder.register_forward_pre_hook(self.before_encoder, with_kwargs=True)
            model.decoder.register_forward_pre_hook(self.before_decoder, with_kwargs=True)
            return
        for number, block in enumerate(self.backbone.blocks(model)):
            join_attention(self.backbone.attention(block), self, number)
        self.router.prepare.append(functools.partial(self.prepare, model.base_model))

    def prompts(self):
        """(tokens [runs, longest, width], mask [runs, longest] true at real tokens) of the batch, or None. Padding is
        on the left in an encoder, so that prompts end where the input begins, elsewhere on the right, unseen."""
        held = self.blocks[0]
        chains = [[held[t]["tokens"] for t in self.router.chain(task) if t in held] for task in self.router.present]
        if not any(chains):
            return None
        like = next(tokens for chain in chains for tokens in chain)
        parts = [torch.cat(chain) if chain else like.new_zeros(0, like.shape[1]) for chain in chains]
        longest = max(map(len, parts))
        gaps = [(longest - len(part), 0) if self.in_encoder else (0, longest - len(part)) for part in parts]
        real = [F.pad(like.new_ones(len(part), dtype=torch.bool), gap) for part, gap in zip(parts, gaps)]
        tokens = torch.stack([F.pad(part, (0, 0, *gap)) for part, gap in zip(parts, gaps)])
        return tokens, torch.stack(real)

    def of_runs_to_rows(self, tensor, count):
        """[runs, …] -> [count, …], each row getting its own run's."""
        which = self.router.which
        return tensor.expand(count, *tensor.shape[1:]) if which is None else tensor[which.to(tensor.device)]

    # ---- an encoder

    def before_encoder(self, encoder, args, kwargs):
        """Forward pre-hook: prepend the prompts to the input embeddings."""
        if (prompts := self.prompts()) is None:
            return args, kwargs
        args, kwargs = list(args), dict(kwargs)
        ids = args.pop(0) if args else kwargs.pop("input_ids", None)
        embeds = kwargs.get("inputs_embeds")
        embeds = encoder.embed_tokens(ids) if embeds is None else embeds
        mask = args.pop(0) if args else kwargs.get("attention_mask")
        mask = embeds.new_ones(embeds.shape[:2], dtype=torch.long) if mask is None else mask
        front = self.of_runs_to_rows(prompts[0], len(embeds)).to(embeds)
        kwargs |= dict(inputs_embeds=torch.cat([front, embeds], dim=1), attention_mask=self.extended(mask, prompts[1]))
        return tuple(args), kwargs

    def before_decoder(self, decoder, args, kwargs):
        """Forward pre-hook: let cross-attention see the states of the prompts too."""
        states, mask = kwargs.get("encoder_hidden_states"), kwargs.get("encoder_attention_mask")
        if states is None or (prompts := self.prompts()) is None:
            return args, kwargs
        width = states.shape[1] - prompts[0].shape[1]
        mask = states.new_ones(len(states), width, dtype=torch.long) if mask is None else mask
        if mask.shape[1] == states.shape[1]:
            # The mask already covers the states: a caller that assembles encoder states itself (continuous batching)
            # has extended it with `extend_source_mask`. The mask of an input is at least one token narrower whenever
            # there are prompts; as transformers makes this call, only the width tells which mask it is.
            return args, kwargs
        return args, kwargs | dict(encoder_attention_mask=self.extended(mask, prompts[1]))

    def extend_source_mask(self, mask):
        prompts = self.prompts() if self.in_encoder else None
        return mask if prompts is None else self.extended(mask, prompts[1])

    def extended(self, mask, real):
        """An attention mask [rows, length] with the prompts' mask prepended."""
        return torch.cat([self.of_runs_to_rows(real, len(mask)).to(mask), mask], dim=1)

    # ---- a decoder-only model

    def prepare(self, decoder):
        """Run a batch's prompts through the blocks; without gradients, only once for the same prompts and weights."""
        if self.recorded is not None or (prompts := self.prompts()) is None:
            return
        device = prompts[0].device
        dtype = torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else None
        fixed = not torch.is_grad_enabled() and not decoder.training
        key = fixed and (self.router.present, dtype, *((id(p), p._version) for p in decoder.parameters()),
                         *((id(p), p._version) for p in self.parameters()))  # fmt: skip
        if not fixed or self._latest[0] != key:
            self._latest = key, self.record(decoder, *prompts)
        self.router.kept[self.name] = self._latest[1]

    def record(self, decoder, tokens, real):
        """Run prompts through the decoder; returns (`real`, [(keys, values) of each block])."""
        positions = torch.arange(tokens.shape[1], device=tokens.device).expand(len(tokens), -1)
        if hasattr(decoder, "rotary_emb"):
            positions = positions - real.sum(1, keepdim=True)
        with self.without_tasks(len(tokens)) as recorded:
            # Without a mask transformers would read the positions and wait for the GPU.
            every = tokens.new_ones(tokens.shape[:2], dtype=torch.long)
            decoder(inputs_embeds=tokens, attention_mask=every, position_ids=positions, use_cache=False)
        return real, recorded

    @contextlib.contextmanager
    def without_tasks(self, count):
        """A context in which rows have no task, and their keys and values are recorded."""
        own = {name: getattr(self.router, name) for name in ("runs", "which", "order", "kept")}
        self.router.__dict__.update(runs=[(None, count)], which=None, order=None, kept={})
        self.recorded = []
        try:
            yield self.recorded
        finally:
            self.recorded = None
            self.router.__dict__.update(own)

    def record_keys_and_values(self, key, value):
        """Record the keys and values of a block's attention while the prompts pass through."""
        if self.recorded is not None:
            self.recorded.append((key, value))

    def prefixes_of_rows(self, number):
        """(keys, values [rows or 1, heads, longest, width], mask [rows or 1, longest] true at real keys), or None."""
        if self.name not in self.router.kept:
            return None
        seen, recorded = self.router.kept[self.name]
        count = 1 if self.router.which is None else len(self.router.which)
        return tuple(self.of_runs_to_rows(part, count) for part in (*recorded[number], seen))

    def __getstate__(self):
        # A copy starts without a batch: tensors in the middle of a graph cannot be copied.
        return self.__dict__ | dict(_latest=(None, None))
