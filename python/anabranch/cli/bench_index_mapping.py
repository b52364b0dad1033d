"""One key at a time through Python: `index.BSkipList` as a mapping, beside dict and the ordered maps."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch

from anabranch.cli import peers_index as peers
from anabranch.cli.bench_index_rows import timed
from anabranch.cli.bench_rows import Workload
from anabranch.index import BSkipList


def mapping_workloads(tokens: int, calls: int) -> Iterator[Workload]:
    """`map[key]` and `map[key] = value` of keys that are there, in random order; the loop around them is timed too."""
    generator = torch.Generator().manual_seed(tokens)
    order = torch.randperm(tokens, generator=generator)
    keys = order * -7046029254386353131
    maps: dict[str, Any] = {"index": BSkipList((keys, order)), "dict": {}}
    pairs = list(zip(keys.tolist(), order.tolist(), strict=True))
    maps["dict"].update(pairs)
    for name, make in peers.ordered_maps().items():
        maps[name] = make(pairs)
    # Other objects than those in the maps: an object that is itself the key is found without a comparison.
    probes = keys[torch.randint(tokens, (calls,), generator=generator)].tolist()
    for name, call in (("get", _get), ("set", _set)):
        contenders: dict[str, Callable[[], object]] = {
            map_name: functools.partial(timed, functools.partial(call, mapping, probes), calls)
            for map_name, mapping in maps.items()
        }
        yield Workload(name, tokens, tokens, contenders, 0, 0, lines=1)


def _get(mapping: Any, keys: list[int]) -> None:
    for key in keys:
        mapping[key]


def _set(mapping: Any, keys: list[int]) -> None:
    for key in keys:
        mapping[key] = 5
