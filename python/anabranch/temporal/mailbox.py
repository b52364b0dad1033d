"""Events that wait to become messages, in flat tensors: one a slot, or all of a slot's latest batch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from anabranch.temporal.scatter import latest_of_node, ordered_scatter_
from anabranch.temporal.whole_state import WholeState

OTHER, _TIME, _EVENT, _ROLE = range(4)


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

    def reserve(self, events: int) -> int:
        """There is always room."""
        return 0

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
        return self.words[:, OTHER] >= 0


class LogMailbox(WholeState):
    """All events of each slot's latest batch: a contiguous range of a log, in the order of the batch.

    A batch is sorted by slot (stable) and written behind the log; ranges of earlier batches fall away. When the log is
    full the ranges that are still read move to a new one, twice as large as they need. In shared memory they move
    within the log, which cannot grow there: call `reserve` before `share_memory`. The host waits for a GPU when it
    asks for the end of the log, and in a read, whose size depends on what waits.

    State: `ranges` int64 `[num_slots, 2]`; `words` int64 `[room, 5]` (other, time, event id, role, slot), `raw`
    `[room, raw_dim]`, `size` int64 `[1]`, the end of the log. A state of any room can be loaded.
    """

    ranges: Tensor
    words: Tensor
    raw: Tensor
    size: Tensor

    def __init__(
        self, num_slots: int, raw_dim: int, *, device: torch.device | str | None = None, dtype: torch.dtype
    ) -> None:
        super().__init__()
        self.register_buffer("ranges", torch.zeros(num_slots, 2, dtype=torch.int64, device=device))
        self.register_buffer("words", torch.zeros(0, 5, dtype=torch.int64, device=device))
        self.register_buffer("raw", torch.zeros(0, raw_dim, dtype=dtype, device=device))
        self.register_buffer("size", torch.zeros(1, dtype=torch.int64, device=device))

    def store(self, slots: Tensor, words: Tensor, raw: Tensor) -> None:
        """Replaces the events of the slots named; `raw [m / 2, F]` is that of both halves of the batch."""
        m = slots.shape[0]
        begin = self.reserve(m)
        end = begin + m
        ordered, source = slots.sort(stable=True)
        self.words[begin:end, :4] = words[source]
        self.words[begin:end, 4] = ordered
        self.raw[begin:end] = raw[source % max(1, m // 2)]
        # All entries of a slot write the same range.
        ends = torch.stack([torch.searchsorted(ordered, ordered), torch.searchsorted(ordered, ordered, right=True)], 1)
        ordered_scatter_(self.ranges, ordered, ends + begin)
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

    def waiting(self) -> Tensor:
        """bool `[num_slots]`: where an event waits."""
        return self.ranges[:, 1] > self.ranges[:, 0]

    def reserve(self, events: int) -> int:
        """Makes room for more events, twice that where the log is moved; returns where they go.

        Raises:
            ValueError: there is no room and the log is in shared memory, where other processes would keep the old one.
        """
        used = int(self.size)
        if used + events <= self.words.shape[0]:
            return used
        slot, place = self.words[:used, 4], torch.arange(used, device=self.words.device)
        kept = (place >= self.ranges[slot, 0]) & (place < self.ranges[slot, 1])
        words, raw = self.words[:used][kept], self.raw[:used][kept]
        left = words.shape[0]
        if left + events > self.words.shape[0] and self._is_shared():
            raise ValueError(
                f"reserve: the log has room for {self.words.shape[0]} events in shared memory, must have it for "
                f"{left + events}; reserve more before share_memory()"
            )
        moved = kept.cumsum(0) - kept.long()
        read = self.waiting()
        begin = moved[self.ranges[read, 0]]
        self.ranges[read] = torch.stack([begin, begin + self.ranges[read].diff(dim=1)[:, 0]], 1)
        if not self._is_shared():
            room = max(256, 2 * (left + events))
            self.words, self.raw = self.words.new_zeros(room, 5), self.raw.new_zeros(room, raw.shape[1])
        self.words[:left], self.raw[:left] = words, raw
        self.size.fill_(left)
        return left

    def _is_shared(self) -> bool:
        return self.words.device.type == "cpu" and self.words.is_shared()  # torch calls all memory of a GPU shared

    def state_shape(self, name: str, given: Mapping[str, Any]) -> tuple[int, ...]:
        if name not in ("words", "raw"):
            return super().state_shape(name, given)
        words = given["words"]
        return words.shape[0] if isinstance(words, Tensor) and words.dim() > 0 else 0, getattr(self, name).shape[1]

    def state_problems(self, given: Mapping[str, Any]) -> Iterator[str]:
        problems = list(super().state_problems(given))
        yield from problems
        if problems:
            return
        ranges, words, size = (given[name] for name in ("ranges", "words", "size"))
        if self._is_shared() and words.shape != self.words.shape:
            yield (
                f"words has room for {words.shape[0]} events, must have it for {self.words.shape[0]} in shared memory; "
                "load before share_memory()"
            )
        elif not words.is_meta:
            used, (begin, end) = int(size), ranges.unbind(1)
            slots = words[: max(0, used), 4]
            fits = 0 <= used <= words.shape[0] and bool(((begin >= 0) & (begin <= end) & (end <= used)).all())
            named = bool(((slots >= 0) & (slots < ranges.shape[0])).all()) and bool(
                (words[: max(0, used), 0] >= 0).all()
            )
            if not fits or not named:
                yield f"ranges and words are not those of a log of {used} events, must be; the state is damaged"

    def make_room_for(self, given: Mapping[str, Any]) -> None:
        if given["words"].shape != self.words.shape:
            self.words, self.raw = self.words.new_zeros(given["words"].shape), self.raw.new_zeros(given["raw"].shape)
