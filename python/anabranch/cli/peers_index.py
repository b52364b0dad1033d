"""What an index is compared with in Python: sorted arrays of torch and numpy, and ordered maps of Python objects."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, MutableMapping
from typing import Any

import numpy as np
import torch
from torch import Tensor


class TorchSorted:
    """Two sorted tensors, remade by every batch that writes.

    Args:
        keys, values: int64 `[n]`; keys ascend.
    """

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        self.keys, self.values = keys, values

    def find(self, keys: Tensor) -> tuple[Tensor, Tensor]:
        """values and found, `[m]`."""
        at = torch.searchsorted(self.keys, keys).clamp_(max=len(self.keys) - 1)
        found = self.keys[at] == keys
        return self.values[at].where(found, 0), found

    def insert(self, keys: Tensor, values: Tensor) -> None:
        """Keys that are not there yet."""
        self.keys, order = torch.cat([self.keys, keys]).sort()
        self.values = torch.cat([self.values, values])[order]

    def erase(self, keys: Tensor) -> None:
        """Keys that are there."""
        kept = torch.ones(len(self.keys), dtype=torch.bool, device=keys.device)
        kept[torch.searchsorted(self.keys, keys)] = False
        self.keys, self.values = self.keys[kept], self.values[kept]


class NumpySorted:
    """`TorchSorted` of numpy's functions; np.insert and np.delete move the arrays and do not sort them."""

    def __init__(self, keys: np.ndarray, values: np.ndarray) -> None:
        self.keys, self.values = keys, values

    def find(self, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        at = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        found = self.keys[at] == keys
        return np.where(found, self.values[at], 0), found

    def insert(self, keys: np.ndarray, values: np.ndarray) -> None:
        order = np.argsort(keys)
        keys, values = keys[order], values[order]
        at = np.searchsorted(self.keys, keys)
        self.keys, self.values = np.insert(self.keys, at, keys), np.insert(self.values, at, values)

    def erase(self, keys: np.ndarray) -> None:
        at = np.searchsorted(self.keys, keys)
        self.keys, self.values = np.delete(self.keys, at), np.delete(self.values, at)


def ordered_maps() -> dict[str, Callable[[Any], MutableMapping[int, int]]]:
    """Of those that are installed, what makes one from (key, value) pairs."""
    makers: dict[str, Callable[[Any], MutableMapping[int, int]]] = {}
    with contextlib.suppress(ImportError):
        makers["sortedcontainers"] = importlib.import_module("sortedcontainers").SortedDict
    with contextlib.suppress(ImportError):
        tree = importlib.import_module("BTrees.LLBTree").LLBTree
        makers["BTrees"] = lambda pairs: tree(list(pairs))
    return makers
