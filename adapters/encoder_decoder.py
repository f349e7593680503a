"""Tasks on an encoder-decoder: the sibling of `adapters.attach.TaskConditioned`.

A task's example is one row, the same for all backbones, and is split at its target:

    row       <bos> <marker> source …  <target marker> target … <eos>
    encoder   <bos> <marker> source …  </s>
    decoder                            <start> <target marker> target … <eos>

The input ends with the backbone's end token and the decoder begins with its start token (T5: `<pad>`), as in
pretraining. `</s>` replaces the target's marker and has its type, as has `<start>`. Decoding starts after
`<start> <target marker>`. Labels, and the positions whose outputs predict them, are those of the row.

A task's adapters act in the blocks of both encoder and decoder and receive the same task ids in both.
"""

import torch
from versatile.adapters.attach import TaskConditioned, on_device
from versatile.adapters.backbones.family import backbone_of
from versatile.adapters.preallocated_cache import mask_for
from versatile.utils.lengths import IGNORE, round_up


class EncoderDecoderConditioned(TaskConditioned):
    """Mixed into a transformers encoder-decoder's class: `forward` takes one task id per row."""

    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        decoder_input_ids=None,
        token_type_ids=None,
        decoder_token_type_ids=None,
        position_ids=None,
        encoder_outputs=None,
        past_key_values=None,
        labels=None,
        use_cache=None,
        task_ids=None,
        **kwargs,
    ):
        """The backbone's forward, with these changes:

        Args:
            input_ids: [rows, length]; with labels, whole rows (context and target), padded on the right; without
                labels, the encoder's input.
            labels: [rows, length] for whole rows, unshifted, -100 where there is no loss; a row is split at its first
                label. With labels the output is `LabelScores`: scores are computed only at labelled positions.
            decoder_input_ids: without labels, [rows, decoded]: the start token, the target's marker, ….
            token_type_ids, decoder_token_type_ids: ids of the same shape, whose embeddings are added to the tokens',
                or None; the decoder's may also be [rows, 1], for all its tokens.
            position_ids: ignored, as positions are relative.
            task_ids: see `TaskConditioned.forward`.

        Raises:
            ValueError: neither labels nor decoder_input_ids, or both.
        """
        if (labels is None) == (decoder_input_ids is None):
            raise ValueError("an encoder-decoder takes whole rows with labels, or decoder_input_ids without labels")
        if labels is not None:
            hidden, labels, ids = self.target_states(input_ids, token_type_ids, attention_mask, labels, task_ids)
            return self.label_scores(hidden, labels, ids)
        if encoder_outputs is None:
            encoder_outputs = self.encode(input_ids, token_type_ids, attention_mask, task_ids)
        self.router.route(task_ids, len(decoder_input_ids))
        mask = mask_for(past_key_values, kwargs.pop("decoder_attention_mask", None), decoder_input_ids)
        return self.all_scores(
            dict(
                encoder_outputs=encoder_outputs,
                attention_mask=attention_mask,
                decoder_attention_mask=mask,
                decoder_inputs_embeds=self.embed(decoder_input_ids, decoder_token_type_ids),
                past_key_values=past_key_values,
                use_cache=use_cache,
                **kwargs,
            )
        )

    def encode(self, input_ids, token_type_ids=None, attention_mask=None, task_ids=None):
        """The encoder's output for [rows, length] token ids, with each row's task adapters applied."""
        self.router.route(task_ids, len(input_ids))
        embeds = self.embed(input_ids, token_type_ids)
        mask = on_device(attention_mask, embeds.device)
        return self.get_encoder()(inputs_embeds=embeds, attention_mask=mask, return_dict=True)

    def input_states(self, input_ids, attention_mask, task_ids=None):
        """As `TaskConditioned.input_states`, from the encoder."""
        return self.encode(input_ids, None, attention_mask, task_ids).last_hidden_state

    def target_states(self, input_ids, token_type_ids, attention_mask, labels, task_ids):
        """Whole rows -> (the decoder's last hidden states, labels aligned with them, the rows' task ids)."""
        encoder_inputs, target, labels = self.divide(input_ids, token_type_ids, attention_mask, labels)
        encoded = self.encode(*encoder_inputs, task_ids)
        hidden = self.get_decoder()(
            inputs_embeds=self.embed(*target),
            encoder_hidden_states=encoded.last_hidden_state,
            encoder_attention_mask=on_device(encoder_inputs[2], encoded.last_hidden_state.device),
            use_cache=False,
        )[0]
        return hidden, labels, self.router.route(task_ids, len(input_ids))

    def divide(self, input_ids, token_type_ids, attention_mask, labels):
        """Split whole rows, padded on the right, into encoder and decoder inputs.

        A row without labels goes entirely to the encoder; both lengths are multiples of 8, to limit the number of
        shapes.

        Returns:
            ((ids, types, mask) of the encoder, (ids, types) of the decoder, labels aligned with these); types are None
            if they were.
        """
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        lengths = attention_mask.sum(1)
        known = labels[:, 1:] != IGNORE
        prompts = torch.where(known.any(1), known.int().argmax(1) + 1, lengths)
        longest, target = torch.stack([prompts.max(), (lengths - prompts).max()]).tolist()
        columns = torch.arange(round_up(longest), device=input_ids.device)[None]
        ends = prompts[:, None] - 1
        ids = _taken(input_ids, columns).masked_fill(columns > ends, self.config.pad_token_id)
        ids = ids.masked_fill(columns == ends, self.end_id)
        types = None if token_type_ids is None else _taken(token_type_ids, columns)
        encoder_inputs = ids, types, (columns <= ends).to(lengths.dtype)
        # The start token, the target's marker (the last token of the prompt), and the target.
        columns = torch.arange(round_up(target + 2), device=input_ids.device)[None]
        at = (ends - 1 + columns).clamp(min=0)
        ids = _taken(input_ids, at).masked_fill(at >= lengths[:, None], self.config.pad_token_id)
        ids = ids.masked_fill(columns == 0, self.start_id)
        # The start token has the marker's type.
        types = None if token_type_ids is None else _taken(token_type_ids, torch.maximum(at, ends))
        is_target = (columns > 1) & (at < lengths[:, None])
        return encoder_inputs, (ids, types), _taken(labels, at).masked_fill(~is_target, IGNORE)

    @property
    def end_id(self):
        """The token that ends the encoder's input, as in pretraining."""
        end = self.config.eos_token_id
        return end[0] if isinstance(end, list) else end

    @property
    def start_id(self):
        """The token that starts the decoder's input, as in pretraining."""
        start = self.config.decoder_start_token_id
        return self.config.pad_token_id if start is None else start

    def scores_along(self, input_ids, token_type_ids, prompt_length, task_ids=None):
        """As `TaskConditioned.scores_along`, at the decoder's positions."""
        labels = torch.full_like(input_ids, IGNORE)
        labels[:, prompt_length:] = input_ids[:, prompt_length:]
        encoder_inputs, (ids, types), _ = self.divide(input_ids, token_type_ids, None, labels)
        kept = input_ids.shape[1] - prompt_length + 2
        encoded = self.encode(*encoder_inputs, task_ids)
        return self(decoder_input_ids=ids[:, :kept], decoder_token_type_ids=types if types is None else types[:, :kept],
                    encoder_outputs=encoded, attention_mask=encoder_inputs[2], task_ids=task_ids).logits  # fmt: skip

    def all_scores(self, model_inputs, logits_to_keep=0):
        """The backbone's own output for the arguments `model_inputs`."""
        return super(TaskConditioned, self).forward(**model_inputs)

    def label_scores(self, hidden, labels, ids):
        """See `TaskConditioned.label_scores`."""
        return super().label_scores(hidden * backbone_of(self.config).head_scale(self.config), labels, ids)

    def decoding_inputs(self, batch):
        """As `TaskConditioned.decoding_inputs`; the encoder gets the prompt except for the target's marker.

        The encoder's input is padded on the right, as in training, where soft prompts directly precede the first token.
        """
        ids, types, mask = (batch.get(name) for name in ("input_ids", "token_type_ids", "attention_mask"))
        marker = ids[:, -1:]
        start = dict(decoder_input_ids=torch.cat([torch.full_like(marker, self.start_id), marker], dim=1))
        if types is not None:
            start["decoder_token_type_ids"] = types[:, -1:]
        read = dict(input_ids=torch.cat([ids[:, :-1], torch.full_like(marker, self.end_id)], dim=1))
        if mask is not None:
            read |= {} if types is None else dict(token_type_ids=types)
            read = padded_right(read | dict(attention_mask=mask))
        return batch | read | start, 2

    def read_prompts(self, batch, task_ids):
        """Left-padded prompts, a dict of tensors -> inputs for decoding, padded on the left.

        Returns:
            (the encoder's states [rows, width, hidden] and their attention_mask; the decoder's initial input_ids,
            attention_mask and, if any, token_type_ids)
        """
        inputs, _ = self.decoding_inputs(batch)
        states = self.encode(inputs["input_ids"], inputs.get("token_type_ids"), inputs["attention_mask"], task_ids)
        source = source_of(self, states.last_hidden_state, inputs["attention_mask"])
        ids, types = inputs["decoder_input_ids"], inputs.get("decoder_token_type_ids")
        start = dict(input_ids=ids, attention_mask=torch.ones_like(ids))
        return source, start if types is None else start | dict(token_type_ids=types.expand_as(ids))

    def generate(self, inputs=None, generation_config=None, *, input_ids=None, token_type_ids=None, position_ids=None,
                 attention_mask=None, task_ids=None, encoder_outputs=None, **kwargs):  # fmt: skip
        """As the backbone's generate; the encoder pass, which is outside `forward`, is also routed by `task_ids`.

        Args:
            inputs, input_ids: [rows, length] the encoder's input, padded on either side.
            token_type_ids, task_ids, and decoder_input_ids and decoder_token_type_ids [rows, 1]: see `forward`.
        """
        input_ids = inputs if input_ids is None else input_ids
        if attention_mask is None and input_ids is not None:
            attention_mask = torch.ones_like(input_ids)
        if encoder_outputs is None:
            with torch.no_grad():
                encoder_outputs = self.encode(input_ids, token_type_ids, attention_mask, task_ids)
        kwargs.setdefault("decoder_start_token_id", self.start_id)
        return super().generate(generation_config=generation_config, encoder_outputs=encoder_outputs, task_ids=task_ids,
                                attention_mask=attention_mask, **kwargs)  # fmt: skip


def padded_right(batch):
    """Tensors [rows, width] padded on either side, one of them attention_mask -> the same, padded on the right."""
    order = _order(batch["attention_mask"], last=False)
    return {name: tensor.gather(1, order) for name, tensor in batch.items()}


def source_of(model, states, mask):
    """An encoder's states for rows with this attention mask -> the states and mask for decoding, padded on the left;
    see `EncoderDecoderConditioned.read_prompts`."""
    for method in model.added.values():
        mask = method.extend_source_mask(mask)
    # Cross-attention does not depend on the order of the states.
    order = _order(mask, last=True)
    return dict(states=states.gather(1, order[..., None].expand_as(states)), attention_mask=mask.gather(1, order))


def _order(mask, last):
    """[rows, width] column indices of each row, with unmasked columns last (or first), otherwise in order."""
    return mask.bool().int().argsort(dim=1, descending=not last, stable=True)


def _taken(rows, columns):
    """rows [rows, length] at columns [rows or 1, n]; columns beyond the last take the last."""
    return rows.gather(1, columns.clamp(max=rows.shape[1] - 1).expand(len(rows), -1))
