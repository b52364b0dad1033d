"""What a benchmark has measured, and its JSON file.

    {"schema": 1, "interrupted": false, "quick": ..., "seconds": ...,
     "machine": {"device", "system", "cores", "cpu_kernels"}, "versions": {package: version},
     "absent": [{"peer", "install", "rooms"}],
     "rooms": [{"room", "unit", "shape", "repeats", "limits", "limits_after", "rows", "bars"}]}

Limits are per dtype and number of threads, FLOPs and bytes per second. A row is `bench_rows.Row` with what follows from
it: "ours", "of_limit" and so on. Files from before there were several rooms, as in `bench/results`, hold one room, and
are read too.
"""

from __future__ import annotations

import dataclasses
import json
import os
import platform
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from anabranch.cli.bench_index_bars import Bar
from anabranch.cli.bench_index_rows import IndexRow
from anabranch.cli.bench_limits import FoundLimits
from anabranch.cli.bench_peers import Absent
from anabranch.cli.bench_rows import Row, Target
from anabranch.cli.isas import ISAS
from anabranch.cli.machine import Limits, device_name
from anabranch.core.library import ops

SCHEMA = 1
_PACKAGES = ("anabranch", "torch", "numpy", "transformers", "sortedcontainers", "BTrees", "torch_geometric")


@dataclasses.dataclass
class RoomRecord:
    """One room; rows come in as they are measured.

    Attributes:
        limits, limits_after: as measured before and behind its rows.
        unit: of what `tokens` of its rows counts.
    """

    room: str
    unit: str
    shape: dict[str, Any]
    repeats: int
    limits: FoundLimits
    limits_after: FoundLimits = dataclasses.field(default_factory=dict)
    rows: list[Row] = dataclasses.field(default_factory=list)
    bars: list[Bar] = dataclasses.field(default_factory=list)

    def drift(self, dtype: str, threads: int) -> float:
        """How far the limits at the end are from those at the beginning, as a share of them."""
        before, after = self.limits.get((dtype, threads)), self.limits_after.get((dtype, threads))
        if before is None or after is None:
            return 0.0
        pairs = [(before.peak, after.peak), (before.bandwidth, after.bandwidth)]
        if before.lines and after.lines:
            pairs.append((before.lines, after.lines))
        return max(abs(b - a) / max(a, b) for a, b in pairs)


@dataclasses.dataclass
class Record:
    """One run."""

    machine: dict[str, Any]
    versions: dict[str, str]
    absent: list[Absent]
    quick: bool
    rooms: list[RoomRecord] = dataclasses.field(default_factory=list)
    seconds: float = 0.0
    interrupted: bool = False


def new_record(device: torch.device, absent: list[Absent], quick: bool) -> Record:
    """Of this machine and what is installed on it; nothing measured yet."""
    machine = {
        "device": device_name(device),
        "system": platform.platform(),
        "cores": os.cpu_count(),
        "cpu_kernels": tuple(ISAS.values())[ops.cpu_isa()],
    }
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    versions["torch"] = torch.__version__  # with what it was built for
    return Record(machine, versions, absent, quick)


def to_json(record: Record) -> str:
    content = dataclasses.asdict(record)
    for room, found in zip(record.rooms, content["rooms"], strict=True):
        for when in ("limits", "limits_after"):
            found[when] = [
                {"dtype": dtype, "threads": threads, **dataclasses.asdict(one)}
                for (dtype, threads), one in getattr(room, when).items()
            ]
        found["rows"] = [_row(row) for row in room.rows]
        found["bars"] = [{**dataclasses.asdict(bar), "holds": bar.holds} for bar in room.bars]
    return json.dumps({"schema": SCHEMA, **content}, indent=1) + "\n"


def _row(row: Row) -> dict[str, Any]:
    return {
        **dataclasses.asdict(row),
        "ours": row.ours,
        "of_limit": row.of_limit(row.ours),
        "of_ideal": row.of_ideal("dense"),
        "of_onednn": row.of_ideal("onednn"),
        "reached": row.reached,
    }


def read_record(path: Path) -> Record:
    """A file that `bench --json` wrote, now or before there were several rooms in one.

    Raises:
        OSError: it cannot be read. ValueError: it is something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return _record(content)
    except (ValueError, KeyError, TypeError, AttributeError, StopIteration) as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ValueError(f"{path} is no file of bench --json ({reason}); name one that it wrote") from error


def _record(content: Mapping[str, Any]) -> Record:
    if "rooms" not in content:
        machine, versions = {"device": content["device"]}, {"torch": content["torch"]}
        return Record(machine, versions, [], False, [_room({"room": "experts", **content})])
    if content["schema"] != SCHEMA:
        raise ValueError(f"schema is {content['schema']}, must be {SCHEMA}")
    absent = [Absent(one["peer"], one["install"], list(one["rooms"])) for one in content["absent"]]
    rooms = [_room(one) for one in content["rooms"]]
    machine, versions = dict(content["machine"]), dict(content["versions"])
    return Record(machine, versions, absent, content["quick"], rooms, content["seconds"], content["interrupted"])


def _room(content: Mapping[str, Any]) -> RoomRecord:
    limits, after = ({(one["dtype"], one["threads"]): _made(Limits, one) for one in content[when]} for when in _WHEN)
    rows = [_read_row(row) for row in content["rows"]]
    bars = [_made(Bar, bar) for bar in content.get("bars", [])]
    shape, unit = dict(content["shape"]), content.get("unit", "tokens")
    return RoomRecord(content["room"], unit, shape, content.get("repeats", 0), limits, after, rows, bars)


_WHEN = ("limits", "limits_after")


def _read_row(content: Mapping[str, Any]) -> Row:
    target = content.get("target")
    row = _made(IndexRow if "p99_ns" in content else Row, {**content, "target": target and _made(Target, target)})
    times = [row.limit_ms + 1, *row.medians_ms.values()]
    if not all(time > 0 for time in times) or row.spreads.keys() != row.medians_ms.keys():
        raise ValueError(f"row {row.workload!r} has times that are not positive or have no spread")
    row.of_limit(row.ours)  # there is one of ours
    return row


def _made(kind: Any, content: Mapping[str, Any]) -> Any:
    """An instance of the dataclass of those items that are its fields."""
    names = {field.name for field in dataclasses.fields(kind)}
    return kind(**{name: value for name, value in content.items() if name in names})
