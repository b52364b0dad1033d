"""What the policies share: checks of layers and sizes, straight-through values, token numbers, and the recorder."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeVar

import torch
from torch import Tensor

from anabranch.skip.policy import Policy

_T = TypeVar("_T")


def layer_tuple(op: str, layers: Iterable[int], num_layers: int | None = None) -> tuple[int, ...]:
    """The layers in ascending order.

    Raises:
        ValueError: none, one twice, one below 0, or one that a model of `num_layers` does not have.
    """
    given = list(layers)
    if not given or len(set(given)) < len(given):
        raise ValueError(f"{op}: layers is {given}, must be distinct and at least one; name each layer once")
    check_layers(op, given, num_layers)
    return tuple(sorted(given))


def check_layers(op: str, layers: Iterable[int], num_layers: int | None) -> None:
    """Raises ValueError for a layer below 0 or, where `num_layers` is known, not below it."""
    for layer in layers:
        if layer < 0 or (num_layers is not None and layer >= num_layers):
            high = "" if num_layers is None else f" and below the model's {num_layers} layers"
            raise ValueError(f"{op}: layer is {layer}, must be at least 0{high}; count from 0")


def check_size(op: str, name: str, value: int, model: int) -> None:
    """Raises ValueError where a size that the policy was built with is not the model's."""
    if value != model:
        raise ValueError(f"{op}: {name} is {value}, must be the model's {model}; build the policy for this model")


def check_at_least(op: str, low: int, **values: int) -> None:
    """Raises ValueError for a whole number below `low`."""
    for name, value in values.items():
        if value < low:
            raise ValueError(f"{op}: {name} is {value}, must be at least {low}; raise it")


def check_share(op: str, **values: float) -> None:
    """Raises ValueError for a number outside [0, 1]."""
    for name, value in values.items():
        if not 0 <= value <= 1:
            raise ValueError(f"{op}: {name} is {value}, must lie between 0 and 1; it is a share")


def straight_through(hard: Tensor, soft: Tensor) -> Tensor:
    """The value of `hard`, bit for bit, with the gradient of `soft`."""
    return hard + (soft - soft.detach())


def wide(x: Tensor) -> Tensor:
    """In float64 if it is, else in float32: the dtype in which routers compare."""
    return x.to(torch.float64 if x.dtype == torch.float64 else torch.float32)


def token_numbers(x: Tensor, padding: Tensor | None) -> Tensor:
    """For each token of `x` `[B, S, H]` how many real ones precede it in this call: int64 `[B, S]`, at least 0."""
    if padding is None:
        return torch.arange(x.shape[1], device=x.device).expand(x.shape[:2])
    return (padding.long().cumsum(1) - 1).clamp(min=0)


def masked_mean(values: Tensor, mask: Tensor | None) -> Tensor:
    """Mean over dimension 1 of `[B, S, ...]` where the mask `[B, S]` is true; 0 where it is nowhere."""
    if mask is None:
        return values.mean(1) if values.shape[1] else values.sum(1)
    chosen = mask.reshape(mask.shape + (1,) * (values.dim() - 2))
    return values.masked_fill(~chosen, 0).sum(1) / chosen.sum(1).clamp(min=1)


class RecordingPolicy(Policy):
    """A policy that keeps what its layers computed in the last forward, for its loss.

    It records, and decides as in training, while it is in training mode and gradients are on; under `no_grad`, as in
    `generate`, it decides as in inference. What is recorded, and with it the forward's graph, lives until a loss takes
    it, the next such forward begins (its first layer is no higher than the last one's last), or `forget`; copies and
    pickles do not have it. With gradient checkpointing use `use_reentrant=False`: the other kind runs the forward
    without gradients.
    """

    def __init__(self) -> None:
        super().__init__()
        self._recorded: dict[str, dict[int, Tensor]] = {}
        self._last_recorded = -1

    @property
    def learning(self) -> bool:
        """Whether decisions are those of training."""
        return self.training and torch.is_grad_enabled()

    def forget(self) -> None:
        """Lets go of what the last forward recorded."""
        self._recorded = {}
        self._last_recorded = -1

    def __getstate__(self) -> dict[str, Any]:
        # Tensors of a graph can be neither copied nor pickled.
        return {**self.__dict__, "_recorded": {}, "_last_recorded": -1}

    def _record(self, layer: int, **values: Tensor) -> None:
        """Called once by each layer that records, in ascending order."""
        if layer <= self._last_recorded:
            self._recorded = {}
        self._last_recorded = layer
        for name, value in values.items():
            self._recorded.setdefault(name, {})[layer] = value

    def _take(self, name: str) -> list[Tensor]:
        """What was recorded under the name, by ascending layer."""
        values = self._recorded.pop(name, {})
        if not values:
            op = type(self).__name__
            raise ValueError(
                f"{op}: nothing is recorded for this loss, must follow a forward in training mode with gradients; "
                "run the model first, one forward for each loss"
            )
        return [values[layer] for layer in sorted(values)]
