"""grouped_mm against a loop over groups, and what torch's own refuses or gets wrong."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from anabranch.experts import grouped_mm

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def loop(x: torch.Tensor, w: torch.Tensor, offsets: list[int]) -> torch.Tensor:
    out = torch.zeros(x.shape[0], w.shape[2], dtype=torch.float64)
    for g in range(w.shape[0]):
        rows = slice(offsets[g], offsets[g + 1])
        out[rows] = x[rows].double() @ w[g].double()
    return out


def int32(offsets: list[int]) -> torch.Tensor:
    return torch.tensor(offsets, dtype=torch.int32)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("k, n", [(1, 1), (37, 5), (130, 201), (64, 400)])
@pytest.mark.parametrize("layout", ["kn", "nk"])
def test_against_loop(cpu_isa: str, dtype: torch.dtype, k: int, n: int, layout: str) -> None:
    offsets = [0, 1, 1, 9, 9, 300, 303]
    x = torch.randn(310, k).to(dtype)
    w = torch.randn(6, k, n) if layout == "kn" else torch.randn(6, n, k).mT
    w = w.to(dtype)
    out = grouped_mm(x, w, int32(offsets))
    wanted = loop(x, w, offsets)
    # The same products by torch, group by group, in the same dtype: ours may err at most twice as much.
    torch_error = max(
        (
            ((x[a:b] @ w[g]).double() - wanted[a:b]).abs().max().item()
            for g, (a, b) in enumerate(itertools.pairwise(offsets))
            if b > a
        ),
        default=0.0,
    )
    slack = 4 * torch.finfo(dtype).eps * k**0.5 * max(1.0, wanted.abs().max().item())
    assert (out.double() - wanted).abs().max().item() <= 2 * torch_error + slack
    assert (out[303:] == 0).all()


def test_gradients_of_everything_even_empty_groups() -> None:
    offsets = int32([0, 2, 2, 5])
    x = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    w = torch.randn(3, 3, 4, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    assert gradcheck(lambda x, w, b: grouped_mm(x, w, offsets, bias=b), (x, w, bias))
    assert gradgradcheck(lambda x, w, b: grouped_mm(x, w, offsets, bias=b), (x, w, bias))
    grouped_mm(x, w, offsets).sum().backward()  # an expanded gradient
    assert (w.grad[1] == 0).all()
    assert (x.grad[5] == 0).all()


@pytest.mark.parametrize("rows", [0, 3])
def test_no_rows_and_no_groups(rows: int) -> None:
    x = torch.randn(rows, 4, requires_grad=True)
    w = torch.randn(2, 4, 3, requires_grad=True)
    out = grouped_mm(x, w, int32([0, 0, 0]))
    out.sum().backward()
    assert out.shape == (rows, 3)
    assert (out == 0).all()
    assert (w.grad == 0).all()
    assert grouped_mm(x, torch.randn(0, 4, 3), int32([0])).shape == (rows, 3)


@pytest.mark.parametrize("dtype", DTYPES)
def test_compiles_in_every_dtype(dtype: torch.dtype) -> None:
    x, w, offsets = torch.randn(5, 7).to(dtype), torch.randn(2, 7, 3).to(dtype), int32([0, 4, 5])
    compiled = torch.compile(grouped_mm, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x, w, offsets), grouped_mm(x, w, offsets))


def test_strides() -> None:
    base = torch.randn(20, 14)
    x = base[::2, ::2]
    expanded = torch.randn(1, 7).expand(10, 7)
    w = torch.randn(5, 3, 2, 7).permute(2, 3, 0, 1)[..., 1]
    offsets = [0, 4, 10]
    for rows in (x, expanded):
        torch.testing.assert_close(grouped_mm(rows, w, int32(offsets)), loop(rows, w, offsets).float())


def test_autocast_mixed_dtypes() -> None:
    x, w, offsets = torch.randn(5, 8).bfloat16(), torch.randn(2, 8, 3), int32([0, 4, 5])
    with torch.autocast(x.device.type, dtype=torch.bfloat16):
        assert grouped_mm(x, w, offsets).dtype == torch.bfloat16


@pytest.mark.cpu
def test_same_for_every_thread_count() -> None:
    x, w, offsets = torch.randn(900, 65), torch.randn(3, 65, 400), int32([0, 100, 600, 900])
    before, results = torch.get_num_threads(), []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(grouped_mm(x, w, offsets))
    torch.set_num_threads(before)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@pytest.mark.cpu
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"offsets": int32([0, 3, 2])}, r"offsets\[2\] is 2, must be at least offsets\[1\] = 3"),
        ({"offsets": int32([1, 3, 4])}, r"offsets\[0\] is 1, must be 0"),
        ({"offsets": int32([0, 3, 9])}, r"offsets\[-1\] is 9, must be at most"),
        ({"offsets": int32([3, 4])}, r"prepend one to cumulative ends"),
        ({"offsets": torch.tensor([0, 3, 4])}, r"offsets is int64, must be int32"),
        ({"w": torch.randn(2, 5, 3)}, r"w has shape \(2, 5, 3\), must be"),
        ({"w": torch.randn(2, 4, 3).double()}, r"w is float64, must be float32"),
        ({"x": torch.randn(5)}, r"x has shape \(5,\)"),
        ({"x": torch.zeros(5, 4, dtype=torch.int32)}, r"x is int32"),
        ({"bias": torch.randn(3)}, r"bias has shape"),
    ],
)
def test_bad_input(change: dict[str, torch.Tensor], message: str) -> None:
    arguments = {"x": torch.randn(5, 4), "w": torch.randn(2, 4, 3), "offsets": int32([0, 2, 4])} | change
    with pytest.raises(ValueError, match=message):
        grouped_mm(**arguments)
