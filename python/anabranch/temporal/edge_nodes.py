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
        sources, destinations = np.unique(src), np.unique(dst)
        if self.bipartite:
            names = np.concatenate([sources, destinations])
            places = np.searchsorted(sources, src), np.searchsorted(destinations, dst) + len(sources)
        else:
            names = np.union1d(sources, destinations)
            places = np.searchsorted(names, src), np.searchsorted(names, dst)
        return *places, torch.from_numpy(names)


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
