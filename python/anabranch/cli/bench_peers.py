"""Which peers of the benchmark are not installed here, and how to get them."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Sequence
from importlib.util import find_spec

# Contender, the module that has it, what installs it, and the rooms in which it takes part.
_MODULES = (
    ("transformers", "transformers", "pip install 'transformers>=5.0'", ("experts",)),
    ("sortedcontainers", "sortedcontainers", "pip install sortedcontainers", ("index",)),
    ("BTrees", "BTrees", "pip install BTrees", ("index",)),
    ("PyG", "torch_geometric", "pip install torch_geometric", ("temporal",)),
)


@dataclasses.dataclass(frozen=True)
class Absent:
    """A contender that cannot take part, and what to do about it."""

    peer: str
    install: str
    rooms: list[str]


def absent_peers(rooms: Sequence[str], quick: bool, device: str) -> list[Absent]:
    """Of these rooms, in their order."""
    found = [
        Absent(peer, install, [room for room in of_rooms if room in rooms])
        for peer, module, install, of_rooms in _MODULES
        if find_spec(module) is None and set(of_rooms).intersection(rooms)
    ]
    compiler = os.environ.get("CXX", "g++")
    if "mixers" in rooms and quick:
        found.append(Absent("compiled", "leave out --quick: compiling takes minutes", ["mixers"]))
    elif "mixers" in rooms and device == "cpu" and shutil.which(compiler) is None:
        found.append(Absent("compiled", f"torch.compile needs {compiler}: install a C++ compiler", ["mixers"]))
    return found


def absent_line(absent: Sequence[Absent]) -> str:
    """One line that names them all; empty where nothing is missing."""
    return "absent: " + "; ".join(f"{one.peer} ({one.install})" for one in absent) if absent else ""
