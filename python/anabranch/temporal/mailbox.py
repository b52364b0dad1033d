"""Events that wait to become messages, in flat tensors: one a slot, or all of a slot's latest batch."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from anabranch.temporal.scatter import latest_of_node, ordered_scatter_
from anabranch.temporal.stream_state import WholeState

_OTHER, _TIME, _EVENT, _ROLE = range(4)


class Mail(NamedTuple):
    """Waiting events: the `query` each is for, the node at the other end (negative: none waits), `time`,
    `event_id`, `role` (0: the slot's node is the source, 1: the target), int64 `[m]` each, and `raw [m, F]`."""

    query: Tensor
    other: Tensor
    time: Tensor
    event_id: Tensor
    role: Tensor
    raw: Tensor


class LastMailbox(WholeState):
    """The newest event of each slot, by (time, event id); of an event that is there twice, the later one in the batch.

    Args:
        num_slots, raw_dim: sizes.
        device, dtype: dtype of the raw messages.

    State: `words` int64 `[num_slots, 4]` (other, time, event id, role; other is -1 in an empty slot) and `raw`
    `[num_slots, raw_dim]`. A read has one place for each query, so shapes never depend on values.
    """

    words: Tensor
    raw: Tensor

    def __init__(
        self, num_slots: int, raw_dim: int, *, device: torch.device | str | None = None, dtype: torch.dtype
    ) -> None:
        super().__init__()
        self.register_buffer("words", torch.full((num_slots, 4), -1, device=device))
        self.register_buffer("raw", torch.zeros(num_slots, raw_dim, dtype=dtype, device=device))

    def store(self, slots: Tensor, words: Tensor, raw: Tensor) -> None:
        """Replaces the events of the slots named; `raw [m / 2, F]` is that of both halves of the batch."""
        to = torch.where(latest_of_node(slots, words[:, _TIME], words[:, _EVENT]), slots, -1)
        ordered_scatter_(self.words, to, words)
        for half in to.chunk(2):
            ordered_scatter_(self.raw, half, raw)

    def read(self, slots: Tensor) -> Mail:
        """One place for each slot; where nothing waits, `other` is negative and the rest means nothing."""
        other, time, event_id, role = self.words.index_select(0, slots).unbind(1)
        query = torch.arange(slots.shape[0], device=slots.device)
        return Mail(query, other, time, event_id, role, self.raw.index_select(0, slots))

    def clear(self, slots: Tensor) -> None:
        """Empties slots; negative ones are passed over."""
        ordered_scatter_(self.words, slots, slots.new_full((slots.shape[0], 4), -1))

    def clear_all(self) -> None:
        """Empties all slots."""
        self.words.fill_(-1)

    def waiting(self) -> Tensor:
        """bool `[num_slots]`: where an event waits."""
        return self.words[:, _OTHER] >= 0


class LogMailbox(nn.Module):
    """All events of each slot's latest batch: a contiguous range of a log, in the order of the batch.

    A batch is sorted by slot (stable) and written behind the log; ranges of earlier batches fall away. When the log is
    full the ranges that are still read move to a new one, twice as large as they need: that is the one time when the
    host waits for a GPU, besides a read, whose size depends on what waits.

    State: `ranges` int64 `[num_slots, 2]`; `words` int64 `[room, 5]` (other, time, event id, role, slot), `raw`
    `[room, raw_dim]`, `size` int64 `[1]`. A state of any room can be loaded.
    """

    ranges: Tensor
    words: Tensor
    raw: Tensor
    size: Tensor

    def __init__(
        self, num_slots: int, raw_dim: int, *, device: torch.device | str | None = None, dtype: torch.dtype
    ) -> None:
        super().__init__()
        self.used = 0
        self.register_buffer("ranges", torch.zeros(num_slots, 2, dtype=torch.int64, device=device))
        self.register_buffer("words", torch.zeros(0, 5, dtype=torch.int64, device=device))
        self.register_buffer("raw", torch.zeros(0, raw_dim, dtype=dtype, device=device))
        self.register_buffer("size", torch.zeros(1, dtype=torch.int64, device=device))

    def store(self, slots: Tensor, words: Tensor, raw: Tensor) -> None:
        """Replaces the events of the slots named; `raw [m / 2, F]` is that of both halves of the batch."""
        m = slots.shape[0]
        if self.used + m > self.words.shape[0]:
            self._compact(m)
        ordered, source = slots.sort(stable=True)
        begin, end = self.used, self.used + m
        self.words[begin:end, :4] = words[source]
        self.words[begin:end, 4] = ordered
        self.raw[begin:end] = raw[source % max(1, m // 2)]
        # All entries of a slot write the same range.
        ends = torch.stack([torch.searchsorted(ordered, ordered), torch.searchsorted(ordered, ordered, right=True)], 1)
        ordered_scatter_(self.ranges, ordered, ends + begin)
        self.used = end
        self.size.fill_(end)

    def read(self, slots: Tensor) -> Mail:
        """All that waits, slot after slot."""
        begin, end = self.ranges[slots].unbind(1)
        counts = end - begin
        query = torch.arange(slots.shape[0], device=slots.device).repeat_interleave(counts)
        place = torch.arange(query.shape[0], device=slots.device)
        place = place + (begin - (counts.cumsum(0) - counts))[query]
        other, time, event_id, role = self.words.index_select(0, place)[:, :4].unbind(1)
        return Mail(query, other, time, event_id, role, self.raw.index_select(0, place))

    def clear(self, slots: Tensor) -> None:
        """Empties slots; negative ones are passed over."""
        ordered_scatter_(self.ranges, slots, slots.new_zeros(slots.shape[0], 2))

    def clear_all(self) -> None:
        """Empties all slots."""
        self.ranges.zero_()
        self.size.zero_()
        self.used = 0

    def waiting(self) -> Tensor:
        """bool `[num_slots]`: where an event waits."""
        return self.ranges[:, 1] > self.ranges[:, 0]

    def _compact(self, more: int) -> None:
        words, raw = self.words[: self.used], self.raw[: self.used]
        slot, place = words[:, 4], torch.arange(self.used, device=words.device)
        kept = (place >= self.ranges[slot, 0]) & (place < self.ranges[slot, 1])
        moved = kept.cumsum(0) - kept.long()
        read = self.waiting()
        begin = moved[self.ranges[read, 0]]
        self.ranges[read] = torch.stack([begin, begin + self.ranges[read].diff(dim=1)[:, 0]], 1)
        words, raw = words[kept], raw[kept]
        self.used = words.shape[0]
        room = max(256, 2 * (self.used + more))
        self.words, self.raw = self.words.new_zeros(room, 5), self.raw.new_zeros(room, raw.shape[1])
        self.words[: self.used], self.raw[: self.used] = words, raw
        self.size.fill_(self.used)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any], *rest: Any
    ) -> None:
        given = {name: state_dict.get(prefix + name) for name in self._buffers}
        words, raw, ranges, size = (given[name] for name in ("words", "raw", "ranges", "size"))
        if words is not None and raw is not None and ranges is not None and size is not None:
            used = int(size)
            if (
                ranges.shape != self.ranges.shape
                or raw.shape != (words.shape[0], self.raw.shape[1])
                or not 0 <= used <= words.shape[0]
                or (ranges.numel() and (int(ranges.min()) < 0 or int(ranges.max()) > used))
            ):
                rest[-1].append(
                    f"{prefix}* is no mailbox of {self.ranges.shape[0]} slots and {self.raw.shape[1]} numbers."
                )
                return
            self.words, self.raw = self.words.new_zeros(words.shape), self.raw.new_zeros(raw.shape)
            self.used = used
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *rest)
