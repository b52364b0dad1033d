"""`EdgeList`: an edge stream in memory, in the order of its events."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from anabranch.core.arguments import check_same_device, dtype_name


@dataclass(frozen=True, eq=False)
class EdgeList:
    """Events `(src, dst, time, features)` sorted by (time, event id); what `load_edges` returns.

    Slices, `batches`, `select` and the parts of `split_by_time` are edge lists too. They keep the event ids and the
    number of nodes of the whole; a slice shares its memory.

    Args:
        src, dst: int64 `[E]`, nodes in [0, num_nodes).
        time: int64 `[E]`, ascending.
        features: float32 `[E, D]`, or None.
        event_id: int64 `[E]`, ascending: the place of the event in the whole list.
        row: int64 `[E]`, where the event stood before it was sorted; in a file the data row, counted from 0.
        num_nodes: of the whole list.
        node_names: what nodes are called in the file: int64 `[num_nodes]`, a tuple of strings, or None.
        feature_names: of the D features, where the file has a header; else empty.
    """

    src: Tensor
    dst: Tensor
    time: Tensor
    features: Tensor | None
    event_id: Tensor
    row: Tensor
    num_nodes: int
    node_names: Tensor | tuple[str, ...] | None = None
    feature_names: tuple[str, ...] = ()

    @classmethod
    def from_events(
        cls,
        src: Tensor,
        dst: Tensor,
        time: Tensor,
        features: Tensor | None = None,
        *,
        num_nodes: int | None = None,
        node_names: Tensor | tuple[str, ...] | None = None,
        feature_names: Sequence[str] = (),
    ) -> EdgeList:
        """Sorts events by time, those of one time in the order given, and numbers them.

        Args:
            src, dst, time: int64 `[E]`; features: float32 `[E, D]`, finite.
            num_nodes: default the largest node + 1.

        Raises:
            ValueError: shapes, dtypes or devices that do not fit; nodes out of range; a feature that is not finite.

        Cost:
            One stable sort; looks at values on the host.
        """
        _check_events(src, dst, time, features)
        largest = int(torch.maximum(src.max(), dst.max())) if len(src) else -1
        smallest = int(torch.minimum(src.min(), dst.min())) if len(src) else 0
        if num_nodes is None:
            num_nodes = largest + 1
        if smallest < 0 or largest >= num_nodes:
            raise ValueError(
                f"EdgeList: nodes are in [{smallest}, {largest}], must be in [0, {num_nodes}) for num_nodes "
                f"{num_nodes}; number them from 0, or give a larger num_nodes"
            )
        if bool((time[1:] >= time[:-1]).all()):
            order = torch.arange(len(time), device=time.device)
        else:
            order = time.argsort(stable=True)
            src, dst, time = src[order], dst[order], time[order]
            features = None if features is None else features[order]
        place = torch.arange(len(time), device=time.device)
        return cls(src, dst, time, features, place, order, num_nodes, node_names, tuple(feature_names))

    def __len__(self) -> int:
        return self.src.shape[0]

    def __getitem__(self, events: slice) -> EdgeList:
        """The events of a slice of step 1 or more; no copy."""
        if not isinstance(events, slice):
            raise TypeError(f"an EdgeList is indexed by slices, not by {type(events).__name__}; select() takes masks")
        return self._of(lambda column: column[events])

    def select(self, mask: Tensor) -> EdgeList:
        """The events where the mask, bool `[E]`, is True, in their order; a copy."""
        if mask.dtype != torch.bool or mask.shape != self.src.shape:
            raise ValueError(
                f"EdgeList.select: mask is {dtype_name(mask.dtype)} of shape {tuple(mask.shape)}, must be bool of "
                f"shape ({len(self)},); compare a column, as in edges.time > t"
            )
        return self._of(lambda column: column[mask])

    def batches(self, size: int) -> Iterator[EdgeList]:
        """Slices of `size` events, the last one shorter where they do not divide; in order."""
        if size < 1:
            raise ValueError(f"EdgeList.batches: size is {size}, must be at least 1; give a number of events")
        return (self[start : start + size] for start in range(0, len(self), size))

    def to(self, device: torch.device | str) -> EdgeList:
        """The list on a device; the names stay where they are."""
        return self._of(lambda column: column.to(device))

    def __repr__(self) -> str:
        span = f", times {int(self.time[0])}..{int(self.time[-1])}" if len(self) else ""
        width = 0 if self.features is None else self.features.shape[1]
        return f"EdgeList({len(self)} events, {self.num_nodes} nodes, {width} features{span})"

    def _of(self, part: Callable[[Tensor], Tensor]) -> EdgeList:
        return replace(
            self,
            src=part(self.src),
            dst=part(self.dst),
            time=part(self.time),
            features=None if self.features is None else part(self.features),
            event_id=part(self.event_id),
            row=part(self.row),
        )


def _check_events(src: Tensor, dst: Tensor, time: Tensor, features: Tensor | None) -> None:
    check_same_device("EdgeList", "src", src, dst=dst, time=time, features=features)
    for name, column in (("src", src), ("dst", dst), ("time", time)):
        if column.dtype != torch.int64 or column.dim() != 1 or len(column) != len(src):
            raise ValueError(
                f"EdgeList: {name} is {dtype_name(column.dtype)} of shape {tuple(column.shape)}, must be int64 of "
                f"shape ({len(src) if src.dim() else 'E'},); convert it with .to(torch.int64) and flatten it"
            )
    if features is None:
        return
    if features.dtype != torch.float32 or features.dim() != 2 or len(features) != len(src):
        raise ValueError(
            f"EdgeList: features is {dtype_name(features.dtype)} of shape {tuple(features.shape)}, must be float32 of "
            f"shape ({len(src)}, D); convert it with .to(torch.float32) and give each event a row"
        )
    if not bool(features.isfinite().all()):
        raise ValueError("EdgeList: features has a NaN or an infinity, must be finite; leave those events out")
