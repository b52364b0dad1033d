"""The workloads of `python -m anabranch bench mixers`: stream steps, chains of them, mixers alone, a small model.

The least work is that of two kernels, one before and one behind the sub-layer: streams are read by each of them once,
written once, and in the backward read once more with the gradient that comes in. The product that makes the logits is
right to float32: of streams in 16 bits two products with halves of the weight. Coefficients are left out: at most 0.3 %
of the traffic at 2048 channels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from anabranch import mixers
from anabranch.cli import peers_mixers as peers
from anabranch.cli.bench_mixers_model import SHIPPED, model_workload
from anabranch.cli.bench_rows import Contenders, Target, Workload
from anabranch.mixers import LinearGates, Mixer, Projection, SigmoidGates, SoftmaxGates, connect
from anabranch.mixers.projection import Gates

_MIXERS: dict[str, Mixer] = {
    "mhc": SHIPPED,
    "exact": mixers.Sinkhorn(tol=1e-6),
    "lite": mixers.PermutationMixture(),
    "cayley": mixers.Cayley(),
    "hc": mixers.Unconstrained(transpose=True),
}
_GATES: dict[str, Gates] = {"hc": LinearGates(), "cayley": SoftmaxGates()}  # the others': sigmoids
_TARGETS = {
    ("cpu", "forward"): Target("limit", 2.5, 1.5),
    ("cpu", "training"): Target("limit", 3.0, 2.0),
    ("cpu", "matrix"): Target("token", 25.0),
    ("cuda", "forward"): Target("limit", None, 1.2),
    ("cuda", "training"): Target("limit", None, 1.4),
}
_LEAST_TOKENS = 2048  # that targets are about
_Call = Callable[..., Tensor]


@dataclasses.dataclass(frozen=True)
class MixersShape:
    """Channels C of each stream, on a GPU others; steps of a chain; whether torch.compile takes part."""

    channels: int = 2048
    gpu_channels: int = 4096
    chain: int = 4
    compiled: bool = True


class Mixers:
    """Stream steps around a sub-layer that returns its input, `y = u`, on streams of one dtype, and what is about no
    streams of this shape: mixers alone, and the training of a small model."""

    def __init__(self, shape: MixersShape, dtype: torch.dtype, device: torch.device) -> None:
        self.shape, self.dtype, self.device = shape, dtype, device
        self.channels = shape.channels if device.type == "cpu" else shape.gpu_channels

    def workloads(self, mode: str, tokens: int) -> Iterator[Workload]:
        """Those of one mode; `tokens` are matrices in "matrix" and "matrix_training"."""
        if mode in ("forward", "training"):
            for kind, n in (("mhc", 4), ("mhc", 2), ("mhc", 8), *((kind, 4) for kind in _MIXERS if kind != "mhc")):
                yield self.step(mode, kind, n, tokens)
            yield self.chain(mode, 4, tokens)
        elif mode == "model":
            yield model_workload(tokens, self.device)
        else:
            for kind in ("sinkhorn-20", "exact", "lite", "cayley"):
                yield self.matrices(mode, kind, 4, tokens)
            yield self.matrices(mode, "sinkhorn-20", 8, tokens)

    def step(self, mode: str, kind: str, n: int, tokens: int) -> Workload:
        """`connect` and `merge`; in training the gradients of x and the projection's parameters too."""
        projection, x = self.projection(kind, n), self._streams(tokens, n)

        def ours(x: Tensor, *tensors: Tensor) -> Tensor:
            step = connect(x, _with(projection, tensors))
            return step.merge(step.input)

        calls: dict[str, _Call] = {"step": ours}
        if kind in peers.STEPS:
            calls["eager"] = peers.STEPS[kind]
        self._add_compiled(calls, kind == "mhc" and n == 4)
        contenders = _contenders(mode, calls, [x, *_tensors(projection)])
        target = self._target(mode, tokens) if kind == "mhc" and n == 4 else None
        return self._workload(f"{kind} n={n}", mode, tokens, projection, 1, x, contenders, target)

    def chain(self, mode: str, n: int, tokens: int) -> Workload:
        """Several steps, one boundary fused with the next; lagged: each input read by the step before's weights."""
        projections = [self.projection("mhc", n) for _ in range(self.shape.chain)]
        x, tensors = self._streams(tokens, n), [tensor for one in projections for tensor in _tensors(one)]

        def given(tensors: tuple[Tensor, ...]) -> list[Projection]:
            return [_with(one, tensors[3 * index : 3 * index + 3]) for index, one in enumerate(projections)]

        def fused(x: Tensor, *tensors: Tensor, lagged: bool = False) -> Tensor:
            first, *others = given(tensors)
            step = connect(x, first)
            for projection in others:
                step = step.merge_and_connect(step.input, projection, lagged=lagged)
            return step.merge(step.input)

        def lagged(x: Tensor, *tensors: Tensor) -> Tensor:
            return fused(x, *tensors, lagged=True)

        def apart(x: Tensor, *tensors: Tensor) -> Tensor:
            for projection in given(tensors):
                step = connect(x, projection)
                x = step.merge(step.input)
            return x

        contenders = _contenders(mode, {"step": fused, "lagged": lagged, "apart": apart}, [x, *tensors])
        name = f"{len(projections)} mhc steps n={n}"
        return self._workload(name, mode, tokens, projections[0], len(projections), x, contenders, None)

    def matrices(self, mode: str, kind: str, n: int, count: int) -> Workload:
        """One mixer alone, on a batch of logits. Of Sinkhorn's arithmetic the additions and products are counted, of
        the others' none: their limit is the traffic."""
        mixer = SHIPPED if kind == "sinkhorn-20" else _MIXERS[kind]
        logits = torch.randn(count, mixer.num_logits(n), device=self.device)
        calls: dict[str, _Call] = {"step": lambda logits: mixers.mix_matrix(logits, mixer, n)}
        if kind in peers.MATRICES:
            peer = peers.MATRICES[kind]
            calls["eager"] = peer if kind == "lite" else lambda logits: peer(logits.view(-1, n, n))
        if kind == "sinkhorn-20" and n == 4 and self.shape.compiled:
            compiled = peers.compiled(peers.sinkhorn)
            if compiled is not None:
                calls["compiled"] = lambda logits: compiled(logits.view(-1, n, n))
        trains = mode == "matrix_training"
        contenders = _contenders(mode, calls, [logits])
        # Forward: logits in, matrices out; backward: gradients the other way, logits once more.
        elements = (3 if trains else 1) * logits.shape[1] + (2 if trains else 1) * n * n
        passes = 4 if trains else 1  # the backward runs through all iterations again, and back at twice the work
        iterations = 4 * n * n * 20 if kind == "sinkhorn-20" else 0
        return Workload(
            f"{'train ' if trains else ''}{kind} n={n}",
            count,
            count,
            contenders,
            count * passes * iterations,
            4 * count * elements,
            target=self._target(mode, count) if kind == "sinkhorn-20" and n == 4 else None,
        )

    def projection(self, kind: str, n: int) -> Projection:
        """Parameters of one step, with weights that move the logits."""
        mixer, is_hc = _MIXERS[kind], kind == "hc"
        gates = _GATES.get(kind, SigmoidGates(pre_eps=peers.EPS))
        logits = 2 * gates.num_logits(n) + mixer.num_logits(n)
        shape = (n + 2, self.channels) if is_hc else (logits, n * self.channels)
        return Projection(
            torch.randn(shape, device=self.device) * (shape[1] ** -0.5),
            torch.rand(logits, device=self.device),
            torch.randn(logits, device=self.device),
            mixer,
            gates,
            norm_eps=peers.EPS,
            layer_norm=kind == "cayley",
            tanh=is_hc,
            per_stream=is_hc,
        )

    def _workload(
        self,
        name: str,
        mode: str,
        tokens: int,
        projection: Projection,
        steps: int,
        x: Tensor,
        contenders: Contenders,
        target: Target | None,
    ) -> Workload:
        n, trains = x.shape[1], mode == "training"
        rows = _tensors(projection)[0].shape[0]
        products = 2 * rows * n * (3 if trains else 1) * (1 if self.dtype == torch.float32 else 2)
        mixing = 2 * n * n + 6 * n + (4 * n * n + 8 * n if trains else 0)
        elements = 3 * n + 2 + (steps - 1) * (2 * n + 2)
        if trains:
            elements += 5 * n + 3 + (steps - 1) * (3 * n + 3)
        size = tokens * self.channels
        return Workload(
            f"{'train ' if trains else ''}{name}",
            tokens,
            tokens,
            contenders,
            size * steps * products,
            size * elements * x.element_size(),
            float_flops=size * steps * mixing,
            target=target,
        )

    def _add_compiled(self, calls: dict[str, _Call], wanted: bool) -> None:
        compiled = peers.compiled(peers.mhc_step) if wanted and self.shape.compiled else None
        if compiled is not None:
            calls["compiled"] = compiled

    def _target(self, mode: str, tokens: int) -> Target | None:
        return _TARGETS.get((self.device.type, mode)) if tokens >= _LEAST_TOKENS else None

    def _streams(self, tokens: int, n: int) -> Tensor:
        return torch.randn(tokens, n, self.channels, device=self.device).to(self.dtype)


def _tensors(projection: Projection) -> list[Tensor]:
    return [one for one in (projection.weight, projection.scale, projection.bias) if one is not None]


def _with(projection: Projection, tensors: tuple[Tensor, ...]) -> Projection:
    return dataclasses.replace(projection, weight=tensors[0], scale=tensors[1], bias=tensors[2])


def _contenders(mode: str, calls: dict[str, _Call], tensors: list[Tensor]) -> Contenders:
    """The calls on these tensors, or with their gradients."""
    if "training" not in mode:
        return {name: partial(call, *tensors) for name, call in calls.items()}
    inputs = [one.detach().requires_grad_() for one in tensors]
    gradient = torch.randn_like(next(iter(calls.values()))(*tensors))
    return {name: partial(_gradients, call, inputs, gradient) for name, call in calls.items()}


def _gradients(call: _Call, inputs: list[Tensor], gradient: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(call(*inputs), inputs, gradient)
