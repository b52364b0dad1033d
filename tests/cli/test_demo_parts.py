"""What the demo compares is comparable: equal active compute, and no file both trained on and validated on."""

from __future__ import annotations

import sysconfig
from pathlib import Path

import pytest
import torch

from anabranch import CostMeter
from anabranch.cli.model import CONTEXT, EXPERTS, ByteModel, DenseFFN
from anabranch.cli.text import load_text

pytestmark = pytest.mark.cpu


def test_top_2_executes_the_flops_of_the_dense_ffn() -> None:
    tokens = torch.randint(0, 256, (2, CONTEXT))
    dense = ByteModel("dense")
    weights = sum(p.numel() for m in dense.modules() if isinstance(m, DenseFFN) for p in m.parameters())
    costs = {}
    for variant in ("dense", "top-2", "top-p"):
        model = ByteModel(variant)
        with CostMeter(model) as meter, torch.no_grad():
            model(tokens)
        costs[variant] = meter.total()
    assert costs["dense"].calls == 0
    assert costs["top-2"].executed_flops == 2 * weights * tokens.numel()
    assert costs["top-2"].dense_flops == costs["top-p"].dense_flops == costs["top-2"].executed_flops * EXPERTS // 2
    assert costs["top-2"].executed_flops / 2 <= costs["top-p"].executed_flops <= 2 * costs["top-2"].executed_flops


def test_the_standard_library_is_enough_text() -> None:
    train, validation = load_text(None)
    assert len(train) + len(validation) > 2_000_000
    assert 0.03 < len(validation) / len(train) < 0.4
    assert train.dtype == validation.dtype == torch.int64 and train.min() >= 0 and train.max() < 256


def test_no_file_is_on_both_sides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(30):
        folder = tmp_path / ("package" if number % 2 else "")
        folder.mkdir(exist_ok=True)
        (folder / f"{number}.py").write_text(f"<{number}>" + "x = 1\n" * 400)
    for left_out in ("test", "site-packages"):
        (tmp_path / left_out).mkdir()
        (tmp_path / left_out / "a.py").write_text("left out")
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path)})
    sides = [bytes(side.tolist()) for side in load_text(None)]
    for number in range(30):
        assert sorted(side.count(b"<%d>" % number) for side in sides) == [0, 1]
    assert sides[1].count(b"<") == 3 and b"left out" not in sides[0] + sides[1]
