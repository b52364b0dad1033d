"""Scope "layer": whole layers that are skipped, run, or run twice, for the batch or per sequence."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from anabranch.skip.policy import Action, Keep, KeyValueRule, Layer
from anabranch.skip.runtime.actions import checked_action
from anabranch.skip.runtime.branches import gated, skipped_output, where_rows
from anabranch.skip.runtime.branches import rows_of as branch_rows
from anabranch.skip.runtime.cache_layer import alias, gives_lengths, second_slot
from anabranch.skip.runtime.key_values import CacheView, key_values, rows_of, write_nothing
from anabranch.skip.runtime.stream import Stream

if TYPE_CHECKING:
    from anabranch.skip.runtime.layer import LayerForward


class Depth:
    """Asks the policy for one layer and does what it says.

    One action for all sequences costs what it runs. Several in one batch: on the CPU each sequence runs what it is
    told, as in a batch of its own. On a GPU the host does not look: attention runs for all, so every slot has keys and
    values, the FFN for the sequences that run, and the results are chosen by `where`.
    """

    def __init__(self, forward: LayerForward) -> None:
        self.forward = forward

    def __call__(self, x: Tensor, arguments: dict[str, Any], stream: Stream) -> Tensor:
        forward, state = self.forward, stream.state
        policy, index = forward.shared.policy, forward.index
        trained = forward.trained(x, lambda missing: self._full(x, arguments, stream, missing), stream)
        if trained is not None:
            return trained
        decision = policy.decide(index, state.step, x, state)
        if decision is None:
            decision = Layer(Action.RUN)
        if not isinstance(decision, Layer):
            raise forward.unfit(decision, "Layer or None")
        action = checked_action(forward, decision, x, self.on_host)
        if isinstance(action, Tensor):
            run = self._by_sequence if self.on_host(action) else self._on_device
            y = run(x, arguments, stream, action, decision)
        else:
            y = self._whole_batch(x, arguments, stream, action, decision)
        if decision.gate is not None and isinstance(action, Tensor):
            y = where_rows(action != Action.SKIP, gated(x, y, decision.gate), y)
        elif decision.gate is not None and action != Action.SKIP:
            y = gated(x, y, decision.gate)
        if policy.needs_output:
            policy.observe(index, state.step, x, y, None, state)
        return y

    def _full(self, x: Tensor, arguments: dict[str, Any], stream: Stream, missing: Tensor | None) -> Tensor:
        """The whole layer, whose attention goes without the tokens where `missing` `[B, S]` holds, under HOLE."""
        index, tokens = self.forward.index, x.shape[1]
        if missing is not None and self.forward.shared.rule is KeyValueRule.HOLE:
            stream.holes[index] = missing
        return self.forward.own(x, self._masked(arguments, stream, index, tokens))

    @staticmethod
    def on_host(tensor: Tensor) -> bool:
        """Whether reading it waits for nothing."""
        return tensor.device.type == "cpu"

    def _whole_batch(
        self, x: Tensor, arguments: dict[str, Any], stream: Stream, action: Action, decision: Layer
    ) -> Tensor:
        forward, cache = self.forward, arguments.get(self.forward.shape.cache_name)
        shared, index, (batch, tokens) = forward.shared, forward.index, x.shape[:2]
        self._check_allowed(action == Action.SKIP, action == Action.REPEAT)
        shared.counters.uniform(index, batch * tokens, int(action), forward.shape.intermediate_size)
        if action == Action.SKIP:
            if cache is not None:
                self._skip_slot(x, arguments, stream, cache)
                self._idle_second(x, arguments, stream, cache)
            return skipped_output(x, decision.otherwise, forward.layer.input_layernorm)
        stream.check_runs(index, None)
        y = forward.own(x, self._masked(arguments, stream, index, tokens))
        stream.last_ran = index
        if action == Action.RUN:
            if cache is not None:
                self._idle_second(x, arguments, stream, cache)
            return y
        if cache is None:
            return forward.own(y, arguments)
        slot = self._second(x, arguments, stream, cache)
        view = {forward.shape.cache_name: CacheView(cache, slot, batch)}
        return forward.own(y, {**self._masked(arguments, stream, slot, tokens), **view})

    def _by_sequence(
        self, x: Tensor, arguments: dict[str, Any], stream: Stream, action: Tensor, decision: Layer
    ) -> Tensor:
        forward, cache = self.forward, arguments.get(self.forward.shape.cache_name)
        name, index, (batch, tokens) = forward.shape.cache_name, forward.index, x.shape[:2]
        run, twice = action != Action.SKIP, action == Action.REPEAT
        ran, repeated, skipped = run.nonzero()[:, 0], twice.nonzero()[:, 0], (~run).nonzero()[:, 0]
        self._check_allowed(len(skipped) > 0, len(repeated) > 0)
        branch = branch_rows(decision.otherwise, skipped, x)
        stream.check_runs(index, run)
        self._count(run, twice if len(repeated) else None, tokens)

        def rows(rows: Tensor, slot: int, *filling: Any) -> dict[str, Any]:
            chosen = rows_of(self._masked(arguments, stream, slot, tokens), rows, batch)
            view = None if cache is None else CacheView(cache, slot, batch, rows, *filling)
            return {**chosen, name: view}

        filling = None
        if cache is not None and len(skipped) and forward.shared.rule is KeyValueRule.COMPUTE:
            chosen = self._handed(rows_of(arguments, skipped, batch))
            filling = key_values(forward.layer, x.index_select(0, skipped), cache, name, chosen)
        y = x.index_copy(0, ran, forward.own(x.index_select(0, ran), rows(ran, index, skipped, filling)))
        if cache is not None:
            self._lost(stream, ~run, tokens)
        if len(repeated):
            slot = index if cache is None else self._second(x, arguments, stream, cache)
            again = forward.own(y.index_select(0, repeated), rows(repeated, slot))
            y = y.index_copy(0, repeated, again)
            if cache is not None:
                stream.add_holes(slot, ~twice, tokens)
        elif cache is not None:
            self._idle_second(x, arguments, stream, cache)
        if branch is not None and len(skipped):
            instead = skipped_output(x.index_select(0, skipped), branch, forward.layer.input_layernorm)
            y = y.index_copy(0, skipped, instead.to(y.dtype))
        return y

    def _on_device(
        self, x: Tensor, arguments: dict[str, Any], stream: Stream, action: Tensor, decision: Layer
    ) -> Tensor:
        forward, cache = self.forward, arguments.get(self.forward.shape.cache_name)
        index, tokens = forward.index, x.shape[1]
        run, twice = action != Action.SKIP, action == Action.REPEAT
        repeats = forward.shared.policy.repeats
        self._count(run, twice if repeats else None, tokens)
        y = self._gated(x, self._masked(arguments, stream, index, tokens), run)
        if cache is not None and forward.shared.rule is KeyValueRule.HOLE and forward.shared.policy.revives:
            stream.add_holes(index, ~run, tokens)
        if repeats:
            slot = index if cache is None else self._second(x, arguments, stream, cache)
            chosen = self._masked(arguments, stream, slot, tokens)
            if cache is not None:
                chosen = {**chosen, forward.shape.cache_name: CacheView(cache, slot, x.shape[0])}
            y = self._gated(y, chosen, twice)
            if cache is not None:
                stream.add_holes(slot, ~twice, tokens)
        if decision.otherwise is None:
            return y
        return where_rows(run, y, skipped_output(x, decision.otherwise, forward.layer.input_layernorm))

    def _gated(self, x: Tensor, arguments: dict[str, Any], run: Tensor) -> Tensor:
        """The layer for the sequences where `run` holds, without a look at it."""
        forward = self.forward

        def attention(x: Tensor) -> Tensor:
            return where_rows(run, forward.attention(x, arguments), x)

        def ffn(x: Tensor) -> Tensor:
            return forward.ffn(x, Keep(run[:, None].expand(x.shape[:2])))[0]

        return forward.replayable(ffn, forward.replayable(attention, x))

    def _handed(self, arguments: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in arguments.items() if name not in self.forward.shape.dropped}

    def _masked(self, arguments: dict[str, Any], stream: Stream, slot: int, tokens: int) -> dict[str, Any]:
        """The arguments with the slot's holes taken out of the attention mask."""
        cache = arguments.get(self.forward.shape.cache_name)
        if slot not in stream.holes:
            return arguments
        mask = arguments.get("attention_mask")
        num_keys = tokens if mask is None else mask.shape[-1]
        if mask is None and cache is not None:
            num_keys = cache.get_mask_sizes(tokens, slot)[0]
        return {**arguments, "attention_mask": stream.mask(slot, mask, tokens, num_keys)}

    def _skip_slot(self, x: Tensor, arguments: dict[str, Any], stream: Stream, cache: Any) -> None:
        """What the layer's slot gets where all sequences skip it."""
        forward, shared, index = self.forward, self.forward.shared, self.forward.index
        batch, tokens = x.shape[:2]
        if shared.rule is KeyValueRule.COMPUTE:
            made = key_values(forward.layer, x, cache, forward.shape.cache_name, self._handed(arguments))
            cache.update(made.keys, made.values, index, *made.arguments, **made.options)
            return
        self._lost(stream, torch.ones(batch, dtype=torch.bool, device=x.device), tokens, everyone=True)
        if shared.rule is KeyValueRule.ALIAS and stream.last_ran is not None and alias(cache, index, stream.last_ran):
            return
        if shared.policy.revives or gives_lengths(cache, index):
            self._write_nothing(x, arguments, cache, index, tokens)

    def _lost(self, stream: Stream, missing: Tensor, tokens: int, *, everyone: bool = False) -> None:
        """Remembers that the sequences where `missing` holds have no keys and values of this call."""
        shared, index = self.forward.shared, self.forward.index
        if shared.rule is KeyValueRule.COMPUTE:
            return
        if shared.policy.revives:
            stream.add_holes(index, missing, tokens)
        else:
            stream.forget(index, True if everyone else missing)

    def _second(self, x: Tensor, arguments: dict[str, Any], stream: Stream, cache: Any) -> int:
        """The slot of the second pass, with nothing in it for tokens from before it was made."""
        index, position = self.forward.index, stream.state.position
        is_new = index not in stream.slots
        slot = second_slot(cache, stream, index)
        if is_new and position:
            self._write_nothing(x, arguments, cache, slot, position)
            stream.holes[slot] = torch.ones((x.shape[0], position), dtype=torch.bool, device=x.device)
        return slot

    def _idle_second(self, x: Tensor, arguments: dict[str, Any], stream: Stream, cache: Any) -> None:
        """No sequence runs a second time in this call: its slot, where there is one, keeps its length."""
        slot = stream.slots.get(self.forward.index)
        if slot is not None:
            self._write_nothing(x, arguments, cache, slot, x.shape[1])
            stream.add_holes(slot, torch.ones(x.shape[0], dtype=torch.bool, device=x.device), x.shape[1])

    def _write_nothing(self, x: Tensor, arguments: dict[str, Any], cache: Any, slot: int, tokens: int) -> None:
        forward = self.forward
        write_nothing(forward.layer, x, cache, slot, tokens, forward.shape.cache_name, self._handed(arguments))

    def _count(self, run: Tensor, twice: Tensor | None, tokens: int) -> None:
        forward, all_tokens = self.forward, run.shape[0] * tokens
        counters, size = forward.shared.counters, forward.shape.intermediate_size
        counters.masked(forward.index, all_tokens, run[:, None].expand(-1, tokens), size, len(run))
        if twice is not None:
            counters.masked(forward.index, all_tokens, twice[:, None].expand(-1, tokens), size, 0, again=True)

    def _check_allowed(self, skips: bool, repeats: bool) -> None:
        forward, policy = self.forward, self.forward.shared.policy
        if skips and forward.index not in forward.shared.skippable:
            raise forward.unfit(Layer(Action.SKIP), "RUN")
        if repeats and not policy.repeats:
            raise forward.unfit(Layer(Action.REPEAT), "SKIP or RUN")
