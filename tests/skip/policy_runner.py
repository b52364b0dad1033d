"""What a policy's tests need of a runtime: small FFN blocks, computed densely and masked as the decisions say."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from anabranch.skip import (
    Anchor,
    CachedDelta,
    Keep,
    Layer,
    LowRank,
    Norm,
    Policy,
    SmallFfn,
    State,
    Width,
    gated_ffn,
    prefix_ffn,
)

HIDDEN, INTERMEDIATE = 6, 8


class Ffns:
    """`num_layers` FFN blocks `x + W2 silu(W1 layer_norm(x))`; layers without attention, so tokens do not mix."""

    def __init__(self, num_layers: int, dtype: torch.dtype = torch.float64) -> None:
        self.up = torch.randn(num_layers, INTERMEDIATE, HIDDEN, dtype=dtype) * 0.5
        self.down = torch.randn(num_layers, HIDDEN, INTERMEDIATE, dtype=dtype) * 0.5
        self.num_layers = num_layers

    def branch(self, layer: int, x: Tensor, mask: Tensor | float = 1.0) -> Tensor:
        hidden = F.silu(F.linear(F.layer_norm(x, x.shape[-1:]), self.up[layer]))
        return F.linear(hidden * mask, self.down[layer])


def otherwise_output(branch: object, x: Tensor) -> Tensor:
    if branch is None:
        return x
    if isinstance(branch, CachedDelta):
        return x + branch.delta
    if isinstance(branch, Anchor):
        assert branch.lora_a is not None and branch.lora_b is not None
        return branch.anchor + branch.scale * F.linear(F.linear(x, branch.lora_a), branch.lora_b)
    if isinstance(branch, LowRank):
        hidden = F.linear(F.layer_norm(x, x.shape[-1:]), branch.down_proj).relu()
        return x + branch.scale * F.linear(hidden, branch.up_proj)
    assert isinstance(branch, SmallFfn)
    gate, up = F.linear(F.layer_norm(x, x.shape[-1:]), branch.gate_up_proj).chunk(2, -1)
    return x + branch.scale * F.linear(F.silu(gate) * up, branch.down_proj)


def run_layer(ffns: Ffns, policy: Policy, layer: int, x: Tensor, state: State) -> tuple[Tensor, object]:
    """The layer's output and the decision."""
    decision = policy.decide(layer, state.step, x, state)
    runs = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
    branch, gate, other = ffns.branch(layer, x), None, None
    if isinstance(decision, Keep):
        runs, gate, other = decision.mask, decision.gate, decision.otherwise
        assert decision.capacity is None or int(runs.sum()) <= decision.capacity
    elif isinstance(decision, Width):
        index = decision.index if decision.index.dim() == 2 else decision.index[:, None].expand(x.shape[:2])
        runs, gate, other = index > 0, decision.gate, decision.otherwise
        ends = torch.tensor(decision.widths)[index]
        branch = ffns.branch(layer, x, torch.arange(INTERMEDIATE) < ends[..., None])
    elif isinstance(decision, Layer):
        action = torch.as_tensor(decision.action).expand(x.shape[0])[:, None]
        runs, other = (action > 0).expand(x.shape[:2]), decision.otherwise
        gate = None if decision.gate is None else decision.gate[:, None]
        again = ffns.branch(layer, x + branch)
        branch = branch + torch.where((action == 2)[..., None], again, torch.zeros_like(again))
    assert bool(runs.all()) or layer in policy.skippable_layers(ffns.num_layers)
    y = x + branch if gate is None else x + gate[..., None] * branch
    y = torch.where(runs[..., None], y, otherwise_output(other, x))
    if policy.needs_output or policy.needs_cosine:
        cosine = F.cosine_similarity(x, y, dim=-1).masked_fill(~runs, 1.0).float() if policy.needs_cosine else None
        policy.observe(layer, state.step, x, y, cosine, state)
    return y, decision


def run(
    ffns: Ffns, policy: Policy, x: Tensor, state: State | None = None, padding: Tensor | None = None
) -> tuple[Tensor, list[object]]:
    """One forward through all layers: output and decisions."""
    state = State(ffns.num_layers) if state is None else state
    state.padding = padding
    policy.check(ffns.num_layers, HIDDEN, INTERMEDIATE)
    decisions: list[object] = []
    for layer in range(ffns.num_layers):
        x, decision = run_layer(ffns, policy, layer, x, state)
        decisions.append(decision)
    state.advance(x.shape[1])
    return x, decisions


def run_by_ops(ffns: Ffns, policy: Policy, x: Tensor, state: State) -> Tensor:
    """The same forward with the decisions handed to `gated_ffn` and `prefix_ffn`, for policies of scope "ffn"."""
    norm = Norm(torch.ones(HIDDEN, dtype=x.dtype), torch.zeros(HIDDEN, dtype=x.dtype), eps=1e-5, kind="layer")
    for layer in range(ffns.num_layers):
        decision = policy.decide(layer, state.step, x, state)
        weights = (ffns.up[layer], ffns.down[layer])
        if isinstance(decision, Width):
            y, cosine = prefix_ffn(
                x, decision.index, *weights, decision.widths, gate=decision.gate, norm=norm, gated=False,
                otherwise=decision.otherwise, return_cosine=True,
            )  # fmt: skip
        else:
            assert decision is None or isinstance(decision, Keep)
            keep = Keep(torch.ones(x.shape[:2], dtype=torch.bool)) if decision is None else decision
            y, cosine = gated_ffn(
                x, keep.mask, *weights, gate=keep.gate, norm=norm, gated=False, otherwise=keep.otherwise,
                capacity=keep.capacity, return_cosine=True,
            )  # fmt: skip
        policy.observe(layer, state.step, x, y, cosine, state)
        x = y
    state.advance(x.shape[1])
    return x
