"""MemoryTable and SignedMemory against Python lists; gradients, modes, states, compiled calls, bad input."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from memory_oracle import ListMemory
from torch import Tensor, nn

from anabranch.temporal import MemoryCorrection, MemoryTable, SignedMemory, coherence_loss

NODES, DIM, RAW = 12, 5, 3


class LearnedMessage(nn.Module):
    """A message module with parameters: source and target have different ones."""

    def __init__(self) -> None:
        super().__init__()
        self.out_channels = 7
        self.lin = nn.Linear(2 * DIM + RAW + 4, 7)

    def forward(self, z_src: Tensor, z_dst: Tensor, raw_msg: Tensor, t_enc: Tensor) -> Tensor:
        return self.lin(torch.cat([z_src, z_dst, raw_msg, t_enc], -1)).tanh()


def stream(batches: int, seed: int, every: int | None = None) -> list[tuple[Tensor, ...]]:
    """Batches with ties of time, self-loops, nodes that come often; ids in no order within one."""
    draw = torch.Generator("cpu").manual_seed(seed)
    found, now = [], 3
    for drawn in torch.randint(0, 9, (batches,), generator=draw, device="cpu").tolist():
        size = drawn if every is None else every
        src, dst = torch.randint(0, NODES, (2, size), generator=draw, device="cpu")
        time = now + torch.randint(0, 3, (size,), generator=draw, device="cpu").cumsum(0)
        now = int(time[-1]) if size else now
        raw = torch.randn(size, RAW, generator=draw, dtype=torch.float64, device="cpu")
        ids = 10 * len(found) + torch.randperm(size, generator=draw, device="cpu")
        found.append((src, dst, time, raw, ids, torch.rand(size, generator=draw, device="cpu") < 0.4))
    return [tuple(part.to(torch.get_default_device()) for part in batch) for batch in found]


def follow(module: Any, oracle: ListMemory, names: list[str], batches: list[tuple[Tensor, ...]]) -> None:
    everyone = torch.arange(NODES)
    for step, (src, dst, t, raw, ids, sign) in enumerate(batches):
        module.train(step % 7 < 4)
        if step % 7 == 4:
            oracle.flush()
        asked = everyone[torch.randperm(NODES)[: 1 + step % NODES]]
        *rows, last = module(asked)
        for at, node in enumerate(asked.tolist()):
            if module.training:
                expected, time, _ = oracle.updated(node)
            else:
                expected, time = {n: oracle.tables[n][node] for n in names}, int(oracle.last_update[node])
            for row, name in zip(rows, names, strict=True):
                torch.testing.assert_close(row[at], expected[name])
            assert int(last[at]) == time
        extra = (sign,) if isinstance(module, SignedMemory) else ()
        module.update_state(src, dst, t, *extra, raw, ids)
        oracle.update_state(src, dst, t, raw, ids, sign)
        for name in names:
            torch.testing.assert_close(getattr(module, name), oracle.tables[name])
            assert not getattr(module, name).requires_grad
        assert torch.equal(module.last_update, oracle.last_update)


def oracle_of(table: MemoryTable, mean: bool) -> ListMemory:
    oracle = ListMemory(table, {"memory": torch.zeros(NODES, DIM, dtype=torch.float64)}, mean)
    oracle.hears = {"memory": (table.gru, lambda sign: ["memory"])}
    return oracle


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("untouched", ["keep", "update"])
@pytest.mark.parametrize("aggregator", ["last", "mean"])
def test_memory_is_that_of_lists(aggregator: Any, untouched: Any, learned: bool) -> None:
    table = MemoryTable(
        NODES, DIM, RAW, time_dim=4, aggregator=aggregator, untouched=untouched, dtype=torch.float64,
        message=LearnedMessage() if learned else None,
    )  # fmt: skip
    if learned:
        nn.init.normal_(table.msg_d_module.lin.weight)
    follow(table, oracle_of(table, aggregator == "mean"), ["memory"], stream(16, seed=int(learned)))


@pytest.mark.parametrize("variant", ["theory", "release"])
@pytest.mark.parametrize("aggregator", ["last", "mean"])
def test_signed_memory_is_that_of_lists(aggregator: Any, variant: Any) -> None:
    memory = SignedMemory(NODES, DIM, RAW, time_dim=4, aggregator=aggregator, variant=variant, dtype=torch.float64)
    names = ["positive", "negative"]
    oracle = ListMemory(memory, {n: torch.zeros(NODES, DIM, dtype=torch.float64) for n in names}, aggregator == "mean")
    release = {False: [], True: ["negative", "positive"]}
    theory = {False: ["negative"], True: ["positive"]}
    oracle.hears = {
        "positive": (memory.gru_positive, {False: ["positive"], True: ["negative"]}.__getitem__),
        "negative": (memory.gru_negative, (theory if variant == "theory" else release).__getitem__),
    }
    follow(memory, oracle, names, stream(16, seed=2))


@pytest.mark.parametrize("aggregator", ["last", "mean"])
def test_gradients_are_those_of_lists(aggregator: Any) -> None:
    table = MemoryTable(
        NODES, DIM, RAW, time_dim=4, aggregator=aggregator, message=LearnedMessage(), dtype=torch.float64
    )
    oracle = oracle_of(table, aggregator == "mean")
    for src, dst, t, raw, ids, sign in stream(4, seed=5):
        table.update_state(src, dst, t, raw, ids)
        oracle.update_state(src, dst, t, raw, ids, sign)
    parameters = list(table.parameters())
    weight = torch.randn(NODES, DIM, dtype=torch.float64)
    (weight * table(torch.arange(NODES))[0]).sum().backward()
    given = [p.grad.clone() for p in parameters]
    table.zero_grad()
    sum((weight[n] * oracle.updated(n)[0]["memory"]).sum() for n in range(NODES)).backward()
    for one, parameter in zip(given, parameters, strict=True):
        assert one.abs().sum() > 0
        torch.testing.assert_close(one, parameter.grad)


@pytest.mark.parametrize("kind", ["last", "mean", "signed"])
def test_a_saved_state_goes_on_as_if_never_stopped(kind: str) -> None:
    def make() -> Any:
        if kind == "signed":
            return SignedMemory(NODES, DIM, RAW, time_dim=4, dtype=torch.float64)
        return MemoryTable(
            NODES, DIM, RAW, time_dim=4, aggregator=kind, correction=MemoryCorrection(), dtype=torch.float64
        )

    def feed(module: Any, batches: list[tuple[Tensor, ...]]) -> None:
        for src, dst, t, raw, ids, sign in batches:
            module.update_state(src, dst, t, *((sign,) if kind == "signed" else ()), raw, ids)

    batches = stream(60, seed=1)  # the log of "mean" is full several times
    whole = make()
    feed(whole, batches[:40])
    resumed, copied = make(), copy.deepcopy(whole)
    resumed.load_state_dict(whole.state_dict())
    for module in (whole, resumed, copied):
        feed(module, batches[40:])
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
        assert torch.equal(value, copied.state_dict()[name]), name
    other = make()
    other.load_state_dict(whole.state_dict())
    smaller = {
        n: v[:-1] if n.endswith(("last_update", "words", "ranges", "count")) else v
        for n, v in whole.state_dict().items()
    }
    before = {n: b.clone() for n, b in other.named_buffers()}
    with pytest.raises(RuntimeError, match="last_update is"):
        other.load_state_dict(smaller)
    for name, value in other.named_buffers():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize("signed", [False, True])
def test_compiled_calls_are_the_eager_ones(signed: bool) -> None:
    kind: Any = SignedMemory if signed else MemoryTable
    eager = kind(NODES, DIM, RAW, time_dim=4, dtype=torch.float64)
    compiled = copy.deepcopy(eager)
    update = torch.compile(lambda *batch: compiled.update_state(*batch), fullgraph=True, backend="aot_eager")
    read = torch.compile(lambda nodes: compiled(nodes), fullgraph=True, backend="aot_eager")
    for src, dst, t, raw, ids, sign in stream(4, seed=3, every=6):
        batch = (src, dst, t, *((sign,) if signed else ()), raw, ids)
        eager.update_state(*batch)
        update(*batch)
        for one, other in zip(eager(src), read(src), strict=True):
            torch.testing.assert_close(one, other)
    for name, value in eager.named_buffers():
        torch.testing.assert_close(value, dict(compiled.named_buffers())[name])


def test_correction_is_what_is_stored() -> None:
    table = MemoryTable(
        NODES, DIM, RAW, time_dim=4, correction=MemoryCorrection(0.7, learnable=True), dtype=torch.float64
    )
    sums, counts = torch.zeros(NODES, DIM, dtype=torch.float64), torch.zeros(NODES, 1, dtype=torch.float64)
    for src, dst, t, raw, ids, _ in stream(8, seed=4):
        nodes = torch.cat([src, dst]).unique()
        previous = table.memory[nodes]
        predicted = previous + sums[nodes] / counts[nodes].clamp_min(1)
        has = table.mailbox.waiting()[nodes][:, None]
        increments = table.update_rows(nodes).increments
        expected = torch.where(has, 0.7 * predicted + 0.3 * (previous + increments), previous)
        table.update_state(src, dst, t, raw, ids)
        torch.testing.assert_close(table.memory[nodes], expected)
        sums[nodes] += torch.where(has, increments, 0)
        counts[nodes] += has.double()
    torch.testing.assert_close(table.moments.sums[:, :DIM], sums)
    assert torch.equal(table.moments.count.double(), counts)
    memory, _ = table(torch.arange(NODES))
    loss = coherence_loss(memory, table.memory)
    loss.backward()
    assert 0 < loss.item() < 2
    assert table.correction.logit.grad.abs() > 0
    assert table.gru.weight_ih.grad.abs().sum() > 0
    table.reset_state()
    assert not any(t.any() for t in (table.memory, table.moments.sums, table.last_update, table.mailbox.waiting()))


@pytest.mark.cpu
@pytest.mark.parametrize("aggregator", ["last", "mean"])
def test_threads_make_no_difference(aggregator: Any) -> None:
    threads, states = torch.get_num_threads(), []
    table = MemoryTable(500, 40, 20, time_dim=4, aggregator=aggregator)
    src, dst = torch.randint(0, 500, (2, 3000))
    for count in (1, 2):
        torch.set_num_threads(count)
        torch.manual_seed(1)
        module = copy.deepcopy(table)
        module.update_state(src, dst, torch.arange(3000), torch.randn(3000, 20))
        states.append(module.mailbox.state_dict())
    torch.set_num_threads(threads)
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


@pytest.mark.cpu
def test_bad_input_leaves_the_state() -> None:
    table = MemoryTable(NODES, DIM, RAW, time_dim=4)
    src, t, raw = torch.tensor([1, 2]), torch.tensor([1, 2]), torch.randn(2, RAW)
    table.update_state(src, src, t, raw)
    before = copy.deepcopy(table.state_dict())
    for bad, match in (
        ((torch.tensor([1, NODES]), src, t, raw), "src has 12, must be in"),
        ((src, torch.tensor([-1, 0]), t, raw), "dst has -1, must be in"),
        ((src, src, t.int(), raw), "t is int32 of shape"),
        ((src, src, t[:1], raw), r"t is int64 of shape \(1,\)"),
        ((src, src[:1], t, raw), "dst is int64 of shape"),
        ((src, src, t, raw.double()), "raw_msg is float64"),
        ((src, src, t, raw[:, 1:]), "raw_msg is float32 of shape"),
        ((src, src, t, raw, t.float()), "event_id is float32"),
        ((src.to("meta"), src, t, raw), "src is on meta"),
    ):
        with pytest.raises(ValueError, match=match):
            table.update_state(*bad)
    with pytest.raises(ValueError, match="n_id has 99"):
        table(torch.tensor([99]))
    with pytest.raises(ValueError, match="is_negative is"):
        SignedMemory(NODES, DIM, RAW).update_state(src, src, t, t, raw)
    for options in ({"aggregator": "max"}, {"untouched": "drop"}):
        with pytest.raises(ValueError, match="must be"):
            MemoryTable(NODES, DIM, RAW, **options)
    for name, value in table.state_dict().items():
        assert torch.equal(value, before[name]), name
