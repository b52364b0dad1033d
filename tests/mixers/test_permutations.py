"""`PermutationMixture`: what it takes as permutations, and the table of them that is kept between calls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from anabranch.mixers import PermutationMixture, permutation_mixture


def matrices(rows: Any, logits: Tensor) -> Tensor:
    made: Tensor = permutation_mixture(logits, permutations=rows)
    return made


def test_a_table_made_in_inference_mode_serves_training(device: torch.device) -> None:
    rows = ((0, 2, 1), (2, 1, 0))  # of this test alone: nobody has made its table
    with torch.inference_mode():
        matrices(rows, torch.randn(5, 2))
    logits = torch.randn(5, 2, requires_grad=True)
    matrices(rows, logits)[:, 0, 0].sum().backward()
    share = logits.detach().softmax(-1)[:, 0]
    expected = torch.stack([share * (1 - share), -share * (1 - share)], -1)
    torch.testing.assert_close(logits.grad, expected)


@pytest.mark.cpu
def test_a_table_of_fake_tensors_stays_in_their_mode() -> None:
    rows, mixer = ((1, 0, 2), (0, 1, 2)), PermutationMixture(((1, 0, 2), (0, 1, 2)))
    cpu = torch.device("cpu")
    with FakeTensorMode():
        assert isinstance(mixer.arguments(3, cpu)[0], FakeTensor)
        assert matrices(rows, torch.randn(5, 2)).shape == (5, 3, 3)
    table = mixer.arguments(3, cpu)[0]
    assert type(table) is Tensor and table is mixer.arguments(3, cpu)[0]
    with FakeTensorMode():  # nor does a real one enter it
        assert isinstance(mixer.arguments(3, cpu)[0], FakeTensor)
    torch.testing.assert_close(matrices(rows, torch.tensor([0.0, -1e4])), torch.eye(3)[[1, 0, 2]])


@pytest.mark.parametrize("convert", [list, tuple, torch.tensor, lambda rows: (iter(row) for row in rows)])
def test_rows_of_any_kind(convert: Callable[[Any], Any]) -> None:
    rows = [[1, 0], [0, 1]]
    mixer = PermutationMixture(convert(rows))
    assert mixer.permutations == ((1, 0), (0, 1)) and hash(mixer) == hash(PermutationMixture(((1, 0), (0, 1))))
    logits = torch.tensor([0.0, -1e4])
    assert torch.equal(matrices(convert(rows), logits), torch.tensor([[0.0, 1.0], [1.0, 0.0]]))


@pytest.mark.parametrize("given", [5, (0, 1), "01", ((0.0, 1.0),), (("0", "1"),), torch.tensor([[0.0, 1.0]])])
def test_rows_that_are_none(given: Any) -> None:
    with pytest.raises(ValueError, match=r"^permutation_mixture: permutations is .*, must be rows of integers"):
        PermutationMixture(given)


def test_another_number_of_streams() -> None:
    rows = ((0, 1), (1, 0))
    assert permutation_mixture(torch.randn(2), n=2, permutations=rows).shape == (2, 2)
    with pytest.raises(ValueError, match=r"^permutation_mixture: n is 3, must be 2 like the columns of permutations"):
        permutation_mixture(torch.randn(2), n=3, permutations=rows)
