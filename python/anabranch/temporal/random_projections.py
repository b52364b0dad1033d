"""`RandomProjections`: TPNet's temporal walk matrices, as a few random numbers a node."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from anabranch.core.library import ops
from anabranch.temporal.stream_state import check_like_nodes, check_nodes
from anabranch.temporal.whole_state import WholeState, has_values

_BEFORE_ALL = torch.iinfo(torch.int64).min


class RandomProjections(WholeState):
    """Rows whose products say how two nodes are joined by walks that lose weight with age (TPNet, arXiv 2410.04013).

    Level 0 of a node is random, N(0, 1 / dim), and stays. When a batch ends at time T, level l of all nodes has faded
    by `exp(-decay * l * (T - T_before))`, and an event (u, v, t) adds `exp(-decay * (T - t))` times level l - 1 of v,
    faded and as it was before the batch, to level l of u; and the same the other way round. Nodes fade when they are
    read or written, so a batch costs its own nodes and not the table.

    Args:
        num_nodes: rows.
        dim: numbers a level; the paper takes 10 * ln(2 * events).
        num_levels: levels beside the random one, the longest walks that count.
        decay: per unit of the stream's time.
        generator: of level 0.
        device, dtype: of the table; float32 by default.

    State: `table` `[num_nodes, num_levels + 1, dim]`, `last_time` int64 `[num_nodes]`, `now` int64 `[1]`, which never
    goes back: later batches of earlier times are faded on arrival. A saved state is loaded where the decay is the same.
    Sums run in the batch's order, bitwise the same for every number of threads. Nothing here is differentiable.
    """

    table: Tensor
    last_time: Tensor
    now: Tensor

    def __init__(
        self,
        num_nodes: int,
        dim: int,
        num_levels: int = 3,
        decay: float = 1e-6,
        *,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        op = "RandomProjections"
        if dim < 1 or num_levels < 1:
            raise ValueError(
                f"{op}: dim and num_levels are {dim} and {num_levels}, must be at least 1; level 0 comes on top"
            )
        if not 0 <= decay < float("inf"):
            raise ValueError(f"{op}: decay is {decay}, must be finite and not negative; give a rate per unit of time")
        self.num_nodes, self.dim, self.num_levels, self.decay = num_nodes, dim, num_levels, decay
        table = torch.zeros(num_nodes, num_levels + 1, dim, device=device, dtype=dtype)
        table[:, 0].normal_(0, dim**-0.5, generator=generator)
        self.register_buffer("table", table)
        self.register_buffer("last_time", torch.full((num_nodes,), _BEFORE_ALL, device=device))
        self.register_buffer("now", torch.full((1,), _BEFORE_ALL, device=device))

    def update(self, src: Tensor, dst: Tensor, time: Tensor) -> None:
        """Takes a batch of events; it ends at its newest time, or at `now` if that is later.

        Args:
            src, dst, time: int64 `[E]`.

        Raises:
            ValueError: shapes, dtypes or devices that do not fit; nodes out of range (CPU; on a GPU such events are
                passed over). Nothing has been written then.

        Cost:
            `2 * E * num_levels` rows of dim read, those of the batch's nodes written; `num_levels + 1` launches on a
            GPU.
        """
        check_nodes("update", self.num_nodes, self.table, src=src, dst=dst)
        check_like_nodes("update", self.table, src.shape[0], dst=dst, time=time)
        if src.shape[0] == 0:
            return
        known = ((src >= 0) & (src < self.num_nodes)) & ((dst >= 0) & (dst < self.num_nodes))  # all, on a CPU
        now = torch.maximum(self.now, torch.where(known, time, _BEFORE_ALL).amax())
        ops.random_projections_update(self.table, self.last_time, now, src, dst, time, self.decay)
        self.now.copy_(now)

    def rows(self, nodes: Tensor) -> Tensor:
        """The rows of nodes, faded until `now`.

        Args:
            nodes: int64 `[n]`.

        Returns:
            `[n, num_levels + 1, dim]`, a copy without gradient; level 0 is random and does not fade.

        Raises:
            ValueError: another dtype, shape or device; nodes out of range (CPU).

        Cost:
            Reads and writes n rows of num_levels + 1 vectors.
        """
        check_nodes("rows", self.num_nodes, self.table, nodes=nodes)
        age = (self.now - self.last_time[nodes]).clamp_min(0)  # of a node without events anything: its levels are 0
        level = torch.arange(self.num_levels + 1, device=nodes.device)
        fade = torch.exp(-self.decay * age.double())[:, None] ** level
        return self.table.index_select(0, nodes) * fade[:, :, None].to(self.table.dtype)

    def pair_features(self, u: Tensor, v: Tensor) -> Tensor:
        """`log(1 + relu(F F^T))` of the rows F of both nodes, u's levels first: what a link's score is read from.

        Args:
            u, v: int64 `[B]`.

        Returns:
            `[B, (2 * num_levels + 2)^2]`, row by row.

        Raises:
            ValueError: shapes, dtypes or devices that do not fit; nodes out of range (CPU).
        """
        check_nodes("pair_features", self.num_nodes, self.table, u=u, v=v)
        check_like_nodes("pair_features", self.table, u.shape[0], v=v)
        both = torch.cat([self.rows(u), self.rows(v)], 1)
        return torch.log1p(torch.relu(torch.bmm(both, both.mT))).flatten(1)

    def reset(self) -> None:
        """Forgets all events; level 0 stays."""
        self.table[:, 1:].zero_()
        self.last_time.fill_(_BEFORE_ALL)
        self.now.fill_(_BEFORE_ALL)

    def get_extra_state(self) -> Tensor:
        """float64 `[]`: the decay."""
        return torch.tensor(self.decay, dtype=torch.float64, device="cpu")

    def set_extra_state(self, state: Tensor) -> None:
        """Nothing is left to take over: a state of another decay was refused."""

    def state_problems(self, given: Mapping[str, Any]) -> Iterator[str]:
        yield from super().state_problems(given)
        decay = given["_extra_state"]
        if not isinstance(decay, Tensor) or decay.dtype != torch.float64 or decay.dim() > 0:
            yield "_extra_state is not a float64 of no dimension, must be; load what state_dict() gave"
        elif has_values(decay) and float(decay) != self.decay:
            yield f"decay is {float(decay)}, must be {self.decay}; make the module with that of the saved one"

    def extra_repr(self) -> str:
        return f"num_nodes={self.num_nodes}, dim={self.dim}, num_levels={self.num_levels}, decay={self.decay}"


@torch.library.register_fake("anabranch::random_projections_update")
def _(table: Tensor, last_time: Tensor, now: Tensor, src: Tensor, dst: Tensor, time: Tensor, decay: float) -> None:
    return None
