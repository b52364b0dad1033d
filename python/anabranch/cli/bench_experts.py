"""The workloads of `python -m anabranch bench experts`: forward, forward and backward, and a variable k."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from anabranch import plan
from anabranch.cli.bench_rows import Contenders, Workload
from anabranch.cli.peers import torch_experts, transformers_experts
from anabranch.experts import PackedExperts, expert_ffn, pack_experts

_MEAN_EXPERTS, _MOST_EXPERTS = 3.06, 16  # of a variable k


@dataclasses.dataclass(frozen=True)
class Shape:
    """Experts E, features H, expert width I, experts per token k."""

    experts: int = 128
    hidden: int = 2048
    inner: int = 768
    top_k: int = 8


class Experts:
    """One set of expert weights in one dtype, and the workloads on it.

    Attributes:
        packed, int8: made on the first use, on the CPU only; `drop_packed` frees them.
    """

    def __init__(self, shape: Shape, dtype: torch.dtype, device: torch.device) -> None:
        self.shape, self.dtype, self.device = shape, dtype, device
        self.gate_up = self._weights(2 * shape.inner, shape.hidden)
        self.down = self._weights(shape.hidden, shape.inner)
        self._packed: tuple[PackedExperts, PackedExperts] | None = None

    def _weights(self, rows: int, columns: int) -> Tensor:
        weights = torch.empty(self.shape.experts, rows, columns, dtype=self.dtype, device=self.device)
        for expert in weights:  # one at a time: no float32 copy of all of them
            expert.copy_(torch.randn(rows, columns, device=self.device).mul_(0.02))
        return weights

    def packed(self) -> tuple[PackedExperts, PackedExperts]:
        """The weights packed as they are, and as int8."""
        if self._packed is None:
            as_int8 = pack_experts(self.gate_up, self.down, weight_dtype=torch.int8)
            self._packed = pack_experts(self.gate_up, self.down), as_int8
        return self._packed

    def drop_packed(self) -> None:
        """Frees the packed copies: a backward needs the memory for gradients."""
        self._packed = None

    def workloads(self, mode: str, tokens: int) -> Iterator[Workload]:
        """Those of one mode."""
        if mode == "forward":
            yield self.forward(tokens)
        elif mode == "variable_k":
            yield self.variable_k(tokens)
        else:
            self.drop_packed()
            yield self.training(tokens)
            if self.device.type == "cuda":
                yield self.backward(tokens)

    def forward(self, tokens: int) -> Workload:
        """Inference with k distinct random experts per token. A call builds its plan, as the peers sort in theirs."""
        shape, gate_up, down = self.shape, self.gate_up, self.down
        x, ids, weights = self._routed(tokens, shape.top_k)
        of_pair = self._tokens_of_pairs(ids)

        def route() -> plan.Plan:
            return plan.from_top_k(ids, weights, num_groups=shape.experts)

        contenders = self._ours(x, route)
        contenders["torch"] = lambda: torch_experts(x, gate_up, down, of_pair, ids.flatten(), weights.flatten())
        if peer := transformers_experts(gate_up, down):
            contenders["transformers"] = lambda: peer(x, ids, weights)
        return self._inference("forward", x, ids.flatten(), contenders)

    def variable_k(self, tokens: int) -> Workload:
        """Inference with 1 + geometric experts per token, mean 3.06 and at most 16.

        Beside the usual peers: `fixed k`, ours with (nearly) as many pairs, the same number for every token; `padded`,
        what transformers does when no id may be missing: every token has 16 experts, most with weight 0.
        """
        shape, gate_up, down = self.shape, self.gate_up, self.down
        most = min(_MOST_EXPERTS, shape.experts)
        x, ids, weights = self._routed(tokens, most)
        counts = torch.empty(tokens, device=self.device).geometric_(1 / _MEAN_EXPERTS).clamp_(max=most)
        kept = torch.arange(most, device=self.device) < counts[:, None]
        of_pair, experts, pair_weights = self._tokens_of_pairs(ids)[kept.flatten()], ids[kept], weights[kept]

        def route() -> plan.Plan:
            return plan.from_pairs(of_pair, experts, pair_weights, num_items=tokens, num_groups=shape.experts)

        fixed_k = max(1, round(experts.numel() / tokens))
        fixed_x, fixed_ids, fixed_weights = self._routed(max(1, round(experts.numel() / fixed_k)), fixed_k)

        def fixed_route() -> plan.Plan:
            return plan.from_top_k(fixed_ids, fixed_weights, num_groups=shape.experts)

        contenders = self._ours(x, route)
        contenders["fixed k"] = next(iter(self._ours(fixed_x, fixed_route).values()))
        contenders["torch"] = lambda: torch_experts(x, gate_up, down, of_pair, experts, pair_weights)
        if peer := transformers_experts(gate_up, down, sentinels=True):
            sentinel_ids = ids.where(kept, torch.tensor(shape.experts, device=self.device))
            contenders["transformers"] = lambda: peer(x, sentinel_ids, weights * kept)
        if padded := transformers_experts(gate_up, down):
            contenders["padded"] = lambda: padded(x, ids, weights * kept)
        return self._inference("variable k", x, experts, contenders)

    def training(self, tokens: int) -> Workload:
        """Forward and backward: gradients of x, both weights and the routing weights."""
        calls, ids = self._differentiable(tokens)
        contenders: Contenders = {name: _both(forward, inputs, dy) for name, (forward, inputs, dy) in calls.items()}
        rows, saved = tokens * self.shape.hidden, ids.numel() * 2 * self.shape.inner
        # Weights: read twice, their gradients written. Rows: x, y; dy, x, dx. First product: written, read.
        elements = 3 * self._touched(ids) + 5 * rows + 2 * saved
        return self._gradient("forward+backward", ids, contenders, 18, elements)

    def backward(self, tokens: int) -> Workload:
        """The backward alone, of a forward that has run before."""
        calls, ids = self._differentiable(tokens)
        contenders: Contenders = {
            name: _backward(forward(), inputs, dy) for name, (forward, inputs, dy) in calls.items()
        }
        rows, saved = tokens * self.shape.hidden, ids.numel() * 2 * self.shape.inner
        elements = 2 * self._touched(ids) + 3 * rows + saved
        return self._gradient("backward", ids, contenders, 12, elements)

    def _differentiable(
        self, tokens: int
    ) -> tuple[dict[str, tuple[Callable[[], Tensor], list[Tensor], Tensor]], Tensor]:
        """Per contender the forward, the tensors that want gradients, and the gradient of y; and the ids."""
        x, ids, weights = self._routed(tokens, self.shape.top_k)
        of_pair, dy = self._tokens_of_pairs(ids), torch.randn_like(x)
        inputs = [tensor.detach().requires_grad_() for tensor in (x, self.gate_up, self.down, weights)]
        x, gate_up, down, weights = inputs
        calls: dict[str, tuple[Callable[[], Tensor], list[Tensor], Tensor]] = {}

        def ours() -> Tensor:
            return expert_ffn(x, gate_up, down, plan.from_top_k(ids, weights, num_groups=self.shape.experts))

        def composition() -> Tensor:
            return torch_experts(x, gate_up, down, of_pair, ids.flatten(), weights.flatten())

        calls["unpacked"], calls["torch"] = (ours, inputs, dy), (composition, inputs, dy)
        if peer := transformers_experts(gate_up, down):
            calls["transformers"] = (lambda: peer(x, ids, weights), inputs, dy)
        return calls, ids

    def _routed(self, tokens: int, k: int) -> tuple[Tensor, Tensor, Tensor]:
        """x `[T, H]`, k distinct random experts per token int64 `[T, k]`, and their weights `[T, k]`."""
        x = torch.randn(tokens, self.shape.hidden, device=self.device).to(self.dtype)
        ids = torch.rand(tokens, self.shape.experts, device=self.device).topk(k).indices
        return x, ids, torch.rand(tokens, k, device=self.device).softmax(1).to(self.dtype)

    def _tokens_of_pairs(self, ids: Tensor) -> Tensor:
        return torch.arange(ids.shape[0], device=self.device).repeat_interleave(ids.shape[1])

    def _ours(self, x: Tensor, route: Callable[[], plan.Plan]) -> Contenders:
        """Our variants of inference, the preferred one first."""
        calls: Contenders = {}
        if self.device.type == "cpu":
            packed, int8 = self.packed()
            calls |= {"packed": lambda: packed(x, route()), "int8": lambda: int8(x, route())}
        return calls | {"unpacked": lambda: expert_ffn(x, self.gate_up, self.down, route())}

    def _touched(self, ids: Tensor) -> int:
        """Weights of the experts that have any token."""
        return int(ids.unique().numel()) * 3 * self.shape.hidden * self.shape.inner

    def _inference(self, name: str, x: Tensor, ids: Tensor, contenders: Contenders) -> Workload:
        weights, rows, element = self._touched(ids), 2 * x.numel(), self.gate_up.element_size()
        flops = 6 * ids.numel() * self.shape.hidden * self.shape.inner
        nbytes, int8_nbytes = (weights + rows) * element, weights + rows * element
        return Workload(name, x.shape[0], ids.numel(), contenders, flops, nbytes, int8_nbytes)

    def _gradient(self, name: str, ids: Tensor, contenders: Contenders, flops_factor: int, elements: int) -> Workload:
        flops = flops_factor * ids.numel() * self.shape.hidden * self.shape.inner
        return Workload(name, ids.shape[0], ids.numel(), contenders, flops, elements * self.gate_up.element_size())


def _both(forward: Callable[[], Tensor], inputs: list[Tensor], dy: Tensor) -> Callable[[], object]:
    return lambda: torch.autograd.grad(forward(), inputs, dy)


def _backward(y: Tensor, inputs: list[Tensor], dy: Tensor) -> Callable[[], object]:
    return lambda: torch.autograd.grad(y, inputs, dy, retain_graph=True)
