"""Valid calls of every op of the mixers room: tests/test_every_op.py checks what torch asks of an op."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from anabranch.mixers import (
    Cayley,
    Grassmann,
    Identity,
    LinearGates,
    Mixer,
    PermutationMixture,
    Projection,
    SigmoidGates,
    Sinkhorn,
    SoftmaxGates,
    TruncatedCayley,
    Unconstrained,
    cyclic_permutations,
)

ops = torch.ops.anabranch

TOKENS, CHANNELS = 3, 5
# What is differentiable as it is computed: gradcheck perturbs the logits. (Streams, mixer.)
MIXERS: list[tuple[int, Mixer]] = [
    (4, Sinkhorn(3)),
    (2, PermutationMixture()),
    (4, Unconstrained(transpose=True)),
    (3, Sinkhorn(3, order="rows_first", eps=1e-3)),
    (4, Sinkhorn(tol=1e-12)),
    (6, PermutationMixture(cyclic_permutations(6))),
    (4, Cayley()),
    (5, Cayley(0.3)),
    (3, TruncatedCayley()),
    (4, Grassmann()),
]
# (Streams, mixer, gates, Projection's other fields, whether there is a weight.)
STEPS: list[tuple[int, Mixer, Any, dict[str, Any], bool]] = [
    (2, PermutationMixture(), SigmoidGates(), {}, True),
    (2, Identity(), SigmoidGates(), {}, False),
    (4, Sinkhorn(2), SigmoidGates(0.01, 2.0, 0.02), {}, True),
    (3, Cayley(), SoftmaxGates(0.7), {"layer_norm": True}, True),
    (2, Unconstrained(), LinearGates(), {"tanh": True, "per_stream": True}, True),
]


def samples(dtype: torch.dtype) -> Iterator[tuple[Any, tuple[Any, ...]]]:
    """Ops with arguments; the tensors that may get a gradient ask for one."""
    sums = torch.float64 if dtype == torch.float64 else torch.float32
    device = torch.get_default_device()

    # gradcheck sees all of them; for opcheck, which looks at shapes and is slow, two are enough.
    count = None if dtype == torch.float64 else 2

    def values(*shape: int, of: torch.dtype = dtype) -> torch.Tensor:
        return torch.randn(*shape).to(of).requires_grad_()

    def upstream(*shape: int, of: torch.dtype = dtype) -> torch.Tensor:
        return torch.randn(*shape).to(of)

    for n, mixer in MIXERS[:count]:
        logits, options = values(2, mixer.num_logits(n), of=sums), mixer.arguments(n, device)
        yield ops.mix_matrix, (logits, *options)
        matrices = ops.mix_matrix(logits.detach(), *options)
        yield ops.mix_matrix_backward, (torch.randn_like(matrices), logits.detach(), matrices, *options)

    for n, mixer, gates, fields, weighted in STEPS[:count]:
        logits, size = 2 * gates.num_logits(n) + mixer.num_logits(n), n * (n + 2)
        parts = n if fields.get("per_stream") else 1
        weight = values(logits // parts, n * CHANNELS // parts, of=sums) if weighted else None
        tensors = (weight, values(logits, of=sums), values(logits, of=sums))
        x, y = values(TOKENS, n, CHANNELS), values(TOKENS, CHANNELS)
        options = Projection(*tensors, mixer, gates, **fields).options(x)
        before = values(TOKENS, size, of=sums)
        plain = tuple(None if tensor is None else tensor.detach() for tensor in tensors)
        du, dcoefficients = upstream(TOKENS, CHANNELS), upstream(TOKENS, size, of=sums)
        dnext, dx = upstream(TOKENS, n, CHANNELS), upstream(TOKENS, n, CHANNELS)
        for lag in (None, before):
            arguments = (x, lag, *tensors, *options)
            detached = (x.detach(), None if lag is None else lag.detach(), *plain, *options)
            yield ops.stream_pre, arguments
            _, *saved = ops.stream_pre(*detached)
            given = (du, dcoefficients, dnext, None) if lag is None else (None, dcoefficients, None, dx)
            yield ops.stream_pre_backward, (*given, *detached[:2], *saved, *detached[2:], 0b11111)
        yield ops.stream_pre_backward, (None, None, dnext, None, *detached[:2], *saved, *detached[2:], 0b00001)

        arguments = (x, y, before)
        yield ops.stream_post, arguments
        detached = tuple(tensor.detach() for tensor in arguments)
        for wanted in (0b111, 0b011):
            yield ops.stream_post_backward, (dnext, *detached, wanted)
        for lagged in (False, True):
            yield ops.stream_post_pre, (*arguments, *tensors, *options, lagged)
            _, _, *saved = ops.stream_post_pre(*detached, *plain, *options, lagged)
            given = (du, dcoefficients, dnext, dx)
            yield ops.stream_post_pre_backward, (*given, *detached, *saved, *plain, *options, lagged)

    for shape in ((3, 4, 5), (2, 1, 3)):
        x, logits = values(*shape), values(*shape)
        yield ops.gated_mean, (x, logits)
        yield ops.gated_mean_backward, (upstream(shape[0], shape[2]), x.detach(), logits.detach(), 0b11)
    yield ops.gated_mean_backward, (upstream(shape[0], shape[2]), x.detach(), logits.detach(), 0b01)
