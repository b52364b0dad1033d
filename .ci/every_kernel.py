"""Calls every kernel of a device and compares with the CPU: `python .ci/every_kernel.py cuda`.

Small, and without a test framework: it also runs under compute-sanitizer, on a machine that has torch alone, and with a
wheel that was built elsewhere. Sizes that are multiples of 8 reach the tensor-core kernels in 16-bit types, odd sizes
the portable kernels.
"""

from __future__ import annotations

import sys

import torch

import anabranch
from anabranch import plan, temporal
from anabranch.experts import expert_ffn, grouped_mm
from anabranch.index import BSkipListModule
from anabranch.mixers import (
    Cayley,
    LinearGates,
    Projection,
    Sinkhorn,
    SoftmaxGates,
    Unconstrained,
    connect,
    gated_mean,
    permutation_mixture,
    sinkhorn,
)
from anabranch.skip import LowRank, Norm, SmallFfn, gated_ffn, lowrank_residual, prefix_ffn

TOLERANCES = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
SIZES = [(33, 21), (72, 136)]  # width, intermediate
TOKENS, EXPERTS, TOP_K = 100, 5, 2


def make_inputs(dtype: torch.dtype, width: int, inner: int) -> dict[str, torch.Tensor]:
    weights_dtype = torch.float64 if dtype == torch.float64 else torch.float32
    return {
        "x": torch.randn(TOKENS, width, dtype=dtype),
        "gate_up": torch.randn(EXPERTS, 2 * inner, width, dtype=dtype) * width**-0.5,
        "down": torch.randn(EXPERTS, width, inner, dtype=dtype) * inner**-0.5,
        "gate_up_bias": torch.randn(EXPERTS, 2 * inner, dtype=dtype),
        "weights": torch.rand(TOKENS, TOP_K, dtype=weights_dtype),
        "indices": torch.randint(0, EXPERTS + 1, (TOKENS, TOP_K)),  # EXPERTS: routed to none
        "widths": torch.tensor([inner, 0, 5, inner, inner - 3], dtype=torch.int32),
        "gate": torch.rand(TOKENS, dtype=weights_dtype),
        "norm_weight": torch.rand(width, dtype=dtype) + 0.5,
        "small": torch.randn(EXPERTS, 8, width, dtype=dtype) * width**-0.5,
        "small_back": torch.randn(EXPERTS, width, 8, dtype=dtype) * 8**-0.5,
        "mix": torch.randn(48, 4 * width, dtype=weights_dtype) * (4 * width) ** -0.5,
        "mix_bias": torch.randn(48, dtype=weights_dtype),
    }


def results(inputs: dict[str, torch.Tensor], device: str) -> dict[str, torch.Tensor]:
    on = {name: tensor.to(device) for name, tensor in inputs.items()}
    learns = [tensor.requires_grad_() for tensor in on.values() if tensor.is_floating_point()]
    x, gate_up, down, bias, indices = (on[name] for name in ("x", "gate_up", "down", "gate_up_bias", "indices"))
    routed = plan.from_top_k(indices, on["weights"], num_groups=EXPERTS)
    mask = plan.from_mask(x.detach()[:, :EXPERTS] > 0, capacity=TOKENS * EXPERTS)
    pairs = plan.from_pairs(indices[:, 0], indices[:, 1], num_items=EXPERTS + 1, num_groups=EXPERTS + 1)
    rows = plan.gather(x, routed, weighted=True)
    out = {
        "expert_ffn": expert_ffn(x, gate_up, down, routed, gate_up_bias=bias, expert_widths=on["widths"]),
        "expert_ffn, gated by gelu": expert_ffn(x, gate_up, down, routed, activation="gelu"),
        "grouped_mm": plan.scatter_add(grouped_mm(rows, gate_up.mT, routed.group_offsets), routed),
    }
    norm, keep = Norm(on["norm_weight"]), indices[:, 0] % 2 == 0
    ffn = (gate_up[0], down[0])
    small = on["small"], on["small_back"]
    out |= {
        "gated_ffn": gated_ffn(x, keep, *ffn, gate=on["gate"], norm=norm),
        "gated_ffn, without a norm": gated_ffn(x, keep, *ffn, gate_up_bias=bias[0], otherwise=SmallFfn(*ffn)),
        "prefix_ffn": prefix_ffn(
            x, indices[:, 1] % 3, *ffn, (0, down.shape[2] // 2, down.shape[2]), norm=norm,
            otherwise=LowRank(small[0][0], small[1][0], activation="gelu"),
        ),
        "lowrank_residual": lowrank_residual(x.view(EXPERTS, -1, x.shape[1]), *small, activation="silu", norm=norm),
    }  # fmt: skip
    out |= mixed(x.view(TOKENS // 4, 4, -1), on["mix"], on["mix_bias"])
    out |= streamed(x, indices, on["mix"], on["mix_bias"])
    for reduction in ("sum", "mean", "max", "min"):
        out[f"segment_reduce, {reduction}"] = plan.segment_reduce(rows, routed, reduction)
    gradients = torch.autograd.grad(sum(tensor.square().mean() for tensor in out.values()), learns)
    out |= {f"gradient {i}": gradient for i, gradient in enumerate(gradients)}
    out |= {"from_mask": mask.item_ids, "from_pairs": pairs.item_ids} | indexed(indices)
    with torch.no_grad():
        out["expert_ffn, inference"] = expert_ffn(x, gate_up, down, routed)
        out["gated_ffn, inference"], out["cosine"] = gated_ffn(x, keep, *ffn, norm=norm, return_cosine=True)
    return {name: tensor.detach().cpu() for name, tensor in out.items()}


def mixed(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> dict[str, torch.Tensor]:
    """Steps of streams [tokens, 4, width] by projections whose parameters are parts of these."""
    width = x.shape[2]
    mhc = Projection(weight[:24], bias[:24], bias[24:], Sinkhorn(5))
    jpmhc = Projection(weight, bias, bias, Cayley(), SoftmaxGates(), layer_norm=True)
    hc = Projection(
        weight[:6, :width], bias[:24], bias[24:], Unconstrained(), LinearGates(), tanh=True, per_stream=True
    )
    step = connect(x, mhc)
    following = step.merge_and_connect(step.input, jpmhc)
    last = connect(following.merge(following.input), hc, lag=following)
    square = bias[:32].view(2, 4, 4)
    return {
        "connect": step.coefficients,
        "merge_and_connect": following.streams,
        "merge_and_connect, coefficients": following.coefficients,
        "merge": last.merge(last.input),
        "sinkhorn, exact": sinkhorn(square, tol=1e-6),
        "sinkhorn, shipped": sinkhorn(square, 20, order="rows_first", eps=1e-6),
        "permutation_mixture": permutation_mixture(bias[:24]),
        "gated_mean": gated_mean(x, x.flip(0)),
    }


def streamed(x: torch.Tensor, ends: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> dict[str, torch.Tensor]:
    """A stream of events between the first nodes, and what caches of it give; differentiable results alone."""
    (src, dst), device = ends.t().contiguous(), x.device
    time = torch.arange(TOKENS, device=device) // 3
    cache = temporal.NCache(EXPERTS + 1, (4, 2), 2, dtype=x.dtype, device=device)
    gru = temporal.GruWeights(weight[:6, :6], bias[:6], weight[6:12, :2], bias[6:12])
    tables = x[: EXPERTS + 1, :3], x[:, 3:5], bias[:1], bias[1:2]
    for part in (slice(0, 40), slice(40, TOKENS)):
        rows = cache.read_updated(torch.cat([src[part], dst[part]]), *tables, gru)
        cache.update(src[part], dst[part], time[part], torch.arange(TOKENS, device=device)[part], rows)
    codes = torch.tensor([1, 2, 2, 2, 2, 4, 4], dtype=torch.int32, device=device)
    rows = cache.read_updated(torch.arange(EXPERTS + 1, device=device), *tables, gru)
    encoded = temporal.pair_encode(rows.keys, rows.z, codes, src, dst, x[:4, :2], x[:64, :4], "relu")
    graph = temporal.csr_from_edges(src, dst, EXPERTS + 1)
    return {
        "ncache_read": rows.z,
        "pair_encode": encoded,
        "pair_encode, linear": temporal.pair_encode(rows.keys, rows.z, codes, src, dst, x[:4, :2], x[:64, :4]),
        "pair_join": temporal.pair_join(rows.keys, rows.z, codes, src, dst)[2],
        "row_set_sum": temporal.row_set_sum(x[: EXPERTS + 1], *graph, src, dst),
        "row_set_sum, weighted": temporal.row_set_sum(
            x[: EXPERTS + 1], *graph, src, dst, "left_difference", weights=x[:TOKENS, :2]
        ),
    }


def indexed(ends: torch.Tensor) -> dict[str, torch.Tensor]:
    """Integers alone: recent events, ordered scatters, and the index."""
    (src, dst), device = ends.t().contiguous(), ends.device
    time, ids = torch.arange(TOKENS, device=device) // 3, torch.arange(TOKENS, device=device)
    recent = temporal.RecentNeighbors(EXPERTS + 1, 4, causal=True, device=device)
    seen = recent.lookup_and_insert(src, dst, time, ends)
    counts = temporal.ordered_scatter_add_(
        torch.zeros(EXPERTS + 1, 1, dtype=torch.int64, device=device), src, ends[:, 1:]
    )
    index = BSkipListModule(4 * TOKENS).to(device)
    index.insert(7 * ids % 64, ids)
    index.erase(src)
    return {
        "lookup_and_insert": seen.event_ids,
        "lookup": recent.lookup(ids[: EXPERTS + 1]).neighbors,
        "ordered_scatter_add": counts,
        "latest_of_node": temporal.latest_of_node(src, time, ids),
        "bskiplist_find": index.find(ids)[0],
        "bskiplist_lower_bound": index.lower_bound(ids)[0],
    }


def main(device: str) -> str:
    if device != "cpu" and not anabranch.has_cuda_kernels:
        return "this build of anabranch has no CUDA kernels"
    torch.manual_seed(0)
    compared = 0
    for dtype, tolerance in TOLERANCES.items():
        for width, inner in SIZES:
            inputs = make_inputs(dtype, width, inner)
            wanted = results({name: tensor.clone() for name, tensor in inputs.items()}, "cpu")
            for name, found in results(inputs, device).items():
                error = (found.double() - wanted[name].double()).abs().max().item()
                scale = max(wanted[name].double().abs().max().item(), 1e-30)
                if not error <= tolerance * scale:
                    return f"{name}, {dtype}, width {width}: off by {error / scale:.2g} of the largest value"
                compared += 1
    print(f"torch {torch.__version__}: {compared} results on {device} equal the CPU's")
    return ""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]) or 0)
