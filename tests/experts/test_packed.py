"""Packed weights against the weights themselves: every layout, dtype and instruction set; and int8."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch.library import opcheck

from anabranch import CostMeter, Plan, plan
from anabranch.experts import PackedExperts, expert_ffn, pack_experts

pytestmark = pytest.mark.cpu  # there is nothing to pack on a GPU
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def make(
    items: int = 40,
    features: int = 37,
    inner: int = 101,
    out: int = 37,
    *,
    gated: bool = True,
    transposed: bool = False,
    bias: bool = False,
    extra: int = 0,
    dtype: torch.dtype = torch.float32,
) -> tuple[dict[str, torch.Tensor], Plan]:
    rows = (2 if gated else 1) * inner
    tensors = {
        "gate_up_proj": torch.randn(4, *((features, rows) if transposed else (rows, features))) * features**-0.5,
        "down_proj": torch.randn(4, *((inner, out) if transposed else (out, inner))) * inner**-0.5,
    }
    if bias:
        tensors |= {"gate_up_bias": torch.randn(4, rows), "down_bias": torch.randn(4, out)}
    mask = torch.rand(items, 4 + extra) < 0.4
    mask[:, 1] = False  # an expert without rows
    routed = plan.from_mask(mask, torch.rand(items, 4 + extra, dtype=torch.float64))
    return {name: tensor.to(dtype) for name, tensor in tensors.items()}, routed


def tolerance(dtype: torch.dtype) -> dict[str, float]:
    error = 32 * torch.finfo(dtype).eps
    return {"rtol": error, "atol": error}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("inner", [5, 96, 250])
def test_equals_the_weights_on_every_instruction_set(cpu_isa: str, dtype: torch.dtype, inner: int) -> None:
    for items in (1, 3, 90):
        tensors, routed = make(items, inner=inner, dtype=dtype, out=200)
        x = torch.randn(items, 37).to(dtype)
        torch.testing.assert_close(
            pack_experts(**tensors)(x, routed), expert_ffn(x, plan=routed, **tensors), **tolerance(dtype)
        )


def test_every_layout_and_option() -> None:
    flags = itertools.product((False, True), repeat=6)
    for gated, interleaved, transposed, bias, narrow, null in flags:
        tensors, routed = make(gated=gated, transposed=transposed, bias=bias, extra=2 * null, dtype=torch.float64)
        layout = {"gated": gated, "interleaved": interleaved and gated, "transposed": transposed}
        widths = torch.tensor([101, 30, 0, 97], dtype=torch.int32) if narrow else None
        options = {"activation": "gelu", "expert_widths": widths, "zero_experts": null, "identity_experts": null}
        x = torch.randn(40, 37, dtype=torch.float64)
        packed = pack_experts(**tensors, **layout)
        torch.testing.assert_close(
            packed(x, routed, **options), expert_ffn(x, plan=routed, **tensors, **layout, **options)
        )


def test_long_rows_cross_the_blocks_of_k() -> None:
    tensors, routed = make(20, features=1100, inner=600, out=1100, dtype=torch.bfloat16)
    x = torch.randn(20, 1100).bfloat16()
    y, wanted = pack_experts(**tensors)(x, routed), expert_ffn(x, plan=routed, **tensors)
    torch.testing.assert_close(y, wanted, rtol=0.03, atol=0.03)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_row_does_not_depend_on_its_company(cpu_isa: str, dtype: torch.dtype) -> None:
    tensors, _ = make(dtype=dtype)
    packed, x = pack_experts(**tensors), torch.randn(70, 37).to(dtype)
    indices, weights = torch.randint(0, 4, (70, 2)), torch.rand(70, 2)
    together = packed(x, plan.from_top_k(indices, weights, num_groups=4))
    for t in (0, 33, 69):
        alone = packed(x[t : t + 1], plan.from_top_k(indices[t : t + 1], weights[t : t + 1], num_groups=4))
        assert torch.equal(alone[0], together[t])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "gated, interleaved, transposed", [(True, False, False), (True, True, True), (False, False, True)]
)
def test_int8_equals_its_own_integers(
    cpu_isa: str, dtype: torch.dtype, gated: bool, interleaved: bool, transposed: bool
) -> None:
    """The definition: scale * round(weight / scale), multiplied exactly."""
    tensors, routed = make(gated=gated, transposed=transposed, bias=True, dtype=dtype)
    layout = {"gated": gated, "interleaved": interleaved, "transposed": transposed}
    packed = pack_experts(**tensors, **layout, weight_dtype=torch.int8)
    assert packed.gate_up.dtype == torch.int8
    exact: dict[str, torch.Tensor] = {name: tensor.double() for name, tensor in tensors.items()}
    for name in ("gate_up_proj", "down_proj"):
        scale = tensors[name].float().abs().amax(1 if transposed else 2, keepdim=True) / 127
        exact[name] = (tensors[name].float() / scale).round().double() * scale.double()
    x = torch.randn(40, 37).to(dtype)
    wanted = expert_ffn(x.double(), plan=routed, **exact, **layout)
    torch.testing.assert_close(packed(x, routed).double(), wanted, **tolerance(dtype))


def test_int8_halves_the_bytes_and_stays_close() -> None:
    tensors, routed = make(60, 256, 192, 256, dtype=torch.bfloat16)
    x = torch.randn(60, 256).bfloat16()
    full, small = pack_experts(**tensors), pack_experts(**tensors, weight_dtype=torch.int8)
    assert small.nbytes < 0.52 * full.nbytes
    wanted, y = full(x, routed).float(), small(x, routed).float()
    assert (y - wanted).norm() < 0.02 * wanted.norm()


def test_no_rows_no_entries_and_the_meter() -> None:
    tensors, _ = make()
    packed = pack_experts(**tensors)
    empty = plan.from_mask(torch.zeros(0, 4, dtype=torch.bool))
    assert packed(torch.randn(0, 37), empty).shape == (0, 37)
    nothing = plan.from_mask(torch.zeros(3, 4, dtype=torch.bool))
    with CostMeter() as meter:
        assert (packed(torch.randn(3, 37), nothing) == 0).all()
        packed(torch.randn(1, 37), plan.from_top_k(torch.tensor([[2]]), num_groups=4))
    assert meter.total().executed_rows == 1
    assert meter.total().executed_bytes == 3 * 37 * 101 * 4


def test_opcheck_and_compile() -> None:
    tensors, routed = make()
    by_item = routed.transpose()
    for transposed, interleaved, block in ((False, False, 96), (True, True, 7)):
        weight = tensors["gate_up_proj"].mT.contiguous() if transposed else tensors["gate_up_proj"]
        opcheck(torch.ops.anabranch.expert_pack, (weight, 2, interleaved, transposed, block, 0))
    packed, x = pack_experts(**tensors), torch.randn(40, 37)
    weights = routed.weights.float()
    arguments = (x, packed.gate_up, None, None, packed.down, None, None, routed.group_offsets, routed.item_ids, weights)
    arguments += (by_item.item_offsets, by_item.entry_ids, None, 101, 37, 1, True, 0, 0, packed.isa)
    opcheck(torch.ops.anabranch.expert_ffn_packed, arguments)

    def step(x: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
        return packed(x, plan.from_top_k(indices, num_groups=4))

    indices = torch.randint(0, 4, (40, 2))
    assert torch.equal(torch.compile(step, fullgraph=True, backend="aot_eager")(x, indices), step(x, indices))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight_dtype": torch.int16}, r"weight_dtype is torch.int16"),
        ({"down_proj": torch.randn(3, 37, 101)}, r"down_proj has shape \(3, 37, 101\), must fit"),
        (
            {"down_proj": torch.randn(4, 37, 101).double()},
            r"down_proj is float64, must be float32 like gate_up_proj; convert",
        ),
        ({"gate_up_bias": torch.randn(4, 3)}, r"gate_up_bias has shape \(4, 3\)"),
        ({"gate_up_bias": torch.ones(4, 202, dtype=torch.int64)}, r"gate_up_bias is int64, must be float32 like"),
        ({"gate_up_proj": torch.zeros(4, 202, 37, dtype=torch.int32)}, r"gate_up_proj is int32, must be float32"),
        (
            {"gate_up_proj": torch.full((4, 202, 37), torch.inf), "weight_dtype": torch.int8},
            r"gate_up_proj of expert 0 holds inf, must be finite",
        ),
    ],
)
def test_bad_weights(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"pack_experts: .*{message}"):
        pack_experts(**(make()[0] | change))


def test_bad_calls() -> None:
    tensors, routed = make()
    packed = pack_experts(**tensors)
    with pytest.raises(ValueError, match="a gradient is wanted"):
        packed(torch.randn(40, 37, requires_grad=True), routed)
    with pytest.raises(ValueError, match=r"x has shape \(40, 36\)"):
        packed(torch.randn(40, 36), routed)
    with pytest.raises(ValueError, match="the plan has 4 groups"):
        packed(torch.randn(40, 37), routed, zero_experts=1)
    with pytest.raises(ValueError, match="must be at most"):
        broken = {name: getattr(packed, name) for name in packed.__dataclass_fields__} | {"isa": 9}
        PackedExperts(**broken)(torch.randn(40, 37), routed)
