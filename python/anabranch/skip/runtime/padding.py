"""Which tokens of a call are real, read from the attention mask that the layers get."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def real_tokens(mask: Any, x: Tensor, cache: Any, position: int) -> Tensor | None:
    """bool `[B, S]`, true where a token is real: where it may attend to itself. None if all are.

    Args:
        mask: None; `[B, kv]` (flash attention); or `[B or 1, 1, S, kv]`, bool or additive.
        x: `[B, S, H]`.
        cache: or None.
        position: tokens before this call.
    """
    if mask is None:
        return None
    batch, tokens = x.shape[:2]
    if not isinstance(mask, Tensor):
        raise ValueError(
            f"forward: attention_mask is a {type(mask).__name__}, must be a tensor or None; use sdpa, eager or flash "
            "attention"
        )
    if mask.ndim == 2:
        real = mask[:, -tokens:] != 0
    else:
        offset = mask.shape[-1] - tokens
        if cache is not None:
            offset = position - cache.get_mask_sizes(tokens, 0)[1]
        own = mask[:, 0].diagonal(offset, dim1=-2, dim2=-1)
        real = (own if own.dtype == torch.bool else own == 0).expand(batch, -1)
    return None if real.device.type == "cpu" and bool(real.all()) else real
