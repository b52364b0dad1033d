"""gated_ffn, prefix_ffn and their packed forms on arbitrary input: right where it is valid, else a ValueError, and in
any case nothing is touched."""

from __future__ import annotations

import functools
import re
from typing import Any

import pytest
import torch
from gated_cases import leaves, mapped, masked_dense
from hypothesis import given, settings
from hypothesis import strategies as st

from anabranch.skip import Anchor, CachedDelta, LowRank, Norm, SmallFfn, gated_ffn, pack_ffn, prefix_ffn

pytestmark = pytest.mark.cpu  # a GPU's ops do not look at values
FLOATING = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
WEIGHTS = ("gate_up_proj", "down_proj", "gate_up_bias", "down_bias", "gated")
EXACT = ("identity", "relu", "relu2")  # activations whose result on whole numbers is whole

fuzz = functools.partial(settings, deadline=None, derandomize=True)


def whole_numbers(*shape: int, dtype: torch.dtype, high: int = 1) -> torch.Tensor:
    return torch.randint(-high, high + 1, shape).to(dtype)


def else_branch(data: st.DataObject, shape: tuple[int, ...], dtype: torch.dtype, x_dtype: torch.dtype) -> Any:
    kind, rank = data.draw(st.integers(0, 5)), data.draw(st.integers(1, 3))
    rows, first = whole_numbers(*shape, dtype=x_dtype), whole_numbers(rank, shape[-1], dtype=dtype)
    second = whole_numbers(shape[-1], rank, dtype=dtype)
    if kind < 2:
        return CachedDelta(rows) if kind else None
    if kind < 4:
        return Anchor(rows, first, second, 0.5) if kind == 2 else Anchor(rows)
    if kind == 4:
        return LowRank(first, second, scale=2.0, normed=data.draw(st.booleans()))
    return SmallFfn(first.repeat(2, 1), second, "relu2")


def valid_call(data: st.DataObject) -> tuple[dict[str, Any], tuple[int, ...] | None]:
    """Arguments, with widths those of prefix_ffn. Whole numbers: without a norm every sum is exact in every dtype."""
    draw = data.draw
    dtype, gated, normed, prefix = draw(st.sampled_from(FLOATING)), *(draw(st.booleans()) for _ in range(3))
    x_dtype = draw(st.sampled_from(FLOATING) | st.just(dtype) | st.just(dtype))
    leading = draw(st.lists(st.integers(0, 4), max_size=2))
    features, inner = draw(st.integers(2, 5)), draw(st.integers(1, 6))
    widths = tuple(sorted(draw(st.sets(st.integers(0, inner), max_size=3)) | {inner})) if prefix else None
    share = draw(st.sampled_from([0, 0.5, 1]))
    keep = torch.randint(0, len(widths), leading) if widths else torch.rand(leading) < share
    vector = functools.partial(whole_numbers, dtype=dtype)
    arguments = {
        "x": whole_numbers(*leading, features, dtype=x_dtype),
        "keep": keep,
        "gate_up_proj": vector(features, (2 if gated else 1) * inner).t(),
        "down_proj": vector(inner, features).t() if draw(st.booleans()) else vector(features, inner),
        "gate": whole_numbers(*leading, dtype=draw(st.sampled_from(FLOATING)), high=2) if draw(st.booleans()) else None,
        "norm": Norm(vector(features), vector(features), 0.5, "layer") if normed else None,
        "gate_up_bias": vector((2 if gated else 1) * inner) if draw(st.booleans()) else None,
        "down_bias": vector(features) if draw(st.booleans()) else None,
        "activation": draw(st.sampled_from(EXACT)),
        "gated": gated,
        "residual_scale": draw(st.sampled_from([0.0, 0.5, -2.0])),
        "otherwise": else_branch(data, (*leading, features), dtype, x_dtype),
    }
    return arguments, widths


def functions_of(arguments: dict[str, Any], widths: tuple[int, ...] | None) -> dict[str, Any]:
    """The function and its packed form, each of the arguments by name."""
    weights = {name: arguments[name] for name in WEIGHTS}

    def whole(**given: Any) -> Any:
        if widths is None:
            return gated_ffn(**given, return_cosine=True)
        given.setdefault("widths", widths)
        return prefix_ffn(given.pop("x"), given.pop("keep"), **given, return_cosine=True)

    def packed(**given: Any) -> Any:
        block = pack_ffn(**(weights | {name: given.pop(name, weights[name]) for name in WEIGHTS}))
        if widths is None:
            return block(**given, return_cosine=True)
        given.setdefault("widths", widths)
        return block.prefix(given.pop("x"), given.pop("keep"), **given, return_cosine=True)

    return {"whole": whole, "packed": packed}


@fuzz(max_examples=200)
@given(st.data())
def test_valid_calls_are_right(data: st.DataObject) -> None:
    torch.manual_seed(0)
    arguments, widths = valid_call(data)
    wanted, cosine = masked_dense(**mapped(arguments, torch.Tensor.double), widths=widths)
    x, dtype = arguments["x"], arguments["gate_up_proj"].dtype
    exact = arguments["norm"] is None and x.dtype == dtype
    largest = wanted.abs().max().item() if wanted.numel() else 0.0
    bound = 8 * max(torch.finfo(one).eps for one in (x.dtype, dtype)) * (1 + largest)
    for function in functions_of(arguments, widths).values():
        y, found = function(**arguments)
        assert (y.shape, y.dtype, found.shape) == (x.shape, x.dtype, x.shape[:-1])
        if exact:
            assert torch.equal(y, wanted.to(x.dtype))
            torch.testing.assert_close(found.double(), cosine, rtol=0, atol=0.02)
        else:
            torch.testing.assert_close(y.double(), wanted, rtol=0, atol=bound)
    asking = mapped(arguments, lambda tensor: tensor.detach().requires_grad_())
    y, _ = functions_of(arguments, widths)["whole"](**asking)
    inputs = list(leaves(asking).values())
    for tensor, gradient in zip(inputs, torch.autograd.grad(y.sum(), inputs), strict=True):
        assert (gradient.shape, gradient.dtype) == (tensor.shape, tensor.dtype)


def in_branch(arguments: dict[str, Any], name: str, change: Any) -> dict[str, Any]:
    """The arguments whose tensor `name` of leaves, or keep, is changed."""
    at = (leaves(arguments) | {"keep": arguments["keep"]})[name]
    if name == "keep":
        return {"keep": change(at)}
    return mapped({key: arguments[key] for key in (name.split(".")[0],)}, lambda t: change(t) if t is at else t)


CHANGES = {
    "size": lambda t: torch.cat((t, t.new_zeros(1, *t.shape[1:]))) if t.dim() else t.new_zeros(3, 1),
    "dim": lambda t: t[..., None],
    "dtype": lambda t: t.to(torch.int32),
    "device": lambda t: t.to("meta"),
}


def flawed(data: st.DataObject, arguments: dict[str, Any], widths: tuple[int, ...] | None) -> dict[str, Any]:
    """One thing that is wrong."""
    flaws = [*CHANGES, "weight dtype", "activation", "norm", "otherwise", "pair"]
    flaws += [] if widths is None else ["widths"] + (["choice"] if arguments["keep"].numel() else [])
    flaw = data.draw(st.sampled_from(flaws))
    if flaw in CHANGES:
        name = data.draw(st.sampled_from([*leaves(arguments), "keep"]))
        return in_branch(arguments, name, CHANGES[flaw])
    if flaw == "weight dtype":
        name = data.draw(st.sampled_from([n for n in WEIGHTS[1:4] if arguments[n] is not None]))
        others = [dtype for dtype in FLOATING if dtype != arguments[name].dtype]
        return {name: arguments[name].to(data.draw(st.sampled_from(others)))}
    if flaw == "activation":
        return {"activation": data.draw(st.sampled_from(["tanh", "", None, 1]))}
    if flaw == "norm":
        return {"norm": data.draw(st.sampled_from([Norm(kind="group"), Norm(eps=-1.0), Norm(eps=float("nan"))]))}
    if flaw == "otherwise":
        half = Anchor(torch.zeros_like(arguments["x"]), torch.ones(2, arguments["x"].shape[-1]))
        return {"otherwise": data.draw(st.sampled_from(["skip", 1.0, half]))}
    if flaw == "pair":
        matrix = arguments["gate_up_proj"]
        return {"gate_up_proj": data.draw(st.sampled_from([(matrix,), (matrix, matrix[:, 1:]), (matrix, matrix)]))}
    if flaw == "choice":
        choices = arguments["keep"].clone()
        choices.view(-1)[-1] = data.draw(st.sampled_from([-1, len(widths), 2**62, -(2**63)]))
        return {"keep": choices}
    inner = arguments["down_proj"].shape[1]
    wrong = [(), (0,), (inner + 1,), (-1, inner), (inner, inner), (2**40,), (0.5, 1), tuple(range(17))]
    return {"widths": data.draw(st.sampled_from(wrong))}


@fuzz(max_examples=500)
@given(st.data())
def test_flawed_calls_are_refused(data: st.DataObject) -> None:
    torch.manual_seed(0)
    arguments, widths = valid_call(data)
    changed = arguments | flawed(data, arguments, widths)
    tensors = [t for t in (*leaves(changed).values(), changed["keep"]) if t.device.type == "cpu"]
    before = [tensor.clone() for tensor in tensors]
    op = "gated_ffn" if widths is None else "prefix_ffn"
    for function in functions_of(arguments, widths).values():
        with pytest.raises(ValueError, match=re.compile(rf"^({op}|pack_ffn): .+, must .+", re.DOTALL)):
            function(**changed)
    assert all(torch.equal(a, b) for a, b in zip(tensors, before, strict=True))


@fuzz(max_examples=60)
@given(st.data(), st.integers(-3, 30))
def test_any_capacity(data: st.DataObject, capacity: int) -> None:
    torch.manual_seed(0)
    arguments, widths = valid_call(data)
    running = int((torch.tensor(widths or (0, 1))[arguments["keep"].long()] > 0).sum())
    function = functions_of(arguments, widths)["whole"]
    if running <= capacity <= arguments["keep"].numel():
        assert torch.equal(function(**arguments, capacity=capacity)[0], function(**arguments)[0])
    else:
        with pytest.raises(ValueError, match=r"^(gated|prefix)_ffn: .+, must .+"):
            function(**arguments, capacity=capacity)
