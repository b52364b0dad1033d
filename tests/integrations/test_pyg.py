"""The drop-ins for PyG's temporal classes: against plain lists, and against PyG itself where it is installed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from anabranch.integrations.pyg import IdentityMessage, LastAggregator, LastNeighborLoader, MeanAggregator, TGNMemory

NODES = 15
UCI = Path(os.environ.get("ANABRANCH_DATA", Path(__file__).parents[2] / "../shared/data")) / "uci" / "CollegeMsg.txt"


def edges_of(loader: Any, nodes: Tensor) -> dict[int, list[tuple[int, int]]]:
    """What the loader gives for nodes: for each its (event, neighbour), ascending."""
    n_id, edge_index, e_id = loader(nodes)
    assert torch.equal(n_id, n_id.unique())
    assert set(nodes.tolist()) <= set(n_id.tolist())
    assert edge_index.dtype == e_id.dtype == torch.int64
    assert edge_index.shape == (2, e_id.shape[0])
    found: dict[int, list[tuple[int, int]]] = {node: [] for node in nodes.tolist()}
    for neighbor, node, event in zip(*n_id[edge_index].tolist(), e_id.tolist(), strict=True):
        found[node].append((event, neighbor))
    assert set(n_id.tolist()) == set(nodes.tolist()) | {n for events in found.values() for _, n in events}
    return {node: sorted(events) for node, events in found.items()}


def follow(src: Tensor, dst: Tensor, size: int, batch: int, num_nodes: int) -> None:
    loader, lists = LastNeighborLoader(num_nodes, size), {node: [] for node in range(num_nodes)}
    for begin in range(0, src.shape[0], batch):
        s, d = src[begin : begin + batch], dst[begin : begin + batch]
        asked = torch.cat([s, d]).unique()
        assert edges_of(loader, asked) == {node: lists[node][-size:] for node in asked.tolist()}
        loader.insert(s, d)
        for event, (u, v) in enumerate(zip(s.tolist(), d.tolist(), strict=True), begin):
            lists[u].append((event, v))
            if u != v:
                lists[v].append((event, u))
    loader.reset_state()
    assert loader(torch.arange(3))[1].numel() == loader.cur_e_id == 0


@pytest.mark.parametrize(("size", "batch"), [(1, 7), (3, 40), (10, 1)])
def test_loader_gives_the_last_events(size: int, batch: int) -> None:
    src, dst = torch.randint(0, NODES, (2, 150))
    follow(src, dst, size, batch, NODES)


@pytest.mark.cpu
@pytest.mark.skipif(not UCI.exists(), reason=f"{UCI} is not there; set ANABRANCH_DATA")
def test_loader_on_a_real_stream() -> None:
    rows = [line.split() for line in UCI.read_text().splitlines()[:6000]]
    src, dst = torch.tensor([[int(row[0]), int(row[1])] for row in rows]).T
    follow(src.contiguous(), dst.contiguous(), 10, 1000, 2000)


@pytest.mark.cpu
def test_loader_refuses_what_does_not_fit() -> None:
    loader = LastNeighborLoader(4, 2)
    with pytest.raises(ValueError, match="must be"):
        loader.insert(torch.tensor([0]), torch.tensor([4]))
    assert loader.cur_e_id == 0
    loader.insert(torch.tensor([0]), torch.tensor([3]))
    assert loader(torch.tensor([3]))[2].tolist() == [0]
    with pytest.raises(ValueError, match="must be"):
        loader(torch.tensor([7]))


def memory_of(aggregator: Any, kind: Any = TGNMemory) -> Any:
    memory = kind(NODES, 2, 4, 3, IdentityMessage(2, 4, 3), aggregator).double()
    memory.reset_state()  # PyG's empty messages get the dtype here
    return memory


def batches(count: int) -> list[tuple[Tensor, ...]]:
    found, now = [], 1
    for size in torch.randint(1, 12, (count,)).tolist():
        src, dst = torch.randint(0, NODES, (2, size))
        time = now + torch.arange(size)  # distinct: PyG leaves ties open
        now += size
        found.append((src, dst, time, torch.randn(size, 2, dtype=torch.float64)))
    return found


def run(memory: Any, stream: list[tuple[Tensor, ...]]) -> list[Tensor]:
    """All that the memory says in training and eval mode, and the gradients."""
    said = []
    for step, batch in enumerate(stream):
        training = step % 6 < 4
        with torch.set_grad_enabled(training):  # PyG's eval mode would keep a graph otherwise
            if step % 6 in (0, 4):
                memory.train(training)
            z, last = memory(torch.arange(0, NODES, 1 + step % 3))
            memory.update_state(*batch)
        said += [z.detach().clone(), last]
        if training:
            memory.zero_grad()
            z.square().sum().backward()
            # Where no message waits PyG has no gradient at all for the encoder.
            said += [p.grad.clone() if p.grad is not None else torch.zeros_like(p) for p in memory.parameters()]
            memory.detach()
        said += [memory.memory.clone(), memory.last_update.clone()]
    return said


@pytest.mark.parametrize("aggregator", [LastAggregator, MeanAggregator])
def test_memory_is_that_of_pyg(aggregator: Any) -> None:
    """Both roles, both modes, the flush between them; with PyG's own aggregator and with ours in its class."""
    tgn = pytest.importorskip("torch_geometric.nn.models.tgn", reason="torch_geometric is not installed")
    ours, theirs = memory_of(aggregator()), memory_of(aggregator(), tgn.TGNMemory)
    foreign = memory_of(getattr(tgn, aggregator.__name__)())
    parameters = dict(ours.named_parameters())
    for other in (theirs, foreign):
        for name, value in other.named_parameters():
            value.data.copy_(parameters[name])
    stream = batches(20)
    expected = run(theirs, stream)
    for one, other in zip(run(ours, stream), expected, strict=True):
        torch.testing.assert_close(one, other)
    if aggregator is MeanAggregator:  # PyG's last gives a node without a message another's
        for one, other in zip(run(foreign, stream), expected, strict=True):
            torch.testing.assert_close(one, other)


@pytest.mark.parametrize("aggregator", [LastAggregator, MeanAggregator])
def test_memory_has_the_call_surface(aggregator: Any) -> None:
    memory = memory_of(aggregator())
    for batch in batches(5):
        memory.update_state(*batch)
    z, last = memory(torch.arange(NODES))
    assert z.shape == (NODES, 4)
    assert last.dtype == torch.int64
    quiet = memory.gru(torch.zeros(NODES, 13, dtype=torch.float64), memory.memory)
    silent = ~memory.mailbox.waiting().view(NODES, -1).any(1)
    torch.testing.assert_close(z[silent], quiet[silent])  # as PyG: the cell sees a message of zeros
    assert not last[silent].any()
    memory.detach()
    assert memory.eval() is memory
    assert not memory.mailbox.waiting().any()
    assert torch.equal(memory(torch.arange(NODES))[0], memory.memory)
    memory.reset_parameters()
    assert not memory.memory.any()
    assert memory.device == memory.memory.device
    assert {"memory", "last_update", "gru.weight_ih", "time_enc.lin.weight"} <= set(memory.state_dict())
