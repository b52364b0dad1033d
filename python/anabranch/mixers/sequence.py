"""`HyperConnectionSequence`: a stack of hyper-connections with one pass over the streams between two sub-layers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from anabranch.mixers.mixer import Cayley, Identity
from anabranch.mixers.modules import HyperConnection
from anabranch.mixers.reversible import run_blocks, run_reversible


class HyperConnectionSequence(nn.Module):
    """`HyperConnection`s one after another; what one writes and the next reads is one pass over the streams.

    The blocks' parameters and sub-layers run, not the blocks themselves: forward hooks on a block do not run, those on
    its sub-layer do.

    Args:
        blocks: at least one, of equal `hidden_size` and `num_streams`; mixers may differ. Each sub-layer returns a
            tensor. For FSDP2 the sequence is a unit: `fully_shard` it, not its blocks.
        lagged: single-pass mHC (the form of DeepSeek-V4.1): every block but the first reads the streams by the p of
            the block before, so that reading waits for nothing. The first reads by its own p, the last one's p is
            not used.
        reversible: for orthogonal H alone (`Cayley`, `Identity`): backward rebuilds the streams before a block from
            those after it, `x = H^T (x' - q y)`, and runs its sub-layer again. For a block C + n * (n + 2) numbers a
            token are kept, neither its streams nor what its sub-layer would keep. Random numbers are drawn again and
            autocast is as it was. Sub-layers must not change state in their forward. Under torch.compile it runs
            eagerly between graphs, and `fullgraph=True` is an error that says so. It is not for CUDA graphs: keeping
            the generators' states is host work.

    Gradient:
        As block by block. Reversible: the same formulas on rebuilt streams. Each rebuilding rounds to the streams'
        dtype. Measured on 16 blocks of random parameters, relative to float64: float32 gradients are off by 2.5e-6
        (2.0e-6 without rebuilding), bfloat16 ones by 4.9e-2 (4.7e-2); the forward's own rounding is the larger part.
        Gradients go to the module's parameters, the streams, tensors among the sub-layers' arguments, and parameters
        of modules among those (a skip policy); to nothing else that a sub-layer gets hold of.

    Raises:
        ValueError: blocks that do not fit each other; `reversible` with another mixer; in `forward`,
            streams of another shape, a block sharded by itself, a sub-layer that returns no tensor, and what `connect`
            raises.

    Cost:
        A block reads n*C + C and writes n*C + C numbers a token, once the first has read its streams; training on a
        CPU, where arithmetic is the limit and two passes are faster, it reads n*C more. Reversible:
        backward runs each sub-layer and `connect` once more, and reads and writes n*C + C for the rebuilding.
    """

    def __init__(self, blocks: Iterable[HyperConnection], *, lagged: bool = False, reversible: bool = False) -> None:
        super().__init__()
        op = "HyperConnectionSequence"
        self.blocks = nn.ModuleList(blocks)
        self.lagged, self.reversible = lagged, reversible
        if len(self.blocks) == 0:
            raise ValueError(f"{op}: blocks is empty, must hold one at least; pass HyperConnection modules")
        for index, block in enumerate(self.blocks):
            if not isinstance(block, HyperConnection):
                raise ValueError(
                    f"{op}: blocks[{index}] is a {type(block).__name__}, must be a HyperConnection; wrap the sub-layer"
                )
            sizes, first = ((one.num_streams, one.hidden_size) for one in (block, self.blocks[0]))
            if sizes != first:
                raise ValueError(
                    f"{op}: blocks[{index}] has {sizes[0]} streams of {sizes[1]} channels, must have {first[0]} of "
                    f"{first[1]} like the first; build all with the same sizes"
                )
            if reversible and not isinstance(block.mixer, (Cayley, Identity)):
                raise ValueError(
                    f"{op}: blocks[{index}] mixes by {block.mixer}, must mix by an orthogonal matrix if reversible; "
                    "use mixer=Cayley()"
                )

    def forward(self, streams: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """`[..., n, C]` to `[..., n, C]`; args and kwargs go to every sub-layer."""
        blocks = [block for block in self.blocks if isinstance(block, HyperConnection)]
        blocks[0].check(streams)
        for index, block in enumerate(blocks):
            if hasattr(block.bias, "device_mesh"):  # a DTensor; its class is dear to import
                raise ValueError(
                    f"HyperConnectionSequence: blocks[{index}] is sharded by itself, must be plain in forward, which "
                    "reads the blocks' parameters and does not call them; call fully_shard on the sequence instead"
                )
        if self.reversible and torch.is_grad_enabled():
            return run_reversible(blocks, streams, args, kwargs, lagged=self.lagged)
        return run_blocks(blocks, streams, args, kwargs, lagged=self.lagged)

    def __len__(self) -> int:
        return len(self.blocks)

    def extra_repr(self) -> str:
        return f"lagged={self.lagged}, reversible={self.reversible}"
