"""`BSkipListModule`: an index that a model or a data set holds."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from anabranch.index.ops import (
    IndexStatus,
    bskiplist_erase,
    bskiplist_find,
    bskiplist_gather,
    bskiplist_insert,
    bskiplist_lower_bound,
    bskiplist_range_count,
)
from anabranch.index.storage import (
    bskiplist_bulk_load,
    bskiplist_empty,
    bskiplist_init,
    bskiplist_validate,
    nodes_for,
)

# Words of control, as include/anabranch/index/layout.hpp has them.
_KEY_WORDS, _CAPACITY = 1, 3
_SLOTS, _SLOT_WORDS, _SIZE_SHIFT = 32, 8, 16


class BSkipListModule(nn.Module):
    """An ordered map from int64 keys to int64 values in two buffers: ids to rows, (node, time) to edges.

    Args:
        capacity: keys to have room for, inserted in any order; 34 bytes each (51 for two words), taken at once. Many
            erases of single keys can leave leaves a quarter full, and with them room for half as many.
        key_words: int64 words of a key, 1 or 2; two are ordered by the first, then by the second.
        device: of the buffers.

    Keys are int64 `[...]`, or `[..., 2]` for two words; results have the shape of the batch, `[...]`. What an op
    promises, raises and costs is said at `bskiplist_find`, `bskiplist_insert` and so on in anabranch.index.

    The buffers `nodes` and `control` go where the module goes: `.to("cuda")`, `state_dict`, pickle, deepcopy.
    `load_state_dict` takes an index of any capacity, because that is data and not a shape of the model: where the
    capacity differs the buffers are replaced. It checks the index whole and loads nothing of a damaged one.

    After `share_memory()` the processes that got the module (DataLoader workers too, forked or spawned) read and write
    one index, all at once if they like; a process killed in the middle of a write may leave a lock that the others
    wait for. A forked process without it has a copy of its own.

    Compiled with `fullgraph=True`, calls keep their order. inductor writes in place; backends that do not (aot_eager)
    write to a copy and copy it back, which loses what other processes wrote meanwhile.
    """

    nodes: Tensor
    control: Tensor

    def __init__(self, capacity: int, *, key_words: int = 1, device: torch.device | str | None = None) -> None:
        super().__init__()
        nodes, control = bskiplist_empty(capacity, key_words=key_words, device=device)
        self.key_words = key_words
        self.register_buffer("nodes", nodes)
        self.register_buffer("control", control)

    def forward(self, keys: Tensor) -> tuple[Tensor, Tensor]:
        """`find`."""
        return self.find(keys)

    def find(self, keys: Tensor) -> tuple[Tensor, Tensor]:
        """values int64 and found bool, both `[...]`; the value of a key that is not there is 0."""
        flat, shape = self._flat("find", "keys", keys)
        values, found = bskiplist_find(self.nodes, self.control, flat)
        return values.view(shape), found.view(shape)

    def lower_bound(self, keys: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The first entry not less than each key: found_keys as keys, values int64 and found bool; 0 where none is."""
        flat, shape = self._flat("lower_bound", "keys", keys)
        found_keys, values, found = bskiplist_lower_bound(self.nodes, self.control, flat)
        return found_keys.view(keys.shape), values.view(shape), found.view(shape)

    def range_count(self, first: Tensor, last: Tensor) -> Tensor:
        """int64 `[...]`: keys in each range `[first, last]`, both ends included."""
        flat_first, shape = self._flat("range_count", "first", first)
        flat_last, _ = self._flat("range_count", "last", last)
        return bskiplist_range_count(self.nodes, self.control, flat_first, flat_last).view(shape)

    def gather(self, first: Tensor, last: Tensor, capacity: int) -> tuple[Tensor, Tensor, Tensor]:
        """The entries of each range, as `bskiplist_gather`: (offsets `[n + 1]`, keys, values), n ranges in a row."""
        flat_first, _ = self._flat("gather", "first", first)
        flat_last, _ = self._flat("gather", "last", last)
        return bskiplist_gather(self.nodes, self.control, flat_first, flat_last, capacity)

    def insert(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Inserts keys that are not there yet; of equal ones in the batch the first.

        Returns:
            inserted bool `[...]`: the key was new. applied bool `[...]`: False where there was no room; nothing is
            raised then, so that it is the same in a compiled graph: `reserve` more and insert those again.
        """
        return self._write("insert", keys, values, assign=False)

    def insert_or_assign(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """As insert, but a key that is there gets the new value; of equal ones in the batch the last."""
        return self._write("insert_or_assign", keys, values, assign=True)

    def erase(self, keys: Tensor) -> Tensor:
        """Erases keys; bool `[...]`: the key was there."""
        flat, shape = self._flat("erase", "keys", keys)
        status = bskiplist_erase(self.nodes, self.control, flat)
        return (status == IndexStatus.CHANGED.value).view(shape)

    def bulk_load(self, keys: Tensor, values: Tensor) -> None:
        """Fills an empty index from ascending keys, all of them or none; ValueError where there is no room."""
        flat, shape = self._flat("bulk_load", "keys", keys)
        bskiplist_bulk_load(self.nodes, self.control, flat, self._values("bulk_load", values, shape))

    def size(self) -> Tensor:
        """Keys in the index: int64 `[]` on its device, exact when nobody writes."""
        slots = self.control[_SLOTS::_SLOT_WORDS].sum()
        return slots >> _SIZE_SHIFT

    def clear(self) -> None:
        """Erases all. Nobody may be using the index."""
        bskiplist_init(self.nodes, self.control, self.key_words)

    def reserve(self, capacity: int) -> None:
        """Makes room for `capacity` keys in all, by copying the index if need be. Nobody may be using it.

        Raises:
            ValueError: it is in shared memory, where other processes would keep the old one; capacity out of range.

        Cost:
            Reads and writes all of nodes. A compiled graph that holds the old buffers is compiled again.
        """
        if nodes_for(capacity, self.key_words) <= self.nodes.shape[0]:
            return
        if self.nodes.device.type == "cpu" and self.nodes.is_shared():
            raise ValueError("reserve: the index is in shared memory, must be private; reserve before share_memory()")
        nodes, control = bskiplist_empty(capacity, key_words=self.key_words, device=self.nodes.device)
        nodes[: self.nodes.shape[0]].copy_(self.nodes)
        room = control[_CAPACITY].clone()
        control.copy_(self.control)
        control[_CAPACITY] = room
        self.nodes, self.control = nodes, control

    def validate(self) -> None:
        """Raises ValueError where the index is damaged; see `bskiplist_validate`."""
        bskiplist_validate(self.nodes, self.control)

    def extra_repr(self) -> str:
        return f"nodes={self.nodes.shape[0]}, key_words={self.key_words}"

    def _write(self, op: str, keys: Tensor, values: Tensor, assign: bool) -> tuple[Tensor, Tensor]:
        flat, shape = self._flat(op, "keys", keys)
        flat_values = self._values(op, values, shape)
        status = bskiplist_insert(self.nodes, self.control, flat, flat_values, assign).view(shape)
        return status == IndexStatus.CHANGED.value, status != IndexStatus.REFUSED.value

    def _flat(self, op: str, name: str, keys: Tensor) -> tuple[Tensor, torch.Size]:
        """Keys in a row, and the shape of the batch."""
        if self.key_words == 1:
            return keys.reshape(-1), keys.shape
        if keys.dim() == 0 or keys.shape[-1] != 2:
            raise ValueError(f"{op}: {name} has shape {tuple(keys.shape)}, must be (..., 2); give each key two words")
        return keys.reshape(-1, 2), keys.shape[:-1]

    @staticmethod
    def _values(op: str, values: Tensor, shape: torch.Size) -> Tensor:
        if values.shape != shape:
            raise ValueError(
                f"{op}: values has shape {tuple(values.shape)}, must be {tuple(shape)} like keys; give each key a value"
            )
        return values.reshape(-1)

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        nodes, control = (state_dict.get(prefix + name) for name in ("nodes", "control"))
        if (nodes is None) != (control is None):
            error_msgs.append(f"{prefix}nodes and {prefix}control are one index, but only one of them is there.")
            return
        if nodes is not None and control is not None:
            problem = self._problem_of(nodes, control)
            if problem:
                error_msgs.append(f"{prefix}nodes and {prefix}control: {problem}.")
                return
            if nodes.shape != self.nodes.shape:
                self.nodes = self.nodes.new_empty(nodes.shape)
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )

    def _problem_of(self, nodes: Tensor, control: Tensor) -> str:
        """Why these are no index that could be loaded here; nothing where they are one."""
        if nodes.device.type == "meta" or control.device.type == "meta":
            return ""
        try:
            # A file's tensors need not begin a cache line; what they are copied to does.
            bskiplist_validate(nodes.cpu().clone(), control.cpu().clone())
        except ValueError as error:
            return str(error)
        words = int(control[_KEY_WORDS])
        return (
            "" if words == self.key_words else f"keys have {words} words, must have {self.key_words} like the module's"
        )
