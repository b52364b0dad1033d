"""gated_ffn and prefix_ffn against the dense block, masked: values, gradients, determinism, and who is read at all."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from gated_cases import BY_TORCH, ELSE_BRANCHES, call, leaves, make, mapped, masked_dense
from torch.autograd import gradcheck

from anabranch.skip import gated_ffn, pack_ffn

WIDTHS = (0, 2, 5, 9)
KINDS = (None, "rms", "layer", "bare")


def compare(arguments: dict[str, Any], widths: tuple[int, ...] | None, **options: Any) -> None:
    """Values, cosines and every gradient in float64."""
    y, cosine = call(arguments, widths, return_cosine=True, **options)
    wanted, wanted_cosine = masked_dense(**arguments, widths=widths, **options)
    torch.testing.assert_close(y, wanted, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(cosine, wanted_cosine, rtol=1e-9, atol=1e-9)
    assert not cosine.requires_grad
    with torch.no_grad():
        assert torch.equal(call(arguments, widths, **options), y)
    inputs, upstream = leaves(arguments), torch.randn_like(y)
    ours = torch.autograd.grad(y, list(inputs.values()), upstream)
    theirs = torch.autograd.grad(wanted, list(inputs.values()), upstream, materialize_grads=True)
    for name, a, b in zip(inputs, ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("norm", KINDS)
@pytest.mark.parametrize("otherwise", ELSE_BRANCHES)
def test_every_option_forward_and_backward(otherwise: str, norm: str | None) -> None:
    activations = itertools.cycle(BY_TORCH)
    for gated, bias, prefix in itertools.product((True, False), repeat=3):
        arguments = make(11, gated=gated, bias=bias, gate=gated == bias, norm=norm, otherwise=otherwise)
        arguments["keep"][:2] = torch.tensor([True, False])
        if prefix:
            arguments["keep"] = torch.arange(11)[torch.randperm(11)] % 4
        compare(arguments, WIDTHS if prefix else None, activation=next(activations), residual_scale=0.5)


@pytest.mark.parametrize("otherwise", ELSE_BRANCHES)
@pytest.mark.parametrize("kept", ["none", "all", "no rows"])
def test_none_and_all(otherwise: str, kept: str) -> None:
    arguments = make(0 if kept == "no rows" else 6, bias=True, norm="layer", otherwise=otherwise)
    arguments["keep"].fill_(kept == "all")
    compare(arguments, None)
    y, cosine = gated_ffn(**mapped(arguments, torch.Tensor.detach), return_cosine=True)
    assert y.shape == arguments["x"].shape
    if kept == "none" and otherwise == "identity":
        assert torch.equal(y, arguments["x"]) and torch.equal(cosine, torch.ones_like(cosine))


def test_widths_that_no_row_chose_and_never_zero() -> None:
    for widths, choices in (((1, 3, 9), [0, 0, 2, 0, 2]), ((4,), [0] * 5), ((0, 3), [1, 0, 0, 1, 1])):
        arguments = make(5, bias=True) | {"keep": torch.tensor(choices)}
        compare(arguments, widths)
        unused = torch.autograd.grad(call(arguments, widths).sum(), arguments["gate_up_proj"])[0]
        reach = max(widths[c] for c in choices)
        for half in unused.view(2, 9, 5):
            assert (half[reach:] == 0).all() and (half[:reach] != 0).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rows, features, inner", [(3, 37, 53), (150, 64, 172)])
@pytest.mark.parametrize("otherwise", ["small ffn", "anchor with lora"])
def test_error_at_most_twice_torchs(
    cpu_isa: str, dtype: torch.dtype, rows: int, features: int, inner: int, otherwise: str
) -> None:
    arguments = make(rows, features=features, inner=inner, dtype=dtype, norm="layer", bias=True, otherwise=otherwise)
    widths = (0, 8, inner // 2, inner)
    arguments["keep"] = torch.arange(rows) % 4
    exact = mapped(arguments, lambda tensor: tensor.detach().double().requires_grad_())
    upstream = torch.randn(rows, features).to(dtype)
    results = []
    for function, inputs in ((masked_dense, exact), (masked_dense, arguments), (call, arguments)):
        y = function(**inputs, widths=widths)[0] if function is masked_dense else call(inputs, widths)
        results.append([y.detach(), *torch.autograd.grad(y, list(leaves(inputs).values()), upstream.to(y.dtype))])
    for name, wanted, by_torch, ours in zip(("y", *leaves(arguments)), *results, strict=True):
        scale = wanted.abs().max().item()
        torch_error = (by_torch.double() - wanted).abs().max().item()
        error = (ours.double() - wanted).abs().max().item()
        assert error <= 2 * torch_error + 8 * torch.finfo(dtype).eps * scale, name


@pytest.mark.parametrize("otherwise", ELSE_BRANCHES)
def test_gradcheck(otherwise: str) -> None:
    arguments = make(6, features=3, inner=4, bias=True, norm="layer", otherwise=otherwise)
    arguments["keep"] = torch.tensor([2, 0, 1, 3, 0, 2])
    names = leaves(arguments)

    def through(*tensors: torch.Tensor) -> torch.Tensor:
        given = iter(tensors)
        return call(mapped(arguments, lambda _: next(given)), (0, 1, 3, 4), activation="gelu")

    assert gradcheck(through, tuple(names.values()))
    (first,) = torch.autograd.grad(through(*names.values()).square().sum(), names["x"], create_graph=True)
    with pytest.raises(NotImplementedError, match="gated_ffn: it is differentiable once"):
        first.sum().backward()


def test_which_gate_learns_from_which_rows() -> None:
    """A hard or soft gate from rows that ran; a straight-through gate over all rows, at the dense price, from all."""
    arguments = make(8, gate=False) | {"keep": torch.arange(8) % 2 == 0}
    keep, x = arguments.pop("keep"), arguments["x"]
    arguments.pop("gate")
    probability = torch.rand(8, dtype=torch.float64, requires_grad=True)
    block = masked_dense(**arguments, keep=keep | True)[0] - x
    (soft,) = torch.autograd.grad(gated_ffn(**arguments, keep=keep, gate=probability).sum(), probability)
    torch.testing.assert_close(soft, torch.where(keep, block.sum(-1), 0.0))
    assert (soft[~keep] == 0).all()
    hard = keep.double()
    straight_through = hard + probability - probability.detach()
    y = gated_ffn(**arguments, keep=keep | True, gate=straight_through)
    torch.testing.assert_close(y, gated_ffn(**arguments, keep=keep))  # what skips is still what it was
    torch.testing.assert_close(torch.autograd.grad(y.sum(), probability)[0], block.sum(-1))


@pytest.mark.cpu
@pytest.mark.parametrize("otherwise", ["small ffn", "anchor with lora"])
def test_same_bits_for_every_thread_count(otherwise: str) -> None:
    arguments = make(500, features=60, inner=130, dtype=torch.float32, norm="layer", bias=True, otherwise=otherwise)
    arguments["keep"] = torch.randint(0, 4, (500,))
    before, results = torch.get_num_threads(), []
    for threads in (1, 2, 5, 2):
        torch.set_num_threads(threads)
        y, cosine = call(arguments, (0, 20, 100, 130), return_cosine=True)
        results.append([y, cosine, *torch.autograd.grad(y.square().sum(), list(leaves(arguments).values()))])
    torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compacted_equals_masked(dtype: torch.dtype) -> None:
    arguments = mapped(make(90, features=48, inner=172, dtype=dtype), torch.Tensor.detach)
    keep, x, gate = arguments["keep"], arguments["x"], arguments["gate"]
    y = gated_ffn(**arguments)
    everything = gated_ffn(**arguments | {"keep": keep | True})
    compacted = gated_ffn(**arguments | {"x": x[keep], "gate": gate[keep], "keep": keep[keep]})
    assert torch.equal(y[~keep], x[~keep])
    for other in (everything[keep], compacted):
        torch.testing.assert_close(y[keep], other, rtol=4 * torch.finfo(dtype).eps, atol=4 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("otherwise", ["delta", "anchor with lora", "small ffn"])
def test_what_no_row_needs_is_not_read(otherwise: str) -> None:
    """NaN in cached rows of tokens that run, and in the matrices of a branch that no row takes, reach nothing."""
    arguments = make(6, otherwise=otherwise)
    results = []
    for poison, kept in (
        (False, "some"),
        (True, "some"),
        (False, "all"),
        (True, "all"),
        (False, "none"),
        (True, "none"),
    ):
        keep = torch.arange(6) % 2 == 0 if kept == "some" else torch.full((6,), kept == "all")
        used = mapped(arguments, lambda tensor: tensor.detach().clone()) | {"keep": keep}
        for name, tensor in leaves(used).items() if poison else ():
            if name.endswith((".anchor", ".delta")):
                tensor[keep] = torch.nan
            elif name.startswith({"all": "otherwise.", "none": ("gate", "down_proj"), "some": "nothing"}[kept]):
                tensor.fill_(torch.nan)
        used = mapped(used, torch.Tensor.requires_grad_)
        y = gated_ffn(**used)
        results.append([y.detach(), *torch.autograd.grad(y.square().sum(), list(leaves(used).values()))])
    for clean, poisoned in zip(results[::2], results[1::2], strict=True):
        assert all(torch.equal(a, b) for a, b in zip(clean, poisoned, strict=True))


def test_a_row_that_is_nan_spoils_no_other() -> None:
    arguments = make(6) | {"keep": torch.arange(6) % 2 == 0}
    with torch.no_grad():
        arguments["x"][[1, 3]] = torch.nan  # they skip
    y = gated_ffn(**arguments)
    assert y[[1, 3]].isnan().all() and y[[0, 2, 4, 5]].isfinite().all()
    for name, gradient in zip(
        leaves(arguments), torch.autograd.grad(y.sum(), list(leaves(arguments).values())), strict=True
    ):
        assert gradient.isfinite().all(), name


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_cosine_of_rows_that_are_zero(dtype: torch.dtype) -> None:
    arguments = make(4, dtype=dtype, bias=True) | {"keep": torch.tensor([True, True, False, True])}
    with torch.no_grad():
        arguments["x"][[0, 2]] = 0
    _, cosine = gated_ffn(**arguments, return_cosine=True)
    assert cosine.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert cosine[0] == 0 and cosine[2] == 1 and (cosine[[1, 3]].abs() > 0).all() and (cosine.abs() < 1.001).all()


@pytest.mark.parametrize("otherwise", ELSE_BRANCHES)
@pytest.mark.parametrize("stream", [torch.float64, torch.float32])
def test_without_residual(otherwise: str, stream: torch.dtype) -> None:
    """What is added to x, for a block inside of a stream of its own: gradients, a stream of another dtype, packed."""
    arguments = make(9, bias=True, norm="rms", otherwise=otherwise)
    arguments["x"] = arguments["x"].detach().to(stream).requires_grad_()
    arguments["keep"][:2] = torch.tensor([True, False])
    adds_x = arguments["keep"][:, None] | (not otherwise.startswith("anchor"))
    for widths in (None, (0, 9)):
        chosen = arguments if widths is None else arguments | {"keep": arguments["keep"].long()}
        wide = chosen["x"].double()
        wanted = masked_dense(**chosen | {"x": wide}, widths=widths)[0] - adds_x * wide
        y = call(chosen, widths, residual=False)
        assert y.dtype == stream
        tolerance = {"rtol": 1e-9, "atol": 1e-9} if stream == torch.float64 else {"rtol": 1e-5, "atol": 2e-6}
        torch.testing.assert_close(y, wanted.to(stream), **tolerance)
        inputs, upstream = leaves(arguments), torch.randn_like(y)
        ours = torch.autograd.grad(y, list(inputs.values()), upstream)
        theirs = torch.autograd.grad(wanted, list(inputs.values()), upstream.to(wanted.dtype), materialize_grads=True)
        for name, a, b in zip(inputs, ours, theirs, strict=True):
            torch.testing.assert_close(a, b, **tolerance, msg=lambda m, name=name: f"{name}: {m}")
    with torch.no_grad():
        for share in (0, 1):
            given = mapped(arguments, torch.Tensor.detach) | {"keep": arguments["keep"] & bool(share)}
            y = gated_ffn(**given, residual=False)
            assert share or otherwise != "identity" or not y.any()
            if y.device.type == "cpu":
                names = ("gate_up_proj", "down_proj", "gate_up_bias", "down_bias", "gated")
                packed = pack_ffn(**{name: given.pop(name) for name in names})
                torch.testing.assert_close(packed(**given, residual=False), y, rtol=1e-5, atol=2e-6)
    with pytest.raises(ValueError, match="gated_ffn: return_cosine is True, must be False without residual; add x"):
        gated_ffn(**arguments, residual=False, return_cosine=True)
