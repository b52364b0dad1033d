"""Rows of slots as NAT keeps them, and the join by plain Python."""

from __future__ import annotations

import torch
from torch import Tensor

NAT_CODES = (1,) + (2,) * 32 + (4,) * 16


def slot_sets(
    rows: int, codes: tuple[int, ...], features: int, pairs: int, *, nodes: int = 40, full: float = 0.7
) -> dict[str, Tensor]:
    """Random rows where a key sits in a hop at most once; `full` of the slots hold one. z is float64."""
    cpu = torch.device("cpu")
    keys = torch.full((rows, len(codes)), -1, dtype=torch.int64, device=cpu)
    for row in range(rows):
        for code in set(codes):
            slots = [s for s, of in enumerate(codes) if of == code]
            named = torch.randperm(max(nodes, len(slots)), device=cpu)[: len(slots)] * 3_000_000_019
            keep = torch.rand(len(slots), device=cpu) < full
            keys[row, slots] = torch.where(keep, named, -1)
    device = torch.get_default_device()
    return {
        "keys": keys.to(device),
        "z": torch.randn(rows, len(codes), features, dtype=torch.float64),
        "slot_codes": torch.tensor(codes, dtype=torch.int32),
        "left": torch.randint(rows, (pairs,)),
        "right": torch.randint(rows, (pairs,)),
    }


def joined_by_python(sets: dict[str, Tensor]) -> list[dict[int, tuple[int, Tensor]]]:
    """For each pair: key -> (code, sum of z), in the order of first slots; z's graph is kept."""
    keys, codes = sets["keys"].tolist(), sets["slot_codes"].tolist()
    pairs = []
    for left, right in zip(sets["left"].tolist(), sets["right"].tolist(), strict=True):
        joined: dict[int, tuple[int, Tensor]] = {}
        for side, row in enumerate((left, right)):
            for slot, key in enumerate(keys[row]):
                if key >= 0:
                    code, z = joined.get(key, (0, torch.zeros_like(sets["z"][0, 0])))
                    joined[key] = (code | codes[slot] << 3 * side, z + sets["z"][row, slot])
        pairs.append(joined)
    return pairs


def encoded_by_torch(sets: dict[str, Tensor], weight: Tensor, code_table: Tensor, activation: str) -> Tensor:
    out = []
    for joined in joined_by_python(sets):
        total = 0 * code_table[0]
        if joined:
            z = torch.stack([z for _, z in joined.values()])
            values = z @ weight.T + code_table[torch.tensor([code for code, _ in joined.values()])]
            total = (values.relu() if activation == "relu" else values).sum(0)
        out.append(total)
    return torch.stack(out) if out else code_table[:0] * weight.sum()
