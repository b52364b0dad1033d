"""PercentileThreshold: the quantile it takes, the average it keeps, and what leaves it alone."""

from __future__ import annotations

import math

import pytest
import router_oracle as oracle
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from anabranch.experts import PercentileThreshold, route_percentile

INF = math.inf


@settings(deadline=None, derandomize=True, max_examples=60)
@given(st.lists(st.integers(-9, 9), min_size=1, max_size=30), st.integers(0, 100))
def test_the_first_batch_sets_it_to_the_order_statistic(values: list[int], percent: int) -> None:
    module = PercentileThreshold(percent / 100, 0.1)
    wanted = sorted(values)[percent * (len(values) - 1) // 100]
    assert module(torch.tensor([values], dtype=torch.float32)).item() == wanted
    assert module.running.item() == wanted


def test_training_returns_the_value_before_the_batch_and_averages() -> None:
    module = PercentileThreshold(0.5, 0.25)
    batches = [torch.full((3, 2), value) for value in (2.0, 6.0, 10.0)]
    assert [module(batch).item() for batch in batches] == [2.0, 2.0, 3.0]
    assert module.running.item() == 0.75 * 3 + 0.25 * 10


def test_momentum_one_follows_the_last_batch() -> None:
    module = PercentileThreshold(0.5, 1.0)
    for value in (2.0, 6.0):
        module(torch.full((3, 2), value))
    assert module.running.item() == 6.0


def test_eval_is_frozen_and_returns_a_copy() -> None:
    module = PercentileThreshold(0.5, 0.25)
    module(torch.full((3, 2), 2.0))
    module.eval()
    out = module(torch.full((3, 2), 50.0))
    assert out.item() == module.running.item() == 2.0
    out.fill_(7.0)
    assert module.running.item() == 2.0


def test_before_training_every_unmasked_expert_is_above() -> None:
    module = PercentileThreshold(0.5, 0.25).eval()
    logits = torch.tensor([[0.0, -INF, -50.0]])
    plan = route_percentile(logits, threshold=module(logits), score="sigmoid")
    assert list(oracle.by_token(plan)[0]) == [0, 2]


@pytest.mark.parametrize("rows, value", [(0, 0.0), (2, -INF), (2, INF)])
def test_empty_and_masked_batches_change_nothing(rows: int, value: float) -> None:
    batch = torch.full((rows, 3), value)
    fresh, module = PercentileThreshold(0.5, 0.25), PercentileThreshold(0.5, 0.25)
    module(torch.full((3, 2), 2.0))
    assert module(batch).item() == 2.0
    assert module.running.item() == 2.0
    fresh(batch)
    assert fresh.running.item() == -INF
    assert fresh(torch.full((3, 2), 4.0)).item() == 4.0


def test_state_dict_round_trip() -> None:
    module, other = PercentileThreshold(0.5, 0.25), PercentileThreshold(0.5, 0.25)
    module(torch.randn(8, 4))
    assert list(module.state_dict()) == ["running"]
    other.load_state_dict(module.state_dict())
    other.eval()
    assert torch.equal(other(torch.randn(8, 4)), module.running)


@pytest.mark.parametrize("dtype", oracle.DTYPES)
def test_dtypes_and_gradient(dtype: torch.dtype) -> None:
    module = PercentileThreshold(0.5, 0.25)
    out = module(torch.randn(8, 4).to(dtype).requires_grad_())
    assert out.shape == ()
    assert out.dtype == module.running.dtype == torch.float32
    assert not out.requires_grad
    assert not module.running.requires_grad


def test_about_the_wanted_share_of_pairs_lies_above_it() -> None:
    module = PercentileThreshold(0.7, 0.1)
    for _ in range(20):
        threshold = module(torch.randn(200, 8))
    plan = route_percentile(torch.randn(500, 8), threshold=threshold)
    counts = plan.item_counts()
    assert 0.25 < counts.sum().item() / 4000 < 0.35
    assert counts.min() >= 1
    assert counts.unique().numel() > 3


def test_repr_names_its_settings() -> None:
    assert repr(PercentileThreshold(0.5, 0.25)) == "PercentileThreshold(q=0.5, momentum=0.25)"


@pytest.mark.parametrize(
    "q, momentum", [(-0.1, 0.5), (1.1, 0.5), (math.nan, 0.5), (0.5, 0), (0.5, 1.1), (0.5, math.nan)]
)
def test_bad_arguments(q: float, momentum: float) -> None:
    with pytest.raises(ValueError, match=r"^PercentileThreshold: (q|momentum) is .*, must "):
        PercentileThreshold(q, momentum)


@pytest.mark.parametrize("shape, dtype", [((3,), torch.float32), ((2, 0), torch.float32), ((2, 2), torch.int64)])
def test_bad_logits(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    with pytest.raises(ValueError, match=r"^PercentileThreshold: logits .*, must "):
        PercentileThreshold(0.5, 0.5)(torch.zeros(shape, dtype=dtype))


def test_logits_on_another_device() -> None:
    with pytest.raises(ValueError, match=r"^PercentileThreshold: logits is on meta, must be on .*; move the module"):
        PercentileThreshold(0.5, 0.5)(torch.zeros(2, 2, device="meta"))


@pytest.mark.cpu
def test_nan_is_refused_and_changes_nothing() -> None:
    module = PercentileThreshold(0.5, 0.5)
    with pytest.raises(ValueError, match=r"^PercentileThreshold: logits holds NaN at row 1, must "):
        module(torch.tensor([[0.0], [math.nan]]))
    assert module.running.item() == -INF


def test_a_constant_batch_keeps_it_exactly() -> None:
    module = PercentileThreshold(0.5, 0.1)
    for _ in range(20):
        module(torch.full((2, 2), 0.3))
    assert torch.equal(module.running, torch.tensor(0.3))
