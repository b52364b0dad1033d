"""One small language model of all rooms that decide: hyper-connected blocks, a skip policy's FFNs, experts by top-p."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from anabranch.core.arguments import without_autocast
from anabranch.experts import DynamicMoE, route_top_p
from anabranch.mixers import HyperConnection, Kind, expand_streams, reduce_streams
from anabranch.plan import Plan
from anabranch.skip import Decision, Keep, Norm, Policy, State, gated_ffn

VOCABULARY, HIDDEN, INTERMEDIATE, EXPERTS, STREAMS = 31, 16, 24, 6, 3
KINDS: tuple[Kind, ...] = ("mhc", "jpmhc", "mhc_lite", "hc")


class ByScore(Policy):
    """Tokens whose score is positive run the FFN, gated by a sigmoid of it: nothing but the row itself decides.

    Scores are of float32 under autocast and mixed precision too: a choice made in bfloat16 flips with rounding.
    """

    def __init__(self, num_layers: int) -> None:
        super().__init__()
        self.scores = nn.ModuleList(nn.Linear(HIDDEN, 1) for _ in range(num_layers))

    def decide(self, layer: int, step: int, x: Tensor, state: State) -> Decision:
        with without_autocast(x.device):
            linear = self.scores[layer]
            score = F.linear(x.float(), linear.weight.float(), linear.bias.float())[..., 0]
        return Keep(score > 0, gate=torch.sigmoid(score))


class SkippedFfn(nn.Module):
    """A sub-layer: the FFN of the tokens that the policy keeps, nothing for the others."""

    def __init__(self, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.norm_weight = nn.Parameter(torch.ones(HIDDEN))
        self.gate_up_proj = nn.Parameter(torch.randn(2 * INTERMEDIATE, HIDDEN) * HIDDEN**-0.5)
        self.down_proj = nn.Parameter(torch.randn(HIDDEN, INTERMEDIATE) * INTERMEDIATE**-0.5)

    def forward(self, x: Tensor, policy: Policy, state: State) -> Tensor:
        decision = policy.decide(self.layer, 0, x, state)
        assert isinstance(decision, Keep)
        return gated_ffn(
            x, decision.mask, self.gate_up_proj, self.down_proj, gate=decision.gate, norm=Norm(self.norm_weight),
            capacity=decision.capacity, residual=False,
        )  # fmt: skip


class NormedExperts(nn.Module):
    """A sub-layer: each token to as many experts as its scores ask for, one of them the identity."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(HIDDEN)
        router = partial(route_top_p, p=0.6, k_max=3)
        self.moe = DynamicMoE(HIDDEN, INTERMEDIATE, EXPERTS, router, bias=True, identity_experts=1)

    def forward(self, x: Tensor, *_: Any) -> Tensor:
        return self.moe(self.norm(x))


class DynamicModel(nn.Module):
    """ids int64 `[B, S]` to logits `[B, S, VOCABULARY]`; each layer is a skipped FFN, then experts.

    The blocks do not own the policy, which is asked by all of them: it is handed in, as FSDP2 needs it, where a
    parameter belongs to one group.
    """

    def __init__(
        self,
        num_layers: int = 2,
        checkpointed: Literal["no", "reentrant", "other"] = "no",
        kinds: tuple[Kind, ...] = KINDS,
    ) -> None:
        super().__init__()
        self.num_layers, self.checkpointed = num_layers, checkpointed
        self.embedding = nn.Embedding(VOCABULARY, HIDDEN)
        self.policy: Policy = ByScore(num_layers)
        layers = [layer for i in range(num_layers) for layer in (SkippedFfn(i), NormedExperts())]
        self.blocks = nn.ModuleList(
            HyperConnection(layer, HIDDEN, STREAMS, kind=kinds[i % len(kinds)], layer_index=i)
            for i, layer in enumerate(layers)
        )
        self.norm = nn.RMSNorm(HIDDEN)
        self.head = nn.Linear(HIDDEN, VOCABULARY)

    def forward(self, ids: Tensor) -> Tensor:
        streams, state = expand_streams(self.embedding(ids), STREAMS), State(self.num_layers)
        for block in self.blocks:
            if self.checkpointed == "no":
                streams = block(streams, self.policy, state)
            else:
                reentrant = self.checkpointed == "reentrant"
                streams = checkpoint(block, streams, self.policy, state, use_reentrant=reentrant)
        return self.head(self.norm(reduce_streams(streams)))


def build(seed: int = 0, **options: Any) -> DynamicModel:
    """Random, with coefficients of the streams that differ from token to token; options of `DynamicModel`."""
    torch.manual_seed(seed)
    model = DynamicModel(**options)
    with torch.no_grad():
        for block in model.blocks:
            for parameter in (block.weight, block.scale, block.bias):
                parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


def record(model: DynamicModel, on_keep: Callable[[Keep], Any], on_plan: Callable[[Plan], Any]) -> None:
    """From now on these hear of each decision of the policy and of each router's plan, in the order of the layers."""

    def heard(function: Callable[..., Any], listener: Callable[[Any], Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            result = function(*arguments)
            listener(result)
            return result

        return call

    model.policy.decide = heard(model.policy.decide, on_keep)  # type: ignore[method-assign]
    for block in model.blocks[1::2]:
        block.sublayer.moe.router = heard(block.sublayer.moe.router, on_plan)


def tokens(batch: int = 4, length: int = 9) -> Tensor:
    return torch.randint(
        VOCABULARY, (batch, length), generator=torch.Generator(torch.get_default_device()).manual_seed(1)
    )


def loss_of(model: nn.Module, ids: Tensor) -> Tensor:
    """Mean over tokens of the cross entropy of the next token."""
    logits = model(ids)
    return F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten())


def gradients(model: nn.Module, ids: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss, and the gradients of all parameters that have one: the policy's predictors may learn apart."""
    model.zero_grad()
    loss = loss_of(model, ids)
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
