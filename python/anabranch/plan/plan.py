"""`Plan`: the one description of which items each group works on."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from anabranch.core.arguments import call_as, check_same_device
from anabranch.core.library import ops


@dataclasses.dataclass(frozen=True, eq=False)
class TransposedPlan:
    """A plan seen item by item, as combining needs it.

    Attributes:
        item_offsets: int32 `[num_items + 1]`; entries of item `t` are `item_offsets[t] .. item_offsets[t + 1]`.
        group_ids: int32 `[capacity]`, the group of each entry.
        entry_ids: int32 `[capacity]`, where the entry lies in the plan; ascending within an item.
    """

    item_offsets: Tensor
    group_ids: Tensor
    entry_ids: Tensor


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
    """Which items each group works on: ragged, sorted, and on the device of the data.

    Entries are sorted by group and, within a group, by item. Entries past `group_offsets[-1]` do not exist: nothing
    reads or writes them, so `capacity` may exceed the number of entries and no size is ever copied to the host.
    A group may be empty; an item may appear in any number of groups, none included.

    Attributes:
        group_offsets: int32 `[num_groups + 1]`; entries of group `g` are `group_offsets[g] .. group_offsets[g + 1]`.
        item_ids: int32 `[capacity]`, the item (row of the input) that each entry reads.
        weights: floating `[capacity]` or None, the weight of each entry; gradients flow through it.
        num_items: number of items.
    """

    group_offsets: Tensor
    item_ids: Tensor
    weights: Tensor | None
    num_items: int
    _transposed: TransposedPlan | None = dataclasses.field(default=None, repr=False, compare=False)

    @property
    def num_groups(self) -> int:
        """Number of groups, empty ones included."""
        return self.group_offsets.shape[0] - 1

    @property
    def capacity(self) -> int:
        """Number of entries there is room for; the number that exist is `group_offsets[-1]`, on the device."""
        return self.item_ids.shape[0]

    @property
    def device(self) -> torch.device:
        """Where the plan lies; every op wants its other tensors there too."""
        return self.group_offsets.device

    def group_sizes(self) -> Tensor:
        """Entries of each group: int32 `[num_groups]`."""
        return self.group_offsets.diff()

    def item_counts(self) -> Tensor:
        """Groups that each item is in: int32 `[num_items]`."""
        return self.transpose().item_offsets.diff()

    def with_weights(self, weights: Tensor | None) -> Plan:
        """The same entries with other weights `[capacity]`."""
        return Plan(self.group_offsets, self.item_ids, weights, self.num_items, self._transposed)

    def transpose(self) -> TransposedPlan:
        """The plan by item, computed once: O(capacity) reads and writes.

        Raises:
            ValueError: offsets decrease or an id is out of range (CPU only; on a GPU such entries are ignored), or the
                plan's tensors lie on different devices.
        """
        return by_item("transpose", self)


def by_item(op: str, plan: Plan) -> TransposedPlan:
    """`plan.transpose()` within another op, whose name the errors begin with."""
    if plan._transposed is None:
        check_same_device(op, "group_offsets", plan.group_offsets, item_ids=plan.item_ids)
        parts = call_as(op, ops.plan_transpose, plan.group_offsets, plan.item_ids, plan.num_items)
        object.__setattr__(plan, "_transposed", TransposedPlan(*parts))
    assert plan._transposed is not None
    return plan._transposed
