"""Train, validation and test by time, and the nodes that training never sees."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from anabranch.core.arguments import dtype_name
from anabranch.temporal.edge_list import EdgeList


class TimeSplit(NamedTuple):
    """Three lists, each later than the one before; any of them may be empty.

    Attributes:
        train, validation, test: `EdgeList`s, slices of one stream.
    """

    train: EdgeList
    validation: EdgeList
    test: EdgeList


def split_by_time(edges: EdgeList, train: float = 0.70, validation: float = 0.15) -> TimeSplit:
    """Cuts a stream at two quantiles of its times; the events of one time are all in one part.

    The training part is `time <= numpy.quantile(time, train)`, as NAT, TGN and CAWN have it, the next goes to the
    quantile `train + validation`. In whole numbers: the quantile lies in [t, t'), t the time of event
    floor(train * (E - 1)) and t' the next, so no time above t is in it, and none is rounded.

    Args:
        edges: the stream.
        train, validation: shares of the events, together below 1; train above 0.

    Returns:
        Three slices of `edges`, which share its memory. A part is empty where a single time spans it.

    Raises:
        ValueError: shares out of range.

    Cost:
        Two searches in the sorted times: nothing is copied.
    """
    if not (train > 0 and validation >= 0 and train + validation < 1):
        raise ValueError(
            f"split_by_time: train is {train} and validation {validation}, must be above 0 and together below 1; "
            "leave something to test"
        )
    first = _end_of(edges.time, train)
    second = max(first, _end_of(edges.time, train + validation))
    return TimeSplit(edges[:first], edges[first:second], edges[second:])


def _end_of(time: Tensor, share: float) -> int:
    """Events up to the quantile."""
    if len(time) == 0:
        return 0
    # 0.7 * 10 is 7.000000000000001 and 0.7 + 0.15 may be below 0.85: what is meant is the rounded number.
    place = math.floor(round(share * (len(time) - 1), 6))
    return int(torch.searchsorted(time, time[place : place + 1], right=True))


def unseen_nodes(train: EdgeList) -> Tensor:
    """bool `[num_nodes]`: True for nodes that are in no event of `train`.

    Args:
        train: the events that training sees.

    Returns:
        bool `[num_nodes]`.

    Cost:
        One scatter of both ids of each event.
    """
    unseen = torch.ones(train.num_nodes, dtype=torch.bool, device=train.src.device)
    unseen[train.src] = False
    unseen[train.dst] = False
    return unseen


def events_at(edges: EdgeList, nodes: Tensor) -> EdgeList:
    """The events with one end or both among `nodes`, bool `[num_nodes]`: of `unseen_nodes`, the inductive test.

    Args:
        edges: the stream, or a part of it.
        nodes: bool `[num_nodes]`.

    Returns:
        An `EdgeList` of those events, in their order.

    Raises:
        ValueError: not a mask over the nodes of `edges`.

    Cost:
        Two gathers from `nodes`, and a copy of the events that stay.
    """
    if nodes.dtype != torch.bool or nodes.shape != (edges.num_nodes,):
        raise ValueError(
            f"events_at: nodes is {dtype_name(nodes.dtype)} of shape {tuple(nodes.shape)}, must be bool of shape "
            f"({edges.num_nodes},); take it from unseen_nodes()"
        )
    return edges.select(nodes[edges.src] | nodes[edges.dst])


def hide_nodes(split: TimeSplit, fraction: float = 0.1, *, seed: int = 0) -> tuple[TimeSplit, Tensor]:
    """The inductive protocol of NAT, TGN and CAWN: some nodes of the future are taken out of training.

    Draws `floor(fraction * nodes of the whole stream)` nodes without replacement from those in validation or test (all
    of these where they are fewer), and leaves their events out of training. The inductive test is then
    `events_at(split.test, unseen_nodes(split.train))`, with nodes that are new by themselves as well.

    Args:
        split: of `split_by_time`.
        fraction: of the nodes that have an event, in [0, 1).
        seed: of the draw, which is the same on every machine.

    Returns:
        The split with a smaller training part, and the hidden nodes, int64 ascending.

    Raises:
        ValueError: fraction out of range.

    Cost:
        Reads the ids of all events a few times; copies the training part.
    """
    if not 0 <= fraction < 1:
        raise ValueError(f"hide_nodes: fraction is {fraction}, must be in [0, 1); NAT hides 0.1")
    train, validation, test = split
    later = ~(unseen_nodes(validation) & unseen_nodes(test))
    seen = later | ~unseen_nodes(train)
    candidates = later.nonzero()[:, 0].cpu()
    count = min(len(candidates), math.floor(round(fraction * int(seen.sum()), 6)))
    order = torch.randperm(len(candidates), generator=torch.Generator("cpu").manual_seed(seed), device="cpu")
    hidden = candidates[order[:count]].sort().values.to(train.src.device)
    is_hidden = torch.zeros_like(later)
    is_hidden[hidden] = True
    return TimeSplit(train.select(~(is_hidden[train.src] | is_hidden[train.dst])), validation, test), hidden
