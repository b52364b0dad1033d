"""Patches a transformers model with experts, skipping and mixers together, and counts what that saves.

    python examples/patch_transformers.py --keep 0.5

The model is a small qwen4_exp with random weights: hyper-connected layers, each with routed experts and a shared one.
1. experts: `set_experts_implementation("anabranch")` computes the routed experts by `expert_ffn`.
2. mixers: `patch_mixers` computes reading and writing of the residual streams.
3. skipping: tokens of low score run neither the routed experts nor the shared one in their layer.

The first two change no result beyond rounding, nor does the third where it keeps every token: all is compared here with
the model as transformers computes it. A real model comes by `from_pretrained`, and its scores by training.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor, nn
from transformers.models.qwen4_exp import Qwen4ExpForCausalLM, Qwen4ExpTextConfig

from anabranch import CostMeter
from anabranch.integrations.transformers import patch_mixers, register
from anabranch.skip import gated_ffn


class SkippedMoE(nn.Module):
    """A layer's mixture of experts for the tokens whose score is high enough; the others get 0 from it.

    The streams around it keep the residual, so a token that skips passes on what it was.
    """

    def __init__(self, moe: nn.Module, hidden_size: int) -> None:
        super().__init__()
        self.moe = moe
        self.score = nn.Linear(hidden_size, 1)
        self.threshold = -torch.inf  # keeps all

    def forward(self, hidden_states: Tensor) -> Tensor:
        moe, x = self.moe, hidden_states.flatten(0, -2)
        keep = self.score(x)[:, 0] > self.threshold
        # The router's ids; one past the last means "no expert" and costs nothing.
        _, weights, indices = moe.gate(x)
        indices = indices.masked_fill(~keep[:, None], moe.experts.num_experts)
        routed = moe.experts(x, indices, weights)
        shared = moe.shared_expert
        shared_output = gated_ffn(
            x,
            keep,
            (shared.gate_proj.weight, shared.up_proj.weight),
            shared.down_proj.weight,
            gate=moe.shared_expert_gate(x)[:, 0].sigmoid(),
            residual=False,
        )
        return (routed + shared_output).view_as(hidden_states)

    def calibrate(self, inputs: Tensor, keep: float) -> None:
        """From now on a share `keep` of tokens like `inputs` is kept."""
        scores = self.score(inputs.flatten(0, -2))[:, 0]
        self.threshold = -torch.inf if keep >= 1 else torch.quantile(scores, 1 - keep).item()


def tiny_model(num_layers: int, hidden: int) -> Qwen4ExpForCausalLM:
    config = Qwen4ExpTextConfig(
        vocab_size=256, hidden_size=hidden, num_hidden_layers=num_layers, num_attention_heads=4, num_key_value_heads=2,
        head_dim=16, moe_intermediate_size=2 * hidden, shared_expert_intermediate_size=2 * hidden, num_experts=8,
        num_experts_per_tok=2, layer_types=["indexed_attention"] * num_layers, indexer_n_heads=2, indexer_kv_heads=1,
        indexer_head_dim=16, indexer_budget=16, indexer_compress_ratio=2, ple_layer_ids=[], hc_lowrank=8,
        pad_token_id=0, bos_token_id=1, eos_token_id=255,
    )  # fmt: skip
    model = Qwen4ExpForCausalLM(config).eval()
    for name, parameter in model.named_parameters():
        if "hyper_connection" in name:  # random too, so that streams differ
            parameter.data += 0.1 * torch.randn_like(parameter)
    return model


def difference(ours: Tensor, theirs: Tensor) -> float:
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", type=float, default=0.5, help="share of tokens that run the experts of a layer")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=128)
    options = parser.parse_args()
    torch.manual_seed(0)
    model = tiny_model(options.layers, options.hidden)
    ids = torch.randint(2, 255, (2, options.tokens))
    before = model(ids, use_cache=False).logits

    register()
    model.set_experts_implementation("anabranch")
    print(f"experts: difference {difference(model(ids, use_cache=False).logits, before):.1e}")
    connections = patch_mixers(model)
    logits = model(ids, use_cache=False).logits
    print(f"mixers: {connections} hyper-connections, difference {difference(logits, before):.1e}")
    layers = model.model.layers
    for layer in layers:
        layer.mlp = SkippedMoE(layer.mlp, options.hidden)
    with CostMeter(model) as dense:
        logits = model(ids, use_cache=False).logits
    print(f"skipping, all kept: difference {difference(logits, before):.1e}")

    inputs: dict[nn.Module, Tensor] = {}
    hooks = [layer.mlp.register_forward_pre_hook(lambda mlp, x: inputs.update({mlp: x[0]})) for layer in layers]
    model(ids, use_cache=False)
    for hook in hooks:
        hook.remove()
    for layer in layers:
        layer.mlp.calibrate(inputs[layer.mlp], options.keep)
    with CostMeter(model) as meter:
        logits = model(ids, use_cache=False).logits
    saved = 1 - meter.total().executed_flops / dense.total().executed_flops
    print(f"skipping, {options.keep:.0%} kept: difference {difference(logits, before):.1e}")
    print(f"saved {saved:.1%} of the experts' {dense.total().executed_flops / 1e6:.1f} MFLOP")


if __name__ == "__main__":
    main()
