"""What `bench` can measure: for each room its modes, shapes and numbers of tokens, and how its table reads."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import torch

from anabranch.cli import bench_tables as tables
from anabranch.cli.bench_experts import Experts, Shape
from anabranch.cli.bench_rows import Row, Workload
from anabranch.cli.bench_skip import Skip, SkipShape

_Tokens = dict[str, list[int]]


class Loaded(Protocol):
    """A room's weights in one dtype on one device."""

    def workloads(self, mode: str, tokens: int) -> Iterator[Workload]:
        """Those of one mode."""


@dataclasses.dataclass(frozen=True)
class Room:
    """One room of the library.

    Attributes:
        modes: in order; one of them is "training".
        shape, quick_shape: dataclasses.
        load: makes the weights, (shape, dtype, device).
        header, format_row: of the table.
        tokens: per mode, for "cpu", "cuda" and "quick".
        both_dtypes: modes that measure float32 too on a CPU, where nothing else is asked for.
        peers: contenders in the picture beside ours.
    """

    name: str
    modes: tuple[str, ...]
    shape: Any
    quick_shape: Any
    load: Callable[[Any, torch.dtype, torch.device], Loaded]
    header: Callable[[], str]
    format_row: Callable[[Row], str]
    tokens: dict[str, _Tokens]
    both_dtypes: Sequence[str]
    peers: Sequence[str]


_SKIP_TOKENS: _Tokens = {
    "forward": [1, 4, 16, 32, 128, 1024],
    "skipped": [1, 16],
    "width": [1, 16, 128],
    "lowrank": [1, 4, 16],
    "training": [128, 512],
}

ROOMS = {
    "experts": Room(
        "experts",
        ("forward", "variable_k", "training"),
        Shape(),
        Shape(8, 128, 96, 2),
        Experts,
        tables.experts_header,
        tables.experts_row,
        {
            "cpu": {"forward": [1, 16, 128, 512, 2048], "variable_k": [2048], "training": [128, 512, 2048]},
            "cuda": {
                "forward": [1, 16, 128, 512, 2048, 8192, 32768],
                "variable_k": [2048, 32768],
                "training": [128, 512, 2048, 32768],
            },
            "quick": {"forward": [1, 16], "variable_k": [64], "training": [16]},
        },
        ("forward",),
        ("int8", "unpacked", "torch", "transformers"),
    ),
    "skip": Room(
        "skip",
        ("forward", "skipped", "width", "lowrank", "training"),
        SkipShape(),
        SkipShape(128, 320, 4, 3),
        Skip,
        tables.skip_header,
        tables.skip_row,
        {
            "cpu": _SKIP_TOKENS,
            "cuda": _SKIP_TOKENS | {"forward": [1, 4, 16, 32, 128, 1024, 8192]},
            "quick": {"forward": [1, 16], "skipped": [1], "width": [16], "lowrank": [4], "training": [16]},
        },
        ("forward", "width", "lowrank", "training"),
        ("unpacked", "eager", "naive", "onednn", "grouped"),
    ),
}
