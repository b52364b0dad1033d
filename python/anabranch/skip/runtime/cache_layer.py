"""The stream lies in the key-value cache itself, as one more layer of it.

So whatever happens to the cache happens to the policy's memory: beam search reorders both, `reset` empties both, a deep
copy of a cache carries its own. Imports transformers: only `apply` imports this.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import (
    Cache,
    DummyLayer,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    StaticLayer,
    StaticSlidingWindowLayer,
)

from anabranch.skip.runtime.stream import Stream


class StreamLayer(DummyLayer):  # type: ignore[misc]
    """A layer without keys and values that carries a `Stream`."""

    def __init__(self, stream: Stream) -> None:
        super().__init__()
        self.stream = stream

    @property
    def is_croppable(self) -> bool:
        """Whether tokens can be taken back: not what a policy remembers of them, nor the step that it goes by."""
        return not (self.stream.by_step or self.stream.state.memory)

    def reset(self) -> None:
        self.stream.restart(self.stream.state.num_layers)

    def crop(self, tokens_to_remove: int) -> None:
        """Negative: how many tokens to take back; positive, in older transformers: how many to leave."""
        position = self.stream.state.position
        self.stream.crop(-tokens_to_remove if tokens_to_remove <= 0 else max(0, position - tokens_to_remove))

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self.stream.reorder(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        self.stream.reorder(torch.arange(self.stream.batch).repeat_interleave(repeats))

    def batch_select_indices(self, indices: Tensor) -> None:
        self.stream.reorder(torch.arange(self.stream.batch, device=indices.device)[indices])


class _Guard:
    """In place of a cache layer's `update`: refuses a call that comes neither from the policy nor to a whole cache.

    It refers to its layer weakly, so that a cache is freed when its last user leaves it.
    """

    def __init__(self, layer: Any, holder: StreamLayer) -> None:
        self.layer, self.holder = weakref.ref(layer), holder

    def __reduce__(self) -> tuple[Any, ...]:  # a copy of a layer carries a guard of the copy
        return _Guard, (self.layer(), self.holder)

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        self.holder.stream.check_readable()
        layer: Any = self.layer()
        return type(layer).update(layer, *arguments, **options)


def stream_of(cache: Any, owner: str, num_layers: int, by_step: bool) -> Stream:
    """The cache's stream; a new one for an empty cache.

    Raises:
        ValueError: the cache is of another kind or length, or holds tokens that this policy has not seen. The length of
            a `StaticCache` on a GPU is read in a stream's first call alone: later ones of another length pass.
    """
    if not isinstance(cache, Cache):
        raise ValueError(
            f"forward: cache is a {type(cache).__name__}, must be a transformers Cache with one layer per decoder "
            "layer; use DynamicCache or StaticCache"
        )
    found = next((layer for layer in cache.layers if isinstance(layer, StreamLayer)), None)
    if found is None:
        if cache.layer_class_to_replicate is not None:  # grows as it is used; later layers shall find their places
            cache.layers.extend(cache.layer_class_to_replicate() for _ in range(num_layers - len(cache.layers)))
        if len(cache.layers) != num_layers:
            raise ValueError(
                f"forward: cache has {len(cache.layers)} layers, must have {num_layers} like the model; make it from "
                "the model's config"
            )
        _check_length(cache, 0)
        holder = StreamLayer(Stream(owner, num_layers, by_step))
        for layer in cache.layers:
            layer.update = _Guard(layer, holder)
        cache.layers.append(holder)
        return holder.stream
    stream: Stream = found.stream
    if stream.owner != owner:
        _check_length(cache, 0)
        fresh = Stream(owner, num_layers, by_step)
        fresh.slots = stream.slots
        found.stream = stream = fresh
    if stream.cropped:
        raise ValueError(
            "forward: cache has lost tokens that the policy remembers or counts, must only grow; start from an empty "
            "cache"
        )
    _check_length(cache, stream.state.position)
    return stream


def _check_length(cache: Any, position: int) -> None:
    length = cache.get_seq_length()
    if isinstance(length, Tensor) and length.device.type != "cpu" and position > 0:
        return  # a read would wait for the stream
    if int(length) != position:
        raise ValueError(
            f"forward: cache holds {int(length)} tokens, must hold the {position} that the policy has seen; start from "
            "an empty cache"
        )


def second_slot(cache: Any, stream: Stream, layer: int) -> int:
    """The cache layer of the second pass through a decoder layer, appended where there is none yet."""
    if layer not in stream.slots:
        cache.layers.append(_sibling(cache.layers[layer]))
        stream.slots[layer] = len(cache.layers) - 1
    return stream.slots[layer]


def _sibling(layer: Any) -> Any:
    """An empty cache layer of the same kind and size."""
    kind = type(layer)
    if kind is DynamicLayer:
        return DynamicLayer()
    if kind is DynamicSlidingWindowLayer:
        return DynamicSlidingWindowLayer(layer.sliding_window)
    if kind is StaticLayer:
        return StaticLayer(layer.max_cache_len)
    if kind is StaticSlidingWindowLayer:
        return StaticSlidingWindowLayer(layer.max_cache_len, layer.max_cache_len)
    raise ValueError(
        f"forward: cache has layers of {kind.__name__}, must have dynamic or static ones where a layer is repeated; "
        "use DynamicCache or StaticCache"
    )


def alias(cache: Any, layer: int, source: int) -> bool:
    """Lets a layer read as another, without a copy; False where their kinds do not allow it."""
    to, of = cache.layers[layer], cache.layers[source]
    if type(to) is not DynamicLayer or type(of) is not DynamicLayer or cache.offloading:
        return False
    if not to.is_initialized:
        to.lazy_initialization(of.keys, of.values)
    to.keys, to.values = of.keys, of.values
    return True


def gives_lengths(cache: Any, layer: int) -> bool:
    """Whether transformers reads positions or the size of a mask from this layer."""
    sliding = cache.is_sliding
    kind = sliding[layer]
    return layer == 0 or sliding.index(kind) == layer


__all__ = ["StreamLayer", "alias", "gives_lengths", "second_slot", "stream_of"]
