"""expert_ffn against a loop over pairs in torch, in every option; gradients, determinism, compile, bad input, fuzz."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck

from anabranch import Plan, plan
from anabranch.experts import expert_ffn, grouped_lora
from anabranch.experts.expert_ffn import ACTIVATIONS

BY_TORCH = {
    "identity": lambda v: v,
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda v: F.gelu(v, approximate="tanh"),
    "relu": torch.relu,
    "relu2": lambda v: torch.relu(v) ** 2,
}


def pair_loop(
    x: torch.Tensor,
    gate_up: torch.Tensor,
    down: torch.Tensor,
    routed: Plan,
    *,
    gate_up_bias: torch.Tensor | None = None,
    down_bias: torch.Tensor | None = None,
    activation: str = "silu",
    gated: bool = True,
    interleaved: bool = False,
    transposed: bool = False,
    zero_experts: int = 0,
    identity_experts: int = 0,
    expert_widths: torch.Tensor | None = None,
) -> torch.Tensor:
    """The definition, one pair at a time, differentiable by torch."""
    if transposed:
        gate_up, down = gate_up.mT, down.mT
    experts, inner = gate_up.shape[0], down.shape[2]
    y = torch.zeros(x.shape[0], down.shape[1], dtype=x.dtype)
    offsets = routed.group_offsets.tolist()
    for g in range(routed.num_groups):
        for e in range(offsets[g], offsets[g + 1]):
            t = int(routed.item_ids[e])
            weight = 1.0 if routed.weights is None else routed.weights[e].to(x.dtype)
            if g < experts:
                pre = gate_up[g] @ x[t] + (0 if gate_up_bias is None else gate_up_bias[g])
                if gated:
                    halves = (pre[0::2], pre[1::2]) if interleaved else (pre[:inner], pre[inner:])
                    hidden = BY_TORCH[activation](halves[0]) * halves[1]
                else:
                    hidden = BY_TORCH[activation](pre)
                if expert_widths is not None:
                    hidden = hidden * (torch.arange(inner) < expert_widths[g])
                out = down[g] @ hidden + (0 if down_bias is None else down_bias[g])
            else:
                out = x[t] if g >= experts + zero_experts else torch.zeros_like(y[t])
            y = y.index_add(0, torch.tensor([t]), (weight * out)[None])
    return y


def make(
    items: int = 7,
    features: int = 5,
    inner: int = 9,
    out: int = 5,
    experts: int = 4,
    extra_groups: int = 0,
    *,
    gated: bool = True,
    transposed: bool = False,
    bias: bool = False,
    dtype: torch.dtype = torch.float64,
) -> tuple[dict[str, torch.Tensor], Plan]:
    rows = (2 if gated else 1) * inner
    tensors = {
        "x": torch.randn(items, features),
        "gate_up_proj": torch.randn(experts, *((features, rows) if transposed else (rows, features))) * 0.5,
        "down_proj": torch.randn(experts, *((inner, out) if transposed else (out, inner))) * 0.5,
    }
    if bias:
        tensors |= {"gate_up_bias": torch.randn(experts, rows), "down_bias": torch.randn(experts, out)}
    tensors = {name: tensor.to(dtype).requires_grad_() for name, tensor in tensors.items()}
    mask = torch.rand(items, experts + extra_groups) < 0.4
    mask[:, 1] = False  # an expert without entries
    scores = torch.rand(items, experts + extra_groups, dtype=dtype).requires_grad_()
    tensors["weights"] = scores
    return tensors, plan.from_mask(mask, scores)


def call(function: Any, tensors: dict[str, torch.Tensor], routed: Plan, **options: Any) -> torch.Tensor:
    names = {"gate_up_proj": "gate_up", "down_proj": "down"} if function is pair_loop else {}
    arguments = {names.get(k, k): v for k, v in tensors.items() if k != "weights"}
    x, gate_up, down = (arguments.pop(k) for k in list(arguments)[:3])
    return function(x, gate_up, down, routed, **arguments, **options)


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


def test_grouped_lora() -> None:
    x = torch.randn(6, 8, dtype=torch.float64, requires_grad=True)
    lora_a = torch.randn(3, 5, 8, dtype=torch.float64, requires_grad=True)
    lora_b = torch.randn(3, 4, 5, dtype=torch.float64, requires_grad=True)
    scores = torch.rand(6, 3, dtype=torch.float64, requires_grad=True)
    mask = torch.rand(6, 3) < 0.6

    def through(x: Any, lora_a: Any, lora_b: Any, scores: Any) -> torch.Tensor:
        return grouped_lora(x, lora_a, lora_b, plan.from_mask(mask, scores), scaling=0.5)

    wanted = 0.5 * torch.einsum("te,eor,erh,th->to", scores * mask, lora_b, lora_a, x)
    torch.testing.assert_close(through(x, lora_a, lora_b, scores), wanted)
    assert gradcheck(through, (x, lora_a, lora_b, scores))


def test_compiles_whole() -> None:
    gate_up, down = torch.randn(4, 24, 16, requires_grad=True), torch.randn(4, 16, 12, requires_grad=True)

    def step(x: torch.Tensor, indices: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        return expert_ffn(x, gate_up, down, plan.from_top_k(indices, weights, num_groups=4))

    arguments = torch.randn(9, 16), torch.randint(0, 5, (9, 2)), torch.rand(9, 2)
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(*arguments), step(*arguments))
    compiled(*arguments).sum().backward()
    assert gate_up.grad is not None


@pytest.mark.cpu
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.randn(6, 5)}, r"x has shape \(6, 5\), must be \(num_items=7"),
        (
            {"gate_up_proj": torch.randn(4, 17, 5)},
            r"gate_up_proj has shape \(4, 17, 5\), must be \(4, 18, 5\)",
        ),
        ({"down_proj": torch.randn(3, 5, 9)}, r"down_proj has shape \(3, 5, 9\), must be \(4, 5, 9\)"),
        ({"gate_up_bias": torch.randn(4, 9)}, r"gate_up_bias has shape"),
        ({"activation": "tanh"}, r"activation is 'tanh'"),
        ({"zero_experts": 1}, r"the plan has 4 groups, must have"),
        ({"zero_experts": -1}, r"must not be negative"),
        ({"expert_widths": torch.tensor([1, 2, 3, 10], dtype=torch.int32)}, r"expert_widths\[3\] is 10"),
        ({"expert_widths": torch.tensor([1, 2, 3])}, r"expert_widths is int64"),
        ({"frozen_experts": torch.zeros(4)}, r"frozen_experts is float32, must be bool"),
    ],
)
def test_bad_input(change: dict[str, Any], message: str) -> None:
    tensors, routed = make(dtype=torch.float32)
    arguments = {name: tensor.detach() for name, tensor in tensors.items() if name != "weights"} | change
    with pytest.raises(ValueError, match=message):
        expert_ffn(plan=routed, **arguments)


@pytest.mark.cpu
@settings(deadline=None, derandomize=True, max_examples=200)
@given(st.data())
def test_fuzz_bad_plans_and_shapes_never_crash(data: st.DataObject) -> None:
    small = st.integers(0, 4)
    shape = [data.draw(small) for _ in range(8)]
    offsets = data.draw(st.lists(st.integers(-2, 6), max_size=5))
    ids = data.draw(st.lists(st.integers(-2, 6), max_size=6))
    entry_ids = data.draw(st.lists(st.integers(-2, 6), max_size=6))
    item_offsets = data.draw(st.lists(st.integers(-2, 6), max_size=5))
    int32 = torch.int32
    try:
        torch.ops.anabranch.expert_ffn(
            torch.randn(*shape[:2]),
            torch.randn(*shape[2:5]),
            None,
            torch.randn(*shape[5:8]),
            None,
            torch.tensor(offsets, dtype=int32),
            torch.tensor(ids, dtype=int32),
            None,
            torch.tensor(item_offsets, dtype=int32),
            torch.tensor(entry_ids, dtype=int32),
            None,
            None,
            data.draw(st.integers(-1, 7)),
            data.draw(st.booleans()),
            data.draw(st.booleans()),
            data.draw(st.booleans()),
            data.draw(st.integers(-1, 2)),
            data.draw(st.integers(-1, 2)),
        )
    except ValueError as error:
        assert "must" in str(error)
