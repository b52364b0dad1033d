"""What an `NCache` may be made with, and what a saved one may say of itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from anabranch.core.arguments import dtype_name


def check_settings(
    num_nodes: int,
    slots: Sequence[int],
    state_size: int,
    replace_probability: float,
    seed: int,
    dtype: torch.dtype,
) -> None:
    """ValueError for arguments that are none of a cache."""
    if num_nodes < 0:
        raise ValueError(f"NCache: num_nodes is {num_nodes}, must be at least 0; pass the number of nodes")
    if len(slots) not in (1, 2) or min(slots) < 1:
        raise ValueError(f"NCache: slots is {tuple(slots)}, must be 1 or 2 positive numbers; pass those of each hop")
    if state_size < 1:
        raise ValueError(f"NCache: state_size is {state_size}, must be positive; pass the numbers of a state")
    if not 0 <= replace_probability <= 1:
        raise ValueError(
            f"NCache: replace_probability is {replace_probability}, must be in [0, 1]; it is a probability"
        )
    if not -(2**63) <= seed < 2**63:
        raise ValueError(f"NCache: seed is {seed}, must be an int64; take another")
    if dtype not in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        raise ValueError(
            f"NCache: dtype is {dtype_name(dtype)}, must be float32, bfloat16, float16 or float64; pass one of them"
        )


def problem_of_settings(extra: Any) -> str:
    """Why this is not the extra state of a cache; nothing where it is."""
    names = ("slots", "replace_probability", "seed")
    if not isinstance(extra, dict) or set(extra) != set(names):
        return f"is no dict of {', '.join(names)}, must be; load what state_dict() gave"
    slots, probability, seed = (extra[name] for name in names)
    fits = isinstance(slots, list | tuple) and all(type(length) is int for length in slots)
    fits = fits and type(probability) in (float, int) and 0 <= probability <= 1
    if fits and type(seed) is int and -(2**63) <= seed < 2**63:
        return ""
    return f"is {extra}, must hold slots, a probability and an int64; load what state_dict() gave"
