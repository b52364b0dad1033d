"""The skip demo's byte-level language model of transformers, and how it and what is learned on it are trained."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from anabranch import skip
from anabranch.cli.progress import progress_bar
from anabranch.skip import Action, Decision, Layer, Policy, State

WIDTH, INTERMEDIATE, LAYERS, HEADS = 128, 384, 8, 4
CONTEXT, BATCH, LEARNING_RATE = 160, 4, 5e-3
LAYER_DROP = 0.2


class LayerDrop(Policy):
    """Skips each layer but the first and the last by chance in each step of training (arXiv 1909.11556).

    Without it a model knows no other way than through all layers, and each skipped one costs bits; with it all
    policies start from one model that has seen skips.
    """

    scope = "layer"

    def __init__(self, rate: float, seed: int) -> None:
        super().__init__()
        self.rate = rate
        self.random = torch.Generator().manual_seed(seed)

    def decide(self, layer: int, step: int, x: Tensor, state: State) -> Decision:
        if not 0 < layer < state.num_layers - 1:
            return None
        skips = float(torch.rand((), generator=self.random)) < self.rate
        return Layer(Action.SKIP) if skips else None


class Curve:
    """Bits per byte of a training, with the seconds since its start."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.bits: list[float] = []


def build_model() -> nn.Module:
    """A Llama of 1.8 million weights over bytes; no token is special."""
    config = LlamaConfig(
        vocab_size=256,
        hidden_size=WIDTH,
        intermediate_size=INTERMEDIATE,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        max_position_embeddings=2 * CONTEXT,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
    )
    model: nn.Module = LlamaForCausalLM(config)
    return model


def train_model(model: nn.Module, text: Tensor, seconds: float, seed: int, curve: Curve) -> None:
    """Trains all weights, with layers left out by chance."""
    skip.apply(model, LayerDrop(LAYER_DROP, seed))
    train("model", model.parameters(), lambda batch: language_loss(model, batch), text, seconds, seed, curve)
    skip.remove(model)


def train(
    name: str,
    parameters: Iterable[nn.Parameter],
    loss_of: Callable[[Tensor], tuple[Tensor, Tensor]],
    text: Tensor,
    seconds: float,
    seed: int,
    curve: Curve,
    rate: float = LEARNING_RATE,
) -> None:
    """AdamW on the parameters for so long, one step at least.

    Args:
        loss_of: bytes `[B, CONTEXT + 1]` to (nats per byte, loss to minimise).
    """
    chosen = list(parameters)
    optimizer = torch.optim.AdamW(chosen, lr=rate, betas=(0.9, 0.95), weight_decay=0.1)
    random = torch.Generator().manual_seed(seed)
    start, progress = time.monotonic(), progress_bar(name, seconds)
    while (elapsed := time.monotonic() - start) < seconds or not curve.seconds:
        share = min(elapsed / max(seconds, 1e-9), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, share / 0.05 + 0.05) * (0.55 + 0.45 * math.cos(math.pi * share))
        starts = torch.randint(0, len(text) - CONTEXT - 1, (BATCH, 1), generator=random)
        nats, loss = loss_of(text[starts + torch.arange(CONTEXT + 1)])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(chosen, 1.0)
        optimizer.step()
        curve.seconds.append(time.monotonic() - start)
        curve.bits.append(nats.item() / math.log(2))
        progress.update(min(curve.seconds[-1], seconds) - progress.n)
        progress.set_postfix_str(f"{curve.bits[-1]:.3f} bits/byte, {len(curve.bits)} steps")
    progress.close()


def language_loss(model: nn.Module, batch: Tensor) -> tuple[Tensor, Tensor]:
    """The cross entropy in nats per byte, twice: what is shown and what is minimised."""
    logits = model(batch[:, :-1], use_cache=False).logits
    nats = F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
    return nats.detach(), nats
