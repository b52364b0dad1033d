"""How the ids of a file become nodes 0..N-1, and a file's columns an `EdgeList`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from anabranch.temporal.edge_list import EdgeList

Array = np.ndarray[Any, Any]


class NumericNodes:
    """Ids in ascending order: the smallest is node 0. With `bipartite`, destinations in theirs, after all sources."""

    def __init__(self, bipartite: bool) -> None:
        self.bipartite = bipartite
        self.src: list[Array] = []
        self.dst: list[Array] = []

    def add(self, src: Array, dst: Array) -> None:
        self.src.append(src)
        self.dst.append(dst)

    def finish(self) -> tuple[Array, Array, Tensor]:
        src, dst = np.concatenate(self.src), np.concatenate(self.dst)
        if self.bipartite:
            (sources, src), (destinations, dst) = _numbered(src), _numbered(dst)
            return src, dst + len(sources), torch.from_numpy(np.concatenate([sources, destinations]))
        names, places = _numbered(np.concatenate([src, dst]))
        return places[: len(src)], places[len(src) :], torch.from_numpy(names)


def _numbered(ids: Array) -> tuple[Array, Array]:
    """The distinct ids, ascending, and the place of each among them."""
    largest = int(ids.max())
    if largest <= 8 * len(ids):  # a table of all ids that there might be is faster than to sort those that there are
        present = np.zeros(largest + 1, bool)
        present[ids] = True
        return np.flatnonzero(present), (np.cumsum(present) - 1)[ids]
    names = np.sort(ids)
    names = names[np.concatenate([[True], names[1:] != names[:-1]])]
    return names, np.searchsorted(names, ids)


class TextNodes:
    """Names in the order in which the file has them first, a line's source before its destination."""

    def __init__(self, bipartite: bool) -> None:
        self.bipartite = bipartite
        self.sources: dict[str, int] = {}
        self.destinations: dict[str, int] = {} if bipartite else self.sources
        self.src: list[Array] = []
        self.dst: list[Array] = []

    def add(self, src: Sequence[str], dst: Sequence[str]) -> None:
        sources, destinations = self.sources, self.destinations
        pairs = [
            (sources.setdefault(one, len(sources)), destinations.setdefault(other, len(destinations)))
            for one, other in zip(src, dst, strict=True)
        ]
        numbers = np.array(pairs, np.int64).reshape(-1, 2)
        self.src.append(numbers[:, 0])
        self.dst.append(numbers[:, 1])

    def finish(self) -> tuple[Array, Array, tuple[str, ...]]:
        src, dst = np.concatenate(self.src), np.concatenate(self.dst)
        if self.bipartite:
            return src, dst + len(self.sources), (*self.sources, *self.destinations)
        return src, dst, tuple(self.sources)


class Collected:
    """The columns of a file, block by block."""

    def __init__(self, numeric: bool, bipartite: bool, feature_names: tuple[str, ...], num_features: int) -> None:
        self.nodes: Any = NumericNodes(bipartite) if numeric else TextNodes(bipartite)
        self.feature_names, self.num_features = feature_names, num_features
        self.times: list[Array] = []
        self.features: list[Array] = []

    def add(self, src: Any, dst: Any, time: Array, features: Sequence[Array]) -> None:
        self.nodes.add(src, dst)
        self.times.append(time)
        if features:
            self.features.append(np.stack(features, axis=1))

    def finish(self) -> EdgeList:
        src, dst, names = self.nodes.finish()
        time = torch.from_numpy(np.concatenate(self.times))
        features = torch.from_numpy(np.concatenate(self.features)) if self.num_features else None
        return EdgeList.from_events(
            torch.from_numpy(np.ascontiguousarray(src)),
            torch.from_numpy(np.ascontiguousarray(dst)),
            time,
            features,
            num_nodes=len(names),
            node_names=names,
            feature_names=self.feature_names,
        )
