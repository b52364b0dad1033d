"""Losses of skip policies: plain Python says the same, gradients, rows without label, bad input."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck

from anabranch.skip import UNLABELLED, budget_loss, class_balanced_weights, focal_loss


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.lists(st.floats(-8, 8), min_size=3, max_size=3), st.sampled_from([0, 1, 2, UNLABELLED])),
        max_size=6,
    ),
    st.sampled_from([0.0, 0.5, 1.0, 2.0]),
    st.booleans(),
)
def test_focal_is_the_formula(rows: list[tuple[list[float], int]], gamma: float, weighted: bool) -> None:
    weights = [0.5, 2.0, 0.25] if weighted else [1.0] * 3
    total, labelled = 0.0, 0
    for logits, label in rows:
        if label != UNLABELLED:
            p = math.exp(logits[label]) / sum(math.exp(value) for value in logits)
            total -= weights[label] * max(1 - p, 0.0) ** gamma * math.log(p)
            labelled += 1
    logits = torch.tensor([row[0] for row in rows], dtype=torch.float64).reshape(-1, 3)
    labels = torch.tensor([row[1] for row in rows], dtype=torch.int64)
    got = focal_loss(logits, labels, class_weights=torch.tensor(weights) if weighted else None, gamma=gamma)
    assert got.item() == pytest.approx(total / max(labelled, 1), rel=1e-9, abs=1e-12)


def test_gamma_zero_is_cross_entropy_and_so_is_its_gradient() -> None:
    logits, labels = torch.randn(5, 4, 3, requires_grad=True), torch.randint(3, (5, 4))
    focal_loss(logits, labels, gamma=0).backward()
    mine, logits.grad = logits.grad, None
    F.cross_entropy(logits.flatten(0, 1), labels.flatten()).backward()
    torch.testing.assert_close(mine, logits.grad)


def test_focal_gradient() -> None:
    logits = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([0, 2, UNLABELLED, 1])
    assert gradcheck(lambda x: focal_loss(x, labels, class_weights=torch.tensor([1.0, 0.5, 3.0])), logits)
    focal_loss(logits, labels).backward()
    assert logits.grad is not None and not logits.grad[2].any() and bool(logits.grad[[0, 1, 3]].any(1).all())


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
def test_a_sure_row_has_no_loss_and_a_finite_gradient(gamma: float) -> None:
    logits = torch.tensor([[200.0, 0, 0]], requires_grad=True)
    loss = focal_loss(logits, torch.tensor([0]), gamma=gamma)
    loss.backward()
    assert loss.item() == 0 and logits.grad is not None and not logits.grad.any()


def test_weights_of_dr_llms_counts() -> None:
    counts = [4399, 120956, 1457]
    raw = [(1 - 0.999) / (1 - 0.999**count) for count in counts]
    want = [value * 3 / sum(raw) for value in raw]
    assert class_balanced_weights(counts).tolist() == pytest.approx(want)
    assert class_balanced_weights([5, 9], beta=0).tolist() == pytest.approx([1, 1])
    assert class_balanced_weights([0, 4, 4]).tolist() == pytest.approx([0, 1, 1])
    ratio = class_balanced_weights([10, 1000], beta=1 - 1e-9)
    assert float(ratio[0] / ratio[1]) == pytest.approx(100, rel=1e-3)


def test_budget() -> None:
    shares = torch.tensor([[1.0, 0.0], [1.0, 1.0]], dtype=torch.float64, requires_grad=True)
    assert budget_loss(shares, 0.5).item() == 0.0625
    assert gradcheck(lambda x: budget_loss(x, 0.5), shares)
    budget_loss(shares, 0.5).backward()
    torch.testing.assert_close(shares.grad, torch.full_like(shares, 2 * 0.25 / 4))
    assert budget_loss(torch.zeros(0), 0.5).item() == 0


def test_half_precision_is_summed_in_float32() -> None:
    assert budget_loss(torch.ones(3, dtype=torch.bfloat16), 0.25).dtype == torch.float32
    assert focal_loss(torch.zeros(2, 3).bfloat16(), torch.tensor([0, 1])).dtype == torch.float32


def test_bad_input() -> None:
    logits, labels = torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64)
    with pytest.raises(ValueError, match="labels has shape"):
        focal_loss(logits, labels[:1])
    with pytest.raises(ValueError, match=r"labels is torch\.int32"):
        focal_loss(logits, labels.int())
    with pytest.raises(ValueError, match="class_weights has shape"):
        focal_loss(logits, labels, class_weights=torch.ones(2))
    with pytest.raises(ValueError, match="gamma is -1"):
        focal_loss(logits, labels, gamma=-1)
    with pytest.raises(ValueError, match="target is 2"):
        budget_loss(logits, 2)
    with pytest.raises(ValueError, match="beta is 1"):
        class_balanced_weights([1], beta=1)
    for counts in ([], [0, 0], [-1, 2]):
        with pytest.raises(ValueError, match="counts is"):
            class_balanced_weights(counts)
