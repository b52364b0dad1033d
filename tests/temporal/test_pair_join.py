"""pair_join against dictionaries; and what both pair ops owe torch: threads, graphs, fakes, messages."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pair_cases import NAT_CODES, joined_by_python, slot_sets
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from anabranch.temporal import pair_encode, pair_join


def by_python(sets: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    width, features = 2 * sets["keys"].shape[1], sets["z"].shape[2]
    pairs = joined_by_python(sets)
    keys = torch.full((len(pairs), width), -1, dtype=torch.int64)
    codes = torch.zeros(len(pairs), width, dtype=torch.int32)
    counts = torch.tensor([len(joined) for joined in pairs], dtype=torch.int32)
    rows = [sets["z"].new_zeros(0, width, features)]
    for p, joined in enumerate(pairs):
        keys[p, : len(joined)] = torch.tensor(list(joined), dtype=torch.int64)
        codes[p, : len(joined)] = torch.tensor([code for code, _ in joined.values()], dtype=torch.int32)
        z = [z for _, z in joined.values()] + [sets["z"].new_zeros(features)] * (width - len(joined))
        rows.append(torch.stack(z)[None] if width else sets["z"].new_zeros(1, 0, features))
    return keys, codes, torch.cat(rows), counts


@given(
    rows=st.integers(1, 6),
    codes=st.lists(st.sampled_from([1, 2, 4, 7]), max_size=70).map(tuple),
    features=st.sampled_from([0, 1, 4, 5]),
    pairs=st.integers(0, 9),
    nodes=st.sampled_from([1, 9, 1000]),
    full=st.sampled_from([0.0, 0.5, 1.0]),
    seed=st.integers(0, 99),
)
@settings(max_examples=40, deadline=None)
def test_forward_and_backward(
    rows: int, codes: tuple[int, ...], features: int, pairs: int, nodes: int, full: float, seed: int
) -> None:
    torch.manual_seed(seed)
    sets = slot_sets(rows, codes, features, pairs, nodes=nodes, full=full)
    sets["z"].requires_grad_()
    ours, wanted = pair_join(**sets), by_python(sets)
    for mine, theirs in zip(ours, wanted, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=0)
    upstream = torch.randn_like(ours[2])
    (dz,) = torch.autograd.grad(ours[2], sets["z"], upstream)
    if wanted[2].requires_grad:
        (expected,) = torch.autograd.grad(wanted[2], sets["z"], upstream, allow_unused=True)
        torch.testing.assert_close(dz, torch.zeros_like(dz) if expected is None else expected)
    else:
        assert not dz.any()


@pytest.mark.cpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_same_bits_on_any_threads_and_any_layout(dtype: torch.dtype) -> None:
    sets = slot_sets(50, NAT_CODES, 4, 2500)
    sets["z"] = sets["z"].to(dtype).requires_grad_()
    other = {name: one.detach().repeat_interleave(2, 0)[::2] for name, one in sets.items()}
    other["z"].requires_grad_()
    before, results = torch.get_num_threads(), []
    for threads, given_sets in ((1, sets), (2, sets), (5, sets), (1, other)):
        torch.set_num_threads(threads)
        joined = pair_join(**given_sets)
        results.append([*joined, *torch.autograd.grad(joined[2].float().square().sum(), given_sets["z"])])
    torch.set_num_threads(before)
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], result, strict=True))


def parameters(channels: int = 6, features: int = 3) -> tuple[Tensor, Tensor]:
    return torch.randn(channels, features, requires_grad=True), torch.randn(64, channels, requires_grad=True)


def test_compiles_whole_and_differentiates_once() -> None:
    torch._dynamo.reset()
    sets = slot_sets(5, (1, 2, 2, 4), 3, 7)
    sets["z"] = sets["z"].float().requires_grad_()
    weight, table = parameters()

    def both(z: Tensor, weight: Tensor, table: Tensor) -> Tensor:
        given_sets = {**sets, "z": z}
        return pair_join(**given_sets)[2].square().sum(1).sum(1) @ pair_encode(
            **given_sets, weight=weight, code_table=table, activation="relu"
        )

    learned = (sets["z"], weight, table)
    results = []
    for function in (both, torch.compile(both, fullgraph=True, backend="aot_eager")):
        out = function(*learned)
        results.append([out.detach(), *torch.autograd.grad(out.sum(), learned)])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    out = pair_encode(**sets, weight=weight, code_table=table)
    (dz,) = torch.autograd.grad(out.square().sum(), sets["z"], create_graph=True)
    with pytest.raises(NotImplementedError, match="pair_encode: it is differentiable once"):
        dz.sum().backward()


def test_parameters_of_another_dtype() -> None:
    sets = slot_sets(4, (1, 2, 4), 3, 5)
    sets["z"] = sets["z"].bfloat16()
    weight, table = parameters()
    out = pair_encode(**sets, weight=weight, code_table=table)
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, pair_encode(**sets, weight=weight.bfloat16(), code_table=table.bfloat16()))
    assert [one.dtype for one in torch.autograd.grad(out.sum(), (weight, table))] == [torch.float32] * 2


@pytest.mark.cpu
@torch.no_grad()
def test_fake_tensors_on_a_gpu() -> None:
    with FakeTensorMode(), torch.device("cuda"):
        keys, codes = torch.zeros(4, 49, dtype=torch.int64), torch.ones(49, dtype=torch.int32)
        z, rows = torch.randn(4, 49, 4).bfloat16(), torch.zeros(9, dtype=torch.int64)
        joined = pair_join(keys, z, codes, rows, rows)
        assert [tuple(one.shape) for one in joined] == [(9, 98), (9, 98), (9, 98, 4), (9,)]
        out = pair_encode(keys, z, codes, rows, rows, torch.randn(20, 4), torch.randn(64, 20))
        assert (out.shape, out.dtype, out.device.type) == ((9, 20), torch.bfloat16, "cuda")


SETS = slot_sets(3, (1, 2), 3, 4)
SETS["z"] = SETS["z"].float()
BOTH: list[tuple[dict[str, Any], str]] = [
    ({"keys": SETS["keys"].int()}, "keys is int32, must be int64"),
    ({"keys": SETS["keys"][0]}, "keys has shape"),
    (
        {"keys": torch.zeros(3, 1025, dtype=torch.int64)},
        r"keys has shape \(3, 1025\), must be \(rows, at most 1024 slots",
    ),
    ({"z": SETS["z"].long()}, "z is int64, must be float32"),
    ({"z": SETS["z"][:, :1]}, r"z has shape \(3, 1, 3\), must be \(3, 2, features\) like keys"),
    ({"z": SETS["z"].to("meta")}, "z is on meta, must be on cpu like keys"),
    ({"slot_codes": SETS["slot_codes"].long()}, "slot_codes is int64, must be int32"),
    ({"slot_codes": SETS["slot_codes"][:1]}, r"slot_codes has shape \(1,\), must be \(2,\)"),
    ({"slot_codes": torch.tensor([1, 8], dtype=torch.int32)}, r"slot_codes\[1\] is 8, must be in \[1, 7\]"),
    ({"left": SETS["left"].int()}, "left is int32"),
    ({"right": SETS["right"][:2]}, r"right has shape \(2,\), must be \(4,\)"),
    ({"left": torch.tensor([0, 1, 3, 0])}, r"left\[2\] is 3, must be in \[0, 3\)"),
    ({"right": torch.tensor([0, 1, 2, -1])}, r"right\[3\] is -1, must be in \[0, 3\)"),
]
ENCODE: list[tuple[dict[str, Any], str]] = [
    ({"weight": torch.randn(6, 4)}, r"weight has shape \(6, 4\), must be \(channels, 3\)"),
    ({"code_table": torch.randn(63, 6)}, r"code_table has shape \(63, 6\), must be \(64, 6\)"),
    ({"code_table": torch.randn(64, 6).int()}, "code_table is int32"),
    ({"activation": "gelu"}, "activation is 'gelu', must be one of"),
]


@pytest.mark.cpu
@pytest.mark.parametrize(("change", "message"), BOTH + ENCODE)
def test_bad_input(change: dict[str, Any], message: str) -> None:
    weight, table = parameters()
    with pytest.raises(ValueError, match=f"^pair_encode: {message}"):
        pair_encode(**{**SETS, "weight": weight, "code_table": table, **change})
    if not any(change is wrong for wrong, _ in ENCODE):
        with pytest.raises(ValueError, match=f"^pair_join: {message}"):
            pair_join(**{**SETS, **change})
