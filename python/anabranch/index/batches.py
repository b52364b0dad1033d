"""The index's operations on arrays of keys: torch or numpy in, the same out, the GIL let go meanwhile."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from anabranch.index.arrays import KEYS, VALUES, Array, IndexFullError, as_given, threads, words_in, words_out
from anabranch.index.host import BSkipListBase

_CHANGED, _REFUSED = 1, 2


class BatchedIndex(BSkipListBase):
    """Half of `BSkipList`: a batch is as if its keys came one by one, those that are equal in the order given.

    Keys are `[n]`, or `[n, 2]` where the index's keys are pairs, of the index's dtype, dense, on the CPU; values `[n]`.
    Anything else is a ValueError before anything has changed. Batches use `torch.get_num_threads()` threads. They must
    not be written to by others meanwhile.
    """

    key: str
    value: str
    max_bytes: int | None

    @property
    def _columns(self) -> int:
        return 2 if self.key == "pair" else 1

    def insert(self, keys: Array, values: Array) -> Any:
        """Inserts keys that are not there; those that are keep their values.

        Returns:
            bool `[n]`: True where the key was new. Of equal keys in the batch the first is inserted.

        Raises:
            IndexFullError: a MemoryError; its `applied` says for which keys there was room.
        """
        return self._write("BSkipList.insert", keys, values, assign=False)

    def find(self, keys: Array) -> tuple[Any, Any]:
        """The keys' values, `[n]`, and whether they were found, bool `[n]`; values are 0 where not."""
        op = "BSkipList.find"
        words = words_in(op, "keys", keys, KEYS[self.key], self._columns)
        values, found = words_out(len(words)), np.empty(len(words), np.bool_)
        self._find(op, words, values, found, threads())
        return as_given(values.view(VALUES[self.value]), keys), as_given(found, keys)

    def lower_bound(self, keys: Array) -> tuple[Any, Any, Any]:
        """The first entry that is not less than each key.

        Returns:
            Its key, `[n]` or `[n, 2]`, its value `[n]`, and whether there is one, bool `[n]`; 0 where not.
        """
        op = "BSkipList.lower_bound"
        words = words_in(op, "keys", keys, KEYS[self.key], self._columns)
        n = len(words)
        found_keys, values, found = words_out(n, self._columns), words_out(n), np.empty(n, np.bool_)
        self._lower_bound(op, words, found_keys, values, found, threads())
        return (
            as_given(found_keys.view(KEYS[self.key]), keys),
            as_given(values.view(VALUES[self.value]), keys),
            as_given(found, keys),
        )

    def erase(self, keys: Array) -> Any:
        """Removes keys; bool `[n]` says which were there. Of equal keys in the batch the first is the one that was."""
        op = "BSkipList.erase"
        words = words_in(op, "keys", keys, KEYS[self.key], self._columns)
        status = np.empty(len(words), np.uint8)
        self._erase_batch(op, words, status, threads())
        return as_given(status == _CHANGED, keys)

    def range(
        self,
        minimum: Any = None,
        maximum: Any = None,
        inclusive: tuple[bool, bool] = (True, False),
        limit: int | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The entries from `minimum` to `maximum` in order; None is no bound.

        Args:
            inclusive: whether the two bounds are included.
            limit: return so many from the left at most.

        Returns:
            keys, `[m]` or `[m, 2]`, and values, `[m]`.
        """
        op = "BSkipList.range"
        if limit is not None and limit < 0:
            raise ValueError(f"{op}: limit is {limit}, must be at least 0; leave it out for all")
        keys, values = self._sorted(op, minimum, maximum, *inclusive, limit, exact=False)
        return torch.from_numpy(keys), torch.from_numpy(values)

    def bulk_load(self, keys: Array, values: Array) -> None:
        """Fills an empty index from ascending keys, at the speed of memory.

        Raises:
            ValueError: the index is not empty, or the keys do not ascend; it is as it was.
            MemoryError: there is no room for them; it is as it was.
        """
        op = "BSkipList.bulk_load"
        words = words_in(op, "keys", keys, KEYS[self.key], self._columns)
        self._bulk_load(op, words, words_in(op, "values", values, VALUES[self.value], 1, len(words)), threads())

    def _write(self, op: str, keys: Array, values: Array, assign: bool) -> Any:
        words = words_in(op, "keys", keys, KEYS[self.key], self._columns)
        value_words = words_in(op, "values", values, VALUES[self.value], 1, len(words))
        status = np.empty(len(words), np.uint8)
        self._insert_batch(op, words, value_words, assign, status, threads())
        applied = status != _REFUSED
        if not applied.all():
            raise IndexFullError(
                f"{op}: memory is full, {applied.sum()} of {len(words)} keys were applied (.applied says which); erase "
                f"keys, or copy the index with more than max_bytes={self.max_bytes}",
                as_given(applied, keys),
            )
        return as_given(status == _CHANGED, keys)

    def _sorted(
        self,
        op: str,
        minimum: Any,
        maximum: Any,
        with_minimum: bool,
        with_maximum: bool,
        limit: int | None,
        exact: bool,
    ) -> tuple[np.ndarray, np.ndarray]:
        most = 2**62 if limit is None else limit
        keys, values = self._collect(op, minimum, maximum, with_minimum, with_maximum, most, exact)
        return keys.view(KEYS[self.key]), values.view(VALUES[self.value])
