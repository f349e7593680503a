"""Attention masks that are made without looking into them.

transformers leaves a mask out where nothing is masked, so that a faster kernel can be used. To see that it reads the
mask: on a GPU the host then waits for everything that was begun before, in each forward, in each decoded token.
"""

from transformers import AttentionMaskInterface
from transformers.masking_utils import sdpa_mask


def device_mask(*args, attention_mask=None, **kwargs):
    """transformers' mask for PyTorch's fused attention; one that lies on a device other than the CPU is not read."""
    if attention_mask is not None and attention_mask.device.type != "cpu":
        kwargs |= dict(allow_is_causal_skip=False, allow_is_bidirectional_skip=False)
    return sdpa_mask(*args, attention_mask=attention_mask, **kwargs)


AttentionMaskInterface.register("sdpa", device_mask)
