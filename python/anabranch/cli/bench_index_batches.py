"""Batches of keys through Python: `index.BSkipList`, the ops on tensors, and what there is without an index."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from anabranch.cli import peers_index as peers
from anabranch.cli.bench_index_rows import Rate, timed
from anabranch.cli.bench_rows import Contenders, Workload
from anabranch.index import BSkipList, BSkipListModule

_PYTHON_KEYS = 1_000_000  # above, a map of Python objects takes gigabytes and minutes
_SMALL_BATCHES = {"index": 50, "ops": 50}  # in one call; of peers, who move all keys for each, one


class Batches:
    """Random keys in random order, and every structure that holds them.

    Args:
        batch: keys of a small batch. probes: of a batch of lookups at most. tokens: keys in the structures.
    """

    def __init__(self, batch: int, probes: int, tokens: int, device: torch.device) -> None:
        self.batch, self.device = batch, device
        fresh = batch * max(_SMALL_BATCHES.values())
        generator = torch.Generator().manual_seed(tokens)
        # Distinct for certain, and as good as random: multiples of an odd number wrap around all of int64.
        every = torch.randperm(tokens + fresh, generator=generator) * -7046029254386353131
        self.keys, self.fresh = every[:tokens].to(device), every[tokens:].to(device)
        self.values = torch.arange(tokens, device=device)
        self.sorted_keys, order = self.keys.sort()
        self.sorted_values = self.values[order]
        self.probes = self.keys[torch.randperm(tokens, generator=generator)[:probes].to(device)]

    def workloads(self) -> Iterator[Workload]:
        structures = self._structures()
        yield self._workload("batch find", self._finds(structures), lines=1)
        yield self._workload(f"batch insert {self.batch}", self._writes(structures, erases=False), lines=1)
        yield self._workload(f"batch erase {self.batch}", self._writes(structures, erases=True), lines=1)
        del structures
        yield self._workload("batch insert all", self._loads(), nbytes=32)
        yield self._workload("bulk load", self._bulk_loads(), nbytes=32)

    def _workload(self, name: str, contenders: Contenders, nbytes: int = 0, lines: int = 0) -> Workload:
        return Workload(name, len(self.keys), len(self.keys), contenders, 0, nbytes, lines=lines)

    def _structures(self) -> dict[str, Any]:
        """Our own are filled piece by piece, so that their nodes are as full as random inserts leave them."""
        found: dict[str, Any] = {"ops": self._module()}
        if self.device.type == "cpu":
            found = {"index": BSkipList()} | found
        for keys, values in zip(self.keys.tensor_split(100), self.values.tensor_split(100), strict=True):
            for ours in found.values():
                ours.insert(keys, values)
        found["torch"] = peers.TorchSorted(self.sorted_keys, self.sorted_values)
        if self.device.type == "cpu":
            found["numpy"] = peers.NumpySorted(self.sorted_keys.numpy(), self.sorted_values.numpy())
        return found

    def _module(self) -> BSkipListModule:
        return BSkipListModule(len(self.keys) + len(self.fresh), device=self.device)

    def _finds(self, structures: dict[str, Any]) -> Contenders:
        contenders: Contenders = {}
        for name, structure in structures.items():
            probes = _as_of(name, self.probes)
            contenders[name] = self._timed(functools.partial(structure.find, probes), len(probes))
        if self._has_python:
            probes = self.probes.tolist()
            for name, make in peers.ordered_maps().items():
                found = make(zip(self.keys.tolist(), self.values.tolist(), strict=True))
                contenders[name] = self._timed(functools.partial(_find_each, found, probes), len(probes))
        return contenders

    def _writes(self, structures: dict[str, Any], erases: bool) -> Contenders:
        """Each call inserts new keys and erases them again, one of both timed."""

        def contender(name: str, structure: Any) -> Callable[[], Rate]:
            batches = [_as_of(name, keys) for keys in self.fresh.split(self.batch)[: _SMALL_BATCHES.get(name, 1)]]

            def insert() -> None:
                for keys in batches:
                    structure.insert(keys, keys)

            def erase() -> None:
                for keys in batches:
                    structure.erase(keys)

            def call() -> Rate:
                rates = [timed(one, self.batch * len(batches), self.device) for one in (insert, erase)]
                return rates[erases]

            return call

        return {name: contender(name, structure) for name, structure in structures.items()}

    def _loads(self) -> Contenders:
        keys, values = self.keys, self.values

        def sort_torch() -> Tensor:
            _, order = keys.sort()
            return values[order]

        calls: dict[str, Callable[[], object]] = {"torch": sort_torch}
        calls["ops"] = lambda: self._module().insert(keys, values)
        if self.device.type == "cpu":
            numpy_keys, numpy_values = keys.numpy(), values.numpy()

            def sort_numpy() -> Any:
                order = numpy_keys.argsort()
                return numpy_keys[order], numpy_values[order]

            calls["index"] = lambda: BSkipList().insert(keys, values)
            calls["numpy"] = sort_numpy
        if self._has_python:
            key_list, value_list = keys.tolist(), values.tolist()
            for name, make in peers.ordered_maps().items():
                calls[name] = functools.partial(_make_map, make, key_list, value_list)
            if "sortedcontainers" in calls:
                calls["sortedcontainers, one by one"] = functools.partial(
                    _insert_each, peers.ordered_maps()["sortedcontainers"], key_list, value_list
                )
        return {name: self._timed(call, len(keys)) for name, call in calls.items()}

    def _bulk_loads(self) -> Contenders:
        """Into an index of its own; torch copies the two arrays."""
        keys, values = self.sorted_keys, self.sorted_values
        calls: dict[str, Callable[[], object]] = {
            "ops": lambda: self._module().bulk_load(keys, values),
            "torch": lambda: (keys.clone(), values.clone()),
        }
        if self.device.type == "cpu":
            calls["index"] = lambda: BSkipList().bulk_load(keys, values)
        return {name: self._timed(call, len(keys)) for name, call in calls.items()}

    @property
    def _has_python(self) -> bool:
        return self.device.type == "cpu" and len(self.keys) <= _PYTHON_KEYS

    def _timed(self, call: Callable[[], object], operations: int) -> Callable[[], Rate]:
        return lambda: timed(call, operations, self.device)


def _as_of(name: str, keys: Tensor) -> Any:
    return keys.numpy() if name == "numpy" else keys


def _make_map(make: Callable[[Any], Any], keys: list[int], values: list[int]) -> Any:
    return make(zip(keys, values, strict=True))


def _insert_each(make: Callable[[Any], Any], keys: list[int], values: list[int]) -> Any:
    found = make(())
    for key, value in zip(keys, values, strict=True):
        found[key] = value
    return found


def _find_each(found: Any, keys: list[int]) -> list[int]:
    return [found[key] for key in keys]
