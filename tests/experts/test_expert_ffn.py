"""expert_ffn against a loop over pairs in torch, in every option; gradients, determinism, compile."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from ffn_cases import call, make, pair_loop
from torch.autograd import gradcheck

from anabranch import Plan, plan
from anabranch.experts import expert_ffn, route_top_k
from anabranch.experts.expert_ffn import ACTIVATIONS


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("gated, interleaved", [(True, False), (True, True), (False, False)])
@pytest.mark.parametrize("transposed", [False, True])
def test_every_option_forward_and_backward(activation: str, gated: bool, interleaved: bool, transposed: bool) -> None:
    for bias, zero, identity, narrow in itertools.product((False, True), (0, 1), (0, 2), (False, True)):
        tensors, routed = make(extra_groups=zero + identity, gated=gated, transposed=transposed, bias=bias)
        options = {
            "activation": activation,
            "gated": gated,
            "interleaved": interleaved,
            "transposed": transposed,
            "zero_experts": zero,
            "identity_experts": identity,
            "expert_widths": torch.tensor([9, 3, 0, 5], dtype=torch.int32) if narrow else None,
        }
        y, wanted = call(expert_ffn, tensors, routed, **options), call(pair_loop, tensors, routed, **options)
        torch.testing.assert_close(y, wanted, rtol=1e-9, atol=1e-9)
        with torch.no_grad():
            torch.testing.assert_close(call(expert_ffn, tensors, routed, **options), wanted, rtol=1e-9, atol=1e-9)
        upstream = torch.randn_like(y)
        inputs = list(tensors.values())
        ours = torch.autograd.grad((y * upstream).sum(), inputs, retain_graph=True)
        theirs = torch.autograd.grad((wanted * upstream).sum(), inputs)
        for name, a, b in zip(tensors, ours, theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_transposed_views_of_matrices_that_lie_along_their_inputs(dtype: torch.dtype) -> None:
    """Sizes that the tensor-core kernels take: the gradients lie as the views' shapes say, not as the matrices do."""
    tensors, routed = make(24, 64, 128, 64, dtype=dtype)
    matrices = ("gate_up_proj", "down_proj")
    views = tensors | {name: tensors[name].detach().mT.requires_grad_() for name in matrices}
    upstream = torch.randn(24, 64, dtype=dtype)
    wanted = torch.autograd.grad(call(expert_ffn, tensors, routed), list(tensors.values()), upstream, retain_graph=True)
    ours = torch.autograd.grad(call(expert_ffn, views, routed, transposed=True), list(views.values()), upstream)
    for name, a, b in zip(tensors, ours, wanted, strict=True):
        straight = a.mT if name in matrices else a
        scale = b.float().abs().max().item()
        torch.testing.assert_close(straight, b, rtol=0, atol=0.02 * scale, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("items, features, inner", [(3, 37, 53), (150, 64, 200)])
def test_error_at_most_twice_torchs(cpu_isa: str, dtype: torch.dtype, items: int, features: int, inner: int) -> None:
    tensors, routed = make(items, features, inner, features, experts=3)
    scaled = {name: (tensor.detach() * features**-0.25).to(dtype) for name, tensor in tensors.items()}
    routed = routed.with_weights(routed.weights.detach())
    exact = {name: tensor.double() for name, tensor in scaled.items()}
    for tensor in (*scaled.values(), *exact.values()):
        tensor.requires_grad_()
    upstream = torch.randn(items, features).to(dtype)
    results = []
    for function, inputs in ((pair_loop, exact), (pair_loop, scaled), (expert_ffn, scaled)):
        y = call(function, inputs, routed)
        grads = torch.autograd.grad((y * upstream.to(y.dtype)).sum(), list(inputs.values())[:3])
        results.append([y.detach(), *grads])
    for name, wanted, by_torch, ours in zip(("y", "dx", "dgate_up", "ddown"), *results, strict=True):
        scale = wanted.abs().max().item()
        torch_error = (by_torch.double() - wanted).abs().max().item()
        error = (ours.double() - wanted).abs().max().item()
        assert error <= 2 * torch_error + 8 * torch.finfo(dtype).eps * scale, name


def test_gradcheck() -> None:
    tensors, _ = make(items=4, features=3, inner=4, out=3, experts=3, bias=True)
    mask = torch.rand(4, 3) < 0.6

    def through(x: Any, gate_up: Any, down: Any, gate_up_bias: Any, down_bias: Any, scores: Any) -> torch.Tensor:
        built = plan.from_mask(mask, scores)
        return expert_ffn(x, gate_up, down, built, gate_up_bias=gate_up_bias, down_bias=down_bias)

    tensors["weights"] = torch.rand(4, 3, dtype=torch.float64, requires_grad=True)
    assert gradcheck(through, tuple(tensors.values()))
    y = through(*tensors.values())
    (first,) = torch.autograd.grad(y.square().sum(), tensors["x"], create_graph=True)
    with pytest.raises(NotImplementedError, match="differentiable once"):
        first.sum().backward()


def test_frozen_experts_have_no_weight_gradient() -> None:
    tensors, routed = make(bias=True)
    frozen = torch.tensor([True, False, False, True])
    free = torch.autograd.grad(call(expert_ffn, tensors, routed).sum(), list(tensors.values()), retain_graph=True)
    partly = torch.autograd.grad(call(expert_ffn, tensors, routed, frozen_experts=frozen).sum(), list(tensors.values()))
    for name, a, b in zip(tensors, free, partly, strict=True):
        if name in ("x", "weights"):
            assert torch.equal(a, b)
        else:
            assert (b[frozen] == 0).all()
            assert torch.equal(a[~frozen], b[~frozen])


def test_frozen_experts_weight_gradients_are_not_computed() -> None:
    """Not multiplied by zero: a product with these rows would be NaN."""
    tensors, _ = make(bias=True)
    routed = plan.from_top_k(torch.tensor([[0], [0], [2], [3], [2], [3], [0]]), num_groups=4)
    tensors.pop("weights")
    x = tensors["x"].detach().clone()
    x[[0, 1, 6]] = float("nan")  # the rows of expert 0
    frozen = torch.tensor([True, False, False, False])
    y = call(expert_ffn, tensors | {"x": x}, routed, frozen_experts=frozen)
    assert y[[0, 1, 6]].isnan().all()
    parameters = [tensor for name, tensor in tensors.items() if name != "x"]
    for gradient in torch.autograd.grad(y[2:6].sum(), parameters, retain_graph=True):
        assert (gradient[0] == 0).all() and gradient.isfinite().all()
    for gradient in torch.autograd.grad(y.sum(), parameters):
        assert (gradient[0] == 0).all() and gradient.isfinite().all()


def test_weights_of_an_expert_without_pairs_are_not_read() -> None:
    tensors, routed = make(bias=True)  # expert 1 has no pair
    results = []
    for poison in (False, True):
        used = {name: tensor.detach().clone().requires_grad_() for name, tensor in tensors.items()}
        if poison:
            with torch.no_grad():
                for name in ("gate_up_proj", "down_proj", "gate_up_bias", "down_bias"):
                    used[name][1] = float("nan")
        y = call(expert_ffn, used, routed.with_weights(routed.weights.detach()))
        inputs = [tensor for name, tensor in used.items() if name != "weights"]
        results.append([y.detach(), *torch.autograd.grad(y.square().sum(), inputs)])
        with torch.no_grad():
            assert torch.equal(call(expert_ffn, used, routed), y)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.cpu
def test_same_bits_for_every_thread_count() -> None:
    tensors, routed = make(400, 60, 130, 60, experts=3, dtype=torch.float32)
    before, results = torch.get_num_threads(), []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        y = call(expert_ffn, tensors, routed)
        results.append([y, *torch.autograd.grad(y.square().sum(), list(tensors.values()), retain_graph=True)])
    torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_permuted_items_give_permuted_rows() -> None:
    x, gate_up, down = torch.randn(20, 16), torch.randn(4, 24, 16), torch.randn(4, 16, 12)
    indices, weights, order = torch.randint(0, 5, (20, 2)), torch.rand(20, 2), torch.randperm(20)
    y = expert_ffn(x, gate_up, down, plan.from_top_k(indices, weights, num_groups=4))
    shuffled = plan.from_top_k(indices[order], weights[order], num_groups=4)
    torch.testing.assert_close(expert_ffn(x[order], gate_up, down, shuffled), y[order])


@pytest.mark.parametrize("items", [0, 6])
def test_no_entries(items: int) -> None:
    tensors, _ = make(items)
    empty = plan.from_mask(torch.zeros(items, 4, dtype=torch.bool), tensors["weights"])
    y = call(expert_ffn, tensors, empty)
    assert y.shape == (items, 5)
    assert (y == 0).all()
    for gradient in torch.autograd.grad(y.sum(), list(tensors.values())):
        assert (gradient == 0).all()


def test_capacity_beyond_the_entries_is_never_read() -> None:
    tensors, routed = make()
    count = int(routed.group_offsets[-1])
    item_ids, weights = routed.item_ids.clone(), routed.weights.detach().clone()
    item_ids[count:] = 2**31 - 1
    weights[count:] = float("nan")
    poisoned = Plan(routed.group_offsets, item_ids, weights, routed.num_items)
    assert torch.equal(call(expert_ffn, tensors, poisoned), call(expert_ffn, tensors, routed))


def test_mixed_dtypes_and_autocast() -> None:
    tensors, routed = make(dtype=torch.float32)
    with torch.no_grad():
        y = call(expert_ffn, tensors, routed)
        mixed = call(expert_ffn, tensors | {"x": tensors["x"].bfloat16()}, routed)
        assert mixed.dtype == torch.bfloat16
        torch.testing.assert_close(mixed.float(), y, rtol=0.05, atol=0.05)
        with torch.autocast(y.device.type, dtype=torch.bfloat16):
            torch.testing.assert_close(call(expert_ffn, tensors, routed), y, rtol=0.1, atol=0.1)


def test_compiles_whole() -> None:
    gate_up, down = torch.randn(4, 24, 16, requires_grad=True), torch.randn(4, 16, 12, requires_grad=True)

    def step(x: torch.Tensor, indices: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        return expert_ffn(x, gate_up, down, plan.from_top_k(indices, weights, num_groups=4))

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    for items in (9, 0, 5):
        gate_up.grad = down.grad = None
        arguments = torch.randn(items, 16), torch.randint(0, 5, (items, 2)), torch.rand(items, 2)
        y = compiled(*arguments)
        assert torch.equal(y, step(*arguments))
        wanted = torch.autograd.grad(step(*arguments).sum(), (gate_up, down))
        y.sum().backward()
        assert torch.equal(gate_up.grad, wanted[0]) and torch.equal(down.grad, wanted[1])


def test_compiles_by_the_default_backend() -> None:
    gate_up, down = torch.randn(4, 24, 16, requires_grad=True), torch.randn(4, 16, 12)

    def step(x: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return expert_ffn(x * 2, gate_up, down, route_top_k(scores, 2)) + x

    x, scores = torch.randn(9, 16), torch.randn(9, 4)
    y = torch.compile(step, fullgraph=True)(x, scores)
    torch.testing.assert_close(y, step(x, scores))
    wanted = torch.autograd.grad(step(x, scores).sum(), gate_up)
    torch.testing.assert_close(torch.autograd.grad(y.sum(), gate_up), wanted)
