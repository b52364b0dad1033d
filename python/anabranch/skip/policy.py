"""What a skip policy is: a small object that is asked layer by layer and answers with a decision.

`decide(layer, step, x, state)` returns one of

- `None`: the layer runs as the model has it;
- `Layer(action)`: the whole layer, attention included, is skipped, run or repeated, for the batch or per sequence;
- `Keep(mask)`: which tokens run the layer's FFN;
- `Width(index, widths)`: how wide each token's (or sequence's) FFN is.

A policy holds its learned parts, if any, as an `nn.Module`; what it remembers of one stream of tokens lies in the
`State` that the caller hands it, so that one policy serves many streams.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable, Hashable
from typing import Any, Literal, TypeAlias

from torch import Tensor, nn

from anabranch.skip.otherwise import Otherwise

Scope = Literal["layer", "ffn"]


class Action(enum.IntEnum):
    """What becomes of a layer. Values are the classes of Dr.LLM's routers."""

    SKIP = 0
    RUN = 1
    REPEAT = 2


class KeyValueRule(enum.Enum):
    """What the key-value cache gets from a layer that a token skips, and from a second pass.

    COMPUTE: keys and values are computed from the layer's input all the same (the default): later tokens find every
        slot, and a layer may run again at any time.
    ALIAS: the slot reads as the nearest lower layer that ran (Unified Layer Skipping). Nothing is computed or copied;
        the layer must not run again for that stream.
    HOLE: the token has no keys and values (FiRST, LoRA-Drop): later tokens in this layer attend to those that do. The
        layer keeps no slot at all where it never runs again (`revives` false). Where it may, the slot holds zeros that
        are masked out: that saves their computation, **not their memory**, unlike LoRA-Drop's own cache.
    """

    COMPUTE = "compute"
    ALIAS = "alias"
    HOLE = "hole"


@dataclasses.dataclass(frozen=True, eq=False)
class Layer:
    """The whole layer.

    Attributes:
        action: one `Action`, or int64 `[B]` of their values, one per sequence.
        otherwise: the output where skipped, instead of the layer's input. A branch that is `normed` reads the layer's
            input through its first norm.
        gate: floating `[B]` or None: where the layer runs its output is `x + gate (layer(x) - x)`, and the gate takes a
            gradient. For training.
    """

    action: Action | Tensor
    otherwise: Otherwise | None = None
    gate: Tensor | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Keep:
    """The FFN, token by token.

    Attributes:
        mask: bool `[B, S]`, true where it runs.
        gate: floating `[B, S]` or None: multiplies the FFN's output where it runs, and takes a gradient.
        otherwise: what tokens get that skip; None: their own residual.
        capacity: a bound on how many of the mask's B S entries are true, or None. More of them are a ValueError on the
            CPU; on a GPU the last ones skip.
    """

    mask: Tensor
    gate: Tensor | None = None
    otherwise: Otherwise | None = None
    capacity: int | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Width:
    """The FFN's width.

    Attributes:
        index: int64 `[B]` or `[B, S]` into `widths`.
        widths: ascending numbers of intermediate features; 0 skips.
        gate, otherwise: as `Keep`, for width 0.
    """

    index: Tensor
    widths: tuple[int, ...]
    gate: Tensor | None = None
    otherwise: Otherwise | None = None


Decision: TypeAlias = Layer | Keep | Width | None
"""What `Policy.decide` answers; None leaves the layer as the model has it."""


class State:
    """What is remembered of one stream of tokens: one key-value cache, or one call without a cache.

    Attributes:
        num_layers: layers of the model.
        step: forward calls of this stream before this one; 0 is the prompt, or its first chunk.
        position: tokens of this stream before this call.
        padding: bool `[B, S]`, true where a token of this call is real; None if all are.
        decoding: whether a call of one token has been: the prompt is over.
        memory: the policy's own. Tensors in it have the batch as their first dimension: beam search reorders them.
    """

    def __init__(self, num_layers: int) -> None:
        self.num_layers = num_layers
        self.step = 0
        self.position = 0
        self.padding: Tensor | None = None
        self.decoding = False
        self.memory: dict[Hashable, Any] = {}

    def advance(self, tokens: int) -> None:
        """Called after each forward of `tokens` tokens."""
        self.step += 1
        self.position += tokens
        self.decoding = self.decoding or tokens == 1

    def in_prompt(self, step: int, tokens: int) -> bool:
        """Whether a call of `tokens` tokens is of the prompt: the first, and those of several tokens that follow it.

        So is each chunk of a prompt that comes in pieces (`generate(prefill_chunk_size=...)`), but for a last one of a
        single token, which cannot be told from decoding. Once a call has had one token, all calls are decoding.
        """
        return step == 0 or (tokens != 1 and not self.decoding)

    def reorder(self, index: Tensor) -> None:
        """Sequence b becomes what sequence `index[b]` was; also what `repeat_interleave` and selection need."""
        for key, value in self.memory.items():
            if isinstance(value, Tensor):
                self.memory[key] = value.index_select(0, index.to(value.device))


class Policy(nn.Module):
    """Base of all policies.

    Attributes:
        scope: "layer": `decide` is asked before the attention, with the layer's input, and may answer `Layer`; "ffn":
            between attention and FFN, with the FFN's input before its norm, and may answer `Keep` or `Width`.
        needs_cosine: `observe` is given cos(x, y) of the FFN; only in scope "ffn".
        needs_output: `observe` is called with the layer's (scope "ffn": the FFN block's) input and output.
        key_value_rule: for skipped layers, unless the user of the policy chooses another.
        repeats: whether it may answer `REPEAT`.
        revives: whether a layer that a sequence skipped may run for it at a later step.
        trains_by_output: whether `trained_output` stands in for `decide` in training mode with gradients on.
        by_step: whether decisions depend on `step`, so on how the tokens are cut into calls. Then, as where `memory` is
            used, no token can be taken back from its cache: assisted generation refuses it.
    """

    scope: Scope = "ffn"
    needs_cosine: bool = False
    needs_output: bool = False
    key_value_rule: KeyValueRule = KeyValueRule.COMPUTE
    repeats: bool = False
    revives: bool = True
    trains_by_output: bool = False
    by_step: bool = False

    def check(self, num_layers: int, hidden_size: int, intermediate_size: int) -> None:
        """Raises ValueError where the policy does not fit a model of this shape. Called once, before anything runs."""

    def skippable_layers(self, num_layers: int) -> set[int]:
        """The layers that it may ever skip; by default all."""
        return set(range(num_layers))

    def decide(self, layer: int, step: int, x: Tensor, state: State) -> Decision:
        """The decision for one layer and call.

        Args:
            layer: its index from 0.
            step: `state.step`.
            x: `[B, S, H]`, the input as `scope` says.
            state: of this stream.
        """
        raise NotImplementedError

    def observe(self, layer: int, step: int, x: Tensor, y: Tensor, cosine: Tensor | None, state: State) -> None:
        """After the layer: its input, output, and cos(x, y) `[B, S]` (1 for tokens that skipped), if asked for."""

    def trained_output(
        self, layer: int, x: Tensor, run: Callable[[Tensor | None], Tensor], state: State
    ) -> Tensor | None:
        """In training, what the layer gives instead of a decision's outcome; None: `decide` is asked.

        For policies whose decision as such has no gradient to all that they learn. Everything is computed: training
        saves nothing.

        Args:
            layer, x, state: as in `decide`.
            run: scope "layer": given bool `[B, S]` or None, the layer's full output, with the keys of tokens where it
                is true out of its attention if the key-value rule is HOLE. Scope "ffn": given `[B, 1, n]` in x's dtype
                or None, the FFN's branch `FFN(norm x)` with its first n hidden features multiplied by it, between
                activation and down-projection, and the others by 0.

        Returns:
            `[B, S, H]`: the output of the layer (scope "ffn": of the FFN block, the residual added). `observe` gets it
            if asked for, without a cosine.
        """
        return None
