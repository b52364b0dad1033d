"""`bench mixers` runs and records every row, and its contenders compute the same."""

from __future__ import annotations

import functools
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
import torch
from test_bench import bench, only_room

from anabranch.cli import peers_mixers as peers
from anabranch.cli.bench_mixers import Mixers, MixersShape
from anabranch.cli.bench_mixers_model import OPTIONS, EagerStreams, model_workload
from anabranch.cli.bench_rows import Row, Target
from anabranch.cli.machine import Limits
from anabranch.cli.main import main
from anabranch.cli.mixers_model import ByteModel, Streams

pytestmark = pytest.mark.cpu
STEPS = ["mhc n=4", "mhc n=2", "mhc n=8", *(f"{kind} n=4" for kind in ("exact", "lite", "cayley", "hc"))]
STEPS += ["2 mhc steps n=4"]
MATRICES = [*(f"{kind} n=4" for kind in ("sinkhorn-20", "exact", "lite", "cayley")), "sinkhorn-20 n=8"]
SHAPE = MixersShape(channels=48, chain=3, compiled=False)


def test_quick_bench_records_every_row(tmp_path: Path) -> None:
    chosen = ["--quick", "--tokens", 64, "--repeats", 1, "--without", "apart"]
    done = bench("mixers", *chosen, "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    record = only_room(tmp_path / "bench.json", "mixers")
    trained = [f"train {name}" for name in STEPS]
    assert [(row["dtype"], row["workload"]) for row in record["rows"]] == [
        *(("bfloat16", name) for name in (*STEPS, *trained)),
        *(("float32", name) for name in (*MATRICES, *(f"train {name}" for name in MATRICES))),
        ("float32", "train model mhc n=4"),
    ]
    for row in record["rows"]:
        assert all(time > 0 for time in row["medians_ms"].values())
        assert row["ours"] == "step"
        assert row["target"] is None and row["reached"] is None  # what must be reached is about more tokens
    assert {name for row in record["rows"] for name in row["medians_ms"]} == {"step", "eager", "lagged", "plain"}
    lines = done.stdout.splitlines()
    head = next(index for index, line in enumerate(lines) if "x limit" in line)
    table = lines[head + 1 : head + 1 + len(record["rows"])]
    assert all(len(line) == len(lines[head]) for line in table)
    peaks = {limit["dtype"]: limit["peak"] for limit in record["limits"]}
    assert {limit["float_peak"] for limit in record["limits"]} == {peaks["float32"]}
    drawn = [
        element.text
        for element in ElementTree.parse(tmp_path / "mixers.svg").getroot().iter("{http://www.w3.org/2000/svg}text")
    ]
    assert "mhc n=4, bfloat16" in drawn


def test_ours_cannot_be_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "mixers", "--without", "eager", "step"]) == 2
    assert "--without: step is ours, must be a peer" in capsys.readouterr().err


@pytest.fixture(scope="module", params=[torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def room(request: pytest.FixtureRequest) -> Mixers:
    torch.manual_seed(1)
    return Mixers(SHAPE, request.param, torch.device("cpu"))


@pytest.mark.parametrize("mode", ["forward", "training", "matrix", "matrix_training"])
def test_contenders_compute_the_same(room: Mixers, mode: str) -> None:
    tolerance = 3e-2 if room.dtype == torch.bfloat16 and not mode.startswith("matrix") else 2e-4
    compared = 0
    for workload in room.workloads(mode, 9):
        found = {name: call() for name, call in workload.contenders.items() if name != "lagged"}
        wanted = found.pop("step")
        for name, others in found.items():
            pairs = zip(wanted, others, strict=True) if isinstance(wanted, tuple) else [(wanted, others)]
            for index, (ours, theirs) in enumerate(pairs):
                assert (ours - theirs).norm() <= tolerance * theirs.norm(), (workload.name, name, index)
            compared += 1
    assert compared == (4 if mode.startswith("matrix") else 7)


def test_the_small_models_are_one() -> None:
    rows, found = torch.randint(0, 256, (2, 9)), []
    for body in (EagerStreams, functools.partial(Streams, **OPTIONS)):
        torch.manual_seed(0)
        model = ByteModel(body)
        for index, (name, one) in enumerate(model.named_parameters()):
            if name.endswith(".bias"):  # streams and coefficients that differ
                one.data += 0.3 * torch.randn(one.shape, generator=torch.Generator().manual_seed(index))
        loss = model(rows[:, :-1]).logsumexp(-1).mean()
        found.append((loss, torch.autograd.grad(loss, list(model.parameters()))))
    (wanted, theirs), (loss, ours) = found
    torch.testing.assert_close(loss, wanted, rtol=1e-5, atol=0)
    for index, (one, other) in enumerate(zip(ours, theirs, strict=True)):
        assert (one - other).norm() <= 1e-3 * other.norm() + 1e-6, index


def test_the_model_workload_is_a_step_of_training() -> None:
    workload = model_workload(20, torch.device("cpu"))
    assert (workload.tokens, workload.target) == (20, None)
    assert workload.contenders.keys() == {"step", "plain", "eager"}
    losses = [workload.contenders["plain"]() for _ in range(2)]
    assert losses[1] < losses[0]
    assert model_workload(1024, torch.device("cpu")).target == Target("plain", 1.25, 1.1)


def test_the_lagged_chain_reads_by_the_step_before() -> None:
    room = Mixers(SHAPE, torch.float32, torch.device("cpu"))
    (chain,) = (one for one in room.workloads("forward", 5) if "steps" in one.name)
    outputs = {name: call() for name, call in chain.contenders.items()}
    assert outputs.keys() == {"step", "lagged", "apart"}
    assert not torch.allclose(outputs["lagged"], outputs["step"], atol=1e-2)


def test_work_is_counted_as_two_kernels_must_do_it() -> None:
    tokens, channels, n = 3, SHAPE.channels, 4
    for dtype, products, size in ((torch.float32, 1, 4), (torch.bfloat16, 2, 2)):
        room = Mixers(SHAPE, dtype, torch.device("cpu"))
        once = room.step("forward", "mhc", n, tokens)
        assert once.flops == products * 2 * (n * n + 2 * n) * n * channels * tokens
        assert once.float_flops == (2 * n * n + 6 * n) * channels * tokens
        assert once.nbytes == (3 * n + 2) * channels * tokens * size
        both = room.step("training", "mhc", n, tokens)
        assert both.flops == 3 * once.flops
        assert both.nbytes == (8 * n + 5) * channels * tokens * size
        chain = room.chain("forward", n, tokens)
        assert chain.nbytes == once.nbytes + 2 * (2 * n + 2) * channels * tokens * size
        assert chain.flops == 3 * once.flops
        assert room.step("forward", "lite", n, tokens).flops == once.flops * 32 // 24
    matrices = room.matrices("matrix", "sinkhorn-20", n, tokens)
    assert matrices.nbytes == 4 * 2 * n * n * tokens
    assert matrices.flops == 20 * 4 * n * n * tokens


def test_float_arithmetic_has_its_own_peak() -> None:
    limits = Limits(peak=2e9, bandwidth=1e9, float_peak=1e9)
    assert limits.milliseconds(2e6, 1e6, 1e6) == pytest.approx(2.0)
    assert limits.milliseconds(2e6, 5e6, 1e6) == pytest.approx(5.0)
    assert Limits(2e9, 1e9).milliseconds(2e6, 0, 2e6) == pytest.approx(2.0)


@pytest.mark.parametrize(("of", "reached"), [("limit", 1.5), ("token", 3e6 / 64), ("plain", 0.75), ("eager", None)])
def test_targets_are_what_our_time_is_taken_over(of: str, reached: float | None) -> None:
    times = {"step": 3.0, "plain": 4.0}
    row = Row("a", "float32", 1, 64, 64, times, dict.fromkeys(times, 0.0), 2.0, None, target=Target(of, 25.0))
    assert row.reached == reached


def test_targets_are_those_of_the_issue() -> None:
    room = Mixers(MixersShape(channels=2, compiled=False), torch.bfloat16, torch.device("cpu"))
    assert room.step("forward", "mhc", 4, 2048).target == Target("limit", 2.5, 1.5)
    assert room.step("training", "mhc", 4, 2048).target == Target("limit", 3.0, 2.0)
    assert room.matrices("matrix", "sinkhorn-20", 4, 8192).target == Target("token", 25.0)
    assert room.step("forward", "mhc", 8, 2048).target is None


def test_the_compiled_peer_is_the_composition(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[object] = []
    monkeypatch.setattr(torch, "compile", lambda function, dynamic: made.append(function) or function)
    peers.compiled.cache_clear()
    room = Mixers(MixersShape(channels=8), torch.float32, torch.device("cpu"))
    try:
        assert "compiled" in room.step("forward", "mhc", 4, 3).contenders
        assert "compiled" in room.matrices("matrix", "sinkhorn-20", 4, 3).contenders
        assert "compiled" not in room.step("forward", "mhc", 8, 3).contenders
        assert made == [peers.mhc_step, peers.sinkhorn]
        monkeypatch.setenv("CXX", "/nowhere/c++")
        peers.compiled.cache_clear()
        assert "compiled" not in room.step("forward", "mhc", 4, 3).contenders
    finally:
        peers.compiled.cache_clear()
