"""`expert_ffn`: every item through the experts its plan names."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from anabranch.core.arguments import autocast_dtype, call_as, cast, check_floating, check_same_device, check_same_dtype
from anabranch.core.cost import record
from anabranch.core.library import ops
from anabranch.plan import Plan
from anabranch.plan.plan import by_item

Activation = Literal["identity", "silu", "gelu", "gelu_tanh", "relu", "relu2"]
ACTIVATIONS: tuple[Activation, ...] = ("identity", "silu", "gelu", "gelu_tanh", "relu", "relu2")

_NUM_ARGUMENTS = 18  # of the op expert_ffn, x first
_DIFFERENTIABLE = (0, 1, 2, 3, 4, 7)  # x, gate_up_proj, gate_up_bias, down_proj, down_bias, weights


def expert_ffn(
    x: Tensor,
    gate_up_proj: Tensor,
    down_proj: Tensor,
    plan: Plan,
    *,
    gate_up_bias: Tensor | None = None,
    down_bias: Tensor | None = None,
    activation: Activation = "silu",
    gated: bool = True,
    interleaved: bool = False,
    transposed: bool = False,
    zero_experts: int = 0,
    identity_experts: int = 0,
    expert_widths: Tensor | None = None,
    frozen_experts: Tensor | None = None,
) -> Tensor:
    """The weighted sum of each item's experts: `y[t] = sum of w * f_e(x[t])` over the plan's pairs (t, e, w).

    `f_e(x) = down[e] @ (act(gate[e] @ x) * (up[e] @ x))`, or `down[e] @ act(gate[e] @ x)` without `gated`. One op does
    the gather, both products, the activation and the combine; it costs what is routed, without padding.

    Args:
        x: `[T, H]`, float32, float64, bfloat16 or float16; not necessarily the weights' dtype.
        gate_up_proj: `[E, 2I, H]` in one of these dtypes, gate rows first; `[E, I, H]` if not `gated`; `[E, H, 2I]` if
            `transposed`.
        down_proj: `[E, O, I]`; `[E, I, O]` if `transposed`. O is H in a usual FFN. It and the biases have the dtype of
            gate_up_proj; under autocast any of the four, since all are cast.
        plan: T items in E + zero_experts + identity_experts groups. Its weights (floating; 1 where it has none) get a
            gradient.
        gate_up_bias: `[E, 2I]` (`[E, I]` if not `gated`), in the row order of gate_up_proj, or None.
        down_bias: `[E, O]` or None.
        activation: of the gate; "gelu" is the exact one, "relu2" the squared relu.
        interleaved: gate and up rows alternate (gate0, up0, gate1, ...); without `gated` it changes nothing.
        zero_experts: groups E .. E + zero_experts give 0 and cost nothing.
        identity_experts: the groups after those give `x[t]` itself and cost one addition; they need O = H.
        expert_widths: int32 `[E]`; expert e uses only its first `expert_widths[e]` intermediate features. On Hopper
            GPUs (16-bit, gated silu) weights from there to the next multiple of 64 must be finite; those farther are
            never used.
        frozen_experts: bool `[E]`; weight gradients of these are zero and are not computed.

    Returns:
        `[T, O]` in the dtype of `x`. If the weights have another dtype the work is done in theirs, and under autocast
        in the autocast dtype. Items without experts are zero.

    Raises:
        ValueError: shapes, dtypes or devices that do not fit; a plan with ids out of range (CPU; on a GPU such entries
            are skipped, since looking would stall the stream).

    Gradient:
        To x, both projections, both biases and the plan's weights, through the pairs that ran. Which pairs run has no
        gradient: that is the router's business. Saved for it: x and the first product's output. Not differentiable
        twice.

    Cost:
        6*S*H*I FLOPs forward for S pairs (gated, O = H), twice that backward. Sums, and the combine in entry order,
        are in float32 (float64 for float64): the result is bitwise the same for any number of threads.
    """
    if activation not in ACTIVATIONS:
        raise ValueError(
            f"expert_ffn: activation is {activation!r}, must be one of {ACTIVATIONS}; "
            "for another, compose gather, grouped_mm and scatter_add"
        )
    check_items("expert_ffn", x, plan)
    others = {"down_proj": down_proj, "gate_up_bias": gate_up_bias, "down_bias": down_bias}
    check_expert_weights("expert_ffn", x, "gate_up_proj", gate_up_proj, **others)
    return run_expert_ffn(
        "expert_ffn",
        x,
        plan,
        (gate_up_proj, gate_up_bias, down_proj, down_bias),
        (expert_widths, frozen_experts),
        (ACTIVATIONS.index(activation), gated, interleaved and gated, transposed, zero_experts, identity_experts),
    )


def run_expert_ffn(
    op: str,
    x: Tensor,
    plan: Plan,
    weights: tuple[Tensor, Tensor | None, Tensor, Tensor | None],
    per_expert: tuple[Tensor | None, Tensor | None],
    options: tuple[Any, ...],
) -> Tensor:
    """`expert_ffn` in the name of `op`: the arguments in the order of its schema, checked as far as Python checks."""
    check_same_device(op, "x", x, expert_widths=per_expert[0], frozen_experts=per_expert[1])
    gate_up_proj, _, down_proj, _ = weights
    dtype = compute_dtype(x, gate_up_proj)
    transposed_plan = by_item(op, plan)
    tensors = [cast(tensor, dtype) for tensor in (x, *weights)]
    arguments = (
        *tensors,
        plan.group_offsets,
        plan.item_ids,
        cast(plan.weights, accumulate_dtype(dtype)),
        transposed_plan.item_offsets,
        transposed_plan.entry_ids,
        *per_expert,
        *options,
    )
    needs_grad = torch.is_grad_enabled() and any(
        tensor is not None and tensor.requires_grad for tensor in (*tensors, plan.weights)
    )
    # Training keeps the first product's output, the op's second result.
    outputs = call_as(op, ops.expert_ffn if needs_grad else ops.expert_ffn_inference, *arguments)
    numbers = gate_up_proj.shape[1:].numel() + down_proj.shape[1:].numel()
    record_cost(op, plan, gate_up_proj.shape[0], numbers, gate_up_proj.element_size())
    return (outputs[0] if needs_grad else outputs).to(x.dtype)


def check_items(op: str, x: Tensor, plan: Plan) -> None:
    """Raises ValueError unless x is `[T, H]`, floating, and the plan of T items lies beside it."""
    check_floating(op, x=x, weights=plan.weights)
    if x.dim() != 2 or x.shape[0] != plan.num_items:
        raise ValueError(
            f"{op}: x has shape {tuple(x.shape)}, must be (num_items={plan.num_items}, H) as the plan; "
            "pass the rows that were routed, as a matrix"
        )
    check_same_device(op, "x", x, group_offsets=plan.group_offsets, item_ids=plan.item_ids, weights=plan.weights)


def check_expert_weights(op: str, x: Tensor, first_name: str, first: Tensor, **others: Tensor | None) -> None:
    """Raises ValueError unless the weights lie beside x, floating and, but under autocast, of one dtype."""
    check_floating(op, **{first_name: first}, **others)
    check_same_device(op, "x", x, **{first_name: first}, **others)
    if autocast_dtype(first.device) is None:
        check_same_dtype(op, first_name, first, **others)


def compute_dtype(x: Tensor, weight: Tensor) -> torch.dtype:
    """The dtype that `expert_ffn` works in: the weights', or autocast's."""
    by_autocast = autocast_dtype(x.device)
    return weight.dtype if by_autocast is None or weight.dtype == torch.float64 else by_autocast


def accumulate_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def record_cost(op: str, plan: Plan, num_experts: int, weights_per_expert: int, element_size: int) -> None:
    """Tells the meters of one expert FFN over `plan`."""
    record(
        op,
        dense_rows=plan.num_items * num_experts,
        flops_per_row=2 * weights_per_expert,
        group_offsets=plan.group_offsets,
        groups=range(num_experts),
        bytes_per_group=weights_per_expert * element_size,
    )


def _fake_output(x: Tensor, down_proj: Tensor, transposed: bool) -> Tensor:
    return x.new_empty(x.shape[0], down_proj.shape[2 if transposed else 1])


@torch.library.register_fake("anabranch::expert_ffn")
def _(*arguments: Any) -> tuple[Tensor, Tensor]:
    x, down_proj, item_ids, gated, transposed = (arguments[i] for i in (0, 3, 6, 13, 15))
    intermediate = down_proj.shape[1 if transposed else 2]
    pre_activation = x.new_empty(item_ids.shape[0], (2 if gated else 1) * intermediate)
    return _fake_output(x, down_proj, transposed), pre_activation


@torch.library.register_fake("anabranch::expert_ffn_inference")
def _(*arguments: Any) -> Tensor:
    return _fake_output(arguments[0], arguments[3], arguments[15])


@torch.library.register_fake("anabranch::expert_ffn_backward")
def _(dy: Tensor, pre_activation: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    arguments, wanted = rest[:-1], rest[-1]
    x, gate_up_proj, down_proj, item_ids, transposed = (arguments[i] for i in (0, 1, 3, 6, 15))
    num_experts, out_features = gate_up_proj.shape[0], down_proj.shape[2 if transposed else 1]
    shapes = (
        x.shape,
        gate_up_proj.shape,
        (num_experts, pre_activation.shape[1]),
        down_proj.shape,
        (num_experts, out_features),
        item_ids.shape,
    )
    accumulate = torch.float64 if x.dtype == torch.float64 else torch.float32
    return tuple(
        x.new_empty(shape if wanted >> bit & 1 else (0,), dtype=accumulate if bit == 5 else x.dtype)
        for bit, shape in enumerate(shapes)
    )


def _save_expert_ffn(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)
    ctx.options = inputs[12:]
    ctx.save_for_backward(output[1], *inputs[:12])


def _expert_ffn_backward(ctx: Any, dy: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
    gradients: list[Tensor | None] = [None] * _NUM_ARGUMENTS
    if dy is None:
        return tuple(gradients)
    pre_activation, *tensors = ctx.saved_tensors
    wanted = sum(ctx.needs_input_grad[position] << bit for bit, position in enumerate(_DIFFERENTIABLE))
    computed = ops.expert_ffn_backward(dy, pre_activation, *tensors, *ctx.options, wanted)
    for bit, position in enumerate(_DIFFERENTIABLE):
        if ctx.needs_input_grad[position]:
            gradients[position] = computed[bit]
    return tuple(gradients)


def _no_double_backward(ctx: Any, *grads: Tensor) -> None:
    raise NotImplementedError("expert_ffn: it is differentiable once; compose grouped_mm for higher derivatives")


torch.library.register_autograd("anabranch::expert_ffn", _expert_ffn_backward, setup_context=_save_expert_ffn)
torch.library.register_autograd("anabranch::expert_ffn_backward", _no_double_backward)
