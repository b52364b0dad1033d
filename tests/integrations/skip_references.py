"""What the models of these tests compute, by plain loops and hooks."""

from __future__ import annotations

from typing import Any

import torch
from skip_cases import Hashed
from torch import Tensor, nn

from anabranch.skip import KeyValueRule


def masked_slots(model: Any, tokens: Tensor, first: int, actions: Any, rule: KeyValueRule) -> Tensor:
    """One call for the whole sequence that computes everything, with a plain loop over the layers.

    Token t runs layer l as `actions(l, step of t)` says, for all sequences or as a list of one per sequence; a layer's
    attention sees the tokens that have keys in it.
    """
    batch, length = tokens.shape
    step = [max(0, position - first + 1) for position in range(length)]
    decoder = model.model
    with torch.no_grad():
        x = decoder.embed_tokens(tokens)
        positions = torch.arange(length)[None]
        angles = decoder.rotary_emb(x, position_ids=positions)
        causal = torch.ones(length, length, dtype=torch.bool).tril()
        for index, layer in enumerate(decoder.layers):
            action = torch.tensor([actions(index, each) for each in step]).reshape(length, -1).T.expand(batch, -1)
            for turn in (1, 2):
                runs = action >= turn
                slots = torch.ones_like(runs) if turn == 1 and rule is KeyValueRule.COMPUTE else runs
                seen = causal & (slots[:, None, :] | torch.eye(length).bool())
                mask = torch.where(seen, 0.0, torch.finfo(x.dtype).min)[:, None]
                y = layer(x, attention_mask=mask, position_ids=positions, position_embeddings=angles)
                x = torch.where(runs[..., None], y, x)
        return model.lm_head(decoder.norm(x))


def masked_reference(model: Any, policy: Hashed, tokens: Tensor, **inputs: Any) -> Tensor:
    """Logits with every FFN computed and its output multiplied by the mask, in hooks of the model's own modules."""
    handles, position = [], {}
    for index, layer in enumerate(model.model.layers):

        def before(module: nn.Module, args: Any, index: int = index) -> None:
            x = args[0]
            mask = policy.mask(index, x).to(x.dtype)
            if policy.router is not None:
                mask = mask * torch.sigmoid(policy.router(x)[..., 0])
            position[index] = mask

        def after(module: nn.Module, args: Any, out: Tensor, index: int = index) -> Tensor:
            return out * position[index][..., None]

        handles.append(layer.post_attention_layernorm.register_forward_pre_hook(before))
        handles.append(layer.mlp.register_forward_hook(after))
    try:
        return model(tokens, **inputs).logits
    finally:
        for handle in handles:
            handle.remove()
