"""Valid calls of every op of the skip room: tests/test_every_op.py checks what torch asks of an op."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

ops = torch.ops.anabranch

ROWS, FEATURES, INNER, RANK = 6, 5, 4, 2


def samples(dtype: torch.dtype) -> Iterator[tuple[Any, tuple[Any, ...]]]:
    """Ops with arguments; the tensors that may get a gradient ask for one."""
    accumulate = torch.float64 if dtype == torch.float64 else torch.float32

    def values(*shape: int, of: torch.dtype = dtype) -> torch.Tensor:
        return torch.randn(*shape).to(of).requires_grad_()

    # What is saved for the backward has no defined value where no row ran, so here every place of it is used: as many
    # rows run as there is room for, at the full width; and rows go through the else-branch all or not at all.
    keep = torch.tensor([True, False, True, True, False, False])
    index = torch.tensor([2, 0, 2, 2, 0, 0])
    for choice, widths, capacity, with_else in (
        (keep, (0, INNER), 3, False),
        (index, (0, 1, INNER), 3, False),
        (keep | True, (0, INNER), -1, False),
        (keep & False, (0, INNER), 0, True),
    ):
        for gated, norm in ((True, 1), (False, 2)):
            parts = 2 if gated else 1
            arguments = (
                values(ROWS, FEATURES),
                choice,
                values(ROWS, of=accumulate),
                values(FEATURES),
                values(FEATURES) if norm == 2 else None,
                values(parts * INNER, FEATURES),
                values(parts * INNER) if with_else else None,
                values(FEATURES, INNER),
                values(FEATURES) if with_else else None,
                values(ROWS, FEATURES) if with_else else None,
                values(RANK, FEATURES) if with_else else None,
                values(FEATURES, RANK) if with_else else None,
                widths,
                capacity,
                norm,
                1e-5,
                1,
                gated,
                0.5,
                True,
                not with_else,
                0,
                False,
                with_else,
                2.0,
            )
            yield ops.gated_ffn, (*arguments, True)
            detached = tuple(a.detach() if isinstance(a, torch.Tensor) else a for a in arguments)
            yield ops.gated_ffn_inference, (*detached, True)
            saved = ops.gated_ffn(*detached, False)[2:]
            yield ops.gated_ffn_backward, (torch.randn(ROWS, FEATURES).to(dtype), *saved, *detached, 0b11111111)
            if with_else:
                yield ops.gated_ffn_backward, (torch.randn(ROWS, FEATURES).to(dtype), *saved, *detached, 0b11100000001)
            weights = (detached[5][None], detached[7][None])
            blocks = (ops.expert_pack(weights[0], parts, False, False, 96, ops.cpu_isa()),)
            blocks += (ops.expert_pack(weights[1], 1, False, False, 192, ops.cpu_isa()),)
            yield (
                ops.gated_ffn_packed,
                (
                    *detached[:5],
                    blocks[0],
                    None,
                    detached[6],
                    blocks[1],
                    None,
                    detached[8],
                    *detached[9:13],
                    INNER,
                    *detached[14:],
                    True,
                    ops.cpu_isa(),
                ),
            )

    for norm in (0, 2):
        weight = values(FEATURES) if norm else None
        arguments = (values(3, 2, FEATURES), values(3, RANK, FEATURES), values(3, FEATURES, RANK), weight, None)
        options = (norm, 1e-5, 2, 0.5, norm == 0)
        yield ops.lowrank_residual, (*arguments, *options)
        detached = tuple(a.detach() if isinstance(a, torch.Tensor) else a for a in arguments)
        yield ops.lowrank_residual_inference, (*detached, *options)
        _, saved = ops.lowrank_residual(*detached, *options)
        yield ops.lowrank_residual_backward, (torch.randn(3, 2, FEATURES).to(dtype), saved, *detached, *options, 0b1111)
