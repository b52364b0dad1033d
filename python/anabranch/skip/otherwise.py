"""What happens to rows that skip: the else-branch of `gated_ffn` and `prefix_ffn`, computed by the same op."""

from __future__ import annotations

import dataclasses
from typing import TypeAlias

from torch import Tensor

from anabranch.experts.expert_ffn import Activation


@dataclasses.dataclass(frozen=True, eq=False)
class LowRank:
    """`y = x + scale * up @ act(down @ norm(x))`: an adapter of rank r, as DAS bypasses a layer (arXiv 2309.01479).

    Attributes:
        down_proj: `[r, H]`; up_proj: `[H, r]`. Both are cast to the dtype of the FFN's weights.
        activation: between the two; "identity" makes it a LoRA.
        scale: of the branch.
        normed: whether it reads norm(x), as the FFN does, or x itself.
    """

    down_proj: Tensor
    up_proj: Tensor
    activation: Activation = "relu"
    scale: float = 1.0
    normed: bool = True


@dataclasses.dataclass(frozen=True, eq=False)
class SmallFfn:
    """`y = x + scale * FFN'(norm(x))` with a smaller FFN beside the large one (Duo-LLM, arXiv 2410.10846).

    Attributes:
        gate_up_proj: `[2 I', H]`, gate rows first; `[I', H]` if not `gated`.
        down_proj: `[H, I']`.
        activation, gated: as the large one's.
        scale: of the branch.
    """

    gate_up_proj: Tensor
    down_proj: Tensor
    activation: Activation = "silu"
    gated: bool = True
    scale: float = 1.0


@dataclasses.dataclass(frozen=True, eq=False)
class CachedDelta:
    """`y = x + delta`: what the branch added the last time (the block cache of E-DiT, arXiv 2602.13993).

    Attributes:
        delta: of the shape of x, cast to its dtype and added in it. Rows of tokens that run may hold anything.
    """

    delta: Tensor


@dataclasses.dataclass(frozen=True, eq=False)
class Anchor:
    """`y = anchor + scale * lora_b @ lora_a @ x`: the last full output, corrected (LoRA-Drop, arXiv 2601.02569).

    The row's own residual is not added. Without the two matrices it is the anchor alone.

    Attributes:
        anchor: of the shape of x, cast to its dtype. Rows of tokens that run may hold anything.
        lora_a: `[r, H]` or None; lora_b: `[H, r]` or None.
        scale: alpha / r.
    """

    anchor: Tensor
    lora_a: Tensor | None = None
    lora_b: Tensor | None = None
    scale: float = 1.0


Otherwise: TypeAlias = LowRank | SmallFfn | CachedDelta | Anchor
"""The else-branches; None stands for the identity, `y = x`."""
