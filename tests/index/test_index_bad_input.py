"""Wrong arguments of every index op: a ValueError that says what to do, and an index that is as it was."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch

from anabranch import index
from anabranch.index import BSkipListModule, bskiplist_empty, bskiplist_insert

ops = torch.ops.anabranch
KEYS, VALUES = torch.arange(5), torch.arange(5) * 10
MESSAGE = re.compile(r"^[a-z_]+: .+, must .+; .+", re.DOTALL)
# Every op with the arguments that follow nodes and control.
BATCH: dict[str, tuple[Any, ...]] = {
    "find": (KEYS,),
    "lower_bound": (KEYS,),
    "range_count": (KEYS, KEYS),
    "gather": (KEYS, KEYS, 9),
    "insert": (KEYS, VALUES, False),
    "erase": (KEYS,),
    "bulk_load": (KEYS, VALUES),
    "validate": (),
    "init": (1,),
}
of_every_op = pytest.mark.parametrize("name", BATCH)
writes = pytest.mark.parametrize("name", ["insert", "erase", "bulk_load"])


def arena_of(key_words: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    nodes, control = bskiplist_empty(100, key_words=key_words)
    keys = KEYS if key_words == 1 else torch.stack((KEYS, KEYS), 1)
    bskiplist_insert(nodes, control, keys, VALUES)
    return nodes, control


def refuses(says: str, call: Callable[..., Any], *arguments: Any, **named: Any) -> None:
    """A ValueError of the usual form, and no argument is changed."""
    tensors = [a for a in arguments if isinstance(a, torch.Tensor) and not a.is_meta]
    before = [tensor.clone() for tensor in tensors]
    with pytest.raises(ValueError, match=MESSAGE) as error:
        call(*arguments, **named)
    assert says in str(error.value)
    for tensor, as_it_was in zip(tensors, before, strict=True):
        torch.testing.assert_close(tensor, as_it_was, rtol=0, atol=0, equal_nan=True)


def both(name: str) -> list[Callable[..., Any]]:
    """The public function and the op itself."""
    return [getattr(index, f"bskiplist_{name}"), getattr(ops, f"bskiplist_{name}")]


@of_every_op
def test_what_is_no_index(name: str) -> None:
    nodes, control = arena_of()
    wide = torch.zeros(len(nodes), 256, dtype=torch.int64)
    wrong = [
        (nodes.int(), control, "nodes is int32, must be int64"),
        (nodes, control.double(), "control is float64, must be int64"),
        (nodes[0], control, "nodes has shape (128,), must be (2 to 2^32, 128)"),
        (nodes[:1], control, "nodes has shape (1, 128), must be (2 to 2^32, 128)"),
        (nodes[:, :64], control, "nodes"),
        (wide[:, ::2], control, "nodes is not contiguous"),
        (nodes, control[:-1], "control has shape (159,), must be (160,)"),
        (nodes, control[None], "control has shape (1, 160), must be (160,)"),
        (nodes, torch.zeros(320, dtype=torch.int64)[::2], "control is not contiguous"),
        (nodes, nodes.view(-1)[128:288], "control shares memory with nodes"),
        (nodes, torch.zeros(161, dtype=torch.int64)[1:], "control does not begin a cache line"),
        (torch.zeros(1281, dtype=torch.int64)[1:].view(10, 128), control, "nodes does not begin a cache line"),
    ]
    for call in both(name):
        for bad_nodes, bad_control, says in wrong:
            refuses(says, call, bad_nodes, bad_control, *BATCH[name])


@of_every_op
def test_devices(name: str) -> None:
    nodes, control = arena_of()
    call = both(name)[0]
    refuses("control is on meta, must be on", call, nodes, control.to("meta"), *BATCH[name])
    for i, given in enumerate(BATCH[name]):
        if isinstance(given, torch.Tensor):
            arguments = [*BATCH[name]]
            arguments[i] = given.to("meta")
            refuses("is on meta, must be on", call, nodes, control, *arguments)


@pytest.mark.cpu
@pytest.mark.parametrize("name", sorted(set(BATCH) - {"init"}))
def test_control_that_does_not_fit(name: str) -> None:
    nodes, control = arena_of()
    damage = [
        (0, 0, "control is not that of an index, must be; call bskiplist_init first"),
        (1, 3, "control is of keys of 3 words, must be 1 or 2"),
        (1, 2**32 + 1, "control is of keys of 4294967297 words"),
        (2, 64, "control is of nodes of 64 words, must be of 128"),
        (3, 10**9, "must be (1000000000, 128) as control says"),
        (8, 0, "control says that 0 nodes are used, must be 2 to"),
        (8, 10**6, "control says that 1000000 nodes are used"),
        (8, -1, "control says that -1 nodes are used"),
        (16, 10**6, "control says that node 1000000 is free, must be below"),
        (24, -1, "control says that -1 ask writers to wait"),
    ]
    for word, value, says in damage:
        bad = control.clone()
        bad[word] = value
        for call in both(name):
            refuses(says, call, nodes, bad, *BATCH[name])
    for call in both(name):
        refuses("as control says; pass the two of one index", call, nodes[:-1], control, *BATCH[name])


@pytest.mark.parametrize("name", [name for name in BATCH if name not in ("init", "validate")])
def test_keys_and_values(name: str) -> None:
    arena, given = arena_of(), BATCH[name]
    rest = given[1:]
    for call in both(name):
        refuses("is float32, must be int64", call, *arena, given[0].float(), *rest)
        refuses("is int32, must be int64; convert it with .to(torch.int64)", call, *arena, given[0].int(), *rest)
        for shape in ((5, 1), (5, 3), (1, 5, 2), ()):
            keys = torch.zeros(shape, dtype=torch.int64)
            refuses("must be (n,), or (n, 2) for keys of two words", call, *arena, keys, *rest)
        if rest and isinstance(rest[0], torch.Tensor):
            refuses("must be (5,) like", call, *arena, given[0], rest[0][:4], *rest[1:])
            refuses("must be int64", call, *arena, given[0], rest[0].bool(), *rest[1:])
        if name in ("insert", "bulk_load"):
            refuses("values has shape (5, 1), must be (5,) like keys", call, *arena, KEYS, VALUES[:, None], *rest[1:])


@pytest.mark.cpu
@pytest.mark.parametrize("name", [name for name in BATCH if name not in ("init", "validate")])
def test_keys_of_another_kind(name: str) -> None:
    given = BATCH[name]
    pairs = tuple(torch.stack((a, a), 1) if a is KEYS else a for a in given)
    for call in both(name):
        refuses("keys have 2 words, must have 1 like the index; pass (n,)", call, *arena_of(1), *pairs)
        refuses("keys have 1 words, must have 2 like the index; pass (n, 2)", call, *arena_of(2), *given)


@writes
def test_a_batch_in_the_memory_of_the_index(name: str) -> None:
    nodes, control = arena_of()
    for call in both(name):
        for inside in (nodes[1, :5], control[10:15]):
            refuses("shares memory with", call, nodes, control, inside, *BATCH[name][1:])
        if name != "erase":
            refuses("values shares memory with nodes", call, nodes, control, KEYS, nodes[2, 3:8], *BATCH[name][2:])
    # What does not lie in one piece is copied before, so it is no danger.
    both(name)[0](*((nodes, control) if name != "bulk_load" else bskiplist_empty(9)), KEYS * 2, *BATCH[name][1:])


@pytest.mark.cpu
def test_bulk_load_loads_all_or_nothing() -> None:
    pairs, many = torch.tensor([[0, 1], [0, 2], [0, 2], [1, 0], [1, 1]]), torch.arange(2000)
    wrong = [
        (KEYS.flip(0), VALUES, "keys is not above the key before it at position 1, must ascend; sort the keys"),
        (torch.tensor([0, 1, 1, 2, 3]), VALUES, "at position 2, must ascend"),
        (pairs, VALUES, "at position 2, must ascend"),
        (many, many, "must have room for 2000 keys; make a larger index"),
    ]
    for call in both("bulk_load"):
        for keys, values, says in wrong:
            arena = bskiplist_empty(9, key_words=keys.dim())
            with pytest.raises(ValueError, match=MESSAGE) as error:
                call(*arena, keys, values)
            assert says in str(error.value)
            index.bskiplist_validate(*arena)
            assert not index.bskiplist_find(*arena, keys)[1].any()
        arena = arena_of()
        with pytest.raises(ValueError, match="the index is in use, must be empty; call bskiplist_init first"):
            call(*arena, KEYS + 5, VALUES)
        index.bskiplist_validate(*arena)
        assert index.bskiplist_find(*arena, torch.arange(10))[1].tolist() == [True] * 5 + [False] * 5


def test_numbers_out_of_range() -> None:
    nodes, control = arena_of()
    for call in both("init"):
        refuses("key_words is 3, must be 1 or 2", call, nodes, control, 3)
    for call in both("gather"):
        refuses("capacity is -1, must be at least 0", call, nodes, control, KEYS, KEYS, -1)
    for capacity in (-1, 2**40):
        refuses(f"capacity is {capacity}, must be 0 to 2^36", bskiplist_empty, capacity)
        refuses(f"capacity is {capacity}, must be 0 to 2^36", BSkipListModule, capacity)
    refuses("key_words is 0, must be 1 or 2", BSkipListModule, 10, key_words=0)


def test_module() -> None:
    module = BSkipListModule(10, key_words=2)
    for method in (module.find, module.lower_bound, module.erase):
        refuses("keys has shape (5,), must be (..., 2); give each key two words", method, KEYS)
    pairs = torch.stack((KEYS, KEYS), 1)
    for write in (module.insert, module.insert_or_assign, module.bulk_load):
        refuses("values has shape (5, 1), must be (5,) like keys; give each key a value", write, pairs, VALUES[:, None])
    refuses("last has shape (4, 2), must be (5, 2) like first", module.range_count, pairs, pairs[:4])
    assert module.size() == 0


def test_float_keys() -> None:
    refuses("x holds NaN, must hold numbers", index.float_keys, torch.tensor([1.0, torch.nan], dtype=torch.float64))
    refuses("x is float32, must be float64", index.float_keys, torch.ones(2))
    refuses("keys is float64, must be int64", index.float_keys_inverse, torch.ones(2, dtype=torch.float64))
