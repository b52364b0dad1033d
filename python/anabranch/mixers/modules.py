"""`HyperConnection`: residual streams around any sub-layer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from anabranch.mixers.connection import connect
from anabranch.mixers.mixer import Mixer, check_mixer, check_num_streams
from anabranch.mixers.presets import Kind, initial_bias, preset
from anabranch.mixers.projection import Gates, Projection, SoftmaxGates, check_gates
from anabranch.mixers.sublayer import call_sublayer


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
        ValueError: sizes or options that do not fit; in `forward`, streams of another shape, a sub-layer that returns
            neither a tensor nor a tuple that begins with one, and what `connect` and `merge` raise.

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
        if mixer is not None:
            check_mixer(op, mixer)
        if gates is not None:
            check_gates(op, gates)
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
        return call_sublayer("HyperConnection", self.sublayer, u, args, kwargs)

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
