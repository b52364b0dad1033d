"""lowrank_residual, and every op of the skip room called directly, on arbitrary input: a ValueError or a result, never
a crash, and nothing touched. Values that autograd or Python would never pass are the point here."""

from __future__ import annotations

import functools
import re
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from anabranch.skip import Norm, lowrank_residual

pytestmark = pytest.mark.cpu  # a GPU's ops do not look at values
ops = torch.ops.anabranch
MESSAGE = re.compile(r"^(gated_ffn|lowrank_residual)(_backward)?: .+, must .+", re.DOTALL)
FLOATING = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
HUGE = [-(2**63), -(2**31), -1, 0, 1, 3, 16, 2**30, 2**31, 2**62, 2**63 - 1]

fuzz = functools.partial(settings, deadline=None, derandomize=True)


def sample(data: st.DataObject, name: str) -> dict[str, Any]:
    """Valid arguments of the op."""
    dtype = data.draw(st.sampled_from(FLOATING))
    sums = torch.float64 if dtype == torch.float64 else torch.float32

    def values(*shape: int, of: torch.dtype = dtype) -> torch.Tensor:
        return torch.randn(*shape, dtype=torch.float64).to(of)

    rows, features, inner, rank = data.draw(st.integers(0, 5)), data.draw(st.integers(1, 5)), 4, 2
    some = data.draw(st.booleans())
    if name.startswith("lowrank"):
        x, saved = values(3, rows, features), values(3 * rows, rank)
        tensors = (x, values(3, rank, features), values(3, features, rank), values(features), None)
        before = (torch.randn_like(x), saved) if name.endswith("backward") else ()
        last = (0b11111,) if name.endswith("backward") else ()
        return named(name, (*before, *tensors, 1, 1e-5, 1, 0.5, some, *last))
    indexed, gated, norm = data.draw(st.booleans()), data.draw(st.booleans()), data.draw(st.integers(0, 2))
    widths = [0, 1, inner] if indexed else [0, inner]
    choice, parts = torch.randint(0, len(widths), (rows,)), 2 if gated else 1
    head = (values(rows, features), choice if indexed else choice.bool(), values(rows, of=sums) if some else None)
    head += (values(features) if norm else None, values(features) if norm == 2 else None)
    first, second = values(parts * inner, features), values(features, inner)
    biases = (values(parts * inner), values(features)) if some else (None, None)
    branch = (values(rows, features), values(rank, features), values(features, rank)) if some else (None,) * 3
    options = (norm, 1e-5, 1, gated, 0.5, True, False, 1, False, norm > 0, 2.0)
    if name == "gated_ffn_packed":
        isa = ops.cpu_isa()
        packed = ops.expert_pack(first[None], parts, False, False, 96, isa)
        packed_down = ops.expert_pack(second[None], 1, False, False, 192, isa)
        weights = (packed, None, biases[0], packed_down, None, biases[1])
        return named(name, (*head, *weights, *branch, widths, inner, *options, some, isa))
    arguments = (*head, first, biases[0], second, biases[1], *branch, widths, -1, *options)
    if name != "gated_ffn_backward":
        return named(name, (*arguments, some))
    _, _, *saved = ops.gated_ffn(*arguments, False)
    return named(name, (values(rows, features), *saved, *arguments, 0b11111111111))


def named(name: str, values: tuple[Any, ...]) -> dict[str, Any]:
    schema = getattr(ops, name).default._schema
    return dict(zip((argument.name for argument in schema.arguments), values, strict=True))


def other_value(data: st.DataObject, value: Any) -> Any:
    """Something of the same Python type, mostly wrong."""
    draw = data.draw
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return draw(st.sampled_from(HUGE))
    if isinstance(value, float):
        return draw(st.sampled_from([float("nan"), float("inf"), -1.0, 0.0, 1e300]))
    if isinstance(value, list):
        return draw(st.lists(st.sampled_from(HUGE), max_size=18))
    if value is None:
        return torch.randn(draw(st.lists(st.integers(0, 5), max_size=3))).to(draw(st.sampled_from(FLOATING)))
    kind = draw(st.sampled_from(["shape", "dtype", "size", "dim", "values"]))
    if kind == "shape":
        return torch.zeros(draw(st.lists(st.integers(0, 9), max_size=4)), dtype=value.dtype)
    if kind == "dtype":
        return value.to(draw(st.sampled_from([*FLOATING, torch.int8, torch.int32, torch.int64, torch.bool])))
    if kind == "size":
        return value.new_zeros([size + 1 for size in value.shape])
    if kind == "dim":
        return value[None]
    if value.is_floating_point() or value.dtype == torch.bool:
        return value.new_full(value.shape, draw(st.sampled_from([0, 1, 3e4])))
    return value.new_full(value.shape, draw(st.sampled_from([-1, 0, 3, torch.iinfo(value.dtype).max])))


OPS = ["gated_ffn", "gated_ffn_inference", "gated_ffn_packed", "gated_ffn_backward"]
OPS += ["lowrank_residual", "lowrank_residual_inference", "lowrank_residual_backward"]


@pytest.mark.parametrize("name", OPS)
@fuzz(max_examples=400)
@given(st.data())
def test_any_argument_of_any_op(name: str, data: st.DataObject) -> None:
    torch.manual_seed(0)
    arguments = sample(data, name)
    for changed in data.draw(st.lists(st.sampled_from(sorted(arguments)), min_size=1, max_size=2)):
        arguments[changed] = other_value(data, arguments[changed])
    tensors = [value for value in arguments.values() if isinstance(value, torch.Tensor)]
    before = [tensor.clone() for tensor in tensors]
    try:
        getattr(ops, name)(*arguments.values())
    except ValueError as error:
        assert MESSAGE.match(str(error)), str(error)
    assert all(torch.equal(a, b) or a.isnan().any() for a, b in zip(tensors, before, strict=True))


@pytest.mark.parametrize("name", OPS)
@fuzz(max_examples=50)
@given(st.data())
def test_samples_are_valid(name: str, data: st.DataObject) -> None:
    """Else the test above would test one refusal over and over."""
    torch.manual_seed(0)
    getattr(ops, name)(*sample(data, name).values())


@fuzz(max_examples=300)
@given(st.data())
def test_flawed_low_rank_calls_are_refused(data: st.DataObject) -> None:
    torch.manual_seed(0)
    draw = data.draw
    dtype, stacked, features = draw(st.sampled_from(FLOATING)), draw(st.booleans()), draw(st.integers(2, 5))
    stack, rows, rank = (3,) if stacked else (), draw(st.lists(st.integers(0, 4), max_size=2)), draw(st.integers(1, 4))
    arguments = {
        "x": torch.randn(*stack, *rows, features).to(draw(st.sampled_from(FLOATING))),
        "down_proj": torch.randn(*stack, rank, features).to(dtype),
        "up_proj": torch.randn(*stack, features, rank).to(dtype),
        "norm": Norm(torch.ones(features), torch.ones(features), kind="layer") if draw(st.booleans()) else None,
    }
    assert lowrank_residual(**arguments).shape == arguments["x"].shape
    flaw, name = draw(st.integers(0, 5)), draw(st.sampled_from(["x", "down_proj", "up_proj"]))
    tensor, size = arguments[name], [*arguments[name].shape]
    if flaw == 0:
        wrong: dict[str, Any] = {name: tensor.long()}
    elif flaw == 1:
        wrong = {name: tensor.to("meta")}
    elif flaw == 2:
        wrong = {name: tensor.new_zeros(*size[:-1], size[-1] + draw(st.sampled_from([1, -1])))}
    elif flaw == 3:
        wrong = {name: tensor.new_zeros(())}
    elif flaw == 4:
        wrong = {"activation": draw(st.sampled_from(["tanh", "", None]))}
    else:
        integers = Norm(None, torch.ones(features).long())
        wrong = {"norm": draw(st.sampled_from([Norm(torch.ones(features + 1)), integers, Norm(eps=-1.0)]))}
    changed = arguments | wrong
    with pytest.raises(ValueError, match=re.compile(r"^lowrank_residual: .+, must .+", re.DOTALL)):
        lowrank_residual(**changed)
