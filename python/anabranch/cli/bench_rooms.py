"""What `bench` can measure: for each room its modes, shapes and numbers of tokens, and how its table reads."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import torch

from anabranch.cli import bench_tables as tables
from anabranch.cli.bench_experts import Experts, Shape
from anabranch.cli.bench_index import Index, IndexShape
from anabranch.cli.bench_index_bars import Bar, index_bars
from anabranch.cli.bench_index_rows import measure_rates
from anabranch.cli.bench_mixers import Mixers, MixersShape
from anabranch.cli.bench_rows import Row, Workload, measure
from anabranch.cli.bench_skip import Skip, SkipShape
from anabranch.cli.bench_temporal import Temporal, TemporalShape, measure_warm
from anabranch.cli.bench_temporal_bars import temporal_bars

_Tokens = dict[str, list[int]]


class Loaded(Protocol):
    """A room's weights in one dtype on one device."""

    def workloads(self, mode: str, tokens: int) -> Iterator[Workload]:
        """Those of one mode."""


@dataclasses.dataclass(frozen=True)
class Room:
    """One room of the library.

    Attributes:
        modes: in order.
        shape, quick_shape: dataclasses.
        load: makes the weights, (shape, dtype, device).
        header, format_row: of the table.
        tokens: per mode, for "cpu", "cuda" and "quick".
        both_dtypes: modes that measure float32 too on a CPU, where nothing else is asked for.
        peers: contenders in the picture beside ours.
        with_gradients: modes that need them. On a CPU freed memory is kept while they are measured.
        memory_kept: keep it in all modes: outputs as large as the inputs are most of what these do.
        float_modes: modes that are float32 whatever is asked for.
        float_peak: whether workloads have arithmetic in float32 beside that of their dtype.
        dtype: the one dtype of all modes, whatever is asked for; None where there is a choice.
        lines: whether workloads fetch cache lines from random places.
        one_thread: modes that are measured with the first number of threads alone.
        measure: makes a row of a workload, as `bench_rows.measure`.
        bars: what the rows as a whole are held to.
        repeats, quick_repeats: where nothing else is asked for.
        unit: of what `tokens` counts.
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
    with_gradients: Sequence[str] = ("training",)
    memory_kept: bool = False
    float_modes: Sequence[str] = ()
    float_peak: bool = False
    dtype: str | None = None
    lines: bool = False
    one_thread: Sequence[str] = ()
    measure: Callable[..., Row] = measure
    bars: Callable[[Sequence[Row]], list[Bar]] = lambda rows: []
    repeats: int = 5
    quick_repeats: int = 3
    unit: str = "tokens"


_SKIP_TOKENS: _Tokens = {
    "forward": [1, 4, 16, 32, 128, 1024],
    "skipped": [1, 16],
    "width": [1, 16, 128],
    "lowrank": [1, 4, 16],
    "training": [128, 512],
}

_MIXERS_TOKENS: _Tokens = {
    "forward": [2048],
    "matrix": [8192, 65536],
    "training": [2048],
    "matrix_training": [8192],
    "model": [2048],
}

_MIXERS_QUICK: _Tokens = {
    "forward": [256],
    "matrix": [1024],
    "training": [256],
    "matrix_training": [1024],
    "model": [128],
}

_INDEX_KEYS: _Tokens = {
    "operations": [1_000_000, 10_000_000],
    "keys": [10_000_000],
    "batches": [1_000_000, 10_000_000],
    "mapping": [1_000_000],
}

_TEMPORAL_BATCHES: _Tokens = {
    "ring": [100, 1000, 4000],
    "nat": [100, 2000],
    "pairs": [4096],
    "cache": [100, 1000],
    "memory": [200, 1000],
}

ROOMS = {
    "experts": Room(
        "experts",
        ("forward", "variable_k", "training"),
        Shape(),
        Shape(16, 512, 384, 2),
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
            "quick": {"forward": [16], "variable_k": [64], "training": [64]},
        },
        ("forward",),
        ("int8", "unpacked", "torch", "transformers"),
    ),
    "skip": Room(
        "skip",
        ("forward", "skipped", "width", "lowrank", "training"),
        SkipShape(),
        SkipShape(512, 1408, 8, 4),
        Skip,
        tables.skip_header,
        tables.skip_row,
        {
            "cpu": _SKIP_TOKENS,
            "cuda": _SKIP_TOKENS | {"forward": [1, 4, 16, 32, 128, 1024, 8192]},
            "quick": {"forward": [16], "skipped": [1], "width": [16], "lowrank": [4], "training": [64]},
        },
        ("forward", "width", "lowrank", "training"),
        ("unpacked", "eager", "naive", "onednn", "grouped"),
    ),
    "mixers": Room(
        "mixers",
        ("forward", "matrix", "training", "matrix_training", "model"),
        MixersShape(),
        MixersShape(512, 512, 2, compiled=False),
        Mixers,
        tables.mixers_header,
        tables.mixers_row,
        {
            "cpu": _MIXERS_TOKENS,
            "cuda": _MIXERS_TOKENS | {"forward": [2048, 8192], "training": [2048, 8192], "model": [4096]},
            "quick": _MIXERS_QUICK,
        },
        ("forward", "training"),
        ("eager", "compiled", "apart"),
        ("training", "matrix_training", "model"),
        memory_kept=True,
        float_modes=("matrix", "matrix_training", "model"),
        float_peak=True,
    ),
    "index": Room(
        "index",
        ("operations", "keys", "batches", "mapping"),
        IndexShape(),
        IndexShape(calls=50_000, kinds=("timestamps",)),
        Index,
        tables.index_header,
        tables.index_row,
        {
            "cpu": _INDEX_KEYS,
            "cuda": {mode: keys if mode == "batches" else [] for mode, keys in _INDEX_KEYS.items()},
            "quick": {mode: [1_000_000 if mode == "operations" else 200_000] for mode in _INDEX_KEYS},
        },
        (),
        ("std::map", "torch", "numpy", "sortedcontainers", "BTrees", "dict"),
        (),
        memory_kept=True,
        dtype="int64",
        lines=True,
        one_thread=("keys", "mapping"),
        measure=measure_rates,
        bars=index_bars,
        repeats=3,
        unit="keys",
    ),
    "temporal": Room(
        "temporal",
        tuple(_TEMPORAL_BATCHES),
        TemporalShape(),
        TemporalShape(nodes=200_000, few_nodes=300, edges=100_000, seen=300, events=200, uci=False),
        Temporal,
        tables.temporal_header,
        tables.temporal_row,
        {
            "cpu": _TEMPORAL_BATCHES,
            "cuda": _TEMPORAL_BATCHES,
            "quick": _TEMPORAL_BATCHES
            | {"ring": [1000], "nat": [100], "pairs": [1024], "cache": [100], "memory": [200]},
        },
        (),
        ("ring", "ring C++", "torch", "dim=0", "PyG"),
        ("nat", "pairs", "memory"),
        dtype="float32",
        lines=True,
        one_thread=("ring", "nat", "cache", "memory"),
        measure=measure_warm,
        bars=temporal_bars,
        unit="events or pairs",
    ),
}
