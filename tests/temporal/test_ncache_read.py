"""ncache_read against torch's GRUCell on gathered rows: values and gradients, every dtype and instruction set."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from anabranch.temporal import GruWeights, NCache, NCacheRows, gru_weights, ncache_read

N, EVENTS = 40, 200
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}


def a_cache(dtype: torch.dtype, state_size: int = 4, slots: tuple[int, ...] = (16, 8), step: int = 1) -> NCache:
    """A cache some of whose nodes have no events, and others full slots; states are of order 1."""
    cache = NCache(N, slots, state_size, dtype=dtype)
    src, dst = torch.randint(N - 3, (2, EVENTS))
    time = torch.arange(EVENTS) * step
    for first in range(0, EVENTS, 50):
        part = slice(first, first + 50)
        rows = cache.read(torch.cat([src[part], dst[part]]))
        cache.update(src[part], dst[part], time[part], torch.arange(first, first + 50), rows)
    cache.states.copy_(torch.where(cache.keys[..., None] >= 0, torch.randn(cache.states.shape), 0))
    return cache


def parameters(inputs: int, times: int, state_size: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, GruWeights]:
    shapes = [(times,), (times,), (3 * state_size, inputs), (3 * state_size,), (3 * state_size, state_size)]
    made = [torch.randn(shape, dtype=dtype) * 0.3 for shape in [*shapes, (3 * state_size,)]]
    for one in made:
        one.requires_grad_()
    return made[0], made[1], GruWeights(*made[2:])


def composition(
    cache: NCache,
    states: Tensor,
    nodes: Tensor,
    node_features: Tensor,
    edge_features: Tensor | None,
    frequency: Tensor,
    phase: Tensor,
    gru: GruWeights,
    origin: int,
    scale: float,
) -> Tensor:
    """z, in the dtype of the parameters."""
    dtype = frequency.dtype
    events, keys = cache.event_ids[nodes], cache.keys[nodes].clone()
    keys[:, 0] = nodes
    tau = (cache.times[nodes] - origin).double() * scale
    angle = frequency.double() * tau[..., None] + phase.double()
    parts = [node_features.to(dtype)[keys.clamp_min(0)], torch.cos(angle).to(dtype)]
    if edge_features is not None:
        parts.insert(1, edge_features.to(dtype)[events.clamp_min(0)])
    x = torch.cat(parts, -1).flatten(0, 1)
    size = states.shape[2]
    state = states.to(dtype)[nodes].reshape(-1, size)
    z = torch.gru_cell(x, state, gru.weight, gru.weight_hh, gru.bias, gru.bias_hh).view(*keys.shape, size)
    return torch.where((events >= 0)[..., None], z, 0)


def check(
    dtype: torch.dtype,
    widths: tuple[int, int | None, int],
    state_size: int,
    slots: tuple[int, ...],
    rows: int,
    step: int,
) -> None:
    node_width, edge_width, times = widths
    cache = a_cache(dtype, state_size, slots, step)
    sums = torch.float64 if dtype == torch.float64 else torch.float32
    states = cache.states.clone().requires_grad_()
    node_features = torch.randn(N, node_width).to(dtype).requires_grad_()
    edge_features = None if edge_width is None else torch.randn(EVENTS, edge_width).to(dtype).requires_grad_()
    frequency, phase, gru = parameters(node_width + (edge_width or 0) + times, times, state_size, sums)
    nodes = torch.randint(N, (rows,))
    tables = [states, node_features, *([] if edge_features is None else [edge_features])]
    learns = [*tables, frequency, phase, *gru]
    options = {"time_origin": -7, "time_scale": 0.05 / step}

    read = ncache_read(
        cache.keys,
        cache.event_ids,
        cache.times,
        states,
        nodes,
        node_features,
        edge_features,
        frequency,
        phase,
        gru,
        **options,
    )
    exact = composition(cache, states, nodes, node_features, edge_features, frequency, phase, gru, *options.values())
    plain = cache.read(nodes)
    assert all(torch.equal(a, b) for a, b in zip(read[:3], plain[:3], strict=True))
    assert read.z.dtype == dtype
    assert (read.z[read.event_ids < 0] == 0).all()
    torch.testing.assert_close(read.z.to(sums), exact, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
    dz = torch.randn(exact.shape).to(dtype)
    ours = torch.autograd.grad(read.z, learns, dz)
    theirs = torch.autograd.grad(exact, learns, dz.to(sums))
    for one, other in zip(ours, theirs, strict=True):
        assert one.dtype == other.dtype
        size = other.abs().max().item() if other.numel() else 0.0
        torch.testing.assert_close(one, other, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype] * max(1.0, size))


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_values_and_gradients(dtype: torch.dtype, cpu_isa: str) -> None:
    check(dtype, (7, 5, 3), 4, (16, 8), 90, 1)
    check(dtype, (72, None, 1), 4, (32, 16), 30, 1)
    check(dtype, (3, 0, 2), 3, (9,), 11, 1)
    check(dtype, (0, 2, 0), 1, (1, 1), 5, 10**15)
    check(dtype, (1, None, 9), 8, (4, 2), 20, 10**15)


def a_call(dtype: torch.dtype = torch.float32) -> tuple[NCache, tuple[Any, ...]]:
    cache = a_cache(dtype)
    frequency, phase, gru = parameters(9, 2, 4, torch.float32)
    nodes = torch.randint(N, (150,))
    return cache, (
        nodes,
        torch.randn(N, 4, requires_grad=True),
        torch.randn(EVENTS, 3, requires_grad=True),
        frequency,
        phase,
        gru,
    )


@pytest.mark.cpu
def test_threads_give_the_same_bits() -> None:
    cache, arguments = a_call()
    cache.states.requires_grad_()
    learns = [cache.states, *arguments[1:5], *arguments[5]]
    results = []
    before = torch.get_num_threads()
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        rows = cache.read_updated(*(torch.cat([a] * 40) if a is arguments[0] else a for a in arguments))
        results.append([*rows, *torch.autograd.grad(rows.z.square().sum(), learns)])
    torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_a_node_reads_the_same_whatever_else_is_read(cpu_isa: str) -> None:
    """Nodes that many slots name are projected once for all, those of a few slots with each slot."""
    cache, (nodes, *others) = a_call()
    together = cache.read_updated(nodes, *others).z
    for row in range(5):
        assert torch.equal(cache.read_updated(nodes[row : row + 1], *others).z[0], together[row])


def test_the_cache_may_change_before_the_backward() -> None:
    cache, arguments = a_call()
    learns = [*arguments[1:5], *arguments[5]]
    expected = torch.autograd.grad(cache.read_updated(*arguments).z.sum(), learns)
    z = cache.read_updated(*arguments).z
    src, dst = torch.randint(N, (2, 60))
    rows = cache.read(torch.cat([src, dst]))
    cache.update(src, dst, torch.zeros(60, dtype=torch.int64), torch.arange(60), rows)
    cache.states.normal_()
    assert all(torch.equal(a, b) for a, b in zip(torch.autograd.grad(z.sum(), learns), expected, strict=True))


def test_angles_are_reduced_in_double(cpu_isa: str) -> None:
    """A slot whose new state is the cosine alone, of angles up to 1e12 and beyond any sense."""
    cache = NCache(2, (1,), 1)
    frequency, phase = torch.tensor([1.0]), torch.tensor([0.25])
    gru = GruWeights(
        torch.tensor([[0.0], [0.0], [1.0]]), torch.tensor([0.0, -90.0, 0.0]), torch.zeros(3, 1), torch.zeros(3)
    )
    for time in (0, -1, 3, 10**6 + 1, -(10**9) - 7, 10**12, 2**60, -(2**62)):
        cache.reset()
        rows = cache.read(torch.tensor([0, 1]))
        cache.update(*torch.tensor([[0], [1], [time], [5]]), rows)
        z = cache.read_updated(torch.tensor([0]), torch.zeros(2, 0), None, frequency, phase, gru).z
        angle = torch.tensor(time, dtype=torch.float64) + 0.25
        expected = torch.tanh(torch.cos(angle)).float()
        torch.testing.assert_close(z, expected.expand(1, 2, 1), atol=3e-6, rtol=1e-6)


def test_compiled_forward_and_backward() -> None:
    cache, arguments = a_call()
    learns = [*arguments[1:5], *arguments[5]]

    def loss(*arguments: Any) -> Tensor:
        rows = cache.read_updated(*arguments)
        return (rows.z * (1 + rows.keys[..., None])).sum()

    expected = torch.autograd.grad(loss(*arguments), learns)
    torch._dynamo.reset()
    given = torch.autograd.grad(torch.compile(loss, backend="aot_eager", fullgraph=True)(*arguments), learns)
    assert all(torch.equal(a, b) for a, b in zip(given, expected, strict=True))


def test_gru_weights_are_the_two_maps_in_a_row() -> None:
    linear, cell = nn.Linear(9, 6, bias=False).double(), nn.GRUCell(6, 4).double()
    x, state = torch.randn(5, 9, dtype=torch.float64), torch.randn(5, 4, dtype=torch.float64)
    gru = gru_weights(linear.weight, cell)
    together = torch.gru_cell(x, state, gru.weight, gru.weight_hh, gru.bias, gru.bias_hh)
    torch.testing.assert_close(together, cell(linear(x), state))
    assert gru_weights(None, nn.GRUCell(9, 4, bias=False)).bias.abs().sum() == 0
    with pytest.raises(ValueError, match=r"linear_weight has shape .* must be \(6, any\)"):
        gru_weights(torch.zeros(5, 9), cell)


@pytest.mark.cpu
def test_bad_input() -> None:
    cache, (nodes, node_features, edge_features, frequency, phase, gru) = a_call()
    good = {
        "nodes": nodes,
        "node_features": node_features,
        "edge_features": edge_features,
        "frequency": frequency,
        "phase": phase,
        "gru": gru,
    }
    for change, message in [
        ({"nodes": nodes + 30}, r"nodes\[\d+\] is \d+, must be in \[0, 40\); "),
        ({"nodes": nodes.int()}, "nodes is int32, must be int64"),
        (
            {"edge_features": edge_features[:100]},
            r"event_ids holds event \d+, must be below 100 .*; give each event a row",
        ),
        ({"node_features": node_features[:5]}, r"node_features has shape \(5, 4\), must be \(40, any\)"),
        ({"node_features": node_features.long()}, "node_features is int64, must be float32"),
        ({"edge_features": None}, r"weight has shape \(12, 9\), must be \(12, 6\)"),
        ({"phase": phase[:1]}, r"phase has shape \(1,\), must be \(2,\)"),
        ({"frequency": frequency[None]}, "frequency has shape .* must have 1 dim"),
        ({"gru": gru._replace(bias=gru.bias[:3])}, r"bias has shape \(3,\), must be \(12,\)"),
        ({"gru": gru._replace(weight_hh=gru.weight_hh.to("meta"))}, "weight_hh is on meta, must be on cpu"),
    ]:
        with pytest.raises(ValueError, match="ncache_read: " + message):
            cache.read_updated(**{**good, **change})
    cache.keys[0, 3] = N
    with pytest.raises(ValueError, match="keys holds node 40, must be below 40"):
        cache.read_updated(torch.tensor([0]), *list(good.values())[1:])
    assert isinstance(cache.read(nodes[:0]), NCacheRows)
