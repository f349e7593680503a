"""Attention masks that are built without reading their values.

transformers omits a mask if nothing is masked, so that a faster kernel can be used. To find out, it reads the mask; on
a GPU the host then waits for all pending work, in each forward pass and for each decoded token.
"""

from transformers import AttentionMaskInterface
from transformers.masking_utils import sdpa_mask


def device_mask(*args, attention_mask=None, **kwargs):
    """transformers' mask for PyTorch's fused attention; masks on devices other than the CPU are not read."""
    if attention_mask is not None and attention_mask.device.type != "cpu":
        kwargs |= dict(allow_is_causal_skip=False, allow_is_bidirectional_skip=False)
    return sdpa_mask(*args, attention_mask=attention_mask, **kwargs)


AttentionMaskInterface.register("sdpa", device_mask)
