"""`ncache_read`: the slots of nodes, their states brought up to date by a GRU as they are read."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from anabranch.core.arguments import check_floating, check_same_device
from anabranch.core.library import ops


class NCacheRows(NamedTuple):
    """Slots of B nodes, as they were read: the first is the node itself, then those of hop 1, then those of hop 2.

    Attributes:
        keys: int64 `[B, S]`, the neighbour in each slot; -1 where empty. `keys[:, 0]` is the node itself, always.
        event_ids: int64 `[B, S]`, the event that wrote the slot; -1 where none did.
        times: int64 `[B, S]`, its time; -1 where there is none.
        z: `[B, S, F]`, the states, in the dtype of the cache; 0 where the slot is empty.
    """

    keys: Tensor
    event_ids: Tensor
    times: Tensor
    z: Tensor


class GruWeights(NamedTuple):
    """Parameters of the GRU, gates in the order of `torch.nn.GRUCell` (reset, update, new): weight `[3F, K]` for
    `[node features; edge features; time]`, bias `[3F]`, weight_hh `[3F, F]` and bias_hh `[3F]`."""

    weight: Tensor
    bias: Tensor
    weight_hh: Tensor
    bias_hh: Tensor


def gru_weights(linear_weight: Tensor | None, cell: nn.GRUCell) -> GruWeights:
    """What `ncache_read` takes for `cell(linear(x), state)`: NAT has a linear map without bias in front of its GRU, and
    two maps in a row are one.

    Args:
        linear_weight: `[H, K]`, the weight of the linear map; None where there is none and the cell reads x itself.
        cell: a GRUCell of inputs H and states F; without biases they are zeros.

    Returns:
        Its weights, the first multiplied by linear_weight; differentiable in both.

    Raises:
        ValueError: linear_weight is not of the cell's input size.

    Cost:
        One product of `[3F, H]` and `[H, K]`.
    """
    if linear_weight is None:
        weight = cell.weight_ih
    else:
        if linear_weight.dim() != 2 or linear_weight.shape[0] != cell.input_size:
            raise ValueError(
                f"gru_weights: linear_weight has shape {tuple(linear_weight.shape)}, must be ({cell.input_size}, any) "
                "for the inputs of the cell; pass the weight of the map in front of it"
            )
        weight = cell.weight_ih @ linear_weight
    if cell.bias:
        return GruWeights(weight, cell.bias_ih, cell.weight_hh, cell.bias_hh)
    zeros = weight.new_zeros(3 * cell.hidden_size)
    return GruWeights(weight, zeros, cell.weight_hh, zeros)


def ncache_read(
    keys: Tensor,
    event_ids: Tensor,
    times: Tensor,
    states: Tensor,
    nodes: Tensor,
    node_features: Tensor,
    edge_features: Tensor | None,
    frequency: Tensor,
    phase: Tensor,
    gru: GruWeights,
    *,
    time_origin: int = 0,
    time_scale: float = 1.0,
) -> NCacheRows:
    """The slots of nodes, their states z brought up to date: `GRUCell(x, state)` where x is
    `[node_features[key]; edge_features[event]; cos(frequency * tau + phase)]` and tau is
    `(time - time_origin) * time_scale`. Gather and GRU are one kernel: x is never stored.

    Args:
        keys, event_ids, times: int64 `[N, S]` and
        states: `[N, S, F]`, the buffers of an `NCache`; float32, bfloat16, float16 or float64.
        nodes: int64 `[B]`. One out of range on a GPU, where nobody looks, is read as one with empty slots and no key.
        node_features: `[N, D]`, D may be 0.
        edge_features: `[events, De]` by event id, or None, which costs nothing. On a GPU an event past them has zeros.
        frequency, phase: `[Dt]`, Dt may be 0.
        gru: weights for D + De + Dt inputs; see `gru_weights`.
        time_origin, time_scale: tau is computed in double, and so is the angle before it is reduced: keep its value
            below 2^50, or its cosine is noise in any precision.

    Features of another dtype than the cache are converted, whole: keep them in that. Parameters are converted to the
    dtype of sums: float32, or float64 for a float64 cache.

    Returns:
        `NCacheRows`.

    Raises:
        ValueError: shapes, dtypes or devices that do not fit; on the CPU also nodes out of range, events past
            edge_features, and features with a NaN in a row that was read.

    Gradient:
        From z to states, node_features, edge_features, frequency, phase and gru; each only where it is wanted, in an
        order that depends on the data alone. The gates are computed again from what was gathered, so the cache may
        change before the backward; node_features may not. Not differentiable twice.

    Cost:
        Per occupied slot 24 + (D + De + 2F) * size bytes read and 6F(D + De + Dt + F) FLOPs; the backward twice the
        FLOPs. On a CPU the D of a node are multiplied once a batch where slots are at least twice the nodes that they
        name. Empty slots cost no more than being passed over. One launch on a GPU, two backward, and one for each
        16384 slots and table whose gradient is wanted.

    Source:
        Luo and Li, "Neighborhood-aware Scalable Temporal Network Representation Learning", arXiv 2209.01084: the
        update of a neighbourhood's representation, done as it is read.
    """
    op = "ncache_read"
    check_floating(op, states=states, node_features=node_features, edge_features=edge_features)
    check_floating(op, frequency=frequency, phase=phase, **gru._asdict())
    check_same_device(op, "keys", keys, event_ids=event_ids, times=times, states=states, nodes=nodes)
    check_same_device(op, "keys", keys, node_features=node_features, edge_features=edge_features)
    check_same_device(op, "keys", keys, frequency=frequency, phase=phase, **gru._asdict())
    sums = torch.float64 if states.dtype == torch.float64 else torch.float32
    z, read_keys, read_event_ids, read_times, _ = ops.ncache_read(
        keys,
        event_ids,
        times,
        states,
        nodes,
        node_features.to(states.dtype),
        None if edge_features is None else edge_features.to(states.dtype),
        frequency.to(sums),
        phase.to(sums),
        *(one.to(sums) for one in gru),
        time_origin,
        time_scale,
    )
    return NCacheRows(read_keys, read_event_ids, read_times, z)


@torch.library.register_fake("anabranch::ncache_read")
def _(keys: Tensor, event_ids: Tensor, times: Tensor, states: Tensor, nodes: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    rows, slots, size = nodes.shape[0], keys.shape[1], states.shape[2]
    ids = [keys.new_empty(rows, slots) for _ in range(3)]
    return (states.new_empty(rows, slots, size), *ids, states.new_empty(rows, slots, size))


@torch.library.register_fake("anabranch::ncache_read_backward")
def _(
    dz: Tensor,
    nodes: Tensor,
    keys: Tensor,
    event_ids: Tensor,
    times: Tensor,
    states: Tensor,
    node_features: Tensor,
    edge_features: Tensor | None,
    frequency: Tensor,
    phase: Tensor,
    weight: Tensor,
    bias: Tensor,
    weight_hh: Tensor,
    bias_hh: Tensor,
    time_origin: int,
    time_scale: float,
    wanted: int,
) -> tuple[Tensor, ...]:
    sums = torch.float64 if states.dtype == torch.float64 else torch.float32
    shapes = [
        (node_features.shape[0], *states.shape[1:]),
        node_features.shape,
        (0,) if edge_features is None else edge_features.shape,
        *(one.shape for one in (frequency, phase, weight, bias, weight_hh, bias_hh)),
    ]
    return tuple(states.new_empty(shape if wanted >> bit & 1 else (0,), dtype=sums) for bit, shape in enumerate(shapes))


# Inputs of ncache_read that may have a gradient, in the order of the backward's results.
_LEARNS = (3, 5, 6, 7, 8, 9, 10, 11, 12)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _, _, _, _, nodes, *features_and_parameters, time_origin, time_scale = inputs
    _, keys, event_ids, times, states = output
    ctx.mark_non_differentiable(keys, event_ids, times, states)
    ctx.set_materialize_grads(False)
    ctx.options = (time_origin, time_scale)
    ctx.save_for_backward(nodes, keys, event_ids, times, states, *features_and_parameters)


def _backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
    results: list[Tensor | None] = [None] * 15
    dz = gradients[0]
    if dz is None:
        return tuple(results)
    needs = [ctx.needs_input_grad[position] for position in _LEARNS]
    wanted = sum(need << bit for bit, need in enumerate(needs))
    given = ops.ncache_read_backward(dz, *ctx.saved_tensors, *ctx.options, wanted)
    for position, need, one in zip(_LEARNS, needs, given, strict=True):
        # Gradients come in the dtype of sums; those of tables have the tables' own.
        results[position] = (one.to(dz.dtype) if position < 7 else one) if need else None
    return tuple(results)


def _no_double_backward(ctx: Any, *grads: Tensor) -> None:
    raise NotImplementedError("ncache_read: it is differentiable once; compose torch's ops for more")


torch.library.register_autograd("anabranch::ncache_read", _backward, setup_context=_save)
torch.library.register_autograd("anabranch::ncache_read_backward", _no_double_backward)
