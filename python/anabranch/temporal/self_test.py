"""The temporal room's self-tests: its structures beside loops over events, its joins beside masks."""

from __future__ import annotations

import torch
from torch import Tensor

from anabranch.core.self_test import SelfTest, compare, worst_error
from anabranch.temporal.csr import csr_from_edges
from anabranch.temporal.ncache import NCache
from anabranch.temporal.ncache_read import gru_weights, ncache_read
from anabranch.temporal.pair_encode import pair_encode
from anabranch.temporal.pair_join import pair_join
from anabranch.temporal.random_projections import RandomProjections
from anabranch.temporal.recent_neighbors import RecentNeighbors
from anabranch.temporal.row_intersect import row_set, row_set_sum
from anabranch.temporal.scatter import latest_of_node, ordered_scatter_, ordered_scatter_add_

_SRC, _DST, _TIME = (0, 1, 0, 3, 1, 0), (1, 2, 2, 0, 0, 1), (1, 2, 3, 3, 4, 6)


def _events() -> tuple[Tensor, Tensor, Tensor]:
    return torch.tensor(_SRC), torch.tensor(_DST), torch.tensor(_TIME)


def _recent() -> float:
    module, k = RecentNeighbors(4, 3), 3
    lists: list[list[int]] = [[] for _ in range(4)]
    for src, dst in zip(_SRC, _DST, strict=True):
        lists[src].append(dst)
        lists[dst].append(src)
    module.insert(*_events())
    expected = torch.tensor([([-1] * k + one)[-k:] for one in lists])
    return worst_error([module.lookup(torch.arange(4)).neighbors], [expected])


def _recent_by_queries() -> float:
    """Lookups within the batch, each before its own event."""
    module, (src, dst, time) = RecentNeighbors(4, 3, causal=True), _events()
    found = module.lookup_and_insert(src, dst, time, queries=src[:, None]).neighbors[:, 0]
    expected = [[-1] * 3 for _ in _SRC]
    for i, node in enumerate(_SRC):
        seen = [
            b if a == node else a for a, b, t in zip(_SRC, _DST, _TIME, strict=True) if t < _TIME[i] and node in (a, b)
        ]
        expected[i] = ([-1] * 3 + seen)[-3:]
    return worst_error([found], [torch.tensor(expected)])


def _ncache() -> NCache:
    cache, (src, dst, time) = NCache(4, (48, 48), 2, replace_probability=1.0), _events()
    for first in range(0, 6, 2):
        part = slice(first, first + 2)
        rows = cache.read(torch.cat([src[part], dst[part]]))
        cache.update(src[part], dst[part], time[part], torch.arange(6)[part], rows)
    return cache


def _ncache_update() -> float:
    keys = _ncache().read(torch.arange(4)).keys[:, 1:49]
    expected = torch.zeros(4, 4)
    expected[list(_SRC), list(_DST)] = expected[list(_DST), list(_SRC)] = 1
    return worst_error([torch.stack([(keys == node).sum(1) for node in range(4)], 1)], [expected])


def _ncache_read() -> float:
    cache, cell, nodes = _ncache(), torch.nn.GRUCell(7, 2), torch.tensor([3, 0, 1])
    node_features, edge_features, phase = torch.randn(4, 2), torch.randn(6, 2), torch.randn(3)
    states = torch.randn(cache.states.shape)
    read = cache.read(nodes)
    frequency, occupied = torch.tensor([1.0, 0.1, 0.01]), (read.keys >= 0) & (read.event_ids >= 0)

    def ours(states: Tensor, node_features: Tensor, edge_features: Tensor, phase: Tensor) -> Tensor:
        stored = (cache.keys, cache.event_ids, cache.times, states, nodes)
        rows = ncache_read(*stored, node_features, edge_features, frequency, phase, gru_weights(None, cell))
        return rows.z[occupied]

    def expected(states: Tensor, node_features: Tensor, edge_features: Tensor, phase: Tensor) -> Tensor:
        tau = read.times[occupied].unsqueeze(1) * frequency + phase
        x = [node_features[read.keys[occupied]], edge_features[read.event_ids[occupied]], tau.cos()]
        found: Tensor = cell(torch.cat(x, 1), states[nodes][occupied])
        return found

    return compare(ours, expected, states, node_features, edge_features, phase)


_KEYS = ((5, 7, 9, -1), (7, 4, 9, 8), (-1, -1, -1, -1))
_CODES = (1, 2, 2, 4)


def _pairs() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return (
        torch.tensor(_KEYS),
        torch.tensor(_CODES, dtype=torch.int32),
        torch.tensor([0, 1, 2]),
        torch.tensor([1, 1, 0]),
    )


def _joined(z: Tensor) -> list[list[tuple[int, Tensor]]]:
    """For each pair its keys in the order of their first slots: code and sum of z."""
    found = []
    for pair in ((0, 1), (1, 1), (2, 0)):
        keys: dict[int, tuple[int, Tensor]] = {}
        for side, row in enumerate(pair):
            for slot, key in enumerate(_KEYS[row]):
                if key >= 0:
                    code, total = keys.get(key, (0, torch.zeros_like(z[0, 0])))
                    keys[key] = (code | _CODES[slot] << 3 * side, total + z[row, slot])
        found.append(list(keys.values()))
    return found


def _pair_join() -> float:
    keys, codes, left, right = _pairs()

    def expected(z: Tensor) -> Tensor:
        rows = []
        for joined in _joined(z):
            rows.append(torch.stack([total for _, total in joined] + [torch.zeros_like(z[0, 0])] * (8 - len(joined))))
        return torch.stack(rows)

    return compare(lambda z: pair_join(keys, z, codes, left, right)[2], expected, torch.randn(3, 4, 5))


def _pair_encode() -> float:
    keys, codes, left, right = _pairs()

    def ours(z: Tensor, weight: Tensor, table: Tensor) -> Tensor:
        return pair_encode(keys, z, codes, left, right, weight, table, "relu")

    def expected(z: Tensor, weight: Tensor, table: Tensor) -> Tensor:
        pairs = [torch.stack([(weight @ t + table[code]).relu() for code, t in joined]).sum(0) for joined in _joined(z)]
        return torch.stack(pairs)

    return compare(ours, expected, torch.randn(3, 4, 5), torch.randn(6, 5), torch.randn(64, 6))


def _row_sets() -> float:
    graph = csr_from_edges(*_events()[:2], 4)
    rows = torch.zeros(4, 4, dtype=torch.bool)
    rows[list(_SRC), list(_DST)] = rows[list(_DST), list(_SRC)] = True
    left, right, x = torch.tensor([0, 1, 3]), torch.tensor([1, 2, 0]), torch.randn(4, 5)
    common = rows[left] & rows[right]
    ids, _ = row_set(*graph, left, right, "intersection", 4)
    listed = torch.stack([(ids == node).any(1) for node in range(4)], 1)
    summed = compare(lambda x: row_set_sum(x, *graph, left, right), lambda x: common.to(x.dtype) @ x, x)

    def weighted(x: Tensor, weights: Tensor) -> Tensor:
        return row_set_sum(x, *graph, left, right, weights=weights)

    def expected(x: Tensor, weights: Tensor) -> Tensor:
        return (torch.where(ids >= 0, weights, 0).unsqueeze(2) * x[ids.clamp_min(0)]).sum(1)

    return max(summed, worst_error([listed], [common]), compare(weighted, expected, x, torch.randn(3, 4)))


def _ordered_scatter() -> float:
    index, values = torch.tensor([2, 0, 2, 1]), torch.randn(4, 3)
    last = torch.stack([values[1], values[3], values[2]])
    added = torch.stack([values[1], values[3], values[0] + values[2]])
    latest = latest_of_node(index, torch.tensor([4, 1, 3, 1]))
    return worst_error(
        [
            ordered_scatter_(torch.zeros(3, 3), index, values),
            ordered_scatter_add_(torch.zeros(3, 3), index, values),
            latest,
        ],
        [last, added, torch.tensor([True, True, False, True])],
    )


def _random_projections() -> float:
    (src, dst, time), decay = _events(), 0.1
    module = RandomProjections(4, 3, 1, decay)
    first = module.table[:, 0].clone()
    module.update(src, dst, time)
    weight = torch.exp(-decay * (time.max() - time)).unsqueeze(1)
    expected = torch.zeros(4, 3).index_add(0, src, weight * first[dst]).index_add(0, dst, weight * first[src])
    return worst_error([module.rows(torch.arange(4))[:, 1]], [expected])


def self_tests() -> list[SelfTest]:
    """One case for each structure and each join."""
    neighbors = [f"recent_neighbors_{name}" for name in ("insert", "lookup", "clear", "lookup_and_insert")]
    kernels = ("temporal/recent_neighbors",)
    return [
        SelfTest(tuple(neighbors[:3]), _recent, kernels, tolerance=0),
        SelfTest((neighbors[3],), _recent_by_queries, kernels, tolerance=0),
        SelfTest(("ncache_update", "ncache_gather"), _ncache_update, tolerance=0),
        SelfTest(("ncache_read", "ncache_read_backward"), _ncache_read, ("temporal/ncache_read",), tolerance=1e-4),
        SelfTest(("pair_join", "pair_join_backward"), _pair_join),
        SelfTest(("pair_encode", "pair_encode_backward"), _pair_encode, ("temporal/pair_encode",)),
        SelfTest(("row_set_sum", "row_set_sum_backward", "row_set_dot", "row_set"), _row_sets, ("temporal/row_sums",)),
        SelfTest(("ordered_scatter", "ordered_scatter_add", "latest_of_node"), _ordered_scatter),
        SelfTest(("random_projections_update",), _random_projections),
    ]
