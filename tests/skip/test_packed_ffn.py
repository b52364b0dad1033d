"""Packed blocks against the dense block, masked: every option, dtype and instruction set; int8; and one row alone."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from gated_cases import ELSE_BRANCHES, make, mapped, masked_dense

from anabranch import CostMeter
from anabranch.skip import LowRank, PackedFfn, pack_ffn

pytestmark = pytest.mark.cpu  # there is nothing to pack on a GPU
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
WEIGHTS = ("gate_up_proj", "down_proj", "gate_up_bias", "down_bias", "gated")


def packed_call(arguments: dict[str, Any], widths: tuple[int, ...] | None = None, **options: Any) -> Any:
    """The packed form of a call of gated_ffn, or of prefix_ffn where `keep` is an index into widths."""
    weight_dtype = options.pop("weight_dtype", None)
    packed = pack_ffn(**{name: arguments[name] for name in WEIGHTS}, weight_dtype=weight_dtype)
    given = {name: value for name, value in arguments.items() if name not in WEIGHTS}
    if widths is None:
        return packed(**given, **options)
    return packed.prefix(given.pop("x"), given.pop("keep"), widths, **given, **options)


def detached(arguments: dict[str, Any], dtype: torch.dtype | None = None) -> dict[str, Any]:
    return mapped(arguments, lambda tensor: tensor.detach().to(dtype or tensor.dtype))


def tolerance(dtype: torch.dtype) -> dict[str, float]:
    error = 32 * torch.finfo(dtype).eps
    return {"rtol": error, "atol": error}


@pytest.mark.parametrize("otherwise", ELSE_BRANCHES)
def test_every_option(otherwise: str) -> None:
    for gated, bias, norm, prefix in itertools.product((True, False), (True, False), (None, "layer"), (True, False)):
        arguments = detached(make(12, gated=gated, bias=bias, norm=norm, otherwise=otherwise))
        widths = (0, 3, 9) if prefix else None
        arguments["keep"] = torch.randint(0, 3, (12,)) if prefix else arguments["keep"]
        options = {"activation": "gelu", "residual_scale": 0.5}
        found = packed_call(arguments, widths, return_cosine=True, **options)
        torch.testing.assert_close(found, masked_dense(**arguments, widths=widths, **options))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("inner", [5, 96, 172, 250])
def test_equals_the_definition_on_every_instruction_set(cpu_isa: str, dtype: torch.dtype, inner: int) -> None:
    for rows in (1, 3, 90):
        arguments = detached(make(rows, features=200, inner=inner, dtype=dtype, otherwise="delta"))
        arguments["keep"] = (torch.arange(rows) + 1) % 4
        widths = (0, 2, inner - 1, inner)
        wanted, cosine = masked_dense(**detached(arguments, torch.float64), widths=widths)
        y, found = packed_call(arguments, widths, return_cosine=True)
        assert y.dtype == dtype
        torch.testing.assert_close(y.double(), wanted, **tolerance(dtype))
        torch.testing.assert_close(found.double(), cosine, **tolerance(dtype))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("weight_dtype", [None, torch.int8])
def test_a_row_does_not_depend_on_its_company(
    cpu_isa: str, dtype: torch.dtype, weight_dtype: torch.dtype | None
) -> None:
    arguments = detached(make(70, features=40, inner=172, bias=True, norm="layer", dtype=dtype, otherwise="delta"))
    for widths in (None, (0, 50, 172)):
        arguments["keep"] = torch.randint(0, 3, (70,)) if widths else arguments["keep"]
        arguments["keep"][[0, 33, 69]] = torch.tensor([1, 0, 2]) if widths else torch.tensor([True, False, True])
        options = {"weight_dtype": weight_dtype, "return_cosine": True}
        y, cosine = packed_call(arguments, widths, **options)
        for t in (0, 33, 69):
            rows = slice(t, t + 1)
            alone = {name: arguments[name][rows] for name in ("x", "keep", "gate")}
            alone["otherwise"] = type(arguments["otherwise"])(arguments["otherwise"].delta[rows])
            y_alone, cosine_alone = packed_call(arguments | alone, widths, **options)
            assert torch.equal(y_alone[0], y[t])
            assert torch.equal(cosine_alone[0], cosine[t])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("gated", [True, False])
def test_int8_equals_its_own_integers(cpu_isa: str, dtype: torch.dtype, gated: bool) -> None:
    """The definition: scale * round(weight / scale), multiplied exactly."""
    arguments = detached(make(40, features=37, inner=101, gated=gated, bias=True, dtype=dtype))
    exact = detached(arguments, torch.float64)
    for name in ("gate_up_proj", "down_proj"):
        scale = arguments[name].float().abs().amax(1, keepdim=True) / 127
        exact[name] = (arguments[name].float() / scale).round().double() * scale.double()
    y = packed_call(arguments, weight_dtype=torch.int8)
    torch.testing.assert_close(y.double(), masked_dense(**exact)[0], **tolerance(dtype))


def test_same_bits_for_every_thread_count() -> None:
    arguments = detached(make(400, features=60, inner=172, dtype=torch.bfloat16, otherwise="small ffn"))
    arguments["keep"] = torch.randint(0, 3, (400,))
    before, results = torch.get_num_threads(), []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        results.append(packed_call(arguments, (0, 100, 172), return_cosine=True))
    torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("kept", ["none", "all", "no rows"])
@pytest.mark.parametrize("otherwise", ["identity", "anchor with lora"])
def test_none_and_all_in_any_shape(kept: str, otherwise: str) -> None:
    arguments = detached(make(2, 0 if kept == "no rows" else 3, bias=True, otherwise=otherwise))
    arguments["keep"].fill_(kept == "all")
    torch.testing.assert_close(packed_call(arguments, return_cosine=True), masked_dense(**arguments))


@pytest.mark.parametrize("otherwise", ["delta", "anchor", "low rank"])
def test_a_float32_stream_around_bfloat16_weights(otherwise: str) -> None:
    arguments = detached(make(9, features=16, inner=24, dtype=torch.float32, otherwise=otherwise))
    arguments["keep"] = torch.arange(9) % 3
    arguments |= {name: arguments[name].bfloat16() for name in ("gate_up_proj", "down_proj")}
    y, cosine = packed_call(arguments, (0, 8, 24), return_cosine=True)
    wanted, wanted_cosine = masked_dense(**detached(arguments, torch.float64), widths=(0, 8, 24))
    assert y.dtype == cosine.dtype == torch.float32
    torch.testing.assert_close(y.double(), wanted, rtol=0, atol=0.05)
    torch.testing.assert_close(cosine.double(), wanted_cosine, rtol=0, atol=0.01)
    if otherwise != "low rank":
        assert torch.equal(y[arguments["keep"] == 0], wanted[arguments["keep"] == 0].float())


def test_bytes_and_the_meter() -> None:
    arguments = detached(make(6, features=64, inner=192, dtype=torch.float32)) | {"keep": torch.arange(6) < 2}
    full, small = (
        pack_ffn(arguments["gate_up_proj"], arguments["down_proj"], weight_dtype=dtype) for dtype in (None, torch.int8)
    )
    numbers = 3 * 64 * 192
    assert full.nbytes == numbers * 4 and numbers < small.nbytes < 1.1 * numbers
    branch = LowRank(torch.randn(2, 64), torch.randn(64, 2))
    with CostMeter() as meter:
        full(arguments["x"], arguments["keep"], otherwise=branch)
        small.prefix(arguments["x"], arguments["keep"].long(), (0, 96, 192))
    (_, first, block), (_, second, other), (_, third, narrow) = meter.calls()
    assert (first, second, third) == ("gated_ffn", "gated_ffn.otherwise", "prefix_ffn")
    assert (block.executed_rows, block.executed_flops, block.executed_bytes) == (2, 2 * 2 * numbers, 4 * numbers)
    assert (other.executed_rows, other.executed_flops, other.executed_bytes) == (4, 4 * 2 * 256, 4 * 256)
    assert (narrow.executed_rows, narrow.executed_flops, narrow.executed_bytes) == (2, 2 * numbers, numbers // 2)
    assert (narrow.dense_flops, narrow.dense_bytes) == (6 * 2 * numbers, numbers)


def test_a_pair_of_matrices_and_a_later_change_of_them() -> None:
    arguments = detached(make(7))
    wanted = packed_call(arguments)
    pair = tuple(half.clone() for half in arguments["gate_up_proj"].chunk(2))
    packed = pack_ffn(pair, arguments["down_proj"])
    pair[0].zero_()
    given = {name: arguments[name] for name in ("x", "keep", "gate", "norm")}
    assert torch.equal(packed(**given), wanted)
    compiled = torch.compile(lambda given: packed(**given, return_cosine=True), fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(given)[0], wanted)


GOOD: dict[str, Any] = {"gate_up_proj": torch.randn(12, 5), "down_proj": torch.randn(5, 6)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gate_up_proj": torch.randn(1, 12, 5)}, "gate_up_proj has shape .*, must have 2 dimensions; pack_experts"),
        ({"gate_up_proj": (torch.randn(6, 5), torch.randn(6, 4))}, "gate_up_proj has shapes .* two matrices of one"),
        ({"gate_up_proj": torch.ones(12, 5).int()}, "gate_up_proj is int32, must be float32"),
        ({"gate_up_proj": torch.randn(12, 5, device="meta")}, "gate_up_proj is on meta, must be on the CPU"),
        ({"gate_up_proj": torch.randn(11, 5)}, "down_proj has shape .*, must fit gate_up_proj"),
        ({"down_proj": torch.randn(4, 6)}, "down_proj has shape .*, must give the 5 features"),
        ({"down_proj": torch.randn(5, 6).half()}, "down_proj is float16, must be float32 like"),
        ({"gate_up_bias": torch.ones(6)}, "gate_up_bias has shape"),
        ({"down_bias": torch.ones(5, device="meta")}, "down_bias is on meta"),
        ({"weight_dtype": torch.int16}, "weight_dtype is torch.int16"),
    ],
)
def test_bad_weights(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^pack_ffn: {message}"):
        pack_ffn(**GOOD | change)


def test_bad_calls() -> None:
    packed, x, keep = pack_ffn(**GOOD), torch.randn(4, 5), torch.tensor([True, False, True, True])
    assert isinstance(packed, PackedFfn)
    for change, message in (
        ({"x": torch.randn(4, 5, requires_grad=True)}, "a gradient is wanted"),
        ({"gate": torch.ones(4, requires_grad=True)}, "a gradient is wanted"),
        ({"otherwise": LowRank(torch.ones(2, 5, requires_grad=True), torch.ones(5, 2))}, "a gradient is wanted"),
        ({"x": torch.randn(4, 6)}, r"x has shape \(4, 6\), must be \(..., 5\) as the packed weights"),
        ({"x": x.to("meta"), "keep": keep.to("meta")}, "x is on meta, must be on cpu like the packed weights"),
        ({"keep": keep[:3]}, "keep has shape"),
        ({"gate": torch.ones(4, device="meta")}, "gate is on meta"),
        ({"activation": "tanh"}, "activation is 'tanh'"),
    ):
        with pytest.raises(ValueError, match=f"^gated_ffn: .*{message}"):
            packed(**{"x": x, "keep": keep} | change)
    with pytest.raises(ValueError, match=r"^prefix_ffn: the largest width is 7, must be in \[1, 6\]"):
        packed.prefix(x, keep.long(), (0, 7))
