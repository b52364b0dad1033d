"""Random feed-forward blocks whose rows run or skip, and what they are by definition: dense, then masked."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from anabranch.skip import Anchor, CachedDelta, LowRank, Norm, SmallFfn, gated_ffn, prefix_ffn

BY_TORCH: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "identity": lambda v: v,
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda v: F.gelu(v, approximate="tanh"),
    "relu": torch.relu,
    "relu2": lambda v: torch.relu(v) ** 2,
}
ELSE_BRANCHES = ("identity", "low rank", "plain low rank", "small ffn", "delta", "anchor", "anchor with lora")


def make(
    *rows: int,
    features: int = 5,
    inner: int = 9,
    gated: bool = True,
    bias: bool = False,
    norm: str | None = "rms",
    gate: bool = True,
    otherwise: str = "identity",
    dtype: torch.dtype = torch.float64,
) -> dict[str, Any]:
    """Arguments of gated_ffn; every floating tensor asks for a gradient."""
    sums = torch.float64 if dtype == torch.float64 else torch.float32

    def values(*shape: int, scale: float = 1.0, of: torch.dtype = dtype) -> torch.Tensor:
        return (torch.randn(shape, dtype=torch.float64) * scale).to(of).requires_grad_()

    def matrix(out: int, inputs: int) -> torch.Tensor:
        return values(out, inputs, scale=inputs**-0.5)

    parts, shape = 2 if gated else 1, (*rows, features)
    branch = {
        "identity": lambda: None,
        "low rank": lambda: LowRank(matrix(3, features), matrix(features, 3), "gelu", 0.5),
        "plain low rank": lambda: LowRank(matrix(3, features), matrix(features, 3), normed=False),
        "small ffn": lambda: SmallFfn(matrix(2 * 4, features), matrix(features, 4), scale=1.5),
        "delta": lambda: CachedDelta(values(*shape)),
        "anchor": lambda: Anchor(values(*shape)),
        "anchor with lora": lambda: Anchor(values(*shape), matrix(2, features), matrix(features, 2), 0.7),
    }[otherwise]
    kinds: dict[str | None, Callable[[], Norm | None]] = {
        None: lambda: None,
        "rms": lambda: Norm(values(features), None, 1e-5),
        "layer": lambda: Norm(values(features), values(features), 1e-5, "layer"),
        "bare": lambda: Norm(kind="layer"),
    }
    return {
        "x": values(*shape),
        "keep": torch.rand(rows) < 0.5,
        "gate_up_proj": matrix(parts * inner, features),
        "down_proj": matrix(features, inner),
        "gate": values(*rows, of=sums) if gate else None,
        "norm": kinds[norm](),
        "gate_up_bias": values(parts * inner) if bias else None,
        "down_bias": values(features) if bias else None,
        "gated": gated,
        "otherwise": branch(),
    }


def mapped(arguments: dict[str, Any], change: Callable[[torch.Tensor], torch.Tensor]) -> dict[str, Any]:
    """The arguments with every floating tensor changed, those inside of norms and branches too."""

    def of(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return change(value) if value.is_floating_point() else value
        if dataclasses.is_dataclass(value):
            return dataclasses.replace(value, **{f.name: of(getattr(value, f.name)) for f in dataclasses.fields(value)})
        return tuple(map(of, value)) if isinstance(value, tuple) else value

    return {name: of(value) for name, value in arguments.items()}


def leaves(arguments: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Every floating tensor by its name; those of norms and branches as norm.weight."""
    found = {}
    for name, value in arguments.items():
        fields = dataclasses.fields(value) if dataclasses.is_dataclass(value) else ()
        inside = {f"{name}.{field.name}": getattr(value, field.name) for field in fields}
        found |= inside or {name: value}
    return {n: v for n, v in found.items() if isinstance(v, torch.Tensor) and v.is_floating_point()}


def ffn(
    rows: torch.Tensor, first: torch.Tensor, second: torch.Tensor, activation: str, gated: bool, **more: Any
) -> Any:
    """The block of every row; more: biases, and widths of rows."""
    hidden = F.linear(rows, first, more.get("first_bias"))
    inner = second.shape[1]
    hidden = BY_TORCH[activation](hidden[..., :inner]) * (hidden[..., inner:] if gated else 1)
    if more.get("widths") is not None:
        hidden = hidden * (torch.arange(inner) < more["widths"][..., None])
    return F.linear(hidden, second, more.get("second_bias"))


def masked_dense(
    x: torch.Tensor,
    keep: torch.Tensor,
    gate_up_proj: torch.Tensor,
    down_proj: torch.Tensor,
    widths: tuple[int, ...] | None = None,
    *,
    gate: torch.Tensor | None = None,
    norm: Norm | None = None,
    gate_up_bias: torch.Tensor | None = None,
    down_bias: torch.Tensor | None = None,
    activation: str = "silu",
    gated: bool = True,
    residual_scale: float = 1.0,
    otherwise: Any = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(y, cosine) by definition, differentiable by torch; keep: bool, or an index into widths."""
    width = torch.tensor(widths or (0, down_proj.shape[1]))[keep.long()]
    runs, read = (width > 0)[..., None], x
    if norm is not None:
        shape = x.shape[-1:]
        read = F.rms_norm(x, shape, norm.weight, norm.eps) if norm.kind == "rms" else x
        read = F.layer_norm(x, shape, norm.weight, norm.bias, norm.eps) if norm.kind == "layer" else read
    biases = {"first_bias": gate_up_bias, "second_bias": down_bias}
    block = residual_scale * ffn(read, gate_up_proj, down_proj, activation, gated, widths=width, **biases)
    if gate is not None:
        block = (gate[..., None] * block).to(x.dtype)
    skipped = x
    if isinstance(otherwise, LowRank):
        rows = read if otherwise.normed else x
        matrices = otherwise.down_proj, otherwise.up_proj
        skipped = x + otherwise.scale * ffn(rows, *matrices, otherwise.activation, False)
    elif isinstance(otherwise, SmallFfn):
        matrices = otherwise.gate_up_proj, otherwise.down_proj
        skipped = x + otherwise.scale * ffn(read, *matrices, otherwise.activation, otherwise.gated)
    elif isinstance(otherwise, CachedDelta):
        skipped = x + otherwise.delta
    elif isinstance(otherwise, Anchor):
        skipped = otherwise.anchor
        if otherwise.lora_a is not None:
            skipped = skipped + otherwise.scale * ffn(x, otherwise.lora_a, otherwise.lora_b, "identity", False)
    y = torch.where(runs, x + block, skipped)
    return y, torch.where(runs[..., 0], F.cosine_similarity(x, y, dim=-1), 1.0).detach()


def call(arguments: dict[str, Any], widths: tuple[int, ...] | None = None, **options: Any) -> Any:
    """gated_ffn of the arguments, or prefix_ffn where `keep` is an index into widths."""
    if widths is None:
        return gated_ffn(**arguments, **options)
    given = dict(arguments)
    return prefix_ffn(given.pop("x"), given.pop("keep"), widths=widths, **given, **options)
