"""The workloads of `python -m anabranch bench skip`: kept rows, nothing kept, widths, low-rank branches, training."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from anabranch.cli import peers_skip as peers
from anabranch.cli.bench_rows import Contenders, Workload
from anabranch.cli.peers_skip import EPS, Block
from anabranch.skip import Norm, PackedFfn, gated_ffn, lowrank_residual, pack_ffn, prefix_ffn

SKIPPED, WIDTHS = (0.0, 0.3, 0.5, 0.75), (0.25, 0.5, 0.75)
_WARM_CALLS = 1000


@dataclasses.dataclass(frozen=True)
class SkipShape:
    """Features H and FFN width I; rank r of the low-rank branches of so many layers."""

    hidden: int = 2048
    inner: int = 5632
    rank: int = 16
    layers: int = 16


class Skip:
    """One block's weights in one dtype, and the workloads on it."""

    def __init__(self, shape: SkipShape, dtype: torch.dtype, device: torch.device) -> None:
        self.shape, self.dtype, self.device = shape, dtype, device
        hidden, inner = shape.hidden, shape.inner
        self.block = Block(
            (1 + 0.1 * torch.randn(hidden, device=device)).to(dtype),
            self._weights(2 * inner, hidden),
            self._weights(hidden, inner),
        )
        self._packed: PackedFfn | None = None

    def workloads(self, mode: str, tokens: int) -> Iterator[Workload]:
        """Those of one mode; `tokens` are rows, of "lowrank" those of each layer."""
        if mode == "forward":
            yield from self.forward(tokens)
        elif mode == "skipped":
            yield self.skipped(tokens)
        elif mode == "width":
            yield from (self.width(tokens, share) for share in WIDTHS)
        elif mode == "lowrank":
            yield self.lowrank(tokens)
        else:
            self._packed = None  # a backward needs the memory
            yield self.training(tokens)

    def forward(self, tokens: int) -> Iterator[Workload]:
        """Inference with rising shares of rows skipped, each number of kept rows once; none kept is "skipped"."""
        block, x = self.block, self._rows(tokens)
        onednn, seen = peers.onednn_dense(block, x), {0}
        for skipped in SKIPPED:
            keep = self._keep(tokens, skipped)
            kept = int(keep.sum())
            if kept in seen:
                continue
            seen.add(kept)
            contenders = self._ours(x, keep) | self._dense(x)
            contenders["eager"] = _call(peers.dense, block, x)
            contenders["naive"] = _call(peers.naive, block, x, keep)
            contenders["masked"] = _call(peers.masked, block, x, keep)
            if onednn is not None:
                contenders["onednn"] = onednn
            if self.device.type == "cuda":
                contenders["grouped"] = _call(peers.grouped, block, x, keep)
            yield self._inference(f"skip {skipped:.0%}", tokens, kept, 1.0, contenders)

    def skipped(self, tokens: int) -> Workload:
        """Nothing kept, warm: what a call costs that has nothing to do."""
        x, keep = self._rows(tokens), torch.zeros(tokens, dtype=torch.bool, device=self.device)
        contenders = self._ours(x, keep)
        contenders["naive"] = _call(peers.boolean_index, self.block, x, keep)
        repeated: Contenders = {name: _repeat(call, _WARM_CALLS) for name, call in contenders.items()}
        return Workload("all skipped", tokens, 0, repeated, 0, 0, kept=0.0, calls=_WARM_CALLS)  # all is in cache

    def width(self, tokens: int, share: float) -> Workload:
        """Every row at a prefix of the width."""
        block, x, norm = self.block, self._rows(tokens), self._norm()
        width = round(share * self.shape.inner)
        index = torch.zeros(tokens, dtype=torch.int64, device=self.device)
        contenders: Contenders = {}
        if self.device.type == "cpu":
            packed = self.packed()
            contenders["packed"] = lambda: packed.prefix(x, index, (width,), norm=norm)
        contenders["unpacked"] = lambda: prefix_ffn(x, index, block.gate_up, block.down, (width,), norm=norm)
        contenders |= self._dense(x)
        contenders["eager"] = _call(peers.sliced, block, x, width)
        if (onednn := peers.onednn_dense(block, x)) is not None:
            contenders["onednn"] = onednn
        return self._inference(f"width {share:.0%}", tokens, tokens, share, contenders)

    def lowrank(self, tokens: int) -> Workload:
        """Low-rank branches of all layers in one call."""
        shape = self.shape
        x = torch.stack([self._rows(tokens) for _ in range(shape.layers)])
        down = torch.stack([self._weights(shape.rank, shape.hidden) for _ in range(shape.layers)])
        up = torch.stack([self._weights(shape.hidden, shape.rank) for _ in range(shape.layers)])
        contenders: Contenders = {
            "unpacked": lambda: lowrank_residual(x, down, up),
            "eager": _call(peers.lowrank_loop, x, down, up),
        }
        flops = 4 * shape.layers * tokens * shape.hidden * shape.rank
        nbytes = (2 * x.numel() + down.numel() + up.numel()) * x.element_size()
        return Workload("low rank", tokens, tokens, contenders, flops, nbytes)

    def training(self, tokens: int) -> Workload:
        """Forward and backward with half of the rows skipped: gradients of x, the norm and both weights."""
        keep, dy = self._keep(tokens, 0.5), self._rows(tokens)
        x, *tensors = (one.detach().requires_grad_() for one in (self._rows(tokens), *self.block.tensors))
        block = Block(*tensors)
        norm = Norm(block.norm, eps=EPS)
        forwards: dict[str, Callable[[], Tensor]] = {
            "unpacked": lambda: gated_ffn(x, keep, block.gate_up, block.down, norm=norm),
            "naive": _call(peers.naive, block, x, keep),
            "masked": _call(peers.masked, block, x, keep),
        }
        if self.device.type == "cuda":
            forwards["grouped"] = _call(peers.grouped, block, x, keep)
        contenders: Contenders = {name: _gradient(call, [x, *tensors], dy) for name, call in forwards.items()}
        kept, weights = int(keep.sum()), 3 * self.shape.hidden * self.shape.inner
        # Weights: read twice, their gradients written. Rows: x, y; dy, x, dx. First product: written, read.
        elements = 3 * weights + 5 * x.numel() + 4 * kept * self.shape.inner
        return Workload(
            "train skip 50%",
            tokens,
            kept,
            contenders,
            6 * kept * weights,
            elements * dy.element_size(),
            kept=kept / tokens,
        )

    def packed(self) -> PackedFfn:
        """The weights packed, on the first use."""
        if self._packed is None:
            self._packed = pack_ffn(self.block.gate_up, self.block.down)
        return self._packed

    def _ours(self, x: Tensor, keep: Tensor) -> Contenders:
        """Our variants, the preferred one first."""
        block, norm, calls = self.block, self._norm(), {}
        if self.device.type == "cpu":
            packed = self.packed()
            calls["packed"] = lambda: packed(x, keep, norm=norm)
        return calls | {"unpacked": lambda: gated_ffn(x, keep, block.gate_up, block.down, norm=norm)}

    def _dense(self, x: Tensor) -> Contenders:
        """Our preferred variant with nothing skipped: what the share that runs is taken of."""
        keep = torch.ones(x.shape[0], dtype=torch.bool, device=self.device)
        return {"dense": next(iter(self._ours(x, keep).values()))}

    def _inference(self, name: str, tokens: int, kept: int, width: float, contenders: Contenders) -> Workload:
        weights = 3 * self.shape.hidden * round(width * self.shape.inner)
        nbytes = (weights + 2 * tokens * self.shape.hidden) * self.block.down.element_size()
        share = width * kept / tokens
        return Workload(name, tokens, kept, contenders, 2 * kept * weights, nbytes, kept=share)

    def _keep(self, tokens: int, skipped: float) -> Tensor:
        """bool `[tokens]` with that share false, in random places."""
        keep = torch.zeros(tokens, dtype=torch.bool, device=self.device)
        keep[torch.randperm(tokens, device=self.device)[: round(tokens * (1 - skipped))]] = True
        return keep

    def _norm(self) -> Norm:
        return Norm(self.block.norm, eps=EPS)

    def _rows(self, tokens: int) -> Tensor:
        return torch.randn(tokens, self.shape.hidden, device=self.device).to(self.dtype)

    def _weights(self, rows: int, columns: int) -> Tensor:
        return torch.randn(rows, columns, device=self.device).mul_(0.02).to(self.dtype)


def _call(function: Callable[..., Tensor], *arguments: object) -> Callable[[], Tensor]:
    return lambda: function(*arguments)


def _repeat(call: Callable[[], object], times: int) -> Callable[[], None]:
    def repeated() -> None:
        for _ in range(times):
            call()

    return repeated


def _gradient(forward: Callable[[], Tensor], inputs: list[Tensor], dy: Tensor) -> Callable[[], object]:
    return lambda: torch.autograd.grad(forward(), inputs, dy)
