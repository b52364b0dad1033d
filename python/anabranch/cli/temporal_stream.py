"""A generated edge stream whose next links can be predicted: for the demo where no file is given."""

from __future__ import annotations

import random

import torch

from anabranch.temporal import EdgeList

REPEAT, TRIANGLE, COMMUNITY = 0.45, 0.3, 0.2  # of the events; the rest goes anywhere


def generated_stream(num_events: int, num_nodes: int, seed: int) -> EdgeList:
    """People of communities of 20 who write to somebody again, to a friend's friend, to a neighbour, or to anyone.

    Nodes turn up one after another; times are seconds of a busy day, some of them equal.
    """
    draw = random.Random(seed)
    friends: list[list[int]] = [[] for _ in range(num_nodes)]
    src, dst, times = [], [], []
    time, known = 0, 2
    for event in range(num_events):
        known = max(known, min(num_nodes, 20 + num_nodes * event // num_events))
        time += int(draw.expovariate(0.1))
        u = min(draw.randrange(known), draw.randrange(known))  # the older, the busier
        v, how = u, draw.random()
        if how < REPEAT and friends[u]:
            v = draw.choice(friends[u][-5:])
        elif how < REPEAT + TRIANGLE and friends[u]:
            v = draw.choice(friends[draw.choice(friends[u][-5:])][-5:])
        elif how < REPEAT + TRIANGLE + COMMUNITY:
            v = min(known - 1, u // 20 * 20 + draw.randrange(20))
        if v == u:
            v = (u + 1 + draw.randrange(known - 1)) % known
        friends[u].append(v)
        friends[v].append(u)
        src.append(u)
        dst.append(v)
        times.append(time)
    columns = (torch.tensor(column, dtype=torch.int64) for column in (src, dst, times))
    return EdgeList.from_events(*columns, num_nodes=num_nodes)
