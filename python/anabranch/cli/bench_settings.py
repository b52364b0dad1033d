"""What `python -m anabranch bench` was asked for, checked before anything is measured."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

import torch

import anabranch
from anabranch.cli.arguments import ROOMS as NAMES
from anabranch.cli.bench_rooms import ROOMS
from anabranch.cli.bench_rows import OURS
from anabranch.cli.output import check_file, check_folder


@dataclasses.dataclass(frozen=True)
class Settings:
    """What to measure; None means the default of the room's mode and the device.

    Attributes:
        modes, tokens: of the one room, where there is only one.
        without: contenders that are left out.
        json, out, compare: a file and a folder to write, and a file to compare with.
    """

    rooms: list[str]
    device: str
    modes: list[str] | None = None
    dtypes: list[str] | None = None
    tokens: list[int] | None = None
    threads: list[int] = dataclasses.field(default_factory=lambda: [1])
    repeats: int | None = None
    quick: bool = False
    without: list[str] = dataclasses.field(default_factory=list)
    json: Path | None = None
    out: Path | None = None
    compare: Path | None = None

    def modes_of(self, room: str) -> list[str]:
        return [mode for mode in ROOMS[room].modes if self.modes is None or mode in self.modes]

    def dtypes_of(self, room: str, mode: str) -> list[str]:
        if (only := ROOMS[room].dtype) is not None:
            return [only]
        if mode in ROOMS[room].float_modes:
            return ["float32"]
        if self.dtypes is not None:
            return self.dtypes
        both = self.device == "cpu" and not self.quick and mode in ROOMS[room].both_dtypes
        return ["bfloat16", "float32"] if both else ["bfloat16"]

    def shape_of(self, room: str) -> Any:
        return ROOMS[room].quick_shape if self.quick else ROOMS[room].shape

    def tokens_of(self, room: str, mode: str) -> list[int]:
        return self.tokens or ROOMS[room].tokens["quick" if self.quick else self.device][mode]

    def repeats_of(self, room: str) -> int:
        default = ROOMS[room].quick_repeats if self.quick else ROOMS[room].repeats
        return default if self.repeats is None else self.repeats


def bench(options: argparse.Namespace) -> int:
    """Measures what the arguments ask for. Raises ValueError and OSError before that, where something is wrong."""
    from anabranch.cli.bench import run

    return run(settings_of(options))


def settings_of(options: argparse.Namespace) -> Settings:
    """The arguments, checked; the folder that is written into is made."""
    for room in options.rooms:
        if room not in ROOMS:
            raise ValueError(f"invalid choice: room is {room!r}, must be one of {', '.join(NAMES)}; name one of them")
    rooms = [name for name in NAMES if name in options.rooms or not options.rooms]
    numbers = [*(options.tokens or []), *(options.threads or []), 1 if options.repeats is None else options.repeats]
    if min(numbers) < 1:
        raise ValueError(f"--tokens, --threads and --repeats: {min(numbers)} must be at least 1; give a larger number")
    for option, given in (("--mode", options.mode), ("--tokens", options.tokens)):
        if given and len(rooms) > 1:
            raise ValueError(f"{option} is of one room, but {len(rooms)} are measured; name one, like bench {rooms[0]}")
    for mode in options.mode or ():
        if mode not in ROOMS[rooms[0]].modes:
            has = ", ".join(ROOMS[rooms[0]].modes)
            raise ValueError(f"argument --mode: invalid choice: {mode!r}, must be one of {has}; name one of them")
    if kept := set(OURS).intersection(options.without):
        raise ValueError(f"--without: {min(kept)} is ours, must be a peer; name another")
    if options.device == "cuda" and not (anabranch.has_cuda_kernels and torch.cuda.is_available()):
        raise ValueError(
            "--device is cuda, must be cpu: there is no GPU, or this build has no CUDA kernels; leave it out"
        )
    if options.json is not None:
        check_file("--json", options.json)
    if options.out is not None:
        check_folder("--out", options.out)
    return Settings(
        rooms=rooms,
        device=options.device,
        modes=options.mode,
        dtypes=options.dtype,
        tokens=options.tokens,
        threads=options.threads or _default_threads(options.device, options.quick),
        repeats=options.repeats,
        quick=options.quick,
        without=options.without,
        json=options.json,
        out=options.out,
        compare=options.compare,
    )


def _default_threads(device: str, quick: bool) -> list[int]:
    if device != "cpu":
        return [torch.get_num_threads()]
    return [1] if quick else sorted({1, torch.get_num_threads()})
