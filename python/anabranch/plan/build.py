"""Builders: from router choices, masks or pairs to a `Plan`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from anabranch.core.arguments import check_same_device
from anabranch.core.library import ops
from anabranch.plan.plan import Plan

_NO_BOUND = 2**31


def from_top_k(indices: Tensor, weights: Tensor | None = None, *, num_groups: int) -> Plan:
    """Plan of a fixed number of choices per item.

    Args:
        indices: int64 or int32 `[T, K]`, the groups of each item; an id equal to `num_groups` means "no group".
        weights: floating `[T, K]` or None. The plan's weights are these, permuted; their gradient flows back.
        num_groups: number of groups G.

    Returns:
        A plan of T items with capacity T*K.

    Raises:
        ValueError: an id outside `[0, num_groups]` (CPU; on a GPU it counts as "no group"), wrong shape or dtype.

    Cost:
        Two reads of `indices`, one write of the plan: O(T*K + G).
    """
    offsets, item_ids, source_ids = ops.plan_from_top_k(indices, num_groups)
    return _with_source_weights("from_top_k", offsets, item_ids, source_ids, weights, indices.shape, indices.shape[0])


def from_mask(mask: Tensor, weights: Tensor | None = None, *, capacity: int | None = None) -> Plan:
    """Plan of all set positions of a mask.

    Args:
        mask: bool `[T, G]`; item t is in group g where set.
        weights: floating `[T, G]` or None; positions that are not set get no gradient.
        capacity: room for entries, at least the number set; default T*G. Give a smaller one where it is known (a
            router with at most k_max choices needs T*k_max), because later buffers are sized by it.

    Returns:
        A plan of T items in G groups with that capacity; its weights are the given ones at the set positions, permuted,
        and their gradient flows back.

    Raises:
        ValueError: wrong shape or dtype, a capacity outside `[0, 2^31 - 1)`, or more positions set than `capacity`
            (CPU; on a GPU the last groups' entries that do not fit are dropped).

    Cost:
        Two reads of `mask`, one write of the plan.
    """
    if capacity is None:
        capacity = mask.numel()
    elif not 0 <= capacity < 2**31 - 1:
        raise ValueError(
            f"from_mask: capacity is {capacity}, must be in [0, 2^31 - 1); give None for room for all positions"
        )
    offsets, item_ids, source_ids = ops.plan_from_mask(mask, capacity)
    return _with_source_weights("from_mask", offsets, item_ids, source_ids, weights, mask.shape, mask.shape[0])


def from_pairs(
    item_ids: Tensor, group_ids: Tensor, weights: Tensor | None = None, *, num_items: int, num_groups: int
) -> Plan:
    """Plan of explicit (item, group) pairs in any order; equal pairs stay separate entries, in their given order.

    Args:
        item_ids: int64 or int32 `[N]` in `[0, num_items)`.
        group_ids: int64 or int32 `[N]` in `[0, num_groups]`; `num_groups` means "no group".
        weights: floating `[N]` or None.
        num_items, num_groups: of the plan, each in `[0, 2^31 - 1)`.

    Returns:
        A plan with capacity N; its weights are the given ones, permuted, and their gradient flows back.

    Raises:
        ValueError: an id out of range (CPU; on a GPU such pairs are dropped), wrong shape, dtype or device.

    Cost:
        Two stable counting sorts: O(N + num_items + num_groups).
    """
    for name, ids in (("item_ids", item_ids), ("group_ids", group_ids)):
        if ids.dtype not in (torch.int32, torch.int64):
            raise ValueError(f"from_pairs: {name} is {ids.dtype}, must be int32 or int64; convert it with .long()")
    check_same_device("from_pairs", "item_ids", item_ids, group_ids=group_ids)
    # Ids beyond int32 must stay out of range after the narrowing, not wrap into it.
    items, groups = (i.clamp(-1, _NO_BOUND - 1).to(torch.int32).contiguous() for i in (item_ids, group_ids))
    offsets, sorted_items, source_ids = ops.plan_from_pairs(items, groups, num_items, num_groups)
    return _with_source_weights("from_pairs", offsets, sorted_items, source_ids, weights, item_ids.shape, num_items)


def _with_source_weights(
    op: str,
    group_offsets: Tensor,
    item_ids: Tensor,
    source_ids: Tensor,
    weights: Tensor | None,
    shape: torch.Size,
    num_items: int,
) -> Plan:
    if weights is not None:
        if weights.shape != shape:
            raise ValueError(
                f"{op}: weights has shape {tuple(weights.shape)}, must be {tuple(shape)} like the choices; "
                "give each choice one weight"
            )
        if not weights.is_floating_point():
            raise ValueError(f"{op}: weights is {weights.dtype}, must be a floating dtype; convert it with .float()")
        if weights.device != source_ids.device:
            raise ValueError(
                f"{op}: weights is on {weights.device}, must be on {source_ids.device} like the choices; "
                "move it with .to(device)"
            )
        weights = ops.plan_select(weights, source_ids)
    return Plan(group_offsets, item_ids, weights, num_items)


def _fake_parts(like: Tensor, num_groups: int, capacity: int) -> tuple[Tensor, Tensor, Tensor]:
    offsets = like.new_empty(num_groups + 1, dtype=torch.int32)
    return offsets, like.new_empty(capacity, dtype=torch.int32), like.new_empty(capacity, dtype=torch.int32)


@torch.library.register_fake("anabranch::plan_from_top_k")
def _(indices: Tensor, num_groups: int) -> tuple[Tensor, Tensor, Tensor]:
    return _fake_parts(indices, num_groups, indices.numel())


@torch.library.register_fake("anabranch::plan_from_mask")
def _(mask: Tensor, capacity: int) -> tuple[Tensor, Tensor, Tensor]:
    return _fake_parts(mask, mask.shape[1], capacity)


@torch.library.register_fake("anabranch::plan_from_pairs")
def _(item_ids: Tensor, group_ids: Tensor, num_items: int, num_groups: int) -> tuple[Tensor, Tensor, Tensor]:
    return _fake_parts(item_ids, num_groups, item_ids.shape[0])


@torch.library.register_fake("anabranch::plan_transpose")
def _(group_offsets: Tensor, item_ids: Tensor, num_items: int) -> tuple[Tensor, Tensor, Tensor]:
    return _fake_parts(item_ids, num_items, item_ids.shape[0])


@torch.library.register_fake("anabranch::plan_select")
def _(values: Tensor, source_ids: Tensor) -> Tensor:
    return values.new_empty(source_ids.shape)


@torch.library.register_fake("anabranch::plan_select_backward")
def _(grad: Tensor, source_ids: Tensor, num_values: int) -> Tensor:
    return grad.new_empty(num_values)


def _save_select(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    values, source_ids = inputs
    ctx.shape = values.shape
    ctx.save_for_backward(source_ids)


def _select_backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
    (source_ids,) = ctx.saved_tensors
    return ops.plan_select_backward(grad, source_ids, ctx.shape.numel()).reshape(ctx.shape), None


torch.library.register_autograd("anabranch::plan_select", _select_backward, setup_context=_save_select)


def _save_source_ids(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(inputs[1])


def _select_double_backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
    return ops.plan_select(grad, ctx.saved_tensors[0]), None, None


torch.library.register_autograd(
    "anabranch::plan_select_backward", _select_double_backward, setup_context=_save_source_ids
)
