"""Every op of the mixers room called directly, and its functions, on arbitrary input: a ValueError or a result, never a
crash, and nothing touched. Values that autograd or Python would never pass are the point here."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from stream_references import KINDS, mapped, projection

from anabranch.mixers import (
    Projection,
    SigmoidGates,
    Sinkhorn,
    SoftmaxGates,
    cayley,
    connect,
    gated_mean,
    grassmann,
    permutation_mixture,
    sinkhorn,
    truncated_cayley,
)

pytestmark = pytest.mark.cpu  # a GPU's ops do not look at values
ops = torch.ops.anabranch
FLOATING = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
HUGE = [-(2**63), -(2**31), -1, 0, 1, 2, 3, 4, 5, 7, 9, 1000, 2**31, 2**62, 2**63 - 1]
OPS = ["mix_matrix", "mix_matrix_backward", "stream_pre", "stream_pre_backward", "stream_post", "stream_post_backward"]
OPS += ["stream_post_pre", "stream_post_pre_backward", "gated_mean", "gated_mean_backward"]

fuzz = functools.partial(settings, deadline=None, derandomize=True)


def sample(data: st.DataObject, name: str) -> dict[str, Any]:
    """Valid arguments of the op, by name."""
    dtype = data.draw(st.sampled_from(FLOATING))
    sums = torch.float64 if dtype == torch.float64 else torch.float32
    n, tokens, channels = data.draw(st.integers(2, 5)), data.draw(st.integers(0, 4)), data.draw(st.integers(1, 5))

    def values(*shape: int, of: torch.dtype = dtype) -> torch.Tensor:
        return torch.randn(*shape, dtype=torch.float64).to(of)

    one = projection(data.draw(st.sampled_from(sorted(KINDS))), n, channels, sums)
    one = mapped(one, lambda tensor: tensor.detach())
    x, y, size = values(tokens, n, channels), values(tokens, channels), n * (n + 2)
    if name.startswith("gated_mean"):
        arguments: tuple[Any, ...] = (x, values(tokens, n, channels))
        return named(name, (y, *arguments, 0b11) if name.endswith("backward") else arguments)
    if name.startswith("mix_matrix"):
        options = one.mixer.arguments(n, x.device)
        logits = values(tokens, one.mixer.num_logits(n), of=sums)
        if name == "mix_matrix":
            return named(name, (logits, *options))
        return named(name, (values(tokens, n, n, of=sums), logits, ops.mix_matrix(logits, *options), *options))
    before = values(tokens, size, of=sums)
    if name.startswith("stream_post") and "pre" not in name:
        return named(name, (values(*x.shape), x, y, before, 0b111) if name.endswith("backward") else (x, y, before))
    tail = (*one.tensors(x), *one.options(x))
    upstream = (values(tokens, channels), values(tokens, size, of=sums), values(*x.shape), values(*x.shape))
    if "post" in name:
        lagged = data.draw(st.booleans())
        if not name.endswith("backward"):
            return named(name, (x, y, before, *tail, lagged))
        saved = ops.stream_post_pre(x, y, before, *tail, lagged)[2:]
        return named(name, (*upstream, x, y, before, *saved, *tail, lagged))
    lag = before if data.draw(st.booleans()) else None
    if name == "stream_pre":
        return named(name, (x, lag, *tail))
    return named(name, (*upstream, x, lag, *ops.stream_pre(x, lag, *tail)[1:], *tail, 0b11111))


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
        return draw(st.sampled_from([float("nan"), float("inf"), -1.0, 0.0, 1e-6, 1e300]))
    if value is None:
        dtype = draw(st.sampled_from([*FLOATING, torch.int32]))
        return torch.ones(draw(st.lists(st.integers(0, 5), max_size=3)), dtype=dtype)
    kind = draw(st.sampled_from(["shape", "dtype", "size", "dim", "values", "turned"]))
    if kind == "shape":
        return torch.zeros(draw(st.lists(st.integers(0, 9), max_size=4)), dtype=value.dtype)
    if kind == "dtype":
        return value.to(draw(st.sampled_from([*FLOATING, torch.int8, torch.int32, torch.int64, torch.bool])))
    if kind == "size":
        return value.new_zeros([size + 1 for size in value.shape])
    if kind == "dim":
        return value[None]
    if kind == "turned":
        return value.mT.contiguous().mT if value.dim() > 1 else value.repeat_interleave(2)[::2]
    if value.is_floating_point():
        return value.new_full(value.shape, draw(st.sampled_from([0, 3e4, float("nan"), float("inf")])))
    return value.new_full(value.shape, draw(st.sampled_from([-1, 0, 3, torch.iinfo(value.dtype).max])))


@pytest.mark.parametrize("name", OPS)
@fuzz(max_examples=150)
@given(st.data())
def test_any_argument_of_any_op(name: str, data: st.DataObject) -> None:
    torch.manual_seed(0)
    arguments = sample(data, name)
    for changed in data.draw(st.lists(st.sampled_from(sorted(arguments)), min_size=1, max_size=2, unique=True)):
        arguments[changed] = other_value(data, arguments[changed])
    tensors = [value for value in arguments.values() if isinstance(value, torch.Tensor)]
    before = [tensor.clone() for tensor in tensors]
    try:
        getattr(ops, name)(*arguments.values())
    except ValueError as error:
        assert re.match(rf"^{name}: .+, must .+", str(error), re.DOTALL), str(error)
    assert all(torch.equal(a, b) or a.isnan().any() for a, b in zip(tensors, before, strict=True))


@pytest.mark.parametrize("name", OPS)
@fuzz(max_examples=30)
@given(st.data())
def test_samples_are_valid(name: str, data: st.DataObject) -> None:
    """Else the test above would test one refusal over and over."""
    torch.manual_seed(0)
    getattr(ops, name)(*sample(data, name).values())


FUNCTIONS: dict[str, tuple[Callable[..., Any], tuple[int, ...]]] = {
    "sinkhorn": (sinkhorn, (3, 4, 4)),
    "cayley": (cayley, (3, 4, 4)),
    "truncated_cayley": (truncated_cayley, (3, 4, 4)),
    "grassmann": (grassmann, (3, 4, 2)),
    "permutation_mixture": (permutation_mixture, (3, 24)),
}


@pytest.mark.parametrize("name", sorted(FUNCTIONS))
@fuzz(max_examples=60)
@given(st.data())
def test_flawed_logits_are_refused(name: str, data: st.DataObject) -> None:
    function, shape = FUNCTIONS[name]
    dtype = data.draw(st.sampled_from(FLOATING))
    logits = torch.ones(shape, dtype=dtype)
    assert function(logits).shape == (3, 4, 4)
    wrong = data.draw(st.sampled_from([
        logits.long(), logits.bool(), logits[..., :0], logits[..., 0, :0], logits.new_zeros(()),
        logits.new_zeros(3, 9, 9), logits.new_zeros(*shape[:-1], shape[-1] + 5),
    ]))  # fmt: skip
    with pytest.raises(ValueError, match=re.compile(rf"^{name}: .+, must .+; .+", re.DOTALL)):
        function(wrong)


@fuzz(max_examples=200)
@given(st.data())
def test_flawed_steps_are_refused(data: st.DataObject) -> None:
    draw = data.draw
    torch.manual_seed(0)
    n, channels, batch = draw(st.integers(2, 8)), draw(st.integers(1, 5)), draw(st.lists(st.integers(0, 3), max_size=2))
    dtype, count = draw(st.sampled_from(FLOATING)), n * n + 2 * n
    x = torch.randn(*batch, n, channels).to(dtype)
    good = Projection(torch.randn(count, n * channels), torch.randn(count), torch.randn(count), Sinkhorn())
    step = connect(x, good)
    assert step.merge(step.input).shape == x.shape
    flaw, name = draw(st.integers(0, 6)), draw(st.sampled_from(["weight", "scale", "bias"]))
    tensor: torch.Tensor = getattr(good, name)
    wrong, streams = good, x
    if flaw == 0:
        wrong = dataclasses.replace(good, **{name: tensor.long()})
    elif flaw == 1:
        wrong = dataclasses.replace(good, **{name: tensor.to("meta")})
    elif flaw == 2:
        wrong = dataclasses.replace(good, **{name: tensor.new_zeros(*tensor.shape[:-1], tensor.shape[-1] + 1)})
    elif flaw == 3:
        wrong = dataclasses.replace(good, **{name: tensor.new_zeros(())})
    elif flaw == 4:
        wrong = dataclasses.replace(good, gates=SoftmaxGates(), per_stream=draw(st.booleans()))
    elif flaw == 5:
        streams = draw(st.sampled_from([x.long(), x[..., :0], x.new_zeros(3), x.new_zeros(3, 9, 2), x.to("meta")]))
    else:
        wrong = dataclasses.replace(good, norm_eps=draw(st.sampled_from([-1.0, float("nan")])), gates=SigmoidGates())
    with pytest.raises(ValueError, match=re.compile(r"^connect: .+, must .+", re.DOTALL)):
        connect(streams, wrong)
    with pytest.raises(ValueError, match=re.compile(r"^merge: .+, must .+; .+", re.DOTALL)):
        step.merge(draw(st.sampled_from([x, step.input.long(), step.input.to("meta"), step.input[..., :0]])))
    with pytest.raises(ValueError, match=re.compile(r"^gated_mean: .+, must .+; .+", re.DOTALL)):
        gated_mean(x, draw(st.sampled_from([x[..., :0], x.long(), x.to("meta"), x.new_zeros(())])))
