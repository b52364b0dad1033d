"""What memories of nodes share: when waiting events become messages, when memories are written, what is forgotten."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from anabranch.temporal.mailbox import OTHER, LastMailbox, LogMailbox
from anabranch.temporal.scatter import latest_of_node, ordered_scatter_
from anabranch.temporal.whole_state import WholeState, has_values, largest_id


class Update(NamedTuple):
    """Memories with the waiting messages applied: a table's rows each, times, and which nodes had a message."""

    tables: tuple[Tensor, ...]
    last_update: Tensor
    has_message: Tensor
    increments: Tensor | None = None


def newest_of(index: Tensor, time: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The newest time of each of `size` groups, and whether it has any: int64 and bool `[size]`."""
    has = torch.zeros(size, dtype=torch.bool, device=time.device).index_fill(0, index, True)
    newest = torch.zeros_like(has, dtype=torch.int64).scatter_reduce(0, index, time, "amax", include_self=False)
    return newest, has


class EventMemory(WholeState):
    """A memory that is updated one batch late, so that no prediction sees the event that it predicts (TGN).

    While training, `forward` applies what waits without writing; `update_state` writes it for the nodes of the batch
    and then lets the batch wait. In eval mode `forward` reads, and `update_state` applies a batch at once. Going from
    train to eval applies all that waits. What is stored has no gradient.

    A state that was saved while training and is loaded in eval mode is the state after `eval()`: what waits is applied,
    by the layers that were loaded with it. The extra state says whether it was saved while training.
    """

    last_update: Tensor
    mailbox: LastMailbox | LogMailbox
    num_nodes: int
    slots_per_node: int
    untouched: str

    def __init__(self) -> None:
        super().__init__()
        self._loaded_in_training = False
        self.register_load_state_dict_post_hook(_apply_what_was_loaded)

    def update_rows(self, nodes: Tensor) -> Update:
        """What the memories of nodes become with what waits for them; nothing is written."""
        raise NotImplementedError

    def tables(self) -> tuple[Tensor, ...]:
        """The tables that Update.tables is written to."""
        raise NotImplementedError

    def slots_of(self, nodes: Tensor) -> Tensor:
        """The slots of nodes, one node after the other; negative nodes have negative ones."""
        if self.slots_per_node == 1:
            return nodes
        slots = nodes[:, None] * self.slots_per_node + torch.arange(self.slots_per_node, device=nodes.device)
        return torch.where(nodes[:, None] < 0, -1, slots).flatten()

    def take(self, nodes: Tensor, slots: Tensor, words: Tensor, raw: Tensor) -> None:
        """`update_state` of checked events: nodes and slots `[2E]`, sources first; words `[2E, 4]`, raw `[E, F]`."""
        if nodes.shape[0] == 0:
            return
        self.mailbox.reserve(nodes.shape[0])  # or raise while nothing has been written
        with torch.no_grad():
            if nodes.device.type == "cpu" and not torch.compiler.is_compiling():
                named = nodes.unique()
            else:  # the same nodes, in as many places as there were: no size to wait for
                named = torch.where(latest_of_node(nodes, torch.zeros_like(nodes)), nodes, -1)
            if self.training:
                self.apply_waiting(named)
            if self.untouched == "keep" and self.slots_per_node > 1:  # else what is stored replaces what waited
                self.mailbox.clear(self.slots_of(named))
            self.mailbox.store(slots, words, raw)
            if not self.training:
                self.apply_waiting(named)
                if self.untouched == "keep":
                    self.mailbox.clear(self.slots_of(named))

    def apply_waiting(self, nodes: Tensor) -> None:
        """Writes the memories of nodes, each at most once, negative ones passed over, with what waits for them."""
        update = self.update_rows(nodes.clamp_min(0))
        to = torch.where(update.has_message, nodes, -1) if self.untouched == "keep" else nodes
        self.record(to, update)
        for table, rows in zip(self.tables(), update.tables, strict=True):
            ordered_scatter_(table, to, rows)
        ordered_scatter_(self.last_update[:, None], to, update.last_update[:, None])

    def record(self, nodes: Tensor, update: Update) -> None:
        """Called before memories of nodes are written; negative nodes are not."""

    def train(self, mode: bool = True) -> EventMemory:
        """Switches modes; train to eval applies all that waits."""
        if self.training and not mode:
            self._flush()
        super().train(mode)
        return self

    def _flush(self) -> None:
        waiting = self.mailbox.waiting().view(self.num_nodes, self.slots_per_node).any(1)
        if self.untouched == "keep":
            nodes = waiting.nonzero()[:, 0]
        else:
            nodes = torch.arange(self.num_nodes, device=waiting.device)
        with torch.no_grad():
            if nodes.shape[0] > 0:
                self.apply_waiting(nodes)
        self.mailbox.clear_all()

    def reset_state(self) -> None:
        """Forgets all events: memories and times become 0, nothing waits."""
        for table in self.tables():
            table.zero_()
        self.last_update.zero_()
        self.mailbox.clear_all()

    def detach(self) -> None:
        """Does nothing: what is stored never has a gradient. Here for callers that cut it by hand."""

    def get_extra_state(self) -> Tensor:
        """bool `[]`: whether events wait to be applied, as they do while training."""
        return torch.tensor(self.training, device="cpu")

    def set_extra_state(self, state: Tensor) -> None:
        """Remembers it until all is loaded."""
        self._loaded_in_training = has_values(state) and bool(state)

    def state_problems(self, given: Mapping[str, Any]) -> Iterator[str]:
        yield from super().state_problems(given)
        mode = given["_extra_state"]
        if not isinstance(mode, Tensor) or mode.dtype != torch.bool or mode.dim() > 0:
            yield "_extra_state is not a bool of no dimension, must be; load what state_dict() gave"
        if (node := largest_id(given, "mailbox.words", OTHER)) >= self.num_nodes:
            yield f"mailbox.words holds node {node}, must be below {self.num_nodes}; the state is damaged"


def _apply_what_was_loaded(module: EventMemory, _: Any) -> None:
    loaded_in_training, module._loaded_in_training = module._loaded_in_training, False
    if loaded_in_training and not module.training and not module.last_update.is_meta:
        module._flush()
