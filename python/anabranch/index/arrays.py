"""Arrays that go into an index and come out of it: what is checked, and the 64-bit words behind them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

Array = Tensor | np.ndarray

#: The kinds of keys and values, and the dtype that carries each; a pair is a row of two.
KEYS = {
    "int64": np.dtype(np.int64),
    "uint64": np.dtype(np.uint64),
    "float64": np.dtype(np.float64),
    "pair": np.dtype(np.int64),
}
VALUES = {"int64": np.dtype(np.int64), "float64": np.dtype(np.float64)}


class IndexFullError(MemoryError):
    """A batch came to the end of `max_bytes`. The index is valid and holds what was applied.

    Attributes:
        applied: bool `[n]` like the batch's keys: False where the key could not be stored. A key that was there
            already counts as applied.
    """

    applied: Array

    def __init__(self, message: str, applied: Array) -> None:
        super().__init__(message)
        self.applied = applied


def is_array(data: object) -> bool:
    return isinstance(data, (Tensor, np.ndarray))


def words_in(op: str, name: str, array: Any, dtype: np.dtype, columns: int = 1, like: int | None = None) -> np.ndarray:
    """The array's 64-bit words, `[n]` or `[n, columns]`, contiguous. Shares memory where it can.

    Raises:
        ValueError: not a torch or numpy array, not on the CPU, another dtype, another shape, or not as many rows as
            the keys (`like`).
    """
    if isinstance(array, Tensor):
        if array.device.type != "cpu":
            raise ValueError(f"{op}: {name} is on {array.device}, must be on cpu; move it with .cpu()")
        if array.layout != torch.strided:
            raise ValueError(f"{op}: {name} is {array.layout}, must be a dense tensor; convert it with .to_dense()")
        wanted = str(dtype)
        if str(array.dtype) != f"torch.{wanted}":
            found = str(array.dtype).removeprefix("torch.")
            raise ValueError(f"{op}: {name} is {found}, must be {wanted}; convert it with .to(torch.{wanted})")
        array = array.detach().resolve_neg().numpy()
    elif not isinstance(array, np.ndarray):
        raise ValueError(
            f"{op}: {name} is {type(array).__name__}, must be a torch tensor or numpy array; convert it with "
            "torch.tensor()"
        )
    elif array.dtype != dtype:
        raise ValueError(f"{op}: {name} is {array.dtype}, must be {dtype}; convert it with .astype('{dtype}')")
    if array.ndim != (1 if columns == 1 else 2) or (columns > 1 and array.shape[1] != columns):
        wanted_shape = "one dimension" if columns == 1 else f"shape (n, {columns})"
        raise ValueError(f"{op}: {name} has shape {array.shape}, must have {wanted_shape}; reshape it")
    if like is not None and len(array) != like:
        raise ValueError(f"{op}: {name} has {len(array)} entries, must have {like} like keys; give one for each")
    return np.ascontiguousarray(array).view(np.int64)


def words_out(n: int, columns: int = 1) -> np.ndarray:
    """Words for results, `[n]` or `[n, columns]`."""
    return np.zeros(n if columns == 1 else (n, columns), np.int64)


def as_given(array: np.ndarray, given: object) -> Any:
    """A result as the same kind of array as the argument it belongs to: torch, or numpy."""
    return torch.from_numpy(array) if isinstance(given, Tensor) else array


def threads() -> int:
    """As many as torch's own operations use: `torch.set_num_threads`."""
    return torch.get_num_threads()
