"""Tasks on an encoder-decoder: the sibling of `adapters.attach.TaskConditioned`.

A task's example is one row, the same for all backbones, and is divided at its target:

    row       <bos> <marker> source …  <target marker> target … <eos>
    encoder   <bos> <marker> source …  </s>
    decoder                            <start> <target marker> target … <eos>

The input ends with the backbone's own end token and the decoder begins with its own start token (T5: `<pad>`), as in
its pretraining; `</s>` has the type of the target's marker, in whose place it stands, and so has `<start>`. Decoding
starts behind `<start> <target marker>`. Labels, and the positions whose outputs predict them, are those of the row.

The adapters of a task stand behind every block of the encoder and of the decoder and meet the same task ids in both.
"""

import torch
from versatile.adapters.attach import TaskConditioned, on_device
from versatile.adapters.backbones.family import backbone_of
from versatile.adapters.labels import IGNORE

# Widths of encoder and decoder are rounded up to this many, as those of batches are.
ROUND = 8


class EncoderDecoderConditioned(TaskConditioned):
    """Mixed into a transformers encoder-decoder's class: `forward` takes one task id a row."""

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
        """As the backbone's forward, and:

        Args:
            input_ids: [rows, length]; with labels whole rows, context and target, padded on the right; without them
                what the encoder reads.
            labels: [rows, length] of whole rows, unshifted, -100 where there is no loss: a row is divided at its first
                label. With labels the output is `LabelScores`: scores are computed only where a label stands.
            decoder_input_ids: without labels, [rows, decoded]: the start token, the target's marker, ….
            token_type_ids, decoder_token_type_ids: as many ids, whose embeddings are added to the tokens', or None;
                of the decoder's also [rows, 1], for all its tokens.
            position_ids: of no consequence, positions are relative.
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
        return self.all_scores(
            dict(
                encoder_outputs=encoder_outputs,
                attention_mask=attention_mask,
                decoder_inputs_embeds=self.embedded(decoder_input_ids, decoder_token_type_ids),
                past_key_values=past_key_values,
                use_cache=use_cache,
                **kwargs,
            )
        )

    def encode(self, input_ids, token_type_ids=None, attention_mask=None, task_ids=None):
        """The encoder's output for [rows, length] token ids, each row through its task's adapters."""
        self.router.route(task_ids, len(input_ids))
        embeds = self.embedded(input_ids, token_type_ids)
        mask = on_device(attention_mask, embeds.device)
        return self.get_encoder()(inputs_embeds=embeds, attention_mask=mask, return_dict=True)

    def input_states(self, input_ids, attention_mask, task_ids=None):
        """See `TaskConditioned.input_states`: the encoder's."""
        return self.encode(input_ids, None, attention_mask, task_ids).last_hidden_state

    def target_states(self, input_ids, token_type_ids, attention_mask, labels, task_ids):
        """Whole rows -> (the decoder's last hidden states, the labels beside them, the rows' task ids)."""
        given, target, labels = self.divide(input_ids, token_type_ids, attention_mask, labels)
        encoded = self.encode(*given, task_ids)
        hidden = self.get_decoder()(
            inputs_embeds=self.embedded(*target),
            encoder_hidden_states=encoded.last_hidden_state,
            encoder_attention_mask=on_device(given[2], encoded.last_hidden_state.device),
            use_cache=False,
        )[0]
        return hidden, labels, self.router.route(task_ids, len(input_ids))

    def divide(self, input_ids, token_type_ids, attention_mask, labels):
        """Whole rows, padded on the right, as what encoder and decoder read.

        A row without labels goes to the encoder; both widths are multiples of 8, for few shapes.

        Returns:
            ((ids, types, mask) of the encoder, (ids, types) of the decoder, labels beside these); types None where
            they were.
        """
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        lengths = attention_mask.sum(1)
        known = labels[:, 1:] != IGNORE
        prompts = torch.where(known.any(1), known.int().argmax(1) + 1, lengths)
        longest, target = torch.stack([prompts.max(), (lengths - prompts).max()]).tolist()
        columns = torch.arange(rounded(longest), device=input_ids.device)[None]
        ends = prompts[:, None] - 1
        ids = _taken(input_ids, columns).masked_fill(columns > ends, self.config.pad_token_id)
        ids = ids.masked_fill(columns == ends, self.end_id)
        types = None if token_type_ids is None else _taken(token_type_ids, columns)
        given = ids, types, (columns <= ends).to(lengths.dtype)
        # The start token, the target's marker, which is the last token of the prompt, and what is behind it.
        columns = torch.arange(rounded(target + 2), device=input_ids.device)[None]
        at = (ends - 1 + columns).clamp(min=0)
        ids = _taken(input_ids, at).masked_fill(at >= lengths[:, None], self.config.pad_token_id)
        ids = ids.masked_fill(columns == 0, self.start_id)
        # The start token has the marker's type.
        types = None if token_type_ids is None else _taken(token_type_ids, torch.maximum(at, ends))
        behind = (columns > 1) & (at < lengths[:, None])
        return given, (ids, types), _taken(labels, at).masked_fill(~behind, IGNORE)

    @property
    def end_id(self):
        """The token that ends what the encoder reads, as in pretraining."""
        end = self.config.eos_token_id
        return end[0] if isinstance(end, list) else end

    @property
    def start_id(self):
        """The token that the decoder begins with, as in pretraining."""
        start = self.config.decoder_start_token_id
        return self.config.pad_token_id if start is None else start

    def scores_along(self, input_ids, token_type_ids, prompt_length, task_ids=None):
        """See `TaskConditioned.scores_along`; the positions are the decoder's."""
        labels = torch.full_like(input_ids, IGNORE)
        labels[:, prompt_length:] = input_ids[:, prompt_length:]
        given, (ids, types), _ = self.divide(input_ids, token_type_ids, None, labels)
        kept = input_ids.shape[1] - prompt_length + 2
        encoded = self.encode(*given, task_ids)
        return self(decoder_input_ids=ids[:, :kept], decoder_token_type_ids=types if types is None else types[:, :kept],
                    encoder_outputs=encoded, attention_mask=given[2], task_ids=task_ids).logits  # fmt: skip

    def all_scores(self, given, logits_to_keep=0):
        """The backbone's own output for its arguments `given`."""
        return super(TaskConditioned, self).forward(**given)

    def label_scores(self, hidden, labels, ids):
        """See `TaskConditioned.label_scores`."""
        return super().label_scores(hidden * backbone_of(self.config).head_scale(self.config), labels, ids)

    def decoding_inputs(self, batch):
        """See `TaskConditioned.decoding_inputs`: the prompt goes to the encoder, all but the target's marker.

        What the encoder reads is padded on the right, as in training: soft prompts stand right before the first token.
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
        """Left-padded prompts, a dict of tensors -> what decoding goes on with, padded on the left.

        Returns:
            (states [rows, width, hidden] of the encoder and their attention_mask; input_ids, attention_mask and
            token_type_ids, if there are any, that the decoder begins with)
        """
        inputs, _ = self.decoding_inputs(batch)
        states = self.encode(inputs["input_ids"], inputs.get("token_type_ids"), inputs["attention_mask"], task_ids)
        source = source_of(self, states.last_hidden_state, inputs["attention_mask"])
        ids, types = inputs["decoder_input_ids"], inputs.get("decoder_token_type_ids")
        start = dict(input_ids=ids, attention_mask=torch.ones_like(ids))
        return source, start if types is None else start | dict(token_type_ids=types.expand_as(ids))

    def generate(self, inputs=None, generation_config=None, *, input_ids=None, token_type_ids=None, position_ids=None,
                 attention_mask=None, task_ids=None, encoder_outputs=None, **kwargs):  # fmt: skip
        """As the backbone's generate; the encoder's pass, which is outside of `forward`, is routed by `task_ids`, too.

        Args:
            inputs, input_ids: [rows, length] what the encoder reads, padded on either side.
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
    """Rows padded on either side, tensors [rows, width] with an attention_mask among them -> padded on the right."""
    order = _order(batch["attention_mask"], last=False)
    return {name: tensor.gather(1, order) for name, tensor in batch.items()}


def source_of(model, states, mask):
    """What an encoder made of rows with this attention mask -> what their decoder attends to, padded on the left: see
    `EncoderDecoderConditioned.read_prompts`."""
    for method in model.added.values():
        mask = method.extend_source_mask(mask)
    # Nothing that attends to the states knows of an order.
    order = _order(mask, last=True)
    return dict(states=states.gather(1, order[..., None].expand_as(states)), attention_mask=mask.gather(1, order))


def rounded(length):
    """Length rounded up to a multiple of 8: fewer shapes, so fewer kernels to prepare."""
    return -(-length // ROUND) * ROUND


def _order(mask, last):
    """[rows, width] the columns of each row, those that are not masked last, or first, and otherwise as they are."""
    return mask.bool().int().argsort(dim=1, descending=not last, stable=True)


def _taken(rows, columns):
    """rows [rows, length] at columns [rows or 1, n], those beyond the last as the last."""
    return rows.gather(1, columns.clamp(max=rows.shape[1] - 1).expand(len(rows), -1))
