"""Rows of a batch written to rows of a table in a stated order: what memories and counters stand on."""

from __future__ import annotations

import torch
from torch import Tensor

from anabranch.core.arguments import check_same_device
from anabranch.core.library import ops


def ordered_scatter_add_(table: Tensor, index: Tensor, values: Tensor, weights: Tensor | None = None) -> Tensor:
    """`table[index[e]] += weights[e] * values[e]` for all e, in the order of the batch; the same bits every time.

    The batch is worked off in stretches of 16384 entries. Within one, the entries of a row are summed in their order,
    in float32 (float64 for float64, int64 for int64), and the sum is added to the row once: a bfloat16 table is rounded
    once a stretch. Threads, and CPU or GPU, make no difference to the bits.

    Args:
        table: `[N, d]`, contiguous; float32, float64, bfloat16, float16 or int64. Written in place.
        index: int64 `[E]` in `[0, N)`; a negative one passes its entry over.
        values: `[E, d]`, in the table's dtype.
        weights: `[E]`, in the table's dtype, or None for 1.

    Returns:
        The table.

    Raises:
        ValueError: shapes, dtypes or devices that do not fit; what is read lies in the table; an index of N or more
            (CPU; passed over on a GPU). The table is then untouched.

    Gradient:
        None: a state is written. Give it detached values.

    Cost:
        Reads values once, reads and writes each named row once a stretch. No sort, no atomics.
    """
    check_same_device("ordered_scatter_add_", "table", table, index=index, values=values, weights=weights)
    ops.ordered_scatter_add(table, index, values, weights)
    return table


def ordered_scatter_(table: Tensor, index: Tensor, values: Tensor) -> Tensor:
    """`table[index[e]] = values[e]` for all e, in the order of the batch: of equal indices the last one wins.

    Args:
        table: `[N, d]`, contiguous, any dtype. Written in place.
        index: int64 `[E]` in `[0, N)`; a negative one passes its entry over.
        values: `[E, d]`, in the table's dtype.

    Returns:
        The table.

    Raises:
        ValueError: shapes, dtypes or devices that do not fit; what is read lies in the table; an index of N or more
            (CPU; passed over on a GPU). The table is then untouched.

    Gradient:
        None: a state is written. Give it detached values.

    Cost:
        Reads and writes each entry's row at most once.
    """
    check_same_device("ordered_scatter_", "table", table, index=index, values=values)
    ops.ordered_scatter(table, index, values)
    return table


def latest_of_node(nodes: Tensor, time: Tensor, event_id: Tensor | None = None) -> Tensor:
    """Which position of a batch is the newest of its node, by (time, event id, position).

    Args:
        nodes: int64 `[E]`; a negative one is nobody and never newest.
        time: int64 `[E]`.
        event_id: int64 `[E]`; None leaves ties of time to the position.

    Returns:
        bool `[E]`, set at exactly one position of each node.

    Raises:
        ValueError: shapes, dtypes or devices that do not fit.

    Cost:
        O(E) on the CPU; E^2 / 32 loads of 32 from L2 on a GPU, by estimate less than a sort for thousands.
    """
    check_same_device("latest_of_node", "nodes", nodes, time=time, event_id=event_id)
    return ops.latest_of_node(nodes, time, event_id)


@torch.library.register_fake("anabranch::ordered_scatter_add")
def _(table: Tensor, index: Tensor, values: Tensor, weights: Tensor | None) -> None:
    return None


@torch.library.register_fake("anabranch::ordered_scatter")
def _(table: Tensor, index: Tensor, values: Tensor) -> None:
    return None


@torch.library.register_fake("anabranch::latest_of_node")
def _(nodes: Tensor, time: Tensor, event_id: Tensor | None) -> Tensor:
    return nodes.new_empty(nodes.shape, dtype=torch.bool)
