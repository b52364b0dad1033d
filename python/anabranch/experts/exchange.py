"""Rows between the ranks of a group: which entries of a plan travel, and an all-to-all that autograd can overlap."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from anabranch.plan import Plan, from_pairs


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
        """Starts to send rows `[sum(send_sizes), W]`; returns the token for `receive`."""
        return _Send.apply(rows, self)

    def receive(self, token: Tensor) -> Tensor:
        """Waits for rows `[sum(recv_sizes), W]`, sorted by the rank they come from.

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
    """One rank's plan, cut by where the experts are.

    Attributes:
        local: entries of this rank's experts, then of the null experts; they do not travel.
        remote: entries of all other experts, in the order of the whole plan and thus of the ranks they go to.
        received: the other ranks' entries for this rank's experts; its items are the received rows. No weights.
        send_sizes, recv_sizes: rows to and from each rank; 0 for this one.
    """

    local: Plan
    remote: Plan
    received: Plan
    send_sizes: list[int]
    recv_sizes: list[int]


def split_plan(plan: Plan, bounds: list[int], group: dist.ProcessGroup) -> SplitPlan:
    """Cuts a plan of E experts and any null experts at the shards' bounds, and learns what the others will send.

    Args:
        plan: of this rank's items; its weights keep their gradient.
        bounds: as `shard_bounds`.
        group: the ranks, in the order of `bounds`.

    Raises:
        RuntimeError: a rank of the group died or is later than the group's timeout.

    Cost:
        One all-to-all of E int32 per rank, and one read of the offsets and these counts by the host, which has to
        know how many rows come from where before it can receive them.
    """
    rank, num_experts = dist.get_rank(group), bounds[-1]
    first, last = bounds[rank], bounds[rank + 1]
    num_local = last - first
    shares = [end - begin for begin, end in itertools.pairwise(bounds)]
    counts = Exchange(group, shares, [num_local] * len(shares))
    counts.start(plan.group_sizes()[:num_experts])
    by_source = counts.wait().reshape(len(shares), num_local)
    by_source[rank] = 0

    host = torch.cat([plan.group_offsets, by_source.sum(1, dtype=torch.int32)]).tolist()
    offsets, recv_sizes = host[: plan.num_groups + 1], host[plan.num_groups + 1 :]
    send_sizes = [offsets[end] - offsets[begin] for begin, end in itertools.pairwise(bounds)]
    send_sizes[rank] = 0
    begin, end, experts_end, total = offsets[first], offsets[last], offsets[num_experts], offsets[-1]

    def part(group_offsets: list[Tensor], *pieces: slice) -> Plan:
        item_ids = torch.cat([plan.item_ids[piece] for piece in pieces])
        weights = None if plan.weights is None else torch.cat([plan.weights[piece] for piece in pieces])
        return Plan(torch.cat(group_offsets), item_ids, weights, plan.num_items)

    device_offsets = plan.group_offsets
    local = part(
        [device_offsets[first : last + 1] - begin, device_offsets[num_experts + 1 :] - (experts_end - end + begin)],
        slice(begin, end),
        slice(experts_end, total),
    )
    remote = part(
        [device_offsets[: first + 1], device_offsets[last + 1 : num_experts + 1] - (end - begin)],
        slice(0, begin),
        slice(end, experts_end),
    )
    return SplitPlan(local, remote, _received_plan(by_source, sum(recv_sizes)), send_sizes, recv_sizes)


def _received_plan(by_source: Tensor, num_rows: int) -> Plan:
    """Plan of rows that arrive sorted by source rank, then by expert: `by_source` [P, experts] counts them."""
    num_ranks, num_local = by_source.shape
    experts = torch.arange(num_local, device=by_source.device).repeat(num_ranks)
    group_ids = experts.repeat_interleave(by_source.flatten(), output_size=num_rows)
    rows = torch.arange(num_rows, device=by_source.device)
    return from_pairs(rows, group_ids, num_items=num_rows, num_groups=num_local)
