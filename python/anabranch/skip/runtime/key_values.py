"""What a layer's attention sees in place of the cache, so that its own code writes the right keys and values.

The attention module is called, not copied: it calls `cache.update` once, with the keys and values of the tokens it was
given. A `CacheView` puts them where they belong; a `_Capture` takes them and stops the module there.
"""

from __future__ import annotations

import contextlib
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from anabranch.core.arguments import autocast_dtype
from anabranch.skip.runtime.decoder import shadow


class KeyValues(NamedTuple):
    """What an attention gave to `cache.update`: keys and values `[B, heads, S, D]`, and whatever came with them."""

    keys: Tensor
    values: Tensor
    arguments: tuple[Any, ...]
    options: dict[str, Any]


class CacheView:
    """A cache as seen by some sequences of the batch, with its writes in another slot.

    Args:
        cache: the whole one.
        slot: the cache layer that is written and read.
        batch: B of the cache.
        rows: int64, the sequences that the attention runs for; None for all.
        others, filling: the other sequences, and what the slot gets for them; zeros without.
    """

    def __init__(
        self,
        cache: Any,
        slot: int,
        batch: int,
        rows: Tensor | None = None,
        others: Tensor | None = None,
        filling: KeyValues | None = None,
    ) -> None:
        self._cache, self._slot, self._batch = cache, slot, batch
        self._rows, self._others, self._filling = rows, others, filling

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cache, name)

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *arguments: Any, **options: Any
    ) -> tuple[Tensor, Tensor]:
        """As `Cache.update`, for the rows of this view."""
        if self._rows is None:
            return self._cache.update(key_states, value_states, self._slot, *arguments, **options)
        filling = (None, None) if self._filling is None else self._filling[:2]
        keys, values = self._whole(key_states, filling[0]), self._whole(value_states, filling[1])
        keys, values = self._cache.update(keys, values, self._slot, *arguments, **options)
        return keys.index_select(0, self._rows), values.index_select(0, self._rows)

    def _whole(self, part: Tensor, filling: Tensor | None) -> Tensor:
        assert self._rows is not None
        whole = part.new_zeros((self._batch, *part.shape[1:])).index_copy(0, self._rows, part)
        if filling is None or self._others is None:
            return whole
        return whole.index_copy(0, self._others, filling)


class _Captured(Exception):
    pass


class _Capture:
    """Takes the keys and values and stops the attention before its scores."""

    def __init__(self, cache: Any) -> None:
        self._cache = cache
        self.taken: KeyValues | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cache, name)

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *arguments: Any, **options: Any) -> None:
        self.taken = KeyValues(key_states, value_states, arguments, options)
        raise _Captured


class _NoQueries(nn.Module):
    """In place of a query projection whose output nobody will read: zeros that take the memory of one token."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.features = features

    def forward(self, x: Tensor) -> Tensor:
        return x.new_zeros(self.features).expand(*x.shape[:-1], self.features)  # rotations want a last stride of 1


def key_values(layer: Any, x: Tensor, cache: Any, cache_name: str, arguments: dict[str, Any]) -> KeyValues:
    """Keys and values that the layer's attention makes of the layer's input.

    The norm, the two projections, norms of the heads and the rotation are the model's own code; queries, scores and
    the output projection do not run. (An attention with one projection for all three makes the queries as well.)
    """
    attention: Any = layer.self_attn
    queries = attention._modules.get("q_proj")
    if isinstance(queries, nn.Linear):
        attention = shadow(attention, q_proj=_NoQueries(queries.out_features))
    capture = _Capture(cache)
    with contextlib.suppress(_Captured):
        type(attention).forward(attention, hidden_states=layer.input_layernorm(x), **{**arguments, cache_name: capture})
    if capture.taken is None:
        raise ValueError(
            f"forward: {type(attention).__name__} has not written to its cache, must call cache.update once; use "
            "another KeyValueRule than COMPUTE"
        )
    return capture.taken


def write_nothing(
    layer: nn.Module, x: Tensor, cache: Any, slot: int, tokens: int, cache_name: str, arguments: dict[str, Any]
) -> None:
    """Zeros for `tokens` tokens: the slot's length stays that of the others. Whoever reads it must mask them.

    An attention that does not say its heads' size (latent attention, whose keys and values differ in it) is asked for
    keys and values once per slot, by `key_values` of x with `arguments`.
    """
    attention: Any = layer.self_attn
    batch = x.shape[0]
    known = cache.layers[slot]
    if known.keys is None or known.keys.ndim != 4:
        known = None
        if not hasattr(attention, "head_dim"):
            known = key_values(layer, x, cache, cache_name, arguments)
    if known is not None:
        keys, values = known.keys, known.values
        shapes = [(batch, each.shape[1], tokens, each.shape[-1]) for each in (keys, values)]
        cache.update(keys.new_zeros(shapes[0]), values.new_zeros(shapes[1]), slot)
        return
    dtype = autocast_dtype(x.device) or x.dtype
    shape = (batch, attention.config.num_key_value_heads, tokens, attention.head_dim)
    zeros = torch.zeros(shape, dtype=dtype, device=x.device)
    cache.update(zeros, zeros.clone(), slot)


def rows_of(arguments: dict[str, Any], rows: Tensor, batch: int) -> dict[str, Any]:
    """The layer's arguments for some sequences: tensors with a dimension for the batch lose the others."""

    angles = arguments.get("position_embeddings")
    if isinstance(angles, tuple) and any(each.ndim != 3 for each in angles):
        raise ValueError(
            "forward: position_embeddings have more than the dimensions [B, S, D], must have these where sequences of "
            "a batch take different actions; run them one by one"
        )

    def pick(value: Any) -> Any:
        if isinstance(value, Tensor) and value.ndim > 1 and value.shape[0] == batch:
            return value.index_select(0, rows)
        return tuple(pick(each) for each in value) if isinstance(value, tuple) else value

    return {name: pick(value) for name, value in arguments.items()}
