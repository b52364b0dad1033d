"""The forwards that `patch_mixers` gives to modules of transformers; `mixers.py` says what they are for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from anabranch.core.library import ops
from anabranch.mixers.channel_gate import channel_connect, channel_gate
from anabranch.mixers.connection import Connection, connect
from anabranch.mixers.mixer import Identity, Sinkhorn
from anabranch.mixers.projection import Projection, SigmoidGates


def kind_of(module: nn.Module) -> str:
    """The name of the first of its classes that is patched; its own if none is."""
    names = [kind.__name__ for kind in type(module).__mro__]
    known = (name for name in names if name in CONNECTIONS or name in LAYERS or name in HEADS)
    return next(known, names[0])


def _per_logit(scale: Tensor, *sizes: int) -> Tensor:
    return torch.cat([one.expand(size) for one, size in zip(scale.unbind(), sizes, strict=True)])


def _projection(hc: Any) -> Projection:
    """Of a module with `fn`, `base` and `scale`. The layers mix by comb^T, which is then H."""
    n = hc.hc_mult
    if not hasattr(hc, "hc_sinkhorn_iters"):
        gates = SigmoidGates(pre_eps=hc.hc_eps, post_scale=hc.hc_post_magnitude, post_eps=hc.hc_eps)
        return Projection(hc.fn, _per_logit(hc.scale, n, n), hc.base, Identity(), gates, norm_eps=hc.input_norm.eps)
    return Projection(
        hc.fn,
        _per_logit(hc.scale, n, n, n * n),
        hc.base,
        Sinkhorn(hc.hc_sinkhorn_iters, order="rows_first", eps=hc.hc_eps, transpose=True),
        SigmoidGates(pre_eps=hc.hc_eps),
        norm_eps=hc.input_norm.eps,
    )


def _mixed(hc: Any, hidden_streams: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    step = connect(hidden_streams, _projection(hc))
    return step.post, step.mixing.mT, step.input


def _unmixed(hc: Any, hidden_streams: Tensor) -> tuple[Tensor, Tensor]:
    step = connect(hidden_streams, _projection(hc))
    return step.post, step.input


def _channel_step(hc: Any, streams: Tensor) -> Connection:
    weights = (hc.hc_norm.weight, hc.input_mix_weight_down.weight, hc.input_mix_weight_up.weight)
    return channel_connect(streams, *weights, hc.block_inject_weight.weight, norm_eps=hc.hc_norm.eps)


def _channel_gated(hc: Any, hyper_input: Tensor) -> Any:
    streams = hyper_input.unflatten(-1, (hc.hc_count, hc.hidden_size))
    if hc.block_inject_weight is None:
        weights = (hc.hc_norm.weight, hc.input_mix_weight_down.weight, hc.input_mix_weight_up.weight)
        return channel_gate(streams, *weights, norm_eps=hc.hc_norm.eps)[0]
    step = _channel_step(hc, streams)
    return step.input, hyper_input, step.post.to(hyper_input.dtype)


def _head(head: Any, x: Tensor) -> Tensor:
    """p of `hc_fn`; the rows of q that a projection has beside it are zero."""
    n = head.hc_mult
    weight = torch.cat([head.hc_fn, torch.zeros_like(head.hc_fn)])
    bias = torch.cat([head.hc_base, torch.zeros_like(head.hc_base)])
    gates = SigmoidGates(pre_eps=head.eps)
    scale = head.hc_scale.expand(2 * n)
    projection = Projection(weight, scale, bias, Identity(), gates, norm_eps=head.input_norm.eps)
    projection.check(type(head).__name__, x)
    u: Tensor = ops.stream_pre(x.flatten(0, -3), None, *projection.tensors(x), *projection.options(x))[0]
    return u.view(*x.shape[:-2], x.shape[-1])


def _hooked(module: nn.Module) -> bool:
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return any(hooks) or hasattr(module, "_hf_hook")


def _is_foreign(child: nn.Module) -> bool:
    """Whether reading the weights of a hyper-connection's part is not all that calling it does (adapters, hooks)."""
    if _hooked(child):
        return True
    if type(child).__name__.endswith("RMSNorm"):
        return False
    return type(child).forward is not nn.Linear.forward or "forward" in child.__dict__ or child.bias is not None


def _is_whole(hc: nn.Module) -> bool:
    return not any(_is_foreign(child) for child in hc.children())


def connection_forward(hc: Any, *args: Any, **kwargs: Any) -> Any:
    run = CONNECTIONS[kind_of(hc)] if _is_whole(hc) else type(hc).forward
    return run(hc, *args, **kwargs)


def head_forward(head: Any, *args: Any, **kwargs: Any) -> Any:
    run = HEADS[kind_of(head)] if _is_whole(head) else type(head).forward
    return run(head, *args, **kwargs)


def layer_forward(layer: Any, *args: Any, **kwargs: Any) -> Any:
    run, *names = LAYERS[kind_of(layer)]
    for hc in (getattr(layer, name) for name in names):
        if kind_of(hc) not in CONNECTIONS or _hooked(hc) or not _is_whole(hc):
            return type(layer).forward(layer, *args, **kwargs)
    if "past_key_values" in kwargs:  # the deprecated name, which transformers renames too
        kwargs.setdefault("cache", kwargs.pop("past_key_values"))
    return run(layer, *args, **kwargs)


def _two_steps(layer: Any, x: Tensor, attention: Callable[[Tensor], Any], mlp: Callable[[Tensor], Tensor]) -> Any:
    """Attention, then the feed-forward block, each behind its norm; what attention returns beside its output too."""
    step = connect(x, _projection(layer.attn_hc))
    y, beside = attention(layer.input_layernorm(step.input))
    step = step.merge_and_connect(y, _projection(layer.ffn_hc))
    return step.merge(mlp(layer.post_attention_layernorm(step.input))), beside


def _deepseek_v4(layer: Any, hidden_states: Tensor, input_ids: Tensor | None = None, **kwargs: Any) -> Any:
    def attention(u: Tensor) -> Any:
        return layer.self_attn(u, **kwargs)

    return _two_steps(layer, hidden_states, attention, lambda u: layer.mlp(u, input_ids=input_ids))[0]


def _hy_v4(
    layer: Any,
    hidden_states: Tensor,
    attention_mask: Any = None,
    position_ids: Any = None,
    cache: Any = None,
    use_cache: bool | None = False,
    position_embeddings: Any = None,
    prev_topk_indices: Any = None,
    **kwargs: Any,
) -> Any:
    def attention(u: Tensor) -> Any:
        if getattr(layer, "block_type", None) == "linear_attention":
            return layer.self_attn(hidden_states=u, cache=cache, attention_mask=attention_mask, **kwargs), None
        y, _, indices = layer.self_attn(
            hidden_states=u,
            attention_mask=attention_mask,
            position_ids=position_ids,
            cache=cache,
            use_cache=use_cache,
            position_embeddings=position_embeddings,
            prev_topk_indices=prev_topk_indices,
            **kwargs,
        )
        return y, indices

    return _two_steps(layer, hidden_states, attention, layer.mlp)


def _qwen4_exp(
    layer: Any,
    hidden_states: Tensor,
    position_embeddings: Any,
    attention_mask: Any = None,
    conv_mask: Any = None,
    cache: Any = None,
    ple_input_ids: Any = None,
    **kwargs: Any,
) -> Tensor:
    first, second = layer.attn_hyper_connection, layer.mlp_hyper_connection
    if layer.ple is not None:
        hidden_states = hidden_states + layer.ple(hidden_states, ple_input_ids, cache, conv_mask=conv_mask)
    step = _channel_step(first, hidden_states.unflatten(-1, (first.hc_count, first.hidden_size)))
    if layer.layer_type == "linear_attention":
        y = layer.linear_attn(step.input, cache=cache, attention_mask=conv_mask, **kwargs)
    else:
        y, _ = layer.self_attn(step.input, position_embeddings, attention_mask=attention_mask, cache=cache, **kwargs)
    step = _channel_step(second, step.merge(y))
    return step.merge(layer.mlp(step.input)).flatten(-2)


CONNECTIONS: dict[str, Callable[..., Any]] = {
    "DeepseekV4HyperConnection": _mixed,
    "Glm5NextTextHyperConnection": _mixed,
    "HYV4HyperConnection": _unmixed,
    "HYV4VLHyperConnection": _unmixed,
    "Qwen4ExpTextGatedResidual": _channel_gated,
}
HEADS: dict[str, Callable[..., Any]] = {
    "DeepseekV4HyperHead": _head,
    "HYV4HyperHead": _head,
    "HYV4VLHyperHead": _head,
}
LAYERS: dict[str, tuple[Any, str, str]] = {
    "DeepseekV4DecoderLayer": (_deepseek_v4, "attn_hc", "ffn_hc"),
    "Glm5NextTextDecoderLayer": (_hy_v4, "attn_hc", "ffn_hc"),
    "HYV4DecoderLayer": (_hy_v4, "attn_hc", "ffn_hc"),
    "HYV4VLDecoderLayer": (_hy_v4, "attn_hc", "ffn_hc"),
    "Qwen4ExpTextDecoderLayer": (_qwen4_exp, "attn_hyper_connection", "mlp_hyper_connection"),
}
