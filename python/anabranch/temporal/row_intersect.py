"""Sets of two rows of a graph: `row_set_sum` and `row_set`, with `gather_sum` and `csr_from_edges` beside them.

What NCN and NCNC ask of a graph (Wang, Yang, Zhang, Neural Common Neighbor with Completion for Link Prediction, ICLR
2024, arXiv 2302.00890). A graph is `row_offsets` int64 `[N + 1]` and `column_ids` int64, ascending and distinct within
a row; it may be directed. On the CPU the rows that a call names are checked; on a GPU values cannot be looked at: nodes
out of range have no neighbours there, ids out of range are in no set, and what unsorted rows give is not defined.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from anabranch.core.arguments import call_as, check_floating, check_same_device, dtype_name
from anabranch.core.library import ops

RowSetMode = Literal["intersection", "left_difference", "right_difference"]

_MODES = ("intersection", "left_difference", "right_difference")


def csr_from_edges(src: Tensor, dst: Tensor, num_nodes: int, undirected: bool = True) -> tuple[Tensor, Tensor]:
    """Rows of neighbours from a list of edges, each edge once.

    Args:
        src, dst: int64 `[E]`, in [0, num_nodes); repeated edges count once.
        num_nodes: N, less than 2^31.
        undirected: whether an edge is in the rows of both its ends.

    Returns:
        row_offsets int64 `[N + 1]` and column_ids int64, ascending within a row. A loop is in its node's row.

    Raises:
        ValueError: shapes, dtypes, devices or nodes that do not fit. Looks at values, and its result's size depends on
            them: not for a compiled graph.

    Cost:
        A sort of the edges, by torch.
    """
    op = "csr_from_edges"
    check_same_device(op, "src", src, dst=dst)
    for name, ends in (("src", src), ("dst", dst)):
        if ends.dtype != torch.int64:
            raise ValueError(f"{op}: {name} is {dtype_name(ends.dtype)}, must be int64; convert it with .long()")
        if ends.shape != (src.numel(),):
            raise ValueError(
                f"{op}: {name} has shape {tuple(ends.shape)}, must be ({src.numel()},); pass two nodes for each edge"
            )
    if not 0 <= num_nodes < 1 << 31:
        raise ValueError(f"{op}: num_nodes is {num_nodes}, must be in [0, 2^31); number the nodes from 0")
    if src.numel():
        low, high = (int(end) for end in torch.cat([src, dst]).aminmax())
        if low < 0 or high >= num_nodes:
            raise ValueError(
                f"{op}: src and dst are in [{low}, {high}], must be in [0, {num_nodes}); number the nodes from 0"
            )
    edges = src * num_nodes + dst
    if undirected:
        edges = torch.cat([edges, dst * num_nodes + src])
    edges = torch.unique(edges)
    ends = torch.arange(num_nodes + 1, device=src.device) * num_nodes
    return torch.searchsorted(edges, ends), edges % max(num_nodes, 1)


def row_set_sum(
    x: Tensor,
    row_offsets: Tensor,
    column_ids: Tensor,
    left: Tensor,
    right: Tensor,
    mode: RowSetMode = "intersection",
    exclude_pair: bool = False,
) -> Tensor:
    """`out_p = sum of x_u over the nodes u in a set made of the rows of left_p and right_p`; no set is written.

    With "intersection" this is NCN's sum over common neighbours. The sum over the union is that of all three modes.

    Args:
        x: `[N, D]`; float32, bfloat16, float16 or float64.
        row_offsets, column_ids: int64 `[N + 1]` and `[E]`, the graph.
        left, right: int64 `[P]`, nodes. Equal ends are a pair like others.
        mode: "intersection" (in both rows), "left_difference" (in left's alone) or "right_difference".
        exclude_pair: leaves the pair's own two nodes out of its set, as if the edge between them (and loops) were not
            there: how NCN hides the link it is asked about.

    Returns:
        `[P, D]` in the dtype of x, summed by ascending node in float32 (float64 for float64 x): the same bits on every
        device and number of threads.

    Raises:
        ValueError: shapes, dtypes or devices that do not fit, an unknown mode; on the CPU also nodes out of range and
            rows that do not ascend or leave the graph.

    Gradient:
        To x, twice; each node sums over its pairs in order.

    Cost:
        A walk through both rows, or where one is 16 times as long, a search for each element of the short one; and D
        numbers of x for each element of the set. On a GPU the backward asks each node about each pair: N * P searches.
    """
    op = "row_set_sum"
    check_floating(op, x=x)
    check_same_device(op, "x", x, row_offsets=row_offsets, column_ids=column_ids, left=left, right=right)
    number = _mode_number(op, mode)
    out: Tensor = call_as(op, ops.row_set_sum, x, row_offsets, column_ids, left, right, number, exclude_pair)
    return out


def row_set(
    row_offsets: Tensor,
    column_ids: Tensor,
    left: Tensor,
    right: Tensor,
    mode: RowSetMode,
    capacity: int,
    seed: int = 0,
    exclude_pair: bool = False,
) -> tuple[Tensor, Tensor]:
    """The sets that row_set_sum sums over; where one is larger than the capacity, a sample of it.

    The sample is uniform and without replacement: the nodes of the smallest hashes of (seed, left, right, node). It
    depends on nothing else, so a pair has the same sample in every batch and on every device until the seed changes.

    Args:
        row_offsets, column_ids, left, right, mode, exclude_pair: as row_set_sum.
        capacity: ids that there is room for; NCNC trains with 8 and tests with 128.
        seed: another seed gives another sample; pass the number of the step in training.

    Returns:
        ids int64 `[P, capacity]`, ascending, then -1; sizes int64 `[P]`, those of the whole sets.

    Raises:
        ValueError: as row_set_sum, and a negative capacity.

    Cost:
        As row_set_sum without x; a set that is sampled is hashed once, on a GPU walked three or four times.
    """
    op = "row_set"
    check_same_device(op, "row_offsets", row_offsets, column_ids=column_ids, left=left, right=right)
    number = _mode_number(op, mode)
    sets: tuple[Tensor, Tensor] = call_as(
        op, ops.row_set, row_offsets, column_ids, left, right, number, exclude_pair, capacity, seed
    )
    return sets


def gather_sum(x: Tensor, ids: Tensor, weights: Tensor | None = None) -> Tensor:
    """`out_p = sum over k of weights_pk * x[ids_pk]`, ids of -1 left out: torch's embedding_bag for what row_set gives.

    Args:
        x: `[N, D]`; float32, bfloat16, float16 or float64. Row 0 must be finite where ids has -1: it is read with
            weight 0.
        ids: int64 `[P, K]` in [-1, N).
        weights: `[P, K]`, converted to the dtype of x; 1 without.

    Returns:
        `[P, D]` in the dtype of x.

    Raises:
        ValueError: shapes, dtypes or devices that do not fit.

    Gradient:
        To x and weights, by torch's own formulas: the gradient of x is summed in the dtype of x.

    Cost:
        K * D numbers of x a row, nothing in between is written.
    """
    op = "gather_sum"
    check_floating(op, x=x, weights=weights)
    check_same_device(op, "x", x, ids=ids, weights=weights)
    if ids.dtype != torch.int64:
        raise ValueError(f"{op}: ids is {dtype_name(ids.dtype)}, must be int64; convert it with .long()")
    if x.dim() != 2 or ids.dim() != 2:
        raise ValueError(
            f"{op}: x has shape {tuple(x.shape)} and ids {tuple(ids.shape)}, must have two dimensions; "
            "pass rows of x and a row of ids for each sum"
        )
    if weights is not None and weights.shape != ids.shape:
        raise ValueError(
            f"{op}: weights has shape {tuple(weights.shape)}, must be {tuple(ids.shape)} like ids; pass one for each id"
        )
    if ids.numel() * x.numel() == 0:
        return x.new_zeros(ids.shape[0], x.shape[1])
    factors = x.new_ones(ids.shape) if weights is None else weights.to(x.dtype)
    used = factors.masked_fill(ids < 0, 0)
    return F.embedding_bag(ids.clamp(min=0), x, mode="sum", per_sample_weights=used)


def _mode_number(op: str, mode: str) -> int:
    if mode not in _MODES:
        raise ValueError(f"{op}: mode is {mode!r}, must be one of {_MODES}; pass one of these")
    return _MODES.index(mode)


@torch.library.register_fake("anabranch::row_set_sum")
def _(
    x: Tensor, row_offsets: Tensor, column_ids: Tensor, left: Tensor, right: Tensor, mode: int, exclude_pair: bool
) -> Tensor:
    return x.new_empty(left.shape[0], x.shape[1])


@torch.library.register_fake("anabranch::row_set_sum_backward")
def _(
    dout: Tensor, row_offsets: Tensor, column_ids: Tensor, left: Tensor, right: Tensor, mode: int, exclude_pair: bool
) -> Tensor:
    return dout.new_empty(row_offsets.shape[0] - 1, dout.shape[1])


@torch.library.register_fake("anabranch::row_set")
def _(
    row_offsets: Tensor,
    column_ids: Tensor,
    left: Tensor,
    right: Tensor,
    mode: int,
    exclude_pair: bool,
    capacity: int,
    seed: int,
) -> tuple[Tensor, Tensor]:
    return left.new_empty(left.shape[0], capacity), left.new_empty(left.shape[0])


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, *graph, ctx.mode, ctx.exclude_pair = inputs
    ctx.save_for_backward(*graph)


def _backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
    return ops.row_set_sum_backward(dout, *ctx.saved_tensors, ctx.mode, ctx.exclude_pair), *(None,) * 6


def _double_backward(ctx: Any, ddx: Tensor) -> tuple[Tensor | None, ...]:
    return ops.row_set_sum(ddx, *ctx.saved_tensors, ctx.mode, ctx.exclude_pair), *(None,) * 6


torch.library.register_autograd("anabranch::row_set_sum", _backward, setup_context=_save)
torch.library.register_autograd("anabranch::row_set_sum_backward", _double_backward, setup_context=_save)
