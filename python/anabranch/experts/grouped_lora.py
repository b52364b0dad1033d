"""`grouped_lora`: experts that are LoRA pairs, on the kernels of `expert_ffn`."""

from __future__ import annotations

import torch
from torch import Tensor

from anabranch.experts.expert_ffn import (
    ACTIVATIONS,
    accumulate_dtype,
    check_expert_weights,
    check_items,
    compute_dtype,
    run_expert_ffn,
)
from anabranch.plan import Plan


def grouped_lora(
    x: Tensor,
    lora_a: Tensor,
    lora_b: Tensor,
    plan: Plan,
    *,
    scaling: float = 1.0,
    frozen_experts: Tensor | None = None,
) -> Tensor:
    """Experts that are LoRA pairs: `y[t] = scaling * sum of w * B_e (A_e x[t])` over the plan's pairs (t, e, w).

    Add it to the base linear's output. Any rank; only the routed pairs are computed.

    Args:
        x: `[T, H]`, float32, float64, bfloat16 or float16; not necessarily the dtype of lora_a.
        lora_a: `[E, r, H]` in one of these dtypes, the A of each expert.
        lora_b: `[E, O, r]` in the dtype of lora_a, the B of each expert.
        plan: T items in E groups; its weights (floating; 1 where it has none) get a gradient.
        scaling: alpha / r, applied to the plan's weights in float32 (float64 for float64).
        frozen_experts: bool `[E]`; gradients of these pairs are zero and are not computed.

    Returns:
        `[T, O]` in the dtype of `x`; the work is done in that of lora_a, or autocast's. Differentiable, once, in x,
        lora_a, lora_b and the plan's weights.

    Raises:
        ValueError: as `expert_ffn`.

    Cost:
        2*S*r*(H + O) FLOPs forward for S pairs. Source: DynMoLE (2504.00661), y = W0 x + sum w_e (alpha/r) B_e A_e x.
    """
    op = "grouped_lora"
    check_items(op, x, plan)
    check_expert_weights(op, x, "lora_a", lora_a, lora_b=lora_b)
    if lora_a.dim() != 3 or lora_a.shape[2] != x.shape[1] or 0 in lora_a.shape[1:]:
        raise ValueError(
            f"{op}: lora_a has shape {tuple(lora_a.shape)}, must be (num_experts, rank, {x.shape[1]}), nothing but "
            "num_experts 0; transpose it with .mT if it lies the other way"
        )
    experts, rank, _ = lora_a.shape
    if lora_b.dim() != 3 or (lora_b.shape[0], lora_b.shape[2]) != (experts, rank) or lora_b.shape[1] == 0:
        raise ValueError(
            f"{op}: lora_b has shape {tuple(lora_b.shape)}, must be ({experts}, out_features, {rank}) to fit lora_a, "
            "out_features above 0; transpose it with .mT if it lies the other way"
        )
    if plan.num_groups != experts:
        raise ValueError(
            f"{op}: the plan has {plan.num_groups} groups, must have {experts}, one for each pair; "
            f"build it with num_groups={experts}"
        )
    accumulate = accumulate_dtype(compute_dtype(x, lora_a))
    if plan.weights is None:
        weights = torch.full_like(plan.item_ids, scaling, dtype=accumulate)
    else:
        weights = plan.weights.to(accumulate) * scaling
    return run_expert_ffn(
        op,
        x,
        plan.with_weights(weights),
        (lora_a, None, lora_b, None),
        (None, frozen_experts),
        (ACTIVATIONS.index("identity"), False, False, False, 0, 0),
    )
