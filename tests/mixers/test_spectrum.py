"""`spectrum`: what products of doubly stochastic and of orthogonal matrices become, and where a model's come from."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from anabranch import mixers
from anabranch.mixers import ChannelGatedConnection, HyperConnection, HyperConnectionSequence, spectrum
from anabranch.mixers.recording import recording

C, N, DEPTH = 6, 4, 60


def test_doubly_stochastic_products_collapse() -> None:
    found = spectrum(mixers.sinkhorn(torch.randn(DEPTH, 5, N, N, dtype=torch.float64), tol=1e-12))
    assert found.singular_values.shape == (DEPTH, 5, N)
    assert found.singular_values[-1, :, 1].max() < 1e-6 < found.singular_values[0, :, 1].min()
    for gain in (found.row_gain, found.column_gain, found.singular_values[..., 0]):
        torch.testing.assert_close(gain, torch.ones_like(gain), atol=1e-9, rtol=0)
    assert found.row_error.max() < 1e-9 and found.column_error.max() < 1e-9
    assert found.orthogonality_error.min() > 0.1


def test_orthogonal_products_keep_everything() -> None:
    found = spectrum(list(mixers.cayley(torch.randn(DEPTH, 5, N, N) * 3)))
    assert (found.singular_values - 1).abs().max() < 1e-5
    assert found.orthogonality_error.max() < 1e-6
    assert found.row_gain.max() <= N**0.5 + 1e-5


def test_unconstrained_products_grow() -> None:
    found = spectrum(torch.eye(N) * 1.5 + torch.zeros(20, N, N))
    torch.testing.assert_close(found.row_gain[:, 0], 1.5 ** torch.arange(1, 21, dtype=torch.float64))
    assert torch.equal(found.column_gain, found.row_gain)


def test_order_of_the_product() -> None:
    first, second = torch.randn(2, N, N, dtype=torch.float64)
    found = spectrum([first, second])
    torch.testing.assert_close(found.row_gain[1, 0], (second @ first).abs().sum(-1).max())
    torch.testing.assert_close(found.singular_values[1, 0], torch.linalg.svdvals(second @ first))


@pytest.mark.parametrize("fused", [False, True])
def test_of_a_model(fused: bool) -> None:
    blocks = [HyperConnection(nn.Linear(C, C), C, N, kind="mhc") for _ in range(3)]
    with torch.no_grad():
        for block in blocks:
            block.bias.normal_()
    model = HyperConnectionSequence(blocks) if fused else nn.Sequential(*blocks)
    streams = torch.randn(2, 5, N, C)
    found = spectrum(model, streams)
    assert found.row_gain.shape == (3, 10) and not found.row_gain.requires_grad
    first = mixers.connect(streams, blocks[0].projection()).mixing.flatten(0, 1)
    torch.testing.assert_close(found.singular_values[0], torch.linalg.svdvals(first.double()))
    gated = nn.Sequential(model, ChannelGatedConnection(nn.Linear(C, C), C, N, rank=2))
    torch.testing.assert_close(spectrum(gated, streams).singular_values[3], found.singular_values[2])


def test_what_is_recorded_is_a_copy_of_the_matrix_alone() -> None:
    block = HyperConnection(nn.Linear(C, C), C, N)
    with recording() as matrices, torch.no_grad():
        step = mixers.connect(torch.randn(5, N, C), block.projection())
        before = step.mixing.clone()
        step.coefficients.zero_()
    assert torch.equal(matrices[0], before) and matrices[0].untyped_storage().nbytes() == 4 * 5 * N * N


def test_plot(tmp_path: Path) -> None:
    found = spectrum(mixers.cayley(torch.randn(7, 2, N, N)))
    found.plot(tmp_path / "spectrum.svg", "A & B")
    root = ElementTree.fromstring((tmp_path / "spectrum.svg").read_text(encoding="utf-8"))
    space = "{http://www.w3.org/2000/svg}"
    assert len(root.findall(f"{space}polyline")) == N + 2
    assert len(root.findall(f"{space}circle")) == 7 * (N + 2)
    words = {element.text for element in root.findall(f"{space}text")}
    assert {"A & B", "sigma 1", "sigma 4", "row gain", "column gain"} <= words


def test_products_beyond_float64() -> None:
    found = spectrum(torch.full((3, 2, 2), 1e200, dtype=torch.float64))
    assert found.row_gain[0] == 2e200 and found.row_gain[1].isinf()
    assert found.singular_values[0].isfinite().all() and found.singular_values[1].isnan().all()
    ElementTree.fromstring(found.svg())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: spectrum([]), "matrices have shapes"),
        (lambda: spectrum(torch.zeros(3, 4)), "matrices have shapes"),
        (lambda: spectrum([torch.eye(3), torch.eye(4)]), "matrices have shapes"),
        (lambda: spectrum(3), "source is 3, must be a model, a sequence of matrices or a tensor"),
        (lambda: spectrum(torch.tensor(1.0)), "source is tensor"),
        (lambda: spectrum([torch.eye(3), 1]), r"source\[1\] is a int, must be a real tensor"),
        (lambda: spectrum([torch.eye(3), torch.eye(3).to("meta")]), r"source\[1\] is torch.float32 on meta"),
        (lambda: spectrum(torch.zeros(2, 3, 3) * 1j), r"source\[0\] is torch.complex64"),
        (lambda: spectrum(torch.zeros(2, 0, 4, 4)), r"matrices have shape \(0, 4, 4\), must hold numbers"),
        (lambda: spectrum(torch.zeros(2, 0, 0)), r"matrices have shape \(0, 0\), must hold numbers"),
        (lambda: spectrum(torch.zeros(2, 4, 4), torch.zeros(1)), "inputs are given beside matrices"),
        (lambda: spectrum(nn.Linear(2, 2), torch.zeros(1, 2)), "in which no hyper-connection ran"),
    ],
)
def test_bad_input(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
