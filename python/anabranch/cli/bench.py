"""`python -m anabranch bench experts`: the expert FFN beside transformers and torch, and the machine's limit.

All contenders of one row run in turn in one process, so that a machine whose speed drifts treats them alike; their
medians are compared. The limit is the larger of FLOPs over measured peak and bytes of touched experts over bandwidth.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anabranch import plan
from anabranch.cli.machine import cpu_name, peak_flops, read_bandwidth
from anabranch.experts import expert_ffn

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


@dataclasses.dataclass(frozen=True)
class Shape:
    """Experts E, features H, expert width I, experts per token k."""

    experts: int = 128
    hidden: int = 2048
    inner: int = 768
    top_k: int = 8


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the table; times are medians in milliseconds, None where a peer is not installed."""

    dtype: str
    threads: int
    tokens: int
    ours_ms: float
    spread: float
    torch_ms: float
    transformers_ms: float | None
    limit_ms: float


def bench_experts(shape: Shape, dtypes: list[str], tokens: list[int], threads: list[int], repeats: int) -> list[Row]:
    """Forward without gradients, every dtype, thread count and number of tokens."""
    rows: list[Row] = []
    before = torch.get_num_threads()
    for dtype in dtypes:
        gate_up = torch.randn(shape.experts, 2 * shape.inner, shape.hidden).mul_(0.02).to(DTYPES[dtype])
        down = torch.randn(shape.experts, shape.hidden, shape.inner).mul_(0.02).to(DTYPES[dtype])
        for count in threads:
            torch.set_num_threads(count)
            peak, bandwidth = peak_flops(DTYPES[dtype]), read_bandwidth()
            print(
                f"{dtype}, {count} threads: peak {peak / 1e9:.0f} GFLOP/s, reads {bandwidth / 1e9:.1f} GB/s", flush=True
            )
            for size in tokens:
                rows.append(_row(shape, dtype, size, gate_up, down, peak, bandwidth, repeats))
                print(format_row(rows[-1]), flush=True)
        del gate_up, down
    torch.set_num_threads(before)
    return rows


def _row(
    shape: Shape, dtype: str, tokens: int, gate_up: Tensor, down: Tensor, peak: float, bandwidth: float, repeats: int
) -> Row:
    x = torch.randn(tokens, shape.hidden).to(gate_up.dtype)
    index = torch.rand(tokens, shape.experts).topk(shape.top_k).indices
    weights = torch.rand(tokens, shape.top_k).softmax(1).to(gate_up.dtype)
    contenders: dict[str, Callable[[], Tensor]] = {
        "ours": lambda: expert_ffn(x, gate_up, down, plan.from_top_k(index, weights, num_groups=shape.experts)),
        "torch": lambda: _torch_grouped_mm(x, gate_up, down, index, weights),
    }
    if (peer := _transformers_experts(gate_up, down)) is not None:
        contenders["transformers"] = lambda: peer(x, index, weights)
    with torch.no_grad():
        times = _interleave(contenders, repeats)
    element = gate_up.element_size()
    touched = index.unique().numel()
    size = 3 * shape.hidden * shape.inner
    seconds = max(2 * size * index.numel() / peak, (touched * size + 2 * x.numel()) * element / bandwidth)
    ours = times["ours"]
    return Row(
        dtype,
        torch.get_num_threads(),
        tokens,
        statistics.median(ours),
        (max(ours) - min(ours)) / statistics.median(ours),
        statistics.median(times["torch"]),
        statistics.median(times["transformers"]) if "transformers" in times else None,
        seconds * 1e3,
    )


def _interleave(contenders: dict[str, Callable[[], Tensor]], repeats: int) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for round_ in range(repeats + 1):
        for name, call in contenders.items():
            start = time.perf_counter()
            call()
            if round_:  # the first warms up
                times[name].append((time.perf_counter() - start) * 1e3)
    return times


def _torch_grouped_mm(x: Tensor, gate_up: Tensor, down: Tensor, index: Tensor, weights: Tensor) -> Tensor:
    """Sorted pairs and torch's own grouped product: the shortest composition without this library."""
    order = index.flatten().argsort(stable=True)
    token = order // index.shape[1]
    ends = torch.bincount(index.flatten(), minlength=gate_up.shape[0]).cumsum(0).int()
    gate, up = F.grouped_mm(x[token], gate_up.mT, offs=ends).chunk(2, -1)
    out = F.grouped_mm(F.silu(gate) * up, down.mT, offs=ends)
    return torch.zeros_like(x).index_add_(0, token, out * weights.flatten()[order, None])


def _transformers_experts(gate_up: Tensor, down: Tensor) -> Callable[[Tensor, Tensor, Tensor], Tensor] | None:
    """transformers' default experts function over these weights, if transformers is installed."""
    try:
        from transformers.integrations import moe
    except ImportError:
        return None
    experts: Any = nn.Module()
    experts.num_experts, experts.act_fn = gate_up.shape[0], nn.SiLU()
    experts.gate_up_proj, experts.down_proj = gate_up, down
    experts.has_bias = experts.is_transposed = experts.has_post_expert_norm = experts._is_expert_parallel = False
    experts.has_gate = experts.is_concatenated = True
    experts._apply_gate = lambda hidden: moe._default_apply_gate(experts, hidden)
    return lambda x, index, weights: moe.grouped_mm_experts_forward(experts, x, index, weights)


HEADER = "dtype     threads  tokens    ours ms  spread   x torch  x transformers  % of limit"


def format_row(row: Row) -> str:
    peer = "not installed" if row.transformers_ms is None else f"{row.transformers_ms / row.ours_ms:.2f}"
    return (
        f"{row.dtype:<9} {row.threads:>7} {row.tokens:>7} {row.ours_ms:>10.2f} {row.spread:>7.0%} "
        f"{row.torch_ms / row.ours_ms:>9.2f} {peer:>15} {row.limit_ms / row.ours_ms:>11.0%}"
    )


def run(dtypes: list[str], tokens: list[int], threads: list[int], repeats: int, quick: bool, out: Path | None) -> int:
    """Prints the table, and writes it as JSON where asked."""
    shape = Shape(8, 128, 96, 2) if quick else Shape()
    print(f"{cpu_name()}; torch {torch.__version__}; {shape}; forward, median of {repeats}", flush=True)
    print(HEADER, flush=True)
    rows = bench_experts(shape, dtypes, tokens, threads, repeats)
    if out is not None:
        record = {"cpu": cpu_name(), "torch": torch.__version__, "shape": dataclasses.asdict(shape)}
        out.write_text(json.dumps(record | {"rows": [dataclasses.asdict(row) for row in rows]}, indent=1) + "\n")
    return 0
