"""The skip demo: to its last line, interrupted, without transformers; and what its measurements measure."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers", minversion="5.23")

from test_demo import command, parse, text_file  # noqa: F401  (a fixture)

from anabranch import skip
from anabranch.cli.demo_skip import conclusions, table_rows
from anabranch.cli.main import main
from anabranch.cli.skip_measure import PROMPT, SEQUENCES, SkipResult, measure_quality, measure_speed
from anabranch.cli.skip_model import CONTEXT, LAYERS, Curve, build_model, train_model
from anabranch.cli.skip_policies import candidates, with_policy
from anabranch.cli.skip_report import write_report
from anabranch.cli.text import load_text

pytestmark = pytest.mark.cpu
NAMES = ["dense", *["contiguous"] * 3, *["uniform"] * 3, *["cosine"] * 2, *["router"] * 2, *["temporal"] * 2]
SECTIONS = ("Speed against quality", "Which FFNs ran", "Training of the model")


def test_demo_runs_to_its_last_line(tmp_path: Path, text_file: Path) -> None:  # noqa: F811
    out = tmp_path / "report.html"
    arguments = ["demo", "--job", "skip", "--minutes", 0.02, "--text", text_file, "--out", out]
    done = subprocess.run(command(*arguments), capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    lines = done.stdout.splitlines()
    head = next(index for index, line in enumerate(lines) if line.startswith("policy "))
    rows = [re.split(r"  +", line.rstrip()) for line in lines[head + 1 : head + 1 + len(NAMES)]]
    assert [row[0] for row in rows] == NAMES
    for row in rows:
        for cell, wanted in zip(row[2:], (r"\d\.\d{3}", r"[\d.]+%", r"[\d,]+", r"\d+\.\d\d"), strict=True):
            assert re.fullmatch(wanted, cell), row
    shares = {f"{row[0]} {row[1]}": row[3] for row in rows}
    assert shares["dense -"] == "100.0%"
    for family in ("contiguous", "uniform"):
        assert [shares[f"{family} {kept} of 8 layers"] for kept in (6, 5, 4)] == ["75.0%", "62.5%", "50.0%"]
    assert rows[0][5] == "1.00"
    assert lines[-1] == f"wrote {out}"
    report = parse(out)
    seen = "".join(report.seen)
    for section in SECTIONS:
        assert section in seen
    assert report.tags.count("svg") == 3
    assert list(tmp_path.iterdir()) == [text_file, out] or set(tmp_path.iterdir()) == {text_file, out}


def test_interrupt_leaves_a_valid_report(tmp_path: Path, text_file: Path) -> None:  # noqa: F811
    out = tmp_path / "report.html"
    process = subprocess.Popen(
        command("demo", "--job", "skip", "--minutes", 5, "--text", text_file, "--out", out),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell's background job, as CI may be, hands its children an ignored Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout is not None
    process.stdout.readline()  # training is about to start
    time.sleep(4)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert "interrupted: the report holds what there is" in output
    assert "Training of the model" in "".join(parse(out).seen)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--minutes", "nan"], "must be positive"),
        (["--minutes", "-1"], "must be positive"),
        (["--out", "/nowhere/report.html"], "is no folder to write report.html into"),
        (["--out", "/"], "is a folder, must be a file"),
        (["--text", "/nowhere/at/all"], "No such file"),
    ],
)
def test_bad_arguments_end_before_training(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["demo", "--job", "skip", *arguments]) == 2
    out, errors = capsys.readouterr()
    assert message in errors
    assert out == ""


def test_missing_transformers_is_named_with_its_remedy(tmp_path: Path) -> None:
    hidden = "import sys; sys.modules['transformers'] = None; from anabranch.cli.main import main; "
    hidden += "sys.exit(main(sys.argv[1:]))"
    arguments = [sys.executable, "-c", hidden, "demo", "--job", "skip", "--out", str(tmp_path / "report.html")]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "pip install 'transformers>=5.23'" in done.stderr.splitlines()[-1]
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    torch.manual_seed(0)
    return build_model().eval().requires_grad_(False)


@pytest.fixture(scope="module")
def text() -> torch.Tensor:
    return load_text(None)[1]


def test_quality_is_that_of_one_call_for_the_whole_text(model: torch.nn.Module, text: torch.Tensor) -> None:
    result = SkipResult("dense", "")
    measure_quality(model, text, 12, result)
    starts = torch.linspace(0, len(text) - PROMPT - 13, SEQUENCES).long()[:, None]
    rows = text[starts + torch.arange(PROMPT + 13)]
    with torch.no_grad():
        logits = model(rows[:, :-1]).logits[:, PROMPT:]
    wanted = torch.nn.functional.cross_entropy(logits.flatten(0, 1), rows[:, PROMPT + 1 :].flatten()) / 0.6931472
    assert result.bits == pytest.approx(wanted.item(), abs=1e-4)
    assert result.ffn_share == 1.0


def test_a_cosine_policy_is_scored_as_in_one_call(model: torch.nn.Module, text: torch.Tensor) -> None:
    skipping = with_policy(model, skip.CosineSkip(-2.0))
    result = SkipResult("cosine", "")
    measure_quality(skipping, text, 8, result)
    starts = torch.linspace(0, len(text) - PROMPT - 9, SEQUENCES).long()[:, None]
    rows = text[starts + torch.arange(PROMPT + 9)]
    with torch.no_grad():
        logits = skipping(rows[:, :-1], use_cache=False).logits[:, PROMPT:]
    wanted = torch.nn.functional.cross_entropy(logits.flatten(0, 1), rows[:, PROMPT + 1 :].flatten()) / 0.6931472
    assert result.bits == pytest.approx(wanted.item(), abs=1e-4)
    assert result.layer_shares == [1.0, 1.0, *[0.0] * (LAYERS - 3), 1.0]


def test_the_share_is_of_decoding_alone(model: torch.nn.Module, text: torch.Tensor) -> None:
    result = SkipResult("uniform", "")
    measure_quality(with_policy(model, skip.UniformSkip(2.0)), text, 8, result)  # its prompt runs every layer
    assert result.ffn_share == 0.5
    assert sorted(set(result.layer_shares)) == [0.0, 1.0]


def test_candidates_learn_and_leave_the_model_as_it_was(model: torch.nn.Module, text: torch.Tensor) -> None:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        wanted = model(text[None, :CONTEXT]).logits
    learners = [one for one in candidates(0) if one.learn is not None]
    assert [one.family for one in learners] == ["cosine"] * 2 + ["router"] * 2 + ["temporal"] * 2
    for one in learners:
        assert one.policy is not None and one.learn is not None
        untrained = {name: tensor.clone() for name, tensor in one.policy.state_dict().items()}
        one.learn(model, text, 0.0)
        assert any(not torch.equal(tensor, untrained[name]) for name, tensor in one.policy.state_dict().items())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    with torch.no_grad():
        assert torch.equal(model(text[None, :CONTEXT]).logits, wanted)


def test_training_takes_the_policy_off_again(text: torch.Tensor) -> None:
    fresh, curve = build_model(), Curve()
    train_model(fresh, text, 0.0, 0, curve)
    assert len(curve.bits) == len(curve.seconds) == 1
    with pytest.raises(ValueError, match="has no policy"):
        skip.report(fresh)


def test_speed_is_measured_in_turn(model: torch.nn.Module, text: torch.Tensor) -> None:
    results = [SkipResult("dense", ""), SkipResult("uniform", "")]
    measure_speed([model, with_policy(model, skip.UniformSkip(2.0))], results, text, 4, 0.0)
    assert [len(result.rates) for result in results] == [3, 3]
    assert all(rate > 0 for result in results for rate in result.rates)


def result(family: str, bits: float, rate: float) -> SkipResult:
    return SkipResult(family, "b", bits, [rate], 0.5, [1.0, 0.0])


def test_nothing_half_written_is_left(tmp_path: Path) -> None:
    (tmp_path / "r.html").mkdir()
    with pytest.raises(OSError):
        write_report(tmp_path / "r.html", [], [], [], table_rows([]), [])
    assert [path.name for path in tmp_path.iterdir()] == ["r.html"]


def test_what_does_not_pay_is_said(tmp_path: Path) -> None:
    results = [
        result("dense", 2.0, 100.0),
        result("contiguous", 2.2, 150.0),
        result("uniform", 2.1, 140.0),
        result("cosine", 2.05, 90.0),
        result("router", 2.3, 150.0),
    ]
    slow, beaten = conclusions(results)[1:]
    assert slow.endswith("no faster than dense: cosine b.")
    assert beaten.endswith("in speed and quality: router b.")
    rows = table_rows(results)
    assert [row[5] for row in rows[1:]] == ["1.00", "1.50", "1.40", "0.90", "1.50"]
    write_report(tmp_path / "r.html", [1.0], [3.0], results, rows, conclusions(results))
    assert "router b." in "".join(parse(tmp_path / "r.html").seen)
    results[2].bits = None  # interrupted
    assert conclusions(results) == []
    assert table_rows(results)[3][2] == "-"
