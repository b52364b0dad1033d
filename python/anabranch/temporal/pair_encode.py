"""`pair_encode`: a pair's features from the slots that two nodes keep of their neighbourhoods."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from anabranch.core.arguments import call_as, check_floating, check_same_device
from anabranch.core.library import ops

_ACTIVATIONS = ("none", "relu")


def pair_encode(
    keys: Tensor,
    z: Tensor,
    slot_codes: Tensor,
    left: Tensor,
    right: Tensor,
    weight: Tensor,
    code_table: Tensor,
    activation: Literal["none", "relu"] = "none",
) -> Tensor:
    """`out_p = sum over the keys k of pair p of act(weight z_k + code_table[code_k])`: NAT's joint feature, encoded.

    A pair is two rows of slots. Its keys are the distinct ones of both; `z_k` is the sum of z over all slots of key k,
    and `code_k` says in which hops of which side it sits (`pair_join` gives both). The join is never written.

    Args:
        keys: int64 `[R, S]`, negative where a slot is empty. At most 1024 slots.
        z: `[R, S, F]`; float32, bfloat16, float16 or float64. On a GPU a pair takes up to
            `S * (88 + 8 * F)` bytes (float64: `16 * F`) of a block's shared memory, and the device limits it.
        slot_codes: int32 `[S]`, the bit of each slot's hop: 1, 2 or 4.
        left, right: int64 `[P]`, rows of keys. A row may be in any number of pairs.
        weight: `[H, F]`, converted to the dtype of z.
        code_table: `[64, H]`, converted to the dtype of z; row `left's bits + 8 * right's bits`. Row 0 is not read.
        activation: "none" or "relu". A linear layer behind the sum changes places with it: apply it to the result.

    Returns:
        `[P, H]` in the dtype of z; sums are float32, or float64 for float64 z.

    Raises:
        ValueError: shapes, dtypes or devices that do not fit; on the CPU also rows out of range and codes outside
            [1, 7]. On a GPU a row out of range has no keys.

    Gradient:
        To z, weight and code_table, by joining again; bitwise the same for every number of threads. That of relu at 0
        is 0. Not differentiable twice.

    Cost:
        Reads 2*S*(8 + F * itemsize) bytes a pair and does keys*H*(2F + 2) FLOPs, with no activation 2H*(F + distinct
        codes); the backward about three times as many.

    Source:
        Luo and Li, Neighborhood-aware Scalable Temporal Network Representation Learning, LoG 2022, arXiv 2209.01084.
    """
    op = "pair_encode"
    check_floating(op, z=z, weight=weight, code_table=code_table)
    check_same_device(
        op, "keys", keys, z=z, slot_codes=slot_codes, left=left, right=right, weight=weight, code_table=code_table
    )
    if activation not in _ACTIVATIONS:
        raise ValueError(f"{op}: activation is {activation!r}, must be one of {_ACTIVATIONS}; pass one of these")
    out: Tensor = call_as(
        op,
        ops.pair_encode,
        keys,
        z,
        slot_codes,
        left,
        right,
        weight.to(z.dtype),
        code_table.to(z.dtype),
        _ACTIVATIONS.index(activation),
    )
    return out


@torch.library.register_fake("anabranch::pair_encode")
def _(
    keys: Tensor,
    z: Tensor,
    slot_codes: Tensor,
    left: Tensor,
    right: Tensor,
    weight: Tensor,
    code_table: Tensor,
    activation: int,
) -> Tensor:
    return z.new_empty(left.shape[0], weight.shape[0])


@torch.library.register_fake("anabranch::pair_encode_backward")
def _(
    dout: Tensor,
    keys: Tensor,
    z: Tensor,
    slot_codes: Tensor,
    left: Tensor,
    right: Tensor,
    weight: Tensor,
    code_table: Tensor,
    activation: int,
    wanted: int,
) -> tuple[Tensor, ...]:
    learned = (z, weight, code_table)
    return tuple(z.new_empty(one.shape if wanted >> bit & 1 else (0,)) for bit, one in enumerate(learned))


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.activation = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
    needs = [ctx.needs_input_grad[i] for i in (1, 5, 6)]
    wanted = sum(need << bit for bit, need in enumerate(needs))
    given = ops.pair_encode_backward(dout, *ctx.saved_tensors, ctx.activation, wanted)
    dz, dweight, dcode_table = (one if need else None for one, need in zip(given, needs, strict=True))
    return None, dz, None, None, None, dweight, dcode_table, None


def _no_double_backward(ctx: Any, *grads: Tensor) -> None:
    raise NotImplementedError("pair_encode: it is differentiable once; use pair_join and compose torch's ops for more")


torch.library.register_autograd("anabranch::pair_encode", _backward, setup_context=_save)
torch.library.register_autograd("anabranch::pair_encode_backward", _no_double_backward)
