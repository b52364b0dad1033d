"""What is bound as `forward` on each decoder layer. Imports transformers' cache: only `apply` imports this."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from anabranch.skip.arguments import decisions_of
from anabranch.skip.policy import Keep, Width
from anabranch.skip.runtime.decoder import BoundForward, LayerShape
from anabranch.skip.runtime.depth import Depth
from anabranch.skip.runtime.ffn import LayerFfn
from anabranch.skip.runtime.shared import Shared
from anabranch.skip.runtime.stream import Stream


class LayerForward(BoundForward):
    """`forward` of one decoder layer under a policy."""

    def __init__(self, layer: Any, index: int, shared: Shared, shape: LayerShape, packs: bool) -> None:
        self.layer = layer
        self.index = index
        self.shared = shared
        self.shape = shape
        self.ffn = LayerFfn(layer, shape, packs)
        self.depth = Depth(self)

    # State that changes with every call would make each call compile anew; what is between the layers still compiles.
    @torch.compiler.disable
    def __call__(self, hidden_states: Tensor, *positional: Any, **arguments: Any) -> Tensor:
        arguments.update(zip(self.shape.parameters[1:], positional, strict=False))
        shared, layer = self.shared, self.layer
        if torch.is_grad_enabled():
            self.ffn.drop()
        if getattr(layer, "gradient_checkpointing", False) and layer.training and torch.is_grad_enabled():
            # As transformers' own layers: a cache would be written again when the layer is computed again.
            arguments.update({self.shape.cache_name: None, "use_cache": False})
        cache = arguments.get(self.shape.cache_name)
        stream = shared.enter(self.index, hidden_states, cache, arguments.get("attention_mask"))
        if shared.policy.scope == "ffn":
            y = self._ffn_scope(hidden_states, arguments, stream)
        else:
            y = self.depth(hidden_states, arguments, stream)
        shared.leave(self.index, stream, hidden_states.shape[1])
        return y

    def _ffn_scope(self, x: Tensor, arguments: dict[str, Any], stream: Stream) -> Tensor:
        shared, index, state = self.shared, self.index, stream.state
        policy, counters, size = shared.policy, shared.counters, self.shape.intermediate_size
        x = self.replayable(partial(self.attention, arguments=arguments), x)
        # Asked outside of what is computed again in backward: a policy remembers, and must be asked once.
        trained = self.trained(x, lambda mask: self.replayable(self.ffn.masked, x, mask), stream)
        if trained is not None:
            return trained
        decision = policy.decide(index, state.step, x, state)
        tokens = x.shape[0] * x.shape[1]
        cosine = None
        self._check(decision, x)
        if decision is None or self._runs_all(decision):
            y = self.replayable(self.ffn.dense, x)
            if policy.needs_cosine:
                cosine = torch.cosine_similarity(x.float(), y.float(), dim=-1)
            counters.uniform(index, tokens, 1, size)
        else:
            assert isinstance(decision, Keep | Width)
            y, cosine = self.replayable(partial(self._decided, decision=decision), x, decision.gate)
            counters.decided(index, tokens, decision, size)
        if policy.needs_cosine or policy.needs_output:
            policy.observe(index, state.step, x, y, cosine, state)
        return y

    def trained(self, x: Tensor, run: Callable[[Tensor | None], Tensor], stream: Stream) -> Tensor | None:
        """The output of a policy that learns by `trained_output`; None where its decision is asked for."""
        policy, state, index = self.shared.policy, stream.state, self.index
        if not (policy.trains_by_output and policy.training and torch.is_grad_enabled()):
            return None
        y = policy.trained_output(index, x, run, state)
        if y is not None:
            self.shared.counters.uniform(index, x.shape[0] * x.shape[1], 1, self.shape.intermediate_size)
            if policy.needs_output:
                policy.observe(index, state.step, x, y, None, state)
        return y

    def _decided(self, x: Tensor, gate: Tensor | None, decision: Keep | Width) -> tuple[Tensor, Tensor | None]:
        # The gate comes from outside of the checkpoint, as x does: so its gradient leaves it once.
        decision = dataclasses.replace(decision, gate=gate)
        return self.ffn(x, decision, cosine=self.shared.policy.needs_cosine)

    def _check(self, decision: Any, x: Tensor) -> None:
        """ValueError where the decision is another than the scope has, or does not fit x: also where the op, which
        checks too, will not be called."""
        if isinstance(decision, Width):
            decisions_of("prefix_ffn", x, decision.index, decision.widths)
        elif isinstance(decision, Keep):
            decisions_of("gated_ffn", x, decision.mask, ())
            if decision.capacity is None or decision.mask.device.type != "cpu":
                return
            kept = int(decision.mask.sum())
            if kept > decision.capacity:
                raise ValueError(
                    f"forward: {type(self.shared.policy).__name__}.decide keeps {kept} tokens in layer {self.index}, "
                    f"must keep at most its capacity of {decision.capacity}; raise that, or give None"
                )
        elif decision is not None:
            raise self.unfit(decision, "Keep, Width or None")

    def _runs_all(self, decision: Any) -> bool:
        """Whether the host sees, without waiting for a device, that every token runs the FFN as it is."""
        if isinstance(decision, Keep):
            return decision.gate is None and decision.mask.device.type == "cpu" and bool(decision.mask.all())
        if not isinstance(decision, Width) or decision.gate is not None or decision.index.device.type != "cpu":
            return False
        widths, index = decision.widths, decision.index
        # The op names what is wrong with widths or with an index outside of them.
        if not widths or widths[-1] != self.shape.intermediate_size or list(widths) != sorted(set(widths)):
            return False
        return bool((index == len(widths) - 1).all())

    def attention(self, x: Tensor, arguments: dict[str, Any]) -> Tensor:
        """x + attention(norm(x)), by the layer's modules."""
        handed = {name: value for name, value in arguments.items() if name not in self.shape.dropped}
        normed = self.layer.input_layernorm(x)
        return x + self.layer.self_attn(hidden_states=normed, **handed)[0]

    def replayable(self, part: Any, *inputs: Tensor | None) -> Any:
        """The part of the layer, under gradient checkpointing where the layer has that on."""
        layer: Any = self.layer
        if getattr(layer, "gradient_checkpointing", False) and layer.training and torch.is_grad_enabled():
            return layer._gradient_checkpointing_func(part, *inputs)
        return part(*inputs)

    def own(self, x: Tensor, arguments: dict[str, Any], **changed: Any) -> Tensor:
        """The layer's own forward."""
        return type(self.layer).forward(self.layer, x, **{**arguments, **changed})

    def unfit(self, got: object, wanted: str) -> ValueError:
        name = f"a tensor {tuple(got.shape)}" if isinstance(got, Tensor) else type(got).__name__
        return ValueError(
            f"forward: {type(self.shared.policy).__name__}.decide gives {name} for layer {self.index}, must give "
            f"{wanted}; decide as the policy's scope, skippable_layers and repeats say"
        )
