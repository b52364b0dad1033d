"""`HyperConnection`: residual streams around any sub-layer; `expand_streams` and `reduce_streams` around a model."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from anabranch.core.arguments import check_floating, check_same_device
from anabranch.mixers.connection import connect
from anabranch.mixers.mixer import Mixer, check_num_streams
from anabranch.mixers.presets import Kind, initial_bias, preset
from anabranch.mixers.projection import Gates, Projection, SoftmaxGates


class HyperConnection(nn.Module):
    """A sub-layer on n residual streams: `u = sum_j p_j x_j`, `x'_i = sum_j H_ij x_j + q_i sublayer(u)`.

    It takes the place of `x + sublayer(x)`. The sub-layer keeps its own norm. A model expands its embeddings once
    (`expand_streams`), passes streams through its blocks and reduces them at its end (`reduce_streams`).

    Args:
        sublayer: from `[..., C]` to `[..., C]`, or to a tuple whose first element that is.
        hidden_size: C.
        num_streams: n, 2 to 8.
        kind: which paper's coefficients, and their first values:

            - "hc", "hc_static": Hyper-Connections (arXiv 2409.19606); W = 0, q = 1, p = stream layer_index mod n,
              H = I, scales 0.01. The paper also multiplies the sub-layer's last weight by sqrt(n), and decays no
              `bias`. Its scale of p and H is one number, here two.
            - "mhc": Sinkhorn-20 (arXiv 2512.24880), W of deviation 0.02, scales 0.01. "mhc_exact": to a tolerance of
              1e-6. The paper names no first bias; here H has logits 0 on the diagonal and -8 off it, and the bias of
              p and q is mHC-lite's.
            - "mhc_lite": permutation mixture (arXiv 2601.05732); W = 0, scales 0.01, identity 0 and others -8, bias of
              p and q +1 for stream layer_index mod n and -1 for the others. Above 5 streams `cyclic_permutations`.
            - "jpmhc", "grassmann": Cayley and projectors (arXiv 2602.18308) of LayerNorm; about p = 1/n, q = 1 and
              H = I, or the projector on the smoothest half of the streams' cosines; W of deviation 0.02.
            - "identity": H = I, as hy_v4 of transformers; about p = 1/n, q = 1; W of deviation 0.02.
        mixer, gates, layer_norm, tanh, per_stream, norm_eps: of `Projection`, in place of what kind says.
        dynamic: False: the coefficients are parameters, the same for every token (no `weight`).
        dynamic_mixing: False: H alone is such. With `Grassmann` its basis is then learned.
        layer_index: which stream the first values of "hc" and "mhc_lite" prefer.

    Parameters: `weight [logits, n * C]` (`[logits / n, C]` per stream), `scale [3]` of p, q and H (2 without logits of
    H), `bias [logits]`. They may have any floating dtype; coefficients are computed in float32 (float64 for float64
    streams) under autocast too.

    Gradient:
        To streams, sub-layer and parameters, as the mixer declares. The streams of a step are kept once for it, and
        their gradient is written once. Not differentiable twice.

    Raises:
        ValueError: sizes or options that do not fit; in `forward`, streams of another shape and what `connect` raises.

    Cost:
        `connect` and `merge` a token: 2 * logits * n * C FLOPs, 2 * n * C + C numbers read, n * C + C written.
        `HyperConnectionSequence` saves a reading of the streams between two of them.
    """

    def __init__(
        self,
        sublayer: nn.Module,
        hidden_size: int,
        num_streams: int = 4,
        *,
        kind: Kind = "mhc",
        mixer: Mixer | None = None,
        gates: Gates | None = None,
        layer_index: int = 0,
        dynamic: bool | None = None,
        dynamic_mixing: bool = True,
        layer_norm: bool | None = None,
        tanh: bool | None = None,
        per_stream: bool | None = None,
        norm_eps: float = 1e-6,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        op = "HyperConnection"
        if hidden_size < 1:
            raise ValueError(f"{op}: hidden_size is {hidden_size}, must be at least 1; give a positive size")
        check_num_streams(op, num_streams)
        chosen = self._preset = preset(kind, num_streams)
        self.sublayer = sublayer
        self.hidden_size, self.num_streams, self.layer_index = hidden_size, num_streams, layer_index
        self.mixer = chosen.mixer if mixer is None else mixer
        self.gates = chosen.gates if gates is None else gates
        self.layer_norm = chosen.layer_norm if layer_norm is None else layer_norm
        self.tanh = chosen.tanh if tanh is None else tanh
        self.per_stream = chosen.per_stream if per_stream is None else per_stream
        self.norm_eps = norm_eps
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        parts = num_streams if self.per_stream else 1
        gate_logits = 2 * self.gates.num_logits(num_streams)
        mixing_logits = self.mixer.num_logits(num_streams)
        if self.per_stream and (isinstance(self.gates, SoftmaxGates) or mixing_logits % parts):
            raise ValueError(
                f"{op}: per_stream is True, must be False for {self.mixer} with {self.gates}; "
                "use a mixer and gates with logits for each stream"
            )
        self._constant_logits = 0 if dynamic_mixing else mixing_logits // parts
        self.bias = nn.Parameter(torch.empty(gate_logits + mixing_logits, **factory))
        self.weight: nn.Parameter | None = None
        self.scale: nn.Parameter | None = None
        if chosen.dynamic if dynamic is None else dynamic:
            rows = (gate_logits + mixing_logits) // parts - self._constant_logits
            self.weight = nn.Parameter(torch.empty(rows, num_streams * hidden_size // parts, **factory))
            self.scale = nn.Parameter(torch.empty(3 if dynamic_mixing and mixing_logits else 2, **factory))
        self.projection().check(op, self.bias.new_empty(num_streams, hidden_size))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The first values of the kind, as the class says; the sub-layer is left as it is."""
        bias = initial_bias(
            self.mixer, self.gates, self.num_streams, layer_index=self.layer_index, per_stream=self.per_stream
        )
        with torch.no_grad():
            self.bias.copy_(bias)
            if self.weight is not None and self.scale is not None:
                self.scale.fill_(self._preset.scale)
                nn.init.normal_(self.weight, std=self._preset.weight_std)

    def projection(self) -> Projection:
        """The parameters as `connect` takes them; gradients flow back through it."""
        n = self.num_streams
        parts = n if self.per_stream else 1
        gates, mixing = self.gates.num_logits(n), self.mixer.num_logits(n) // parts
        weight, scale = self.weight, torch.ones_like(self.bias)
        if self.weight is not None and self.scale is not None:
            pre, post, *rest = self.scale.unbind()
            mixed = rest[0].expand(mixing) if rest else self.scale.new_zeros(mixing)
            first = (post[None], pre[None]) if self.per_stream else (pre.expand(gates), post.expand(gates))
            scale = torch.cat([*first, mixed]).repeat(parts)
            if self._constant_logits:
                zeros = self.weight.new_zeros(self._constant_logits, self.weight.shape[1])
                weight = torch.cat([self.weight, zeros])  # type: ignore[assignment]
        return Projection(
            weight,
            scale,
            self.bias,
            self.mixer,
            self.gates,
            norm_eps=self.norm_eps,
            layer_norm=self.layer_norm,
            tanh=self.tanh,
            per_stream=self.per_stream,
        )

    def forward(self, streams: Tensor, *args: Any, **kwargs: Any) -> Any:
        """`[..., n, C]` to `[..., n, C]`.

        Args:
            streams: of any floating dtype; the sub-layer sees that dtype too.
            args, kwargs: passed on to the sub-layer after its input.

        Returns:
            The streams. If the sub-layer returns a tuple, `(streams, *its other elements)`.
        """
        self.check(streams)
        step = connect(streams, self.projection())
        y, rest = self.run(step.input, *args, **kwargs)
        merged = step.merge(y)
        return merged if rest is None else (merged, *rest)

    def run(self, u: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, tuple[Any, ...] | None]:
        """The sub-layer: its output, and what else it returns (None if it returns no tuple)."""
        y = self.sublayer(u, *args, **kwargs)
        return (y[0], tuple(y[1:])) if isinstance(y, tuple) else (y, None)

    def check(self, streams: Tensor) -> None:
        """Raises ValueError for streams that are not `[..., n, C]`."""
        sizes = (self.num_streams, self.hidden_size)
        if streams.dim() < 2 or streams.shape[-2:] != sizes:
            raise ValueError(
                f"HyperConnection: streams has shape {tuple(streams.shape)}, must be (..., {sizes[0]}, {sizes[1]}); "
                "expand_streams() makes them"
            )

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that HC decays not: the static part, and the scales."""
        return {"bias"} if self.scale is None else {"bias", "scale"}

    def extra_repr(self) -> str:
        dynamic = "" if self.weight is not None else ", dynamic=False"
        return f"hidden_size={self.hidden_size}, num_streams={self.num_streams}, mixer={self.mixer}{dynamic}"


def expand_streams(x: Tensor, n: int) -> Tensor:
    """n equal residual streams `[..., n, C]` of hidden states `[..., C]`.

    Returns:
        A view that repeats x without memory of its own; write nothing into it. The gradient of x is their sum.

    Raises:
        ValueError: n out of 2 to 8, or no channels.
    """
    op = "expand_streams"
    check_num_streams(op, n)
    if x.dim() == 0:
        raise ValueError(f"{op}: x has shape (), must be (..., channels); give it a dimension of channels")
    return x.unsqueeze(-2).expand(*x.shape[:-1], n, x.shape[-1])


def reduce_streams(x: Tensor, how: Literal["sum", "mean"] | Tensor = "sum") -> Tensor:
    """One `[..., C]` of the streams `[..., n, C]`.

    Args:
        how: "sum", as HC and mHC-lite end; "mean"; or weights that broadcast to `[..., n]`, such as a learned `[n]`.

    Returns:
        In the dtype of x, summed in float32 (float64 for float64).

    Raises:
        ValueError: streams or weights that do not fit.

    Cost:
        Reads n*C and writes C numbers a token, with weights as torch composes them.
    """
    op = "reduce_streams"
    check_floating(op, x=x)
    if x.dim() < 2:
        raise ValueError(f"{op}: x has shape {tuple(x.shape)}, must be (..., streams, channels); expand_streams()")
    if isinstance(how, Tensor):
        check_floating(op, how=how)
        check_same_device(op, "x", x, how=how)
        if how.dim() == 0 or how.shape[-1] != x.shape[-2]:
            raise ValueError(
                f"{op}: how has shape {tuple(how.shape)}, must be (..., {x.shape[-2]}); give a weight per stream"
            )
        sums = torch.float64 if x.dtype == torch.float64 else torch.float32
        return torch.einsum("...n,...nc->...c", how.to(sums), x.to(sums)).to(x.dtype)
    if how not in ("sum", "mean"):
        raise ValueError(f"{op}: how is {how!r}, must be 'sum', 'mean' or a tensor of weights; name one")
    return x.sum(-2) if how == "sum" else x.mean(-2)
