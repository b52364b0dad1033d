"""What the gated FFN is compared with: compositions of torch's ops, and oneDNN with weights reordered once (CPU)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

EPS = 1e-6


@dataclasses.dataclass(frozen=True, eq=False)
class Block:
    """One residual feed-forward block.

    Attributes:
        norm: `[H]`; gate_up: `[2I, H]`, gate rows first; down: `[H, I]`.
    """

    norm: Tensor
    gate_up: Tensor
    down: Tensor

    @property
    def tensors(self) -> list[Tensor]:
        return [self.norm, self.gate_up, self.down]

    def normed(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, (x.shape[-1],), self.norm, EPS)

    def ffn(self, x: Tensor) -> Tensor:
        gate, up = F.linear(self.normed(x), self.gate_up).chunk(2, -1)
        return F.linear(F.silu(gate) * up, self.down)


def dense(block: Block, x: Tensor) -> Tensor:
    """Every row, as a model does it."""
    return x + block.ffn(x)


def masked(block: Block, x: Tensor, keep: Tensor) -> Tensor:
    """Every row at the dense price, the skipped ones multiplied by 0."""
    return x + keep[:, None] * block.ffn(x)


def naive(block: Block, x: Tensor, keep: Tensor) -> Tensor:
    """Kept rows gathered, computed and added; reads their number on the host."""
    rows = keep.nonzero()[:, 0]
    return x.index_add(0, rows, block.ffn(x.index_select(0, rows)))


def boolean_index(block: Block, x: Tensor, keep: Tensor) -> Tensor:
    """The shortest way to write it."""
    y = x.clone()
    y[keep] += block.ffn(x[keep])
    return y


def grouped(block: Block, x: Tensor, keep: Tensor) -> Tensor:
    """Without a host read: `nonzero_static`, three grouped products of one group, `index_add` (for CUDA)."""
    rows = torch.nonzero_static(keep, size=x.shape[0])[:, 0]
    valid, ends = (rows >= 0)[:, None], keep.sum(dtype=torch.int32)[None]
    rows = rows.clamp(min=0)
    inputs = block.normed(x.index_select(0, rows))
    gate_proj, up_proj = block.gate_up.chunk(2)
    gate = F.grouped_mm(inputs, gate_proj[None].mT, offs=ends)
    up = F.grouped_mm(inputs, up_proj[None].mT, offs=ends)
    out = F.grouped_mm(F.silu(gate) * up, block.down[None].mT, offs=ends)
    return x.index_add(0, rows, out.where(valid, 0))  # rows beyond the group hold anything


def sliced(block: Block, x: Tensor, width: int) -> Tensor:
    """The first `width` intermediate features, by slices of the weights."""
    gate_proj, up_proj = block.gate_up.chunk(2)
    inputs = block.normed(x)
    hidden = F.silu(F.linear(inputs, gate_proj[:width])) * F.linear(inputs, up_proj[:width])
    return x + F.linear(hidden, block.down[:, :width])


def lowrank_loop(x: Tensor, down: Tensor, up: Tensor) -> Tensor:
    """`x[g] + up[g] relu(down[g] x[g])`, one layer after the other."""
    return torch.stack([one + F.linear(F.linear(one, a).relu(), b) for one, a, b in zip(x, down, up, strict=True)])


def onednn_dense(block: Block, x: Tensor) -> Callable[[], Tensor] | None:
    """The dense block on this x by oneDNN, its weights reordered once for this number of rows; None where torch has no
    oneDNN or that has no such product on this processor."""
    mkldnn = torch.ops.mkldnn
    if x.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return None

    def linear(inputs: Tensor, weight: Tensor) -> Tensor:
        return mkldnn._linear_pointwise(inputs, weight, None, "none", [], "")

    try:
        gate_up, down = (mkldnn._reorder_linear_weight(one, x.shape[0]) for one in (block.gate_up, block.down))

        def call() -> Tensor:
            gate, up = linear(block.normed(x), gate_up).chunk(2, -1)
            return x + linear(F.silu(gate) * up, down)

        call()
    except (AttributeError, NotImplementedError, RuntimeError):
        return None
    return call
