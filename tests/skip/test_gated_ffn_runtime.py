"""gated_ffn under torch.compile, CostMeter and fake tensors, and the short way of calls that keep nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from gated_cases import call, leaves, make, mapped
from torch._subclasses.fake_tensor import FakeTensorMode

from anabranch import CostMeter
from anabranch.core.cost import Cost
from anabranch.skip import Anchor, LowRank, Norm, SmallFfn, gated_ffn, pack_ffn, prefix_ffn

ops = torch.ops.anabranch


@pytest.mark.parametrize("widths", [None, (0, 3, 9)])
@pytest.mark.parametrize("otherwise", ["identity", "small ffn", "anchor with lora"])
def test_compiles_whole_with_gradients_and_other_sizes(otherwise: str, widths: tuple[int, ...] | None) -> None:
    def step(arguments: dict[str, Any]) -> Any:
        return call(arguments, widths, return_cosine=True, residual_scale=0.5)

    torch._dynamo.reset()
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager", dynamic=True)
    for rows in (11, 7, 0):  # of no other dimension: dimensions of one size are taken to be one
        arguments = make(rows, bias=True, norm="layer", otherwise=otherwise, dtype=torch.float32)
        if widths:
            arguments["keep"] = torch.randint(0, 3, (rows,))
        inputs = list(leaves(arguments).values())
        with torch._dynamo.config.patch(error_on_recompile=rows == 7):  # one graph for all sizes but 0
            y, cosine = compiled(arguments)
        wanted, wanted_cosine = step(arguments)
        assert torch.equal(y, wanted) and torch.equal(cosine, wanted_cosine)
        ours, theirs = (torch.autograd.grad(one.sum(), inputs) for one in (y, wanted))
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    with torch.no_grad():
        arguments["keep"] = arguments["keep"] & False  # the short way is not taken
        assert torch.equal(compiled(arguments)[0], step(arguments)[0])


def test_compiles_by_the_default_backend_and_under_autocast() -> None:
    arguments = make(9, features=16, inner=24, dtype=torch.float32, otherwise="anchor")

    def step(x: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
        with torch.autocast(x.device.type, torch.bfloat16):
            return gated_ffn(**arguments | {"x": x * 2, "keep": keep}, capacity=9) + x

    x, keep = arguments["x"], arguments["keep"]
    y, wanted = torch.compile(step, fullgraph=True)(x, keep), step(x, keep)
    torch.testing.assert_close(y, wanted)
    ours, theirs = (torch.autograd.grad(one.sum(), x) for one in (y, wanted))
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("gated", [True, False])
def test_the_meter_counts_rows_that_ran_at_their_width(gated: bool) -> None:
    parts = 3 if gated else 2
    arguments = mapped(make(6, gated=gated, dtype=torch.float32), torch.Tensor.detach)
    arguments["keep"] = torch.tensor([0, 2, 1, 0, 1, 1])
    with CostMeter() as meter:
        call(arguments, (0, 4, 9))
        call(arguments | {"keep": torch.zeros(6, dtype=torch.int64)}, (0, 4, 9))
        call(arguments | {"keep": torch.ones(6, dtype=torch.int64)}, (0, 4, 9))
        call(arguments | {"keep": torch.arange(6) < 2})
    feature = parts * 5  # numbers that multiply, of one intermediate feature
    dense = {"dense_rows": 6, "dense_flops": 6 * 2 * feature * 9, "dense_bytes": feature * 9 * 4}
    wanted = [(4, 9 + 3 * 4, 9), (0, 0, 0), (6, 6 * 4, 4), (2, 2 * 9, 9)]  # rows, their features, features to read
    assert [cost for _, _, cost in meter.calls()] == [
        Cost(1, rows, executed_flops=2 * feature * ran, executed_bytes=feature * read * 4, **dense)
        for rows, ran, read in wanted
    ]
    assert [op for _, op, _ in meter.calls()] == ["prefix_ffn"] * 3 + ["gated_ffn"]


def test_the_meter_counts_the_else_branch_apart() -> None:
    arguments = mapped(make(6, dtype=torch.float32), torch.Tensor.detach) | {"keep": torch.arange(6) < 2}
    low_rank, lora = LowRank(torch.randn(3, 5), torch.randn(5, 3)), Anchor(torch.randn(6, 5))
    with CostMeter() as meter:
        gated_ffn(**arguments | {"otherwise": low_rank})
        gated_ffn(**arguments | {"otherwise": lora})  # an anchor alone multiplies nothing
        gated_ffn(**arguments | {"otherwise": low_rank, "keep": torch.arange(6) < 6})
    calls = [(op, cost) for _, op, cost in meter.calls()]
    assert [op for op, _ in calls] == ["gated_ffn", "gated_ffn.otherwise"] + ["gated_ffn"] * 2 + ["gated_ffn.otherwise"]
    numbers = 2 * 3 * 5
    dense = {"dense_rows": 6, "dense_flops": 6 * 2 * numbers, "dense_bytes": numbers * 4}
    assert calls[1][1] == Cost(1, 4, executed_flops=4 * 2 * numbers, executed_bytes=numbers * 4, **dense)
    assert calls[4][1] == Cost(1, 0, executed_flops=0, executed_bytes=0, **dense)


@pytest.mark.cpu
@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("device", ["cuda", "cpu", "meta"])
def test_fake_tensors(device: str, dtype: torch.dtype) -> None:
    sums = torch.float64 if dtype == torch.float64 else torch.float32

    def values(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, dtype=dtype)

    with FakeTensorMode(), torch.device(device):
        x, first, second, keep = values(2, 6, 8), values(20, 8), values(8, 10), torch.ones(2, 6, dtype=torch.bool)
        branches = (None, Anchor(values(2, 6, 8)), SmallFfn(values(6, 8), values(8, 3)))
        for branch in branches:
            y, cosine = gated_ffn(x, keep, first, second, norm=Norm(), otherwise=branch, return_cosine=True)
            assert (y.shape, y.dtype, y.device.type) == ((2, 6, 8), dtype, device)
            assert (cosine.shape, cosine.dtype, cosine.device.type) == ((2, 6), sums, device)
        index = torch.zeros(2, dtype=torch.int64)
        assert prefix_ffn(x, index, first, second, (0, 4, 10)).shape == (2, 6, 8)
        options = ((0, 4, 10), 7, 1, 1e-6, 1, True, 1.0, True, True, 1, True, True, 1.0)
        rows, choices = values(12, 8), torch.zeros(12, dtype=torch.int64)
        arguments = (rows, choices, torch.ones(12, dtype=sums), values(8), None, first, None, second, values(8))
        arguments += (values(12, 8), values(6, 8), values(8, 3), *options)
        y, cosine, *saved = ops.gated_ffn(*arguments, True)
        assert [s.shape for s in (y, cosine, *saved)] == [(12, 8), (12,), (4,), (12,), (7, 20), (12, 6)]
        gradients = ops.gated_ffn_backward(y, *saved, *arguments, 0b11110110111)
        shapes = [(12, 8), (12,), (8,), (0,), (20, 8), (20,), (0,), (8,), (12, 8), (6, 8), (8, 3)]
        assert [g.shape for g in gradients] == [tuple(s) for s in shapes]
        assert gradients[1].dtype == sums and all(g.device.type == device for g in gradients)


@pytest.mark.cpu
def test_the_short_way_of_a_call_that_keeps_nothing() -> None:
    """It must be a copy, contiguous, and the same as the long way says, which a meter asks for."""
    arguments = mapped(make(3, 4, dtype=torch.bfloat16), torch.Tensor.detach)
    arguments |= {"x": arguments["x"].mT.contiguous().mT, "keep": torch.zeros(3, 4, dtype=torch.bool)}
    packed = pack_ffn(arguments["gate_up_proj"], arguments["down_proj"])
    names = ("x", "keep", "gate", "norm")
    with torch.no_grad():
        results = [gated_ffn(**arguments, return_cosine=True)]
        results.append(packed(**{name: arguments[name] for name in names}, return_cosine=True))
        with CostMeter() as meter:
            results.append(gated_ffn(**arguments, return_cosine=True))
            results.append(packed(**{name: arguments[name] for name in names}, return_cosine=True))
        assert meter.total().executed_rows == 0 and meter.total().calls == 2
        for y, cosine in results:
            assert torch.equal(y, arguments["x"]) and y.is_contiguous()
            assert y.data_ptr() != arguments["x"].data_ptr()
            assert torch.equal(cosine, torch.ones(3, 4)) and cosine.dtype == torch.float32
        for wrong in ({"x": arguments["x"].long()}, {"keep": arguments["keep"][:2]}, {"x": arguments["x"][..., :4]}):
            with pytest.raises(ValueError, match=r"^gated_ffn: .+, must .+"):
                gated_ffn(**arguments | wrong)
            with pytest.raises(ValueError, match=r"^gated_ffn: .+, must .+"):
                packed(**{name: arguments[name] for name in names} | wrong)
