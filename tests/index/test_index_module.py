"""BSkipListModule: its methods, where its buffers go, and compiled graphs."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from torch._inductor.utils import run_and_get_code

from anabranch.index import BSkipListModule, bskiplist_erase, bskiplist_find, bskiplist_insert

both_keys = pytest.mark.parametrize("key_words", [1, 2])


def filled(n: int = 200, key_words: int = 1, capacity: int | None = None) -> BSkipListModule:
    """Keys 0, 3, 6... (as pairs: (key // 10, key)) with their negatives as values."""
    module = BSkipListModule(n if capacity is None else capacity, key_words=key_words)
    module.bulk_load(keys_of(torch.arange(0, 3 * n, 3), key_words), -torch.arange(0, 3 * n, 3))
    return module


def keys_of(numbers: torch.Tensor, key_words: int) -> torch.Tensor:
    return numbers if key_words == 1 else torch.stack((numbers // 10, numbers), -1)


def assert_filled(module: BSkipListModule, n: int = 200) -> None:
    module.validate()
    assert module.size() == n
    numbers = torch.arange(-3, 3 * n + 3)
    values, found = module(keys_of(numbers, module.key_words))
    there = (numbers >= 0) & (numbers < 3 * n) & (numbers % 3 == 0)
    assert found.equal(there)
    assert values.equal(torch.where(there, -numbers, 0))


@both_keys
def test_methods_on_batches_of_any_shape(key_words: int) -> None:
    module = BSkipListModule(100, key_words=key_words)
    numbers = torch.tensor([[[5, 1, 5], [9, 7, 1]]])
    keys, values = keys_of(numbers, key_words), torch.arange(6).view(1, 2, 3)
    inserted, applied = module.insert(keys, values)
    assert inserted.tolist() == [[[True, True, False], [True, True, False]]]
    assert applied.all()
    assert module.find(keys)[0].tolist() == [[[0, 1, 0], [3, 4, 1]]]
    inserted, applied = module.insert_or_assign(keys, values)
    assert not inserted.any()
    assert applied.all()
    assert module.find(keys)[0].tolist() == [[[2, 5, 2], [3, 4, 5]]]
    assert module.find(keys[0, 0, 0])[0].shape == ()

    found_keys, values, found = module.lower_bound(keys_of(numbers + 1, key_words))
    assert found.tolist() == [[[True, True, True], [False, True, True]]]
    assert found_keys.equal(keys_of(torch.tensor([[[7, 5, 7], [0, 9, 5]]]), key_words))
    assert values.tolist() == [[[4, 2, 4], [0, 3, 2]]]

    ends = keys_of(numbers + 2, key_words)
    assert module.range_count(keys, ends).tolist() == [[[2, 1, 2], [1, 2, 1]]]
    offsets, entry_keys, entry_values = module.gather(keys[0, 0], ends[0, 0], 6)
    assert offsets.tolist() == [0, 2, 3, 5]
    assert entry_keys.equal(keys_of(torch.tensor([5, 7, 1, 5, 7, 0]), key_words))
    assert entry_values.tolist() == [2, 4, 5, 2, 4, 0]

    assert module.size() == 4
    assert module.erase(keys).tolist() == [[[True, True, False], [True, True, False]]]
    assert module.size() == 0


@both_keys
def test_a_full_module_says_what_was_not_applied_and_reserve_makes_room(key_words: int) -> None:
    module = BSkipListModule(50, key_words=key_words)
    numbers = torch.randperm(4000)
    inserted, applied = module.insert(keys_of(numbers, key_words), -numbers)
    assert inserted.equal(applied)
    assert 50 <= applied.sum() < 4000
    assert module.size() == applied.sum()
    small = module.nodes
    module.reserve(10)
    assert module.nodes is small
    module.reserve(4000)
    assert module.find(keys_of(numbers, key_words))[1].equal(applied)
    rest = numbers[~applied]
    assert torch.stack(module.insert(keys_of(rest, key_words), -rest)).all()
    module.validate()
    values, found = module.find(keys_of(numbers, key_words))
    assert found.all()
    assert values.equal(-numbers)
    module.clear()
    assert module.size() == 0
    assert not module.find(keys_of(numbers, key_words))[1].any()


@both_keys
def test_copies_are_indexes_of_their_own(key_words: int) -> None:
    module = filled(key_words=key_words)
    copies = [copy.deepcopy(module), pickle.loads(pickle.dumps(module))]
    module.clear()
    for one in copies:
        assert_filled(one)


def test_the_index_stays_int64_in_a_model_of_another_dtype() -> None:
    model = torch.nn.ModuleDict({"ids": filled(), "head": torch.nn.Linear(2, 2)}).half()
    assert model["head"].weight.dtype == torch.float16
    assert_filled(model["ids"])
    assert [name for name, _ in model.named_buffers()] == ["ids.nodes", "ids.control"]


@both_keys
@pytest.mark.parametrize("capacity", [1, 200, 5000])
def test_state_dict_round_trip_into_any_capacity(key_words: int, capacity: int) -> None:
    file = io.BytesIO()
    torch.save(filled(key_words=key_words).state_dict(), file)
    file.seek(0)
    module = BSkipListModule(capacity, key_words=key_words)
    module.insert(keys_of(torch.tensor([1, 2]), key_words), torch.tensor([7, 8]))
    before = module.nodes
    module.load_state_dict(torch.load(file))
    assert (module.nodes is before) == (capacity == 200)
    assert_filled(module)
    # Of a larger index there is room left, of a smaller one none is lost.
    numbers = torch.arange(1, 100, 3)
    module.reserve(400)
    assert torch.stack(module.insert(keys_of(numbers, key_words), numbers)).all()


def test_a_view_of_a_file_can_be_loaded() -> None:
    """Tensors of a mapped file need not be aligned as those of torch are."""
    state = filled().state_dict()
    shifted = {}
    for name, tensor in state.items():
        shifted[name] = torch.empty(tensor.numel() + 1, dtype=torch.int64)[1:].view(tensor.shape).copy_(tensor)
    module = BSkipListModule(5)
    module.load_state_dict(shifted)
    assert_filled(module)


def damaged(state: dict[str, Any], kind: str) -> dict[str, Any]:
    state = {name: tensor.clone() for name, tensor in state.items()}
    if kind == "two entries swapped":
        state["ids.nodes"][3, 8:10] = state["ids.nodes"][3, 8:10].flip(0)
    elif kind == "not an index":
        state["ids.control"].zero_()
    elif kind == "of two words":
        state["ids.nodes"], state["ids.control"] = filled(key_words=2).state_dict().values()
    elif kind == "a writer inside":
        state["ids.control"][32] += 1
    elif kind == "of half the nodes":
        state["ids.nodes"] = state["ids.nodes"][: len(state["ids.nodes"]) // 2]
    elif kind == "of another dtype":
        state["ids.nodes"] = state["ids.nodes"].double()
    elif kind == "one of the two":
        del state["ids.control"]
    return state


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("two entries swapped", "the index is damaged (node 3: key 1 is out of order), must be whole; build it again"),
        ("not an index", "control is not that of an index"),
        ("of two words", "keys have 2 words, must have 1 like the module's"),
        ("a writer inside", "the index is being written, must be at rest"),
        ("of half the nodes", "as control says"),
        ("of another dtype", "nodes is float64, must be int64"),
        ("one of the two", "only one of them is there"),
    ],
)
@pytest.mark.parametrize("capacity", [200, 5000])
def test_nothing_of_a_damaged_index_is_loaded(kind: str, says: str, capacity: int) -> None:
    model = torch.nn.ModuleDict({"ids": filled(capacity=capacity)})
    state = damaged(torch.nn.ModuleDict({"ids": filled(100, capacity=200)}).state_dict(), kind)
    with pytest.raises(RuntimeError) as error:
        model.load_state_dict(state)
    assert says in str(error.value)
    assert "ids.nodes" in str(error.value)
    assert_filled(model["ids"])


def in_order(module: BSkipListModule, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Reads between writes: any other order gives other results."""
    before = module.find(keys)[1]
    inserted, applied = module.insert(keys, values)
    first = module.find(keys)[0]
    module.insert_or_assign(keys, values)
    second, size = module.find(keys)[0], module.size()
    erased = module.erase(keys[..., :2])
    return before, inserted, applied, first, second, size, erased, *module.lower_bound(keys), module.size()


def test_a_compiled_function_keeps_the_order_of_reads_and_writes() -> None:
    keys, values = torch.tensor([5, 3, 5, 7]), torch.tensor([1, 2, 3, 4])
    eager, compiled = BSkipListModule(100), BSkipListModule(100)
    step = torch.compile(in_order, fullgraph=True, backend="aot_eager")
    place = compiled.nodes.data_ptr()
    for shift in (0, 1):  # the second time on what the first left behind
        wanted = in_order(eager, keys + shift, values)
        given = step(compiled, keys + shift, values)
        assert all(a.equal(b) for a, b in zip(given, wanted, strict=True))
    assert compiled.nodes.data_ptr() == place
    compiled.validate()
    assert compiled.nodes[: int(compiled.control[8])].equal(eager.nodes[: int(eager.control[8])])


def test_inductor_writes_in_place() -> None:
    module = BSkipListModule(100)

    def step(keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        arena = (module.nodes, module.control)
        before = bskiplist_find(*arena, keys)[1]
        status = bskiplist_insert(*arena, keys, values)
        between = bskiplist_find(*arena, keys)[1]
        return before, status, between, bskiplist_erase(*arena, keys[:1]), bskiplist_find(*arena, keys)[1]

    keys = torch.tensor([5, 3, 5, 7])
    results, code = run_and_get_code(torch.compile(step, fullgraph=True), keys, keys)
    assert [result.tolist() for result in results] == [[0] * 4, [1, 1, 0, 1], [1] * 4, [1], [0, 1, 0, 1]]
    assert "bskiplist_insert" in code[0]
    assert "copy_" not in code[0]
    assert "clone" not in code[0]


def test_export() -> None:
    module = filled()
    batch = torch.export.Dim("batch", max=1000)
    program = torch.export.export(module, (torch.arange(9),), dynamic_shapes=({0: batch},))
    keys = torch.arange(-5, 100)
    assert all(a.equal(b) for a, b in zip(program.module()(keys), module(keys), strict=True))


def test_meta() -> None:
    module = BSkipListModule(100, key_words=2, device="meta")
    keys = torch.empty(4, 3, 2, dtype=torch.int64, device="meta")
    values, found = module(keys)
    assert values.shape == found.shape == (4, 3)
    assert (values.dtype, found.dtype) == (torch.int64, torch.bool)
    assert [t.shape for t in module.gather(keys, keys, 7)] == [(13,), (7, 2), (7,)]
    module.load_state_dict(filled(key_words=2).state_dict(), assign=True)
    assert_filled(module)
