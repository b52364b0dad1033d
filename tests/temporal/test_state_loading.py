"""Saved states are loaded all or nothing, in every module that has one and in models of them."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from anabranch.papers.nat import NAT
from anabranch.temporal import (
    MemoryCorrection,
    MemoryTable,
    NCache,
    RandomProjections,
    RecentNeighbors,
    RunningMean,
    RunningMoments,
    SignedMemory,
    WholeState,
)

NODES, DIM, RAW = 12, 5, 3


class Both(WholeState):
    """A model of several states."""

    def __init__(self, memory: nn.Module, ring: RecentNeighbors) -> None:
        super().__init__()
        self.memory, self.ring, self.read = memory, ring, nn.Linear(DIM, 2)


def table(raw: int = RAW, dim: int = DIM, **options: Any) -> MemoryTable:
    return MemoryTable(NODES, dim, raw, time_dim=4, **options)


def ring(**options: Any) -> RecentNeighbors:
    return RecentNeighbors(NODES, 3, **options)


def events(seed: int = 0, size: int = 20) -> tuple[Tensor, ...]:
    torch.manual_seed(seed)
    src, dst = torch.randint(0, NODES, (2, size))
    return src, dst, torch.arange(size) + 100 * seed, torch.randn(size, RAW)


def fill(module: Any, seed: int = 0) -> Any:
    """The module after some events, as its kind takes them."""
    src, dst, time, raw = events(seed)
    if isinstance(module, Both):
        fill(module.memory, seed), fill(module.ring, seed)
    elif isinstance(module, MemoryTable):
        module.update_state(src, dst, time, raw)
    elif isinstance(module, SignedMemory):
        module.update_state(src, dst, time, raw[:, 0] > 0, raw)
    elif isinstance(module, RunningMean | RunningMoments):
        module.update(src, torch.randn(20, DIM))
    elif isinstance(module, NAT):
        rows = module.read(torch.cat([src, dst]))
        module.cache.update(src, dst, time, torch.arange(20), rows.cache)
        module.partner[src], module.self_states[src] = dst, rows.self_states[:20].detach()
    elif isinstance(module, NCache):
        module.update(src, dst, time, torch.arange(20), module.read(torch.cat([src, dst])))
    elif isinstance(module, RecentNeighbors):
        module.insert(src, dst, time)
    else:
        module.update(src, dst, time)
    return module


KINDS: dict[str, Callable[[], Any]] = {
    "last": table,
    "mean": lambda: table(aggregator="mean", correction=MemoryCorrection(learnable=True)),
    "signed": lambda: SignedMemory(NODES, DIM, RAW, time_dim=4),
    "ring": ring,
    "cache": lambda: NCache(NODES, (3, 2), 2),
    "projections": lambda: RandomProjections(NODES, 4, 2, decay=1e-3),
    "sums": lambda: RunningMean(NODES, DIM),
    "moments": lambda: RunningMoments(NODES, DIM),
    "NAT": lambda: NAT(
        NODES, torch.linspace(-1, 1, 40).view(20, 2), slots=(3, 2), self_size=4, hidden_size=6, position_size=2
    ),
    "both": lambda: Both(table(), ring()),
}


def values_of(module: nn.Module) -> dict[str, Any]:
    return copy.deepcopy(dict(module.state_dict()))


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one.keys() == other.keys() and all(
        torch.equal(value, other[name]) if isinstance(value, Tensor) else value == other[name]
        for name, value in one.items()
    )


def refuses(module: nn.Module, state: Any, match: str, **options: Any) -> None:
    before = values_of(module)
    with pytest.raises(RuntimeError, match=match):
        module.load_state_dict(state, **options)
    assert same(values_of(module), before)


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_what_fits_is_loaded(kind: str, assign: bool) -> None:
    saved, other = fill(KINDS[kind]()), fill(KINDS[kind](), 1)
    state = saved.state_dict()
    assert str(other.load_state_dict(copy.deepcopy(state), assign=assign)) == "<All keys matched successfully>"
    assert same(values_of(other), dict(state))
    fill(other, 2), fill(saved, 2)
    if not isinstance(saved, RunningMean | RunningMoments):  # whose values are drawn
        assert same(values_of(other), values_of(saved))
    weights = {name: value + 1 for name, value in saved.named_parameters()}
    if weights:  # parameters alone, where the state may stay as it is
        before = values_of(other)
        refuses(other, weights, "Missing key")
        assert set(other.load_state_dict(weights, strict=False).missing_keys) == set(before) - set(weights)
        assert same(values_of(other), {**before, **weights})
    with torch.device("meta"):
        shell = KINDS[kind]()
    shell.load_state_dict(copy.deepcopy(dict(state)), assign=True)
    assert same(values_of(shell), dict(state))


@pytest.mark.parametrize(
    ("module", "saved", "match"),
    [
        (table(), table(raw=RAW + 1), r"mailbox.raw is float32 of shape \(12, 4\), must be float32 of shape \(12, 3\)"),
        (table(), table(dim=DIM + 1), r"\tmemory is float32 of shape \(12, 6\)"),
        (table(), table(dtype=torch.float64), "memory is float64 of shape"),
        (table(), table(aggregator="mean"), r"words is int64 of shape \(0, 5\), must be int64 of shape \(12, 4\)"),
        (table(aggregator="mean"), table(raw=RAW + 1, aggregator="mean"), "mailbox.raw is"),
        (ring(), ring(direction="out"), r"layout is int64 \[3, 3, 1\] of shape \(3,\), must be \[3, 3, 0\]; make"),
        (ring(), RecentNeighbors(NODES + 1, 3), r"rows is int64 of shape \(13, 16\)"),
        (NCache(NODES, (3, 2), 2), NCache(NODES, (2, 3), 2), r"slots is \(2, 3\), must be \(3, 2\)"),
        (NCache(NODES, (3, 2), 2), NCache(NODES, (3, 2), 2, dtype=torch.float64), "states is float64"),
        (RandomProjections(NODES, 4), RandomProjections(NODES, 4, decay=2e-6), "decay is 2e-06, must be 1e-06; make"),
        (NAT(NODES, slots=(3, 2)), NAT(NODES, slots=(2, 3)), "cache.slots is"),
        (NAT(NODES, slots=(3, 2)), NAT(NODES, slots=(3, 2), self_size=71), "self_states is.*\n.*slot_map.weight is"),
        (Both(table(), ring()), Both(table(), ring(direction="in")), "ring.layout is"),
        (Both(table(), ring()), Both(table(raw=RAW + 1), ring()), "memory.mailbox.raw is"),
    ],
)  # fmt: skip
def test_a_state_of_another_module_is_refused_whole(module: nn.Module, saved: nn.Module, match: str) -> None:
    for one in (module, saved):
        if not isinstance(one, NAT | Both | MemoryTable):
            fill(one)
    for strict in (True, False):
        refuses(module, saved.state_dict(), match, strict=strict)


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_states_are_refused_whole(kind: str) -> None:
    """Every value of a state in turn is missing, of another type, shape, dtype or device, or an id out of range."""
    module, state = fill(KINDS[kind]()), dict(fill(KINDS[kind](), 1).state_dict())
    states = [n for n in state if n in dict(module.named_buffers()) or n.endswith("_extra_state")]
    for name, value in state.items():
        without = {n: v for n, v in state.items() if n != name}
        refuses(module, without, f'Missing key.*"{name}"')
        if name in states and len(states) > 1 and name != "correction.logit":
            refuses(module, without, f"{name} of the state missing", strict=False)
        for bad in (None, 7, [1.0], {"a": 1}, torch.ones(2, 2, 2), torch.ones(3, dtype=torch.complex64)):
            refuses(module, {**state, name: bad}, name)
        if isinstance(value, Tensor) and value.dim() > 0:
            refuses(module, {**state, name: value.to("meta")}, name)
            refuses(module, {**state, name: value.to_sparse()}, name)
            if name in states:
                refuses(module, {**state, name: value.to(torch.int16)}, name)
                strided = torch.stack([value, value], -1)[..., 0]
                if value.numel() > 1:
                    refuses(module, {**state, name: strided}, f"{name} is not contiguous", assign=True)
        if value.__class__ is Tensor and name.split(".")[-1] in ("words", "keys", "rows", "ranges", "size", "partner"):
            refuses(module, {**state, name: torch.full_like(value, 999)}, name.rpartition(".")[0] or name)
    refuses(module, {**state, "other": torch.ones(1)}, 'Unexpected key.*"other"')
    refuses(module, {**state, 3: torch.ones(1)}, "3 is of type int")
    refuses(module, {}, "Missing key")
    with pytest.raises(TypeError):
        module.load_state_dict(None)
    module.load_state_dict({**state, "other": torch.ones(1)}, strict=False)
    assert same(values_of(module), state)


@pytest.mark.parametrize("bad", [[], {"slots": [3, 2]}, {"slots": "ab", "replace_probability": 2, "seed": 0}])
def test_malformed_settings_of_a_cache(bad: Any) -> None:
    cache = fill(NCache(NODES, (3, 2), 2))
    refuses(cache, {**cache.state_dict(), "_extra_state": bad}, "_extra_state is")
    for wrong in ({"seed": 2**63}, {"seed": 1.5}, {"replace_probability": float("nan")}, {"slots": [3, "x"]}):
        refuses(cache, {**cache.state_dict(), "_extra_state": {**cache.get_extra_state(), **wrong}}, "_extra_state is")


def test_within_a_plain_module_each_is_whole() -> None:
    model = nn.ModuleDict({"memory": fill(table()), "ring": fill(ring())})
    other = nn.ModuleDict({"memory": fill(table(), 1), "ring": fill(ring(direction="out"), 1)})
    before = values_of(model["ring"])
    with pytest.raises(RuntimeError, match=r"ring\.layout is"):
        model.load_state_dict(other.state_dict())
    assert same(values_of(model["ring"]), before)
    part = {name: value for name, value in other.state_dict().items() if name != "memory.mailbox.words"}
    refuses(model, part, "memory.mailbox.words of the state missing")
    other["ring"] = ring()
    model.load_state_dict(other.state_dict())
    assert same(values_of(model), values_of(other))
    norm = Both(nn.BatchNorm1d(3), ring())  # loads in a way of its own
    norm.load_state_dict(norm.state_dict())


@pytest.mark.parametrize("untouched", ["keep", "update"])
@pytest.mark.parametrize("kind", ["last", "mean", "signed"])
def test_saved_while_training_and_loaded_in_eval_mode_is_saved_after_eval(kind: str, untouched: Any) -> None:
    def make() -> Any:
        torch.manual_seed(5)
        if kind == "signed":
            return SignedMemory(NODES, DIM, RAW, time_dim=4, untouched=untouched)
        return table(aggregator=kind, untouched=untouched)

    saved = fill(fill(make(), 1), 2)
    waiting = values_of(saved)
    loaded = make().eval()
    nn.ModuleDict({"memory": loaded}).load_state_dict({f"memory.{name}": value for name, value in waiting.items()})
    saved.eval()
    assert not saved.mailbox.waiting().any()
    assert same(values_of(loaded), values_of(saved))
    fill(saved, 3), fill(loaded, 3)
    assert same(values_of(loaded), values_of(saved))
    again = make().eval()  # saved and loaded in eval mode: PyG's way leaves events waiting there, and so they stay
    again.load_state_dict(pickle.loads(pickle.dumps(saved)).state_dict())
    assert same(values_of(again), values_of(saved))
    training = make()
    training.load_state_dict(waiting)
    assert same(values_of(training), waiting)


@pytest.mark.cpu
def test_a_log_in_shared_memory_is_used_as_it_is() -> None:
    shared, alone = (table(aggregator="mean") for _ in range(2))
    shared.load_state_dict(alone.state_dict())
    shared.mailbox.reserve(300)
    shared.share_memory()
    twin = copy.copy(shared)  # another process has other Python objects and the same memory
    twin.mailbox = copy.copy(shared.mailbox)
    room = shared.mailbox.words.shape[0]
    for seed in range(3 * room // 40):  # the log is full several times
        fill((shared, twin)[seed % 2], seed), fill(alone, seed)
        assert torch.equal(shared.memory, alone.memory)
    assert shared.mailbox.words.shape[0] == room
    before = values_of(shared)
    many = torch.randint(0, NODES, (2, room)), torch.arange(room), torch.randn(room, RAW)
    with pytest.raises(ValueError, match=f"room for {room} events in shared memory, must have it for .*; reserve more"):
        shared.update_state(*many[0], *many[1:])
    assert same(values_of(shared), before)
    refuses(shared, table(aggregator="mean").state_dict(), "in shared memory; load before")
