"""What the layers of one model share. Imports transformers' cache: only `apply` imports this."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from anabranch.skip.policy import KeyValueRule, Policy
from anabranch.skip.runtime.cache_layer import stream_of
from anabranch.skip.runtime.counters import Counters
from anabranch.skip.runtime.decoder import Decoder
from anabranch.skip.runtime.padding import real_tokens
from anabranch.skip.runtime.stream import Stream


class Shared:
    """One `apply`.

    Attributes:
        number: tells it from others in caches that outlive it, in this process or another.
        policy, rule: as given.
        counters: for `report`.
        stream: of the forward that is under way.
    """

    def __init__(self, number: str, policy: Policy, rule: KeyValueRule, decoder: Decoder) -> None:
        self.number = number
        self.policy = policy
        self.rule = rule
        self.decoder = decoder
        self.num_layers = len(decoder.layers)
        self.skippable = policy.skippable_layers(self.num_layers)
        self.counters = Counters(self.num_layers)
        self.stream: Stream | None = None
        self.training = bool(decoder.layers[0].training)

    def follow(self, training: bool) -> None:
        """Takes the policy along where the model's mode has changed since the last call (or `apply`)."""
        if training != self.training:
            self.training = training
            self.policy.train(training)

    def enter(self, index: int, x: Tensor, cache: Any, mask: Any) -> Stream:
        """The stream of this call; found by its first layer."""
        if index == 0:
            self.close()
            self.follow(self.decoder.layers[0].training)
            by_step = self.policy.by_step
            stream = stream_of(cache, self.number, self.num_layers, by_step) if cache is not None else None
            self.stream = stream or Stream(self.number, self.num_layers, by_step)
            self.stream.batch = x.shape[0]
            self.stream.last_ran = None
            self.stream.is_open = True
            self.stream.state.padding = real_tokens(mask, x, cache, self.stream.state.position)
        if self.stream is None:
            raise ValueError(f"forward: layer {index} is called first, must be layer 0; call the whole decoder")
        return self.stream

    def leave(self, index: int, stream: Stream, tokens: int) -> None:
        """After each layer; the last one ends the call."""
        if index == self.num_layers - 1:
            stream.state.padding = None
            stream.state.advance(tokens)
            self.close()

    def close(self) -> None:
        """Ends the forward that is under way, also one that an error has left."""
        if self.stream is not None:
            self.stream.is_open = False
        self.stream = None
