"""Rows between the ranks of a group: which entries of a plan travel, and an all-to-all that autograd can overlap."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from anabranch.plan import Plan, from_mask, from_pairs


class Exchange:
    """One all-to-all of rows with uneven splits, forward and, for the gradient, back.

    `send` and `receive` are two nodes of the autograd graph. `send` starts the transfer and `receive` waits for it;
    in the backward `receive` starts the transfer of the gradient and `send` waits. Autograd runs nodes in the reverse
    order of their creation, so work that is recorded between the two overlaps with the transfer in both directions.
    What passes between the nodes is an empty token: no buffer can be seen before it is filled.

    Args:
        group: the ranks that take part; every one has to make the same calls.
        send_sizes: rows of the input that go to each rank, in rank order.
        recv_sizes: rows that come from each rank, in rank order.
    """

    def __init__(self, group: dist.ProcessGroup, send_sizes: list[int], recv_sizes: list[int]) -> None:
        self.group = group
        self.send_sizes, self.recv_sizes = send_sizes, recv_sizes
        self._pending: tuple[dist.Work, Tensor, Tensor] | None = None

    def send(self, rows: Tensor) -> Tensor:
        """Starts to send rows `[sum(send_sizes), ...]`; returns the token for `receive`."""
        return _Send.apply(rows, self)

    def receive(self, token: Tensor) -> Tensor:
        """Waits for rows `[sum(recv_sizes), ...]`, sorted by the rank they come from.

        Raises:
            RuntimeError: a rank of the group died or is later than the group's timeout.
        """
        return _Receive.apply(token, self)

    def start(self, rows: Tensor, *, reverse: bool = False) -> None:
        """Starts the transfer, or with `reverse` the one in the opposite direction. Does not wait."""
        send_sizes, recv_sizes = self.send_sizes, self.recv_sizes
        if reverse:
            send_sizes, recv_sizes = recv_sizes, send_sizes
        rows = rows.contiguous()
        out = rows.new_empty(sum(recv_sizes), *rows.shape[1:])
        try:
            work = dist.all_to_all_single(out, rows, recv_sizes, send_sizes, group=self.group, async_op=True)
        except RuntimeError as error:
            _raise_failed(self.group, error)
        assert work is not None  # None is for processes outside the group.
        # The input is held too: it must live until the transfer has read it.
        self._pending = work, out, rows

    def wait(self) -> Tensor:
        """The rows of the transfer that was started last. On NCCL it is the stream that waits, not the host."""
        assert self._pending is not None
        work, out, _ = self._pending
        self._pending = None
        try:
            work.wait()
        except RuntimeError as error:
            _raise_failed(self.group, error)
        return out


class _Send(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, exchange: Exchange) -> Tensor:
        ctx.exchange = exchange
        exchange.start(rows)
        return rows.new_empty(0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, _: Tensor) -> tuple[Tensor, None]:
        return ctx.exchange.wait(), None


class _Receive(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, token: Tensor, exchange: Exchange) -> Tensor:
        ctx.exchange = exchange
        return exchange.wait()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        ctx.exchange.start(grad, reverse=True)
        return grad.new_empty(0), None


def _raise_failed(group: dist.ProcessGroup, error: RuntimeError) -> NoReturn:
    raise RuntimeError(
        f"ExpertParallel: an exchange among ranks {dist.get_process_group_ranks(group)} failed, because one of them "
        f"died, raised an error of its own or is later than the group's timeout; restart the group. Cause: {error}"
    ) from error


def shard_bounds(num_experts: int, num_ranks: int) -> list[int]:
    """First expert of each rank, and the end: `[num_ranks + 1]`.

    Shares of ceil(E / P) experts, the last ones shorter or empty. It is the split of torch's `Shard(0)`, so that
    shards are DTensors; the largest share, which sets the pace, is no larger than in any other split.
    """
    share = -(-num_experts // num_ranks)
    return [min(rank * share, num_experts) for rank in range(num_ranks + 1)]


@dataclasses.dataclass(frozen=True, eq=False)
class SplitPlan:
    """One rank's plan, cut by where the experts are. A row goes to a rank once, however many experts it has there.

    Attributes:
        own: entries of this rank's experts, then of the null experts; they do not travel.
        rows: the rows that travel, in one group for each rank; this rank's group is empty. No weights.
        pair_rows: int32, for each entry of another rank's expert, in plan order and thus sorted by rank, the place of
            its row among the rows for that rank.
        pair_weights: the weights of the same entries.
        send_pairs, recv_pairs, send_rows, recv_rows: how many go to and come from each rank; 0 for this one.
        by_source: int64 `[num_ranks, experts]`, the pairs that come from each rank for each expert of this one.
    """

    own: Plan
    rows: Plan
    pair_rows: Tensor
    pair_weights: Tensor
    send_pairs: list[int]
    recv_pairs: list[int]
    send_rows: list[int]
    recv_rows: list[int]
    by_source: Tensor

    def received(self, pair_rows: Tensor, pair_weights: Tensor) -> Plan:
        """Plan of the rows that came, from what came with them; rows and pairs are sorted by rank."""
        num_ranks, num_local = self.by_source.shape
        device, num_pairs = self.by_source.device, sum(self.recv_pairs)
        first_row = torch.tensor([0, *itertools.accumulate(self.recv_rows)][:-1], device=device)
        first_rows = first_row.repeat_interleave(self.by_source.sum(1), output_size=num_pairs)
        experts = torch.arange(num_local, device=device).repeat(num_ranks)
        expert_ids = experts.repeat_interleave(self.by_source.flatten(), output_size=num_pairs)
        num_rows = sum(self.recv_rows)
        return from_pairs(pair_rows + first_rows, expert_ids, pair_weights, num_items=num_rows, num_groups=num_local)


def split_plan(plan: Plan, bounds: list[int], group: dist.ProcessGroup, mode: int) -> SplitPlan:
    """Cuts a plan of E experts and any null experts at the shards' bounds, and learns what the others will send.

    Args:
        plan: of this rank's items; its weights (1 where it has none) keep their gradient.
        bounds: as `shard_bounds`.
        group: the ranks, in the order of `bounds`.
        mode: what the ranks have to have in common for the exchanges to fit, as one number.

    Raises:
        ValueError: the modes differ.
        RuntimeError: a rank of the group died or is later than the group's timeout.

    Cost:
        One all-to-all of E / P + 2 int32 to each rank, and one read of these counts and the offsets by the host, which
        has to know how many rows come from where before it can receive them. O(num_items * P + capacity) beside it.
    """
    rank, num_ranks, num_experts, share = dist.get_rank(group), len(bounds) - 1, bounds[-1], bounds[1]
    first, last = bounds[rank], bounds[rank + 1]
    offsets = plan.group_offsets

    # Which rows go where. Entries that stay or do not exist are marked in a column that is cut off.
    entries = torch.arange(plan.capacity, dtype=torch.int32, device=plan.device)
    entry_groups = torch.searchsorted(offsets[1:], entries, right=True, out_int32=True)
    stays = ((entry_groups >= first) & (entry_groups < last)) | (entry_groups >= num_experts)
    destinations = (entry_groups // share).masked_fill(stays, num_ranks)
    items = plan.item_ids.clamp(min=0)
    marked = torch.zeros(plan.num_items, num_ranks + 1, dtype=torch.bool, device=plan.device)
    marked[items, destinations] = True
    travels = marked[:, :num_ranks].contiguous()
    rows = from_mask(travels)
    places = marked.cumsum(0, dtype=torch.int32)[items, destinations] - 1

    pairs = nn.functional.pad(plan.group_sizes()[:num_experts], (0, num_ranks * share - num_experts))
    modes = torch.full_like(rows.group_sizes(), mode)
    sizes = Exchange(group, [1] * num_ranks, [1] * num_ranks)
    sizes.start(torch.cat([pairs.reshape(num_ranks, share), rows.group_sizes()[:, None], modes[:, None]], 1))
    arriving = sizes.wait()
    by_source = arriving[:, : last - first].long()
    by_source[rank] = 0

    columns = [by_source.sum(1), arriving[:, share], rows.group_sizes(), arriving[:, share + 1]]
    host = torch.cat([*columns, offsets]).tolist()
    recv_pairs, recv_rows, send_rows, all_modes = (host[i * num_ranks : (i + 1) * num_ranks] for i in range(4))
    ends = host[4 * num_ranks :]
    if len(set(all_modes)) > 1:
        raise ValueError(
            f"ExpertParallel: the modes of the group's ranks are {all_modes}, must be the same; use x.requires_grad, "
            "grad mode and autocast alike on all ranks"
        )
    send_pairs = [ends[end] - ends[begin] for begin, end in itertools.pairwise(bounds)]
    send_pairs[rank] = 0
    begin, end, experts_end, total = ends[first], ends[last], ends[num_experts], ends[-1]

    weights = torch.ones_like(entries, dtype=torch.float32) if plan.weights is None else plan.weights
    own = Plan(
        torch.cat([offsets[first : last + 1] - begin, offsets[num_experts + 1 :] - (experts_end - end + begin)]),
        torch.cat([plan.item_ids[begin:end], plan.item_ids[experts_end:total]]),
        torch.cat([weights[begin:end], weights[experts_end:total]]),
        plan.num_items,
    )
    return SplitPlan(
        own,
        Plan(rows.group_offsets, rows.item_ids[: sum(send_rows)], None, plan.num_items),
        torch.cat([places[:begin], places[end:experts_end]]),
        torch.cat([weights[:begin], weights[end:experts_end]]),
        send_pairs,
        recv_pairs,
        send_rows,
        recv_rows,
        by_source,
    )
