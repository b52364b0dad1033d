"""`apply` and `remove`: a skip policy on a model of transformers."""

from __future__ import annotations

import uuid

from torch import nn

from anabranch.skip.policy import KeyValueRule, Policy
from anabranch.skip.runtime.decoder import BoundForward, Decoder, recognise


def apply(model: nn.Module, policy: Policy, *, key_values: KeyValueRule | None = None, pack: bool = True) -> None:
    """From now on the model's decoder layers run as the policy says, in `forward` and `generate`.

    Any decoder of transformers whose layers compute `h = x + attention(norm(x))`, `h + mlp(norm(h))` with a gated FFN
    of plain linear layers: Llama, Qwen2, Qwen3, Mistral, Phi3 and others. What a layer computes is found by running its
    own forward on stand-ins, not by its name. The attention, norms and dense FFNs stay the model's own modules; where a
    policy runs everything the results are bit for bit the model's.

    Applied to a model that has a policy, it takes that one's place. The policy's own parameters stay apart: neither
    `state_dict` nor `save_pretrained` of the model has them (save `policy.state_dict()` beside it), nor does
    `model.to` move them. Its mode follows the model's: `model.eval()` and `model.train()` after `apply` reach it in the
    next forward; until then it stays in the mode it was given in, so a policy can learn on a model in eval mode. A deep
    copy or pickle of the model carries the policy along.

    What a policy remembers of a stream of tokens lies in that stream's cache: one cache is one stream, and beam search
    reorders both. A call without a cache is a stream of its own.

    Args:
        model: or any module that holds exactly one stack of decoder layers.
        policy: see `anabranch.skip.Policy`.
        key_values: what the cache gets from layers that are skipped whole; None: `policy.key_value_rule`.
        pack: whether FFNs that run for a part of the tokens keep a second copy of their weights for calls without
            gradient: packed on the CPU; on a GPU gate and up in one, where the model has them apart. Without it each
            call puts these two together. It is made in the first such call, and again when the weights have changed: by
            assignment, in place, by an optimizer (fused too), or in any way before a call with gradients. A write
            through `.data` or numpy is seen where it changes the whole tensor, on a GPU not: apply again after it.

    Raises:
        ImportError: transformers is missing or older than 5.23.
        ValueError: the model has no such decoder (it says which layer is another), or the policy does not fit it;
            nothing has changed then. Later, in `forward`: a cache of another length than the policy has seen (a static
            one on a GPU only in its first call), a layer that shall run again after it has lost its keys and values, an
            answer that the policy's scope does not have or that does not fit. What a decision holds is not read on a
            GPU: there an action that the layer may not take becomes RUN.

    `output_attentions` records the attentions that ran: none of a layer that the batch skips, and of one that runs for
    some sequences an entry of these alone.

    The rules for layers that are skipped whole (scope "layer"):
        COMPUTE: norm, key and value projections and the rotation run; queries, attention and FFN do not.
        ALIAS: nothing runs. In a `DynamicCache` the slot refers to the lower layer's tensors; in others it stays as it
            is, because a layer under this rule never runs again and nobody reads it.
        HOLE: nothing runs. For a policy with `revives` the slot holds zeros that are masked out of the attention, so
            positions and lengths stay right, also where layer 0 is skipped: time is saved, memory is not. Needs
            "sdpa" or "eager" attention without sliding windows. For others the layer keeps no slot.
        A second pass (REPEAT) has a slot of its own, one more layer of the cache.

    Cost:
        No copy of weights but the packed ones. A decision on the CPU is read; one on a GPU never is: there `gated_ffn`
        runs the rows that stay, and a layer scope with several actions in one batch saves the FFN's work, not the
        attention's. Beside the model's launches a call adds a few small sums for `report`. Under `torch.compile` the
        layers run eagerly. One forward at a time.

    Gradient:
        To the weights of the model and, through gates and else-branches, to the policy; also under gradient
        checkpointing, where `decide` is still called once.
    """
    try:
        from anabranch.skip.runtime.layer import LayerForward
        from anabranch.skip.runtime.shared import Shared
    except ImportError as error:
        raise ImportError(
            "anabranch.skip.apply needs transformers 5.23 or later: pip install 'transformers>=5.23'"
        ) from error
    if not isinstance(policy, Policy):
        raise ValueError(
            f"apply: policy is a {type(policy).__name__}, must be an anabranch.skip.Policy; derive it from that class"
        )
    decoder = recognise(model)
    rule = policy.key_value_rule if key_values is None else key_values
    if not isinstance(rule, KeyValueRule):
        raise ValueError(f"apply: key_values is {rule!r}, must be a KeyValueRule or None; pass KeyValueRule.COMPUTE")
    _check(policy, decoder, rule, key_values)
    shared = Shared(uuid.uuid4().hex, policy, rule, decoder)
    remove(model)
    for index, (layer, shape) in enumerate(zip(decoder.layers, decoder.shapes, strict=True)):
        layer.forward = LayerForward(layer, index, shared, shape, pack)


def remove(model: nn.Module) -> None:
    """Takes the policy off: the model computes as before `apply` and keeps nothing of it. Without one, does nothing.

    Frees the packed weights. A cache that was filled under the policy can be read on where it is whole: under COMPUTE,
    and where no layer was skipped. One with holes or aliased slots refuses the next call with a ValueError, also that
    of another model.

    Args:
        model: with a policy or without.

    Raises:
        ValueError: something was put around the layers' forward after `apply`; nothing has changed then.

    Cost:
        Nothing but the packed copies' memory, which it frees.
    """
    for name, module in model.named_modules():
        if isinstance(module.__dict__.get("_old_forward"), BoundForward):
            raise ValueError(
                f"remove: {name} has a hook of accelerate's around the policy, must have the policy outermost; call "
                "accelerate.hooks.remove_hook_from_module on it first"
            )
    for module in model.modules():
        forward = module.__dict__.get("forward")
        if isinstance(forward, BoundForward):
            forward.shared.close()
            del module.__dict__["forward"]


def _check(policy: Policy, decoder: Decoder, rule: KeyValueRule, asked: KeyValueRule | None) -> None:
    """ValueError where the policy does not fit the model, or could not be right under the rule."""
    num_layers, name = len(decoder.layers), type(policy).__name__
    devices = {layer.mlp.down_proj.weight.device for layer in decoder.layers}
    strange = {parameter.device for parameter in policy.parameters()} - devices
    if strange:
        raise ValueError(
            f"apply: {name} has parameters on {', '.join(sorted(map(str, strange)))}, must be on the model's "
            f"{', '.join(sorted(map(str, devices)))}; move it with .to"
        )
    policy.check(num_layers, decoder.hidden_size, min(shape.intermediate_size for shape in decoder.shapes))
    skippable = policy.skippable_layers(num_layers)
    outside = sorted(layer for layer in skippable if not 0 <= layer < num_layers)
    if outside:
        raise ValueError(
            f"apply: {name} may skip layers {outside}, must be among the model's 0 to {num_layers - 1}; give it the "
            "model's number of layers"
        )
    if policy.scope == "ffn":
        if asked is not None:
            raise ValueError(
                f"apply: key_values is {asked.name}, must be None for a policy of scope 'ffn', whose attention always "
                "runs; leave it out"
            )
        return
    if policy.needs_cosine:
        raise ValueError(f"apply: {name} needs the cosine, must be of scope 'ffn'; set needs_output instead")
    config = getattr(decoder.module, "config", None) or decoder.layers[0].self_attn.config
    if rule is KeyValueRule.ALIAS and 0 in skippable:
        raise ValueError(
            f"apply: key_values is ALIAS and {name} may skip layer 0, must leave the lowest layer alone; use COMPUTE"
        )
    if rule is KeyValueRule.ALIAS and policy.revives:
        raise ValueError(
            f"apply: key_values is ALIAS and {name} may run a layer again that it has skipped, must not (revives); use "
            "COMPUTE"
        )
    masked = rule is KeyValueRule.HOLE and policy.revives
    if (masked or policy.repeats) and _slides(config):
        raise ValueError(
            f"apply: model attends in sliding windows and {name} leaves holes in its cache or repeats layers, must be "
            "a model with full attention; use COMPUTE and no repeats"
        )
    implementation = getattr(config, "_attn_implementation", "eager")
    if (masked or policy.repeats) and implementation not in ("eager", "sdpa"):
        raise ValueError(
            f"apply: attention is {implementation!r} and {name} leaves holes in its cache or repeats layers, must be "
            "'sdpa' or 'eager', which take a mask; call model.set_attn_implementation('sdpa')"
        )


def _slides(config: object) -> bool:
    kinds = getattr(config, "layer_types", None)
    if kinds is not None:
        return any(kind != "full_attention" for kind in kinds)
    return getattr(config, "sliding_window", None) is not None
