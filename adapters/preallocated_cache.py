"""A cache of keys and values that allocates columns in advance.

transformers' dynamic cache copies all keys and values for every decoded token, which takes up to a quarter of a step.
This one allocates several columns at a time. A step for one token reads all of them, as a slice of a larger tensor
makes the products of attention two to three times as slow on a CPU; the mask hides those not in use yet.
"""

import torch
import torch.nn.functional as F
from transformers import DynamicCache, EncoderDecoderCache
from transformers.cache_utils import DynamicLayer
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, eager_mask
from versatile.adapters.masks import device_mask

# With more of them the cache is copied less often, but more unused ones are read.
COLUMNS = 16


class PreallocatedLayer(DynamicLayer):
    """A layer of the cache. Keys and values are [rows, heads, columns, width of a head]; the last `free` columns are
    zeros, not in use yet.

    Reading several tokens at once, as for a prompt, leaves no free column. A single token needs an attention mask
    [rows, tokens so far], which transformers extends by the free columns. Columns are written in place: no gradients.
    """

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.free = 0

    def update(self, key_states, value_states, *args, **kwargs):
        """Append the states of new tokens [rows, heads, tokens, width]; returns the keys and values to attend to."""
        if self._is_single(key_states.shape[-2]):
            if not self.free:
                self.keys, self.values = (F.pad(states, (0, 0, 0, COLUMNS)) for states in (self.keys, self.values))
                self.free = COLUMNS
            column = self.keys.shape[-2] - self.free
            self.keys[:, :, column : column + 1] = key_states
            self.values[:, :, column : column + 1] = value_states
            self.free -= 1
            return self.keys, self.values
        self.drop_free()
        return super().update(key_states, value_states, *args, **kwargs)

    def _is_single(self, tokens):
        """Whether these new tokens are a single one that follows others."""
        return tokens == 1 and self.get_seq_length() > 0

    def drop_free(self):
        """Drop the columns that are not in use."""
        if self.free:
            self.keys, self.values = self.keys[:, :, : -self.free], self.values[:, :, : -self.free]
            self.free = 0

    def get_mask_sizes(self, query_length):
        seen = self.get_seq_length() + query_length
        # Those that `update` will leave free.
        free = (self.free or COLUMNS) - 1 if self._is_single(query_length) else 0
        return seen + free, 0

    def get_seq_length(self):
        return super().get_seq_length() - self.free

    def reset(self):
        super().reset()
        self.free = 0

    def crop(self, tokens_to_remove):
        if tokens_to_remove:
            self.drop_free()
        super().crop(tokens_to_remove)


class PreallocatedCache(DynamicCache):
    """A dynamic cache with a `PreallocatedLayer` for each block."""

    def __init__(self):
        super().__init__()
        self.layer_class_to_replicate = PreallocatedLayer


def new_cache(model):
    """An empty cache for an attached model: preallocated if nothing depends on its exact width."""
    # The config of an encoder-decoder would give its encoder's number of layers.
    config = None if model.config.is_encoder_decoder else model.config
    own = PreallocatedCache() if can_preallocate(model) else DynamicCache(config=config)
    # The source is read only once.
    return EncoderDecoderCache(own, DynamicCache()) if model.config.is_encoder_decoder else own


def cache_argument(model):
    """`generate`'s `past_key_values` as a dict, empty to let it make its own cache. `generate` must use a cache."""
    if chooses_cache(model) or not can_preallocate(model):
        return {}
    return dict(past_key_values=new_cache(model))


def chooses_cache(model):
    """Whether a model's generation config names a kind of cache, besides which `generate` accepts no other."""
    return model.generation_config.cache_implementation is not None


def can_preallocate(model):
    """Whether a model's cache may have free columns: not in families that cannot have transformers' static cache, with
    sliding windows, with masks that transformers does not extend, or where the attention weights are read."""
    implementation = model.config._attn_implementation
    extends_masks = ALL_MASK_ATTENTION_FUNCTIONS.get(implementation) in (device_mask, eager_mask)
    reads_weights = implementation == "eager"
    return model._can_compile_fullgraph and keeps_all(model) and extends_masks and not reads_weights


def keeps_all(model):
    """Whether a model's cache keeps all keys and values, not only those of a window."""
    return all(type(layer) is DynamicLayer for layer in DynamicCache(config=model.config).layers)


def mask_for(cache, mask, new):
    """The attention mask for new tokens, a tensor [rows, tokens, …], read with a cache: `mask`, or, if it is None and
    the cache preallocates, ones. `generate` drops a mask without padding."""
    cache = getattr(cache, "self_attention_cache", cache)
    layers = getattr(cache, "layers", None)
    if mask is not None or not layers or not isinstance(layers[0], PreallocatedLayer):
        return mask
    return torch.ones(len(new), layers[0].get_seq_length() + new.shape[1], dtype=torch.long, device=new.device)
