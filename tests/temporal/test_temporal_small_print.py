"""What the temporal room refuses besides: tables that share memory, ids of other shapes, NaN; and times of any unit."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from anabranch.core.library import ops
from anabranch.integrations.pyg import LastNeighborLoader
from anabranch.papers.nat import NAT
from anabranch.papers.semba import SEMBA
from anabranch.papers.splash import NodeFeatures, StreamContext
from anabranch.temporal import (
    EdgeList,
    MemoryTable,
    NCache,
    NegativeSampler,
    RandomProjections,
    RunningMean,
    RunningMoments,
    SignedMemory,
    TimeEncoder,
    gru_weights,
    ordered_scatter_,
    ordered_scatter_add_,
    random_projections,
)


def refuses(tables: list[Tensor], match: str, call: Callable[[], Any]) -> None:
    before = [table.clone() for table in tables]
    with pytest.raises(ValueError, match=match) as error:
        call()
    assert "; " in str(error.value)
    assert all(torch.equal(a, b) for a, b in zip(before, tables, strict=True))


def test_what_is_written_shares_no_memory() -> None:
    table, index = torch.randn(6, 4), torch.tensor([1, 0])
    alias = "values shares memory with table, must have its own; pass"
    refuses([table], alias, lambda: ordered_scatter_(table, index, table[2:4]))
    refuses([table], alias, lambda: ordered_scatter_add_(table, index, table[:2]))
    values, ids = torch.ones(2, 4), torch.arange(6)[:, None]
    refuses([table], "weights shares", lambda: ordered_scatter_add_(table, index, values, table[0, :2]))
    refuses([ids], "index shares", lambda: ordered_scatter_(ids, ids.view(-1)[:2], torch.ones_like(ids[:2])))
    expected = table.clone()
    expected[index] = table[3:5, :4].clone()
    assert ordered_scatter_(table, index, table[3:5].clone()).equal(expected)
    apart = torch.randn(8, 4)
    ordered_scatter_(apart[:4], index, apart[4:6])  # beside one another
    assert apart[1].equal(apart[4])
    module = RandomProjections(6, 4)
    time = module.last_time[:2]
    refuses([module.table, time], "time shares memory with last_time", lambda: ops.random_projections_update(
        module.table, module.last_time, module.now, index, index.clone(), time, 0.1))  # fmt: skip


@pytest.mark.cpu
def test_the_plain_ring_shares_no_memory() -> None:
    records, oldest = torch.zeros(4, 2, 2, dtype=torch.int64), torch.zeros(4, dtype=torch.int32)
    ops.plain_ring_clear(records, oldest)
    inside, one = records.view(-1)[:1], torch.zeros(1, dtype=torch.int64)
    refuses([records], "time shares memory with records", lambda: ops.plain_ring_run(
        records, oldest, one, one, inside, one[:, None], 0, 1))  # fmt: skip
    refuses([records], r"src\[0\] is 4, must be in \[0, 4\)", lambda: ops.plain_ring_run(
        records, oldest, one + 4, one, one, one[:, None], 0, 1))  # fmt: skip


@pytest.mark.parametrize("shape", [(), (2, 1)])
def test_ids_are_vectors(shape: tuple[int, ...]) -> None:
    bad, good = torch.zeros(shape, dtype=torch.int64), torch.zeros(2, dtype=torch.int64)
    loader, mean, moments = LastNeighborLoader(4, 2), RunningMean(4, 3), RunningMoments(4, 3)
    projections = RandomProjections(4, 3)
    calls: list[Callable[[], Any]] = [
        lambda: loader(bad),
        lambda: loader.insert(bad, bad),
        lambda: loader.insert(good, bad),
        lambda: mean.update(bad, torch.ones(2, 3)),
        lambda: moments.update(bad, torch.ones(2, 3)),
        lambda: moments.mean(bad),
        lambda: mean(bad),
        lambda: projections.pair_features(bad, bad),
        lambda: projections.pair_features(good, bad),
        lambda: projections.update(bad, bad, bad),
    ]
    for call in calls:
        refuses([mean.sums, moments.sums], "of shape .*, must be int64 of", call)
    with pytest.raises(ValueError, match=r"^update: nodes is int32"):
        mean.update(good.int(), torch.ones(2, 3))


@pytest.mark.cpu
def test_ids_out_of_range_name_the_call() -> None:
    for module in (RunningMean(4, 3), RunningMoments(4, 3)):
        nodes = torch.tensor([-1, 4])
        refuses([module.sums, module.count], r"^update: nodes has 4, must be in \[0, 4\) or negative for none; ",
                lambda m=module, n=nodes: m.update(n, torch.ones(2, 3)))  # fmt: skip
        module.update(torch.tensor([-1, 3]), torch.ones(2, 3))
        assert module.count.flatten().tolist() == [0, 0, 0, 1]
    edges = EdgeList.from_events(*torch.tensor([[0, 1], [1, 2], [5, 6]]), num_nodes=4)
    sampler = NegativeSampler(edges.dst, history=edges)
    for src in (4, -1):
        with pytest.raises(ValueError, match=rf"sample_historical: src has {src}, must be in \[0, 4\); "):
            sampler.sample_historical(torch.tensor([0]), torch.tensor([src]))


@pytest.mark.cpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_nan_in_features_is_refused(cpu_isa: str, dtype: torch.dtype) -> None:
    raw = torch.randn(3, 2).to(dtype)
    raw[2, 1] = math.nan
    src, dst, time = torch.tensor([[0, 1, 2], [3, 3, 1], [5, 6, 7]])
    memories = MemoryTable(4, 3, 2, dtype=dtype), SignedMemory(4, 3, 2, dtype=dtype)
    for memory, extra in zip(memories, ((), (src > 0,)), strict=True):
        tables = [memory.last_update, memory.mailbox.words, memory.mailbox.raw]
        refuses(tables, "^update_state: raw_msg has a NaN in row 2, must have none; ",
                lambda m=memory, e=extra: m.update_state(src, dst, time, *e, raw))  # fmt: skip
    mean = RunningMean(4, 2, dtype=dtype)
    refuses([mean.sums, mean.count], "^update: values has a NaN in row 2", lambda: mean.update(src, raw))
    moments = RunningMoments(4, 2, dtype=dtype)
    refuses([moments.sums, moments.count], "^update: increments has a NaN in row 2", lambda: moments.update(src, raw))
    cache = NCache(4, (3,), 4, dtype=dtype)
    cache.update(src, dst, time, torch.arange(3), cache.read(torch.cat([src, dst])))
    sums = torch.float64 if dtype == torch.float64 else torch.float32
    gru = gru_weights(None, torch.nn.GRUCell(5, 4, dtype=sums))
    waves, nodes, good = torch.ones(1, dtype=sums), torch.arange(4), torch.randn(4, 2).to(dtype)
    bad = good.clone()
    bad[3, 0] = math.nan
    for name, row, features in (("node_features", 3, (bad, raw.nan_to_num())), ("edge_features", 2, (good, raw))):
        refuses([cache.keys, cache.states], f"^ncache_read: {name} has a NaN in row {row}, must have none; ",
                lambda f=features: cache.read_updated(nodes, *f, waves, waves, gru))  # fmt: skip
    infinite = torch.tensor([[math.inf, -math.inf]]).to(dtype).expand(3, 2).contiguous()
    mean.update(src, infinite)  # their sum is NaN too, but no number is
    assert cache.read_updated(nodes, good, raw.nan_to_num(), waves, waves, gru).z.isfinite().all()
    lost = gru._replace(bias=gru.bias * math.nan)  # weights that diverged are not the features' fault
    assert cache.read_updated(nodes, good, raw.nan_to_num(), waves, waves, lost).z.isnan().any()
    with pytest.raises(ValueError, match=r"^NAT: edge_features has a NaN in row 2, must have none; "):
        NAT(4, raw)


@pytest.mark.cpu
def test_an_event_that_has_no_features_is_not_written() -> None:
    model, edges = NAT(4, torch.randn(2, 3)), EdgeList.from_events(*torch.tensor([[0, 1, 2], [1, 2, 3], [5, 6, 7]]))
    rows = model(edges.src, edges.dst, edges.dst[:, None])[2]
    tables = [model.cache.keys, model.self_states, model.partner]
    refuses(tables, "^insert: event_id has 2, must be below 2 as edge_features has 2 rows; ",
            lambda: model.insert(edges, rows))  # fmt: skip
    model.insert(edges[:2], model(edges.src[:2], edges.dst[:2], edges.dst[:2, None])[2])


def test_an_event_that_a_gpu_passes_over_does_not_move_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[int] = []
    skips = SimpleNamespace(random_projections_update=lambda *arguments: written.append(int(arguments[2])))
    monkeypatch.setattr(random_projections, "check_nodes", lambda *arguments, **nodes: None)  # as where nobody looks
    monkeypatch.setattr(random_projections, "ops", skips)
    module = RandomProjections(4, 3)
    module.update(*torch.tensor([[0, 4, 2, -1], [1, 0, 3, 2], [5, 600, 7, 700]]))
    assert written == [7] == module.now.tolist()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_encoded_times_keep_their_digits_in_any_unit(dtype: torch.dtype) -> None:
    encoder = TimeEncoder(5).to(dtype)
    for unit, digits in ((1, 1e-6), (10**4, 1e-3)):  # three years in seconds, and in tenths of milliseconds
        t = torch.tensor([0, 3, 86_400, 10**8 + 1]) * unit
        w, b = encoder.lin.weight.detach().double()[:, 0], encoder.lin.bias.detach().double()
        exact = torch.tensor(
            [[math.cos(float(s) * float(x) + float(y)) for x, y in zip(w, b, strict=True)] for s in t],
            dtype=torch.float64,
        )
        tolerance = {torch.bfloat16: 4e-3, torch.float16: 5e-4}.get(dtype, 0) + digits
        found = encoder(t)
        assert found.dtype == dtype
        assert (found.double() - exact).abs().max() < tolerance
    encoder = TimeEncoder(3).double()
    assert torch.autograd.gradcheck(
        lambda w, b: torch.func.functional_call(encoder, {"lin.weight": w, "lin.bias": b}, torch.tensor([0, 7, -30])),
        (encoder.lin.weight, encoder.lin.bias),
    )
    compiled = torch.compile(encoder, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(torch.tensor([4, 9])), encoder(torch.tensor([4, 9])))


def test_features_of_a_stream_go_where_the_model_goes() -> None:
    edges = EdgeList.from_events(*torch.tensor([[0, 1], [1, 2], [5, 6]]), torch.ones(2, 1), num_nodes=4)
    context = StreamContext(NodeFeatures("random", edges, 4), edges, 2)
    for model in (SEMBA(edges, memory_dim=4, out_dim=4), context):
        assert not any("features" in name and "table" not in name and "known" not in name and "means" not in name
                       for name in model.state_dict())  # fmt: skip
        moved = copy.deepcopy(model).to("meta")
        assert all(buffer.is_meta for buffer in moved.buffers())
        part = moved.attention.features if isinstance(moved, SEMBA) else moved.edge_features
        assert part is not None and part.is_meta
