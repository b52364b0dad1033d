"""gated_ffn on any input: layouts, shapes, dtypes, capacities and pairs of matrices; and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from gated_cases import call, leaves, make, mapped, masked_dense

from anabranch.skip import Anchor, CachedDelta, LowRank, Norm, SmallFfn, gated_ffn, prefix_ffn


def strided(tensor: torch.Tensor) -> torch.Tensor:
    """The same values, each element far from the next, and the first where no vector begins."""
    room = tensor.new_zeros(2 * tensor.numel() + 1)
    view = torch.as_strided(room, tensor.shape, [2 * stride for stride in tensor.contiguous().stride()], 1)
    return view.copy_(tensor)


def turned(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.mT.contiguous().mT if tensor.dim() > 1 else tensor


def unaligned(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.new_empty(tensor.numel() + 1)[1:].copy_(tensor.flatten()).view(tensor.shape)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("layout", [strided, turned, unaligned])
@pytest.mark.parametrize("otherwise", ["small ffn", "anchor with lora"])
def test_any_layout_of_any_tensor(layout: Any, otherwise: str, dtype: torch.dtype) -> None:
    plain = make(9, features=12, inner=20, norm="layer", bias=True, otherwise=otherwise, dtype=dtype)
    plain["keep"] = torch.arange(9) % 3
    moved = mapped(plain, lambda tensor: layout(tensor.detach()).requires_grad_())
    moved["keep"] = torch.stack((plain["keep"], plain["keep"]), 1)[:, 1]
    results = []
    for arguments in (plain, moved):
        y = call(arguments, (0, 7, 20))
        results.append([y.detach(), *torch.autograd.grad(y.square().sum(), list(leaves(arguments).values()))])
        with torch.no_grad():
            results[-1].append(call(arguments, (0, 7, 20)))
    for a, b in zip(*results, strict=True):
        scale = a.abs().max().item()
        torch.testing.assert_close(a, b, rtol=0, atol=8 * torch.finfo(dtype).eps * scale)


def test_leading_dimensions_and_one_row_without_any() -> None:
    arguments = make(2, 3, 4, otherwise="delta")
    torch.testing.assert_close(call(arguments, return_cosine=True), masked_dense(**arguments))
    for keep in (True, False):
        one = make(bias=True) | {"keep": torch.tensor(keep)}
        y, cosine = call(one, return_cosine=True)
        torch.testing.assert_close((y, cosine), masked_dense(**one))
        assert (y.shape, cosine.shape) == ((5,), ())


def test_expanded_rows() -> None:
    row = torch.randn(5, dtype=torch.float64, requires_grad=True)
    arguments = make(2, 3) | {"x": row.expand(2, 3, 5), "keep": torch.tensor([True, False, True]).expand(2, 3)}
    arguments["gate"] = torch.rand((), dtype=torch.float64).expand(2, 3)
    y, (wanted, _) = gated_ffn(**arguments), masked_dense(**arguments)
    torch.testing.assert_close(y, wanted)
    torch.testing.assert_close(torch.autograd.grad(y.sum(), row), torch.autograd.grad(wanted.sum(), row))


def test_a_width_per_sample() -> None:
    arguments = make(3, 4, bias=True, otherwise="low rank")
    per_sample = torch.tensor([2, 0, 1])
    by_row = arguments | {"keep": per_sample[:, None].expand(3, 4)}
    y = call(arguments | {"keep": per_sample}, (0, 4, 9))
    assert torch.equal(y, call(by_row, (0, 4, 9)))
    torch.testing.assert_close(y, masked_dense(**by_row, widths=(0, 4, 9))[0])
    none = make(0, 4)
    assert call(none | {"keep": torch.zeros(0, dtype=torch.int64)}, (0, 9)).shape == (0, 4, 5)


def test_a_pair_of_matrices_is_their_concatenation() -> None:
    arguments = make(7)
    pair = tuple(arguments["gate_up_proj"].detach().chunk(2))
    pair = (pair[0].clone().requires_grad_(), pair[1].clone().requires_grad_())
    y, wanted = gated_ffn(**arguments | {"gate_up_proj": pair}), gated_ffn(**arguments)
    assert torch.equal(y, wanted)
    (whole,) = torch.autograd.grad(wanted.sum(), arguments["gate_up_proj"])
    assert torch.equal(torch.cat(torch.autograd.grad(y.sum(), pair)), whole)


@pytest.mark.parametrize("otherwise", ["identity", "small ffn"])
def test_capacity_sizes_what_is_saved_and_changes_nothing(otherwise: str) -> None:
    arguments = make(8, otherwise=otherwise) | {"keep": torch.arange(8) < 3}
    results = []
    for capacity in (None, 8, 5, 3):
        with torch.no_grad():
            inference = gated_ffn(**arguments, capacity=capacity)
        y = gated_ffn(**arguments, capacity=capacity)
        saved = y.grad_fn.next_functions[0][0].saved_tensors
        assert [tuple(one.shape) for one in saved if one is not None].count((capacity or 8, 18)) == 1
        results.append([inference, y, *torch.autograd.grad(y.square().sum(), list(leaves(arguments).values()))])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("by_autocast", [False, True])
@pytest.mark.parametrize("otherwise", ["identity", "low rank", "delta", "anchor", "anchor with lora"])
def test_a_float32_stream_around_bfloat16_weights(otherwise: str, by_autocast: bool) -> None:
    """The block is in the weights' dtype, the sum in the stream's: rows that get no block are exact."""
    arguments = make(9, features=16, inner=24, norm="layer", otherwise=otherwise, dtype=torch.float32)
    arguments["keep"] = torch.arange(9) % 3
    given = arguments
    if not by_autocast:
        rounded = mapped(arguments, lambda tensor: tensor.detach().bfloat16().requires_grad_())
        given = arguments | {name: rounded[name] for name in ("gate_up_proj", "down_proj", "norm")}
    with torch.autocast(arguments["x"].device.type, torch.bfloat16, enabled=by_autocast):
        y, cosine = call(given, (0, 8, 24), return_cosine=True)
    exact = mapped(given, lambda tensor: tensor.detach().double().requires_grad_())
    wanted, wanted_cosine = masked_dense(**exact, widths=(0, 8, 24))
    assert y.dtype == cosine.dtype == torch.float32
    torch.testing.assert_close(y.double(), wanted, rtol=0, atol=0.05)
    torch.testing.assert_close(cosine.double(), wanted_cosine, rtol=0, atol=0.01)
    skipped = given["keep"] == 0
    if otherwise in ("identity", "delta", "anchor"):
        assert torch.equal(y[skipped], wanted[skipped].float())
    upstream = torch.randn_like(y)
    ours = torch.autograd.grad(y, list(leaves(given).values()), upstream)
    theirs = torch.autograd.grad(wanted, list(leaves(exact).values()), upstream.double())
    for name, a, b in zip(leaves(given), ours, theirs, strict=True):
        assert a.dtype == leaves(given)[name].dtype
        bound = 0.03 * b.abs().max().item()
        torch.testing.assert_close(a.double(), b, rtol=0, atol=bound, msg=lambda m, name=name: f"{name}: {m}")
        if name == "x" and otherwise in ("identity", "delta", "anchor"):
            assert torch.equal(a[skipped], b[skipped].float())


def test_a_float64_stream_has_a_float64_cosine() -> None:
    arguments = make(5, dtype=torch.float32) | {"x": torch.randn(5, 5, dtype=torch.float64)}
    y, cosine = gated_ffn(**arguments, return_cosine=True)
    assert y.dtype == cosine.dtype == torch.float64
    exact = mapped(arguments, torch.Tensor.double)
    torch.testing.assert_close((y, cosine), masked_dense(**exact), rtol=1e-5, atol=1e-5)


def test_norms_and_branches_in_another_dtype_are_cast() -> None:
    arguments = make(7, norm="layer", bias=True, otherwise="anchor with lora", dtype=torch.bfloat16)
    wider = mapped({name: arguments[name] for name in ("norm", "otherwise")}, torch.Tensor.float)
    assert torch.equal(gated_ffn(**arguments | wider), gated_ffn(**arguments))


GOOD: dict[str, Any] = {
    "x": torch.randn(4, 5),
    "keep": torch.tensor([True, False, True, True]),
    "gate_up_proj": torch.randn(12, 5),
    "down_proj": torch.randn(5, 6),
}
META = torch.randn(5, device="meta")


@pytest.mark.cpu
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.ones(4, 5).long()}, "x is int64, must be float32"),
        ({"x": torch.tensor(1.0)}, r"x has shape \(\), must be \(..., H\)"),
        ({"x": torch.ones(4, 0)}, r"x has shape \(4, 0\), must be \(..., H\) with H > 0"),
        ({"x": torch.randn(4, 6)}, r"(gate_up_proj|down_proj) has shape .*, must be"),
        ({"keep": torch.ones(4)}, "keep is float32, must be bool; convert"),
        ({"keep": torch.ones(4, 1).bool()}, r"keep has shape \(4, 1\), must be \(4,\) like the rows"),
        ({"keep": GOOD["keep"].to("meta")}, "keep is on meta, must be on cpu like x"),
        ({"gate": torch.ones(4).long()}, "gate is int64"),
        ({"gate": torch.ones(4, 1)}, r"gate has shape \(4, 1\), must be \(4,\)"),
        ({"gate": META[:4]}, "gate is on meta"),
        ({"gate_up_proj": torch.randn(11, 5)}, r"gate_up_proj has shape \(11, 5\), must be \(12, 5\)"),
        ({"gate_up_proj": torch.randn(1, 12, 5)}, "gate_up_proj has shape .* must have 2 dimensions"),
        ({"gate_up_proj": (torch.randn(6, 5), torch.randn(6, 4))}, "gate_up_proj has shapes .* two matrices of one"),
        ({"gate_up_proj": (torch.randn(6, 5),) * 3}, "gate_up_proj has shapes .* two matrices of one"),
        ({"gate_up_proj": (torch.randn(6, 5), torch.randn(6, 5).half())}, "up_proj is float16, must be float32 like"),
        ({"down_proj": torch.randn(5, 0)}, r"down_proj has shape \(5, 0\), must have an inner feature"),
        ({"down_proj": torch.randn(5, 6).half()}, "down_proj is float16, must be float32 like gate_up_proj"),
        ({"gate_up_bias": torch.ones(6)}, r"gate_up_bias has shape \(6,\), must be \(12,\)"),
        ({"down_bias": META}, "down_bias is on meta, must be on cpu"),
        ({"down_bias": torch.ones(5).int()}, "down_bias is int32"),
        ({"norm": Norm(META)}, "norm.weight is on meta"),
        ({"norm": Norm(None, torch.ones(5).long())}, "norm.bias is int64"),
        ({"norm": Norm(torch.ones(4))}, "the norm's weight has shape"),
        ({"norm": Norm(kind="group")}, "norm.kind is 'group'"),
        ({"norm": Norm(eps=-1.0)}, "the norm's eps is -1, must not"),
        ({"activation": "tanh"}, "activation is 'tanh'"),
        ({"capacity": 2}, "3 rows run, must be at most capacity = 2; raise"),
        ({"capacity": 5}, "capacity is 5, must be at most the 4 rows"),
        ({"capacity": -1}, "capacity is -1, must not be negative"),
        ({"otherwise": "skip"}, "otherwise is str, must be LowRank"),
        ({"otherwise": CachedDelta(torch.randn(4, 4))}, r"otherwise.delta has shape \(4, 4\), must be \(4, 5\) like x"),
        ({"otherwise": CachedDelta(torch.ones(4, 5).long())}, "otherwise.delta is int64"),
        ({"otherwise": Anchor(torch.randn(4, 5), torch.randn(2, 5))}, "one matrix of the else-branch is missing"),
        ({"otherwise": Anchor(torch.randn(4, 5, device="meta"))}, "otherwise.anchor is on meta"),
        ({"otherwise": LowRank(torch.randn(2, 5), torch.randn(5, 3))}, "the else-branch's first matrix has shape"),
        ({"otherwise": LowRank(torch.randn(2, 5), torch.randn(5, 2), "tanh")}, "activation is 'tanh'"),
        ({"otherwise": SmallFfn(torch.randn(3, 5), torch.randn(5, 2))}, "the else-branch's first matrix has shape"),
    ],
)  # fmt: skip
def test_bad_input(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^gated_ffn: {message}"):
        gated_ffn(**GOOD | change)


@pytest.mark.cpu
@pytest.mark.parametrize(
    ("index", "widths", "message"),
    [
        ([0, 1, 2, 0], (0, 6), r"the choice of row 2 is 2, must be in \[0, 2\)"),
        ([0, 1, -1, 0], (0, 6), "the choice of row 2 is -1"),
        ([0, 1], (0, 6), "width_index has shape"),
        ([0.0] * 4, (0, 6), "width_index is float32, must be int64"),
        ([0] * 4, (), "widths has 0 entries"),
        ([0] * 4, tuple(range(17)), "widths has 17 entries, must have 1 to 16"),
        ([0] * 4, (0,), r"the largest width is 0, must be in \[1, 6\]"),
        ([0] * 4, (0, 7), "the largest width is 7"),
        ([0] * 4, (4, 2), r"widths\[1\] is 2, must be at least 0 and above"),
        ([0] * 4, (2, 2), r"widths\[1\] is 2"),
        ([0] * 4, (-1, 2), r"widths\[0\] is -1"),
        ([0] * 4, (0, 2.5), r"widths are \(0, 2.5\), must be whole numbers"),
        ([0] * 4, (0, 2**70), "widths are .*, must be whole numbers below"),
    ],
)
def test_bad_widths(index: list[Any], widths: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=f"^prefix_ffn: {message}"):
        prefix_ffn(GOOD["x"], torch.tensor(index), GOOD["gate_up_proj"], GOOD["down_proj"], widths)
