"""A memory of nodes with Python lists: what MemoryTable and SignedMemory are tested against."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class ListMemory:
    """One event after the other, one node after the other; layers are those of the module that is tested.

    `stores[role][node]` are the events (other, time, id, raw, sign) of the node's latest batch in that role.
    """

    def __init__(self, module: Any, tables: dict[str, Tensor], mean: bool) -> None:
        self.module, self.tables, self.mean = module, tables, mean
        self.keeps = module.untouched == "keep"
        self.last_update = torch.zeros(module.num_nodes, dtype=torch.int64)
        self.stores: tuple[dict[int, list[Any]], ...] = ({}, {})
        # For each table: its GRU and, for an event, which tables of the other's are heard.
        self.hears: dict[str, tuple[Any, Callable[[bool], list[str]]]] = {}

    def encode(self, role: int, own: Tensor, other: Tensor, raw: Tensor, passed: int) -> Tensor:
        t_enc = self.module.time_enc(torch.tensor([float(passed)], dtype=raw.dtype))
        modules = getattr(self.module, "msg_s_module", None), getattr(self.module, "msg_d_module", None)
        module = modules[role] or self.module.message
        return module(own[None], other[None], raw[None], t_enc)[0]

    def updated(self, node: int) -> tuple[dict[str, Tensor], int, dict[str, bool]]:
        events = [(role, *event) for role in (0, 1) for event in self.stores[role].get(node, [])]
        since = int(self.last_update[node])
        rows, reached = {}, {}
        for name, (gru, hears) in self.hears.items():
            own = self.tables[name][node]
            messages = [
                (time, number, role, self.encode(role, own, self.tables[heard][other], raw, time - since))
                for role, other, time, number, raw, sign in events
                for heard in hears(sign)
            ]
            reached[name] = bool(messages)
            if not messages and self.keeps:
                rows[name] = own
                continue
            if not messages:
                message = torch.zeros(gru.input_size, dtype=own.dtype)
            elif self.mean:
                message = torch.stack([m[-1] for m in messages]).mean(0)
            else:
                newest = max(m[:3] for m in messages)
                message = torch.stack([m[-1] for m in messages if m[:3] == newest]).mean(0)
            rows[name] = gru(message[None], own[None])[0]
        newest = max((event[2] for event in events), default=None)
        last = max(newest or 0, since if self.keeps else 0)
        return rows, last, {**reached, "": newest is not None}

    def apply(self, nodes: set[int]) -> None:
        with torch.no_grad():
            updates = {node: self.updated(node) for node in nodes}
        for node, (rows, last, _) in updates.items():
            for name, row in rows.items():
                self.tables[name][node] = row
            self.last_update[node] = last

    def update_state(self, src: Tensor, dst: Tensor, t: Tensor, raw: Tensor, ids: Tensor, sign: Tensor) -> None:
        touched = set(src.tolist()) | set(dst.tolist())
        if self.module.training:
            self.apply(touched)
        for role, (ends, others) in enumerate(((src, dst), (dst, src))):
            if self.keeps:
                for node in touched:
                    self.stores[role].pop(node, None)
            fresh: dict[int, list[Any]] = {}
            for e in range(src.shape[0]):
                event = (int(others[e]), int(t[e]), int(ids[e]), raw[e], bool(sign[e]))
                fresh.setdefault(int(ends[e]), []).append(event)
            self.stores[role].update(fresh)
        if not self.module.training:
            self.apply(touched)
            if self.keeps:
                for store in self.stores:
                    for node in touched:
                        store.pop(node, None)

    def flush(self) -> None:
        """Train to eval."""
        self.apply(set(range(self.module.num_nodes)))
        for store in self.stores:
            store.clear()
