"""`pair_join`: the distinct keys of two rows of slots, where they sit, and the sum of what is kept for them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from anabranch.core.arguments import call_as, check_floating, check_same_device
from anabranch.core.library import ops


def pair_join(
    keys: Tensor, z: Tensor, slot_codes: Tensor, left: Tensor, right: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Joins pairs of rows of slots by key, on chip.

    Args:
        keys: int64 `[R, S]`, negative where a slot is empty. At most 1024 slots; on a GPU a pair takes up to 72 bytes a
            slot of a block's shared memory. A key sits in a hop at most once.
        z: `[R, S, F]`; float32, bfloat16, float16 or float64.
        slot_codes: int32 `[S]`, the bit of each slot's hop: 1, 2 or 4.
        left, right: int64 `[P]`, rows of keys. A row may be in any number of pairs.

    Returns:
        joined_keys int64 `[P, 2S]`: a pair's distinct keys in the order of their first slots, left's, then right's.
        codes int32 `[P, 2S]`: the bits of the key's slots on the left + 8 * those on the right, in [1, 63].
        z `[P, 2S, F]`: the sum of z over the key's slots, left's in order, then right's, in float32 (or float64).
        counts int32 `[P]`: how many keys; behind them the others have -1, 0 and 0.

    Raises:
        ValueError: shapes, dtypes or devices that do not fit; on the CPU also rows out of range and codes outside
            [1, 7]. On a GPU a row out of range has no keys.

    Gradient:
        To z. A row's gradient is summed over its pairs in order: bitwise the same for every number of threads. Can be
        differentiated again in what it got from above.

    Cost:
        Reads 2*S*(8 + F * itemsize) bytes a pair and writes as many and 8*S + 4. The backward joins again.

    Source:
        Luo and Li, Neighborhood-aware Scalable Temporal Network Representation Learning, LoG 2022, arXiv 2209.01084.
    """
    op = "pair_join"
    check_floating(op, z=z)
    check_same_device(op, "keys", keys, z=z, slot_codes=slot_codes, left=left, right=right)
    joined_z, joined_keys, codes, counts = call_as(op, ops.pair_join, keys, z, slot_codes, left, right)
    return joined_keys, codes, joined_z, counts


@torch.library.register_fake("anabranch::pair_join")
def _(keys: Tensor, z: Tensor, slot_codes: Tensor, left: Tensor, right: Tensor) -> tuple[Tensor, ...]:
    pairs, width = left.shape[0], 2 * keys.shape[1]
    return (
        z.new_empty(pairs, width, z.shape[2]),
        keys.new_empty(pairs, width),
        keys.new_empty(pairs, width, dtype=torch.int32),
        keys.new_empty(pairs, dtype=torch.int32),
    )


@torch.library.register_fake("anabranch::pair_join_backward")
def _(dz_joined: Tensor, keys: Tensor, slot_codes: Tensor, left: Tensor, right: Tensor) -> Tensor:
    return dz_joined.new_empty(*keys.shape, dz_joined.shape[2])


def _save(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
    keys, _, slot_codes, left, right = inputs
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(keys, slot_codes, left, right)


def _backward(ctx: Any, dz_joined: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    return None, ops.pair_join_backward(dz_joined, *ctx.saved_tensors), None, None, None


def _save_backward(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[1:])


def _double_backward(ctx: Any, ddz: Tensor) -> tuple[Tensor | None, ...]:
    keys, slot_codes, left, right = ctx.saved_tensors
    return ops.pair_join(keys, ddz, slot_codes, left, right)[0], None, None, None, None


torch.library.register_autograd("anabranch::pair_join", _backward, setup_context=_save)
torch.library.register_autograd("anabranch::pair_join_backward", _double_backward, setup_context=_save_backward)
