"""NCache against a sequential Python model of its definition, bit for bit; its module; and bad input."""

from __future__ import annotations

import copy
import os
import pickle
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from anabranch.temporal import NCache, NCacheRows

MASK = 2**64 - 1
TABLES = ("keys", "event_ids", "times", "states")


def mixed(x: int) -> int:
    x ^= x >> 30
    x = x * 0xBF58476D1CE4E5B9 & MASK
    x ^= x >> 27
    x = x * 0x94D049BB133111EB & MASK
    return x ^ x >> 31


def chain(start: int, *words: int) -> int:
    for word in words:
        start = mixed(start + 0x9E3779B97F4A7C15 + mixed((word & MASK) + 0x9E3779B97F4A7C15 & MASK) & MASK)
    return start


class Model:
    """The definition, one write at a time, on lists."""

    def __init__(self, cache: NCache) -> None:
        self.slots, self.seed, self.p = cache.slots, cache.seed & MASK, torch.tensor(cache.replace_probability).item()
        self.first = [0, 1, 1 + cache.slots[0]]
        self.rows = [[(-1, -1, -1, [0.0] * cache.state_size)] * cache.keys.shape[1] for _ in range(cache.num_nodes)]
        self.stats = torch.zeros(3, 3, dtype=torch.int64)

    def slot(self, hop: int, key: int) -> int:
        if hop == 0:
            return 0
        length = self.slots[hop - 1]
        return self.first[hop] + ((chain(self.seed, hop, key) >> 32) * length >> 32)

    def write(
        self, owner: int, hop: int, key: int, event: int, time: int, state: list[float], batch_event: int
    ) -> None:
        at = self.slot(hop, key)
        held = self.rows[owner][at][0]
        self.stats[hop, 0] += 1
        if held not in (-1, key):
            self.stats[hop, 1] += 1
            if (chain(self.seed, batch_event, owner, hop, key) >> 40) * 2.0**-24 >= self.p:
                return
            self.stats[hop, 2] += 1
        self.rows[owner][at] = (key, event, time, state)

    def update(self, events: list[tuple[int, int, int, int]], rows: NCacheRows) -> None:
        keys, ids, times, z = (one.tolist() for one in rows)
        for i, (u, v, time, event) in enumerate(events):
            sides = ((u, v, i, len(events) + i), (v, u, len(events) + i, i))
            for owner, other, own, far in sides:
                if len(self.slots) > 1:
                    for j in range(1, 1 + self.slots[0]):
                        if keys[far][j] >= 0:
                            self.write(owner, 2, keys[far][j], ids[far][j], times[far][j], z[far][j], event)
                held = self.slot(1, other)
                state = z[own][held] if keys[own][held] == other else [0.0] * len(z[own][held])
                self.write(owner, 1, other, event, time, state, event)
                self.write(owner, 0, owner, event, time, z[own][0], event)

    def check(self, cache: NCache) -> None:
        for name, column in zip(TABLES, range(4), strict=True):
            assert getattr(cache, name).tolist() == [[slot[column] for slot in row] for row in self.rows], name


def stream(kind: str) -> list[tuple[int, int, int, int]]:
    """(src, dst, time, event id), in order."""
    generator = torch.Generator("cpu").manual_seed(5)
    if kind == "messages":
        path = Path(os.environ.get("ANABRANCH_DATA", Path(__file__).parents[3] / "shared/data")) / "uci/CollegeMsg.txt"
        if not path.exists():
            pytest.skip(f"{path} is not here")
        lines = [line.split() for line in path.read_text().splitlines()[:500]]
        return [(int(a), int(b), int(t), i) for i, (a, b, t) in enumerate(sorted(lines, key=lambda line: int(line[2])))]
    nodes = torch.randint(9, (2, 300), generator=generator)
    nodes[1, ::7] = nodes[0, ::7]  # self-loops
    start, step = (-40, 1) if kind == "ties" else (1_700_000_000_000_000_000, 987_654_321_012)
    times = (start + step * torch.randint(60, (300,), generator=generator)).sort().values
    ids = torch.arange(300) if kind == "ties" else 2**40 + 3 * torch.arange(300)
    return list(zip(*nodes.tolist(), times.tolist(), ids.tolist(), strict=True))


def batches(events: list[tuple[int, int, int, int]], size: int) -> Iterator[list[tuple[int, int, int, int]]]:
    for first in range(0, len(events), size):
        yield events[first : first + size]


def tensors(events: list[tuple[int, int, int, int]]) -> tuple[Tensor, ...]:
    return tuple(torch.tensor(events, dtype=torch.int64).reshape(-1, 4).T.contiguous())


def rows_for(cache: NCache, events: list[tuple[int, int, int, int]]) -> NCacheRows:
    """What a read gives, with some new state in every slot."""
    src, dst, _, _ = tensors(events)
    rows = cache.read(torch.cat([src, dst]))
    z = torch.rand(rows.z.shape).to(cache.states.dtype)
    return rows._replace(z=torch.where(rows.event_ids[..., None] >= 0, z, 0))


def step(cache: NCache, events: list[tuple[int, int, int, int]]) -> Tensor:
    return cache.update(*tensors(events), rows_for(cache, events))


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    ("kind", "size", "slots", "dtype"),
    [
        ("messages", 1, (8, 4), torch.float32),
        ("messages", 60, (8, 4), torch.bfloat16),
        ("messages", 500, (33, 3), torch.float32),
        ("ties", 1, (3, 2), torch.float64),
        ("ties", 40, (5,), torch.float16),
        ("ties", 300, (3, 70), torch.float32),
        ("nanoseconds", 300, (4, 1), torch.float32),
    ],
)
def test_update_is_the_definition(
    kind: str, size: int, slots: tuple[int, ...], dtype: torch.dtype, threads: int
) -> None:
    events = stream(kind)
    nodes = 1 + max(max(event[:2]) for event in events)
    cache = NCache(nodes, slots, 3, replace_probability=0.6, seed=-size, dtype=dtype)
    model = Model(cache)
    total = torch.zeros(3, 3, dtype=torch.int64)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for batch in batches(events, size):
            rows = rows_for(cache, batch)
            model.update(batch, rows)
            total += cache.update(*tensors(batch), rows)
    finally:
        torch.set_num_threads(before)
    model.check(cache)
    assert torch.equal(total, model.stats.to(total.device))
    assert total[1, 1] > total[1, 2] > 0


def test_any_split_of_a_batch_gives_the_same_state() -> None:
    events = stream("ties")
    whole = NCache(9, (3, 2), 2, seed=3)
    step(whole, events[:50])
    split = copy.deepcopy(whole)
    rest = events[50:]
    rows = rows_for(whole, rest)
    whole.update(*tensors(rest), rows)
    for first, last in [(0, 1), (1, 1), (1, 90), (90, len(rest))]:
        pick = [*range(first, last), *range(len(rest) + first, len(rest) + last)]
        split.update(*tensors(rest[first:last]), NCacheRows(*(one[pick] for one in rows)))
    assert all(torch.equal(getattr(whole, name), getattr(split, name)) for name in TABLES)


@pytest.mark.parametrize("seed", [0, 1, 2, 100, -2, 2**62])
def test_every_slot_is_reached_evenly(seed: int) -> None:
    n, length = 4096, 32
    cache = NCache(2 * n, (length, 16), 1, seed=seed)
    rows = cache.read(torch.arange(2 * n))
    time = torch.zeros(n, dtype=torch.int64)
    cache.update(torch.arange(n), torch.arange(n, 2 * n), time, torch.arange(n), rows)
    held = cache.keys[:n, 1 : 1 + length]
    assert torch.equal(held.max(1).values, torch.arange(n, 2 * n))
    counts = (held >= 0).sum(0).double()
    chi_square = ((counts - n / length) ** 2 / (n / length)).sum()
    assert counts.min() > 0
    assert chi_square < 31 + 6 * 62**0.5  # 31 degrees of freedom: six standard deviations


@pytest.mark.parametrize("p", [0.0, 0.7, 1.0])
def test_replacements_are_as_probable_as_asked(p: float) -> None:
    cache = NCache(400, (2, 2), 1, replace_probability=p)
    src, dst = torch.randint(400, (2, 8000))
    rows = cache.read(torch.cat([src, dst]))
    stats = cache.update(src, dst, torch.zeros_like(src), torch.arange(8000), rows)
    offered, collisions, replaced = stats[1].tolist()
    assert offered == 16000
    assert abs(replaced - p * collisions) <= 5 * (collisions * p * (1 - p)) ** 0.5
    assert stats[0].tolist() == [16000, 0, 0]


def test_saved_loaded_and_continued_is_never_stopped(tmp_path: Path) -> None:
    events = stream("ties")
    cache = NCache(9, (3, 2), 2, seed=11, replace_probability=0.25)
    for batch in batches(events[:150], 30):
        step(cache, batch)
    torch.save(cache.state_dict(), tmp_path / "cache.pt")
    loaded = NCache(9, (3, 2), 2, seed=4)
    loaded.load_state_dict(torch.load(tmp_path / "cache.pt"))
    others = [loaded, copy.deepcopy(cache), pickle.loads(pickle.dumps(cache))]
    for batch in batches(events[150:], 30):
        rows = rows_for(cache, batch)
        for one in (cache, *others):
            one.update(*tensors(batch), rows)
    for one in others:
        assert all(torch.equal(getattr(cache, name), getattr(one, name)) for name in TABLES)
        assert one.seed == 11


def test_a_state_of_another_cache_is_refused_whole() -> None:
    cache = NCache(9, (3, 2), 2)
    step(cache, stream("ties"))
    before = copy.deepcopy(cache.state_dict())
    damaged = NCache(9, (3, 2), 2)
    damaged.keys[0, 0] = 9
    for other, message in [
        (NCache(10, (3, 2), 2), "keys is int64 of shape .10, 6., must be int64 of shape .9, 6"),
        (NCache(9, (2, 3), 2), "slots is .2, 3., must be .3, 2."),
        (NCache(9, (3, 2), 3), "states is float32 of shape"),
        (damaged, "keys holds node 9"),
    ]:
        other.seed = 77
        with pytest.raises(RuntimeError, match=message):
            cache.load_state_dict(other.state_dict())
    part = {name: value for name, value in before.items() if name != "times"}
    with pytest.raises(RuntimeError, match=r'Missing key.*"times"'):
        cache.load_state_dict(part)
    assert cache.seed == 0
    assert all(torch.equal(cache.state_dict()[name], before[name]) for name in TABLES)


def test_grow_reset_and_occupancy() -> None:
    cache = NCache(3, (2,), 2, seed=1)
    assert cache.occupancy().tolist() == [0, 0]
    step(cache, [(0, 1, 0, 0)])
    assert torch.allclose(cache.occupancy(), torch.tensor([2 / 3, 1 / 3]))
    held = cache.keys.clone()
    cache.grow(5)
    assert torch.equal(cache.keys[:3], held)
    assert (cache.keys[3:] == -1).all()
    step(cache, [(4, 4, 1, 1)])  # a self-loop: its own neighbour
    assert cache.keys[4].max() == 4
    cache.reset()
    assert cache.occupancy().sum() == 0
    assert cache.states.abs().sum() == 0
    assert NCache(0).read(torch.empty(0, dtype=torch.int64)).keys.shape == (0, 49)
    with pytest.raises(ValueError, match="must be at least 5; "):
        cache.grow(4)


def test_a_read_names_the_node_itself() -> None:
    cache = NCache(9, (3, 2), 2)
    step(cache, [(2, 3, 5, 0)])
    rows = cache.read(torch.tensor([7, 2, 7]))
    assert rows.keys[:, 0].tolist() == [7, 2, 7]
    assert rows.event_ids[:, 0].tolist() == [-1, 0, -1]
    assert rows.times[1, 0] == 5
    assert (rows.keys[0, 1:] == -1).all()


def test_update_compiles() -> None:
    events = stream("ties")[:20]
    eager = NCache(9, (3, 2), 2)
    compiled = copy.deepcopy(eager)
    src, dst, time, event_id = tensors(events)

    def one_step(cache: NCache) -> Tensor:
        return cache.update(src, dst, time, event_id, cache.read(torch.cat([src, dst])))

    expected = one_step(eager)
    torch._dynamo.reset()
    assert torch.equal(torch.compile(one_step, backend="aot_eager", fullgraph=True)(compiled), expected)
    assert all(torch.equal(getattr(eager, name), getattr(compiled, name)) for name in TABLES)


@pytest.mark.cpu
def test_bad_input_leaves_the_cache_as_it_is() -> None:
    cache = NCache(9, (3, 2), 2)
    step(cache, stream("ties"))
    before = [getattr(cache, name).clone() for name in TABLES]
    events = [(1, 2, 3, 4), (5, 6, 7, 8)]
    src, dst, time, event_id = tensors(events)
    rows = rows_for(cache, events)
    minus, far = torch.tensor([1, -1]), torch.tensor([9, 1])
    foreign = rows.keys.clone()
    foreign[1, 2] = 9
    for arguments, message in [
        ((minus, dst, time, event_id, rows), r"src\[1\] is -1, must be in \[0, 9\); "),
        ((src, far, time, event_id, rows), r"dst\[0\] is 9, must be in \[0, 9\); "),
        ((src, dst, time.flip(0), event_id, rows), r"event 1 \(time 3, id 8\) comes before .*; sort"),
        ((src, dst, time * 0, event_id.flip(0), rows), r"event 1 \(time 0, id 4\) comes before"),
        ((src, dst, time, minus, rows), r"event_id\[1\] is -1"),
        ((src.int(), dst, time, event_id, rows), "src is int32, must be int64"),
        ((src, dst[:1], time, event_id, rows), r"dst has shape \(1,\), must be \(2,\)"),
        ((src, dst, time, event_id, NCacheRows(*(one[:3] for one in rows))), r"read_keys has shape \(3, 6\), must be"),
        ((src, dst, time, event_id, rows._replace(z=rows.z.double())), "read_states is float64, must be float32"),
        ((src, dst, time, event_id, rows._replace(z=rows.z[..., :1])), "read_states has shape"),
        ((src, dst, time, event_id, rows._replace(keys=foreign)), r"read_keys\[1, 2\] is 9"),
        ((src, dst, time, event_id, rows._replace(keys=cache.keys[:4])), "read_keys shares memory with keys"),
        ((src, dst, time, event_id.to("meta"), rows), "event_id is on meta, must be on cpu"),
    ]:
        with pytest.raises(ValueError, match=message):
            cache.update(*arguments)
    with pytest.raises(ValueError, match=r"ncache_gather: nodes\[0\] is 9, must be in \[0, 9\); "):
        cache.read(far)
    assert all(torch.equal(getattr(cache, name), was) for name, was in zip(TABLES, before, strict=True))
    for arguments, message in [
        ((-1,), "num_nodes is -1"),
        ((3, (1, 2, 3)), "slots is"),
        ((3, (0,)), "slots is"),
        ((3, (1,), 0), "state_size is 0"),
    ]:
        with pytest.raises(ValueError, match=message):
            NCache(*arguments)
    for keywords in ({"replace_probability": 1.5}, {"seed": 2**63}, {"dtype": torch.int32}):
        with pytest.raises(ValueError, match="; "):
            NCache(3, **keywords)
