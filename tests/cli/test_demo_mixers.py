"""The mixers demo: to its last line, interrupted, and what its measurements measure."""

from __future__ import annotations

import math
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from test_demo import command, parse, text_file  # noqa: F401  (a fixture)

from anabranch.cli.demo_mixers import conclusions, table_rows, variants
from anabranch.cli.mixers_measure import BATCH, MixerResult, batches_within, keep_spectrum, measure, train_together
from anabranch.cli.mixers_model import CONTEXT, LAYERS, STREAMS, VARIANTS, build_model, optimizer_of
from anabranch.cli.mixers_report import deep_products, error_text, write_report
from anabranch.cli.text import load_text
from anabranch.mixers import spectrum

pytestmark = pytest.mark.cpu
NAMES = [*VARIANTS, "plain, seed 1", "plain, seed 2"]
SECTIONS = ("Loss against steps", "What the mixing matrices are", "Singular values through depth", "The same 60 deep")
NUMBER, ERROR = r"[\d,]+\.\d+", r"\d(e[+-]?\d+)?"


def test_demo_runs_to_its_last_line(tmp_path: Path, text_file: Path) -> None:  # noqa: F811
    out = tmp_path / "report.html"
    arguments = ["demo", "--job", "mixers", "--minutes", 0.02, "--text", text_file, "--out", out]
    # One thread: on a busy machine two of them mostly wait for each other.
    one = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command(*arguments), capture_output=True, text=True, timeout=300, env=one)
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    lines = done.stdout.splitlines()
    head = next(index for index, line in enumerate(lines) if line.startswith("residual "))
    rows = [re.split(r"  +", line.rstrip()) for line in lines[head + 1 : head + 1 + len(NAMES)]]
    assert [row[0] for row in rows] == NAMES
    for row in rows:
        for cell, wanted in zip(row[1:6], (r"\d\.\d\d M", NUMBER, NUMBER, NUMBER, NUMBER), strict=True):
            assert re.fullmatch(wanted, cell), row
        promised = [row[0].startswith("mHC")] * 2 + [row[0] == "Cayley"]
        for cell, has in zip(row[6:9], promised, strict=True):
            assert re.fullmatch(ERROR if has else "-", cell), row
    assert rows[0][5] == "1.00"
    errors = {row[0]: row[6:9] for row in rows}
    assert all(float(cell) <= 3e-6 for name in ("mHC-exact", "mHC-lite") for cell in errors[name][:2])
    assert float(errors["Cayley"][2]) <= 2e-6
    assert lines[-1] == f"wrote {out}"
    report = parse(out)
    seen = "".join(report.seen)
    for section in SECTIONS:
        assert section in seen
    assert report.tags.count("svg") == 3
    assert set(tmp_path.iterdir()) == {text_file, out}


def test_interrupt_leaves_a_valid_report(tmp_path: Path, text_file: Path) -> None:  # noqa: F811
    out = tmp_path / "report.html"
    process = subprocess.Popen(
        command("demo", "--job", "mixers", "--minutes", 5, "--text", text_file, "--out", out),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell's background job, as CI may be, hands its children an ignored Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout is not None
    process.stdout.readline()  # training is about to start
    time.sleep(3)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert "interrupted: the report holds what there is" in output
    assert "The same 60 deep" in "".join(parse(out).seen)


def test_an_unreadable_text_ends_before_training() -> None:
    arguments = command("demo", "--job", "mixers", "--text", "/nowhere/at/all")
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "No such file" in done.stderr and "Traceback" not in done.stderr and done.stdout == ""


@pytest.fixture(scope="module")
def text() -> torch.Tensor:
    return load_text(None)[1]


def test_models_take_the_same_steps_on_the_same_batches(text: torch.Tensor) -> None:
    models, results = [], []
    for name in ("a", "b"):
        torch.manual_seed(3)
        models.append(build_model(None))
        results.append(MixerResult(name, 3))
    train_together(models, results, text, 0.0, 5)
    assert results[0].bits == results[1].bits and len(results[0].bits) == 1
    for one, other in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(one, other)


def test_residuals_and_streams_have_the_same_sub_layers() -> None:
    parameters = []
    for kind in VARIANTS.values():
        torch.manual_seed(0)
        own = dict(build_model(kind).named_parameters())
        parameters.append([one for name, one in own.items() if ".sublayer" in name or not name.startswith("body")])
    for others in parameters[1:]:
        assert len(others) == len(parameters[0])
        assert all(torch.equal(one, other) for one, other in zip(parameters[0], others, strict=True))


def test_the_static_part_is_not_decayed() -> None:
    model = build_model("hc")
    decayed, spared = optimizer_of(model, 1e-3).param_groups
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.1, 0.0)
    assert len(spared["params"]) == 2 * 2 * LAYERS  # bias and scale of each sub-layer's connection
    assert len(decayed["params"]) + len(spared["params"]) == len(list(model.parameters()))


def test_held_out_bits_are_those_of_the_whole_stretch(text: torch.Tensor) -> None:
    torch.manual_seed(0)
    model, result = build_model(None), MixerResult("plain", 0)
    measure(model, result, text, 2)
    rows = text[torch.linspace(0, len(text) - CONTEXT - 2, 2 * BATCH).long()[:, None] + torch.arange(CONTEXT + 1)]
    with torch.no_grad():
        wanted = torch.nn.functional.cross_entropy(model(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten())
    assert result.validation_bits == pytest.approx(wanted.item() / math.log(2), rel=1e-5)
    assert result.spectrum == []


def test_held_out_batches_fill_the_time_left() -> None:
    results = [MixerResult(name, 0, seconds=[9.0, 0.1, 0.1]) for name in "ab"]  # 0.08 s for a batch of both
    assert [batches_within(seconds, results) for seconds in (-1.0, 0.0, 0.81, 1e9)] == [2, 2, 10, 32]


def test_worst_errors_and_median_values_are_kept() -> None:
    shear = torch.tensor([[1.0, 0.5], [0.0, 1.0]])
    result, tokens = MixerResult("HC", 0), torch.stack([shear, torch.eye(2), shear])
    keep_spectrum(spectrum([tokens, 2 * torch.eye(2).expand(3, 2, 2)]), result)
    assert result.row_errors == [0.5, 1.0] and result.column_errors == [0.5, 1.0]
    assert result.orthogonality_errors == [0.5, 3.0]
    for found, factor in zip(result.spectrum, (1.0, 2.0), strict=True):
        torch.testing.assert_close(torch.tensor(found), factor * torch.linalg.svdvals(shear))


def test_streams_have_a_spectrum(text: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("anabranch.cli.mixers_measure.BATCH", 1)
    torch.manual_seed(0)
    result = MixerResult("mHC-lite", 0)
    measure(build_model("mhc_lite"), result, text, 1)
    assert len(result.spectrum) == 2 * LAYERS and len(result.spectrum[0]) == STREAMS
    assert max(result.row_errors + result.column_errors) < 3e-6


@pytest.mark.parametrize(
    ("error", "text"), [(0.0, "0"), (3.4e-7, "3e-7"), (2e-12, "2e-12"), (4.0, "4"), (50.0, "5e+1")]
)
def test_errors_are_shown_with_a_digit(error: float, text: str) -> None:
    assert error_text(error) == text


def test_doubly_stochastic_products_collapse_and_orthogonal_ones_do_not() -> None:
    last = {name: spectrum[-1] for name, spectrum in deep_products().items()}
    for name in ("mHC-20", "mHC-exact", "mHC-lite"):
        assert last[name][0] == pytest.approx(1, abs=1e-3) and last[name][1] < 1e-6, name
    assert all(gain == pytest.approx(1, abs=1e-5) for gain in last["Cayley"])
    assert last["HC"][0] > 3


def test_conclusions_say_what_is_noise_and_what_is_slow(tmp_path: Path) -> None:
    assert [name for name, _, _ in variants(0)] == NAMES
    bits = dict(zip(NAMES, (2.0, 1.9, 2.2, 2.02, 1.99, 2.0, 2.03, 2.05), strict=True))
    results = [MixerResult(name, 0, 1000, [3.0], [0.1], found) for name, found in bits.items()]
    results[3].seconds = [0.2]
    notes = conclusions(results, 60.0)
    assert "span 0.050" in notes[1]
    assert "Better than plain by this measure: HC." in notes and "Worse than plain by this measure: mHC-20." in notes
    assert "Not told apart from plain by this measure: mHC-exact, mHC-lite, Cayley." in notes
    assert notes[-1] == "Slower than 1.25 of a plain step: mHC-exact."
    rows = table_rows(results)
    assert [row[5] for row in rows[1:4]] == ["1.00", "1.00", "1.00"] and rows[4][5] == "2.00"
    write_report(tmp_path / "r.html", results, rows, notes)
    assert "span 0.050" in "".join(parse(tmp_path / "r.html").seen)
    results[2].validation_bits = None  # interrupted
    assert conclusions(results, 60.0) == []
    assert table_rows(results)[3][3] == "-"
