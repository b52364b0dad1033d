"""`csr_from_edges`: a graph as sorted rows of neighbours."""

from __future__ import annotations

import torch
from torch import Tensor

from anabranch.core.arguments import check_same_device, dtype_name


def csr_from_edges(src: Tensor, dst: Tensor, num_nodes: int, undirected: bool = True) -> tuple[Tensor, Tensor]:
    """Rows of neighbours from a list of edges, each edge once.

    Args:
        src, dst: int64 `[E]`, in [0, num_nodes); repeated edges count once.
        num_nodes: N, less than 2^31.
        undirected: whether an edge is in the rows of both its ends.

    Returns:
        row_offsets int64 `[N + 1]` and column_ids int64, ascending within a row. A loop is in its node's row.

    Raises:
        ValueError: shapes, dtypes, devices or nodes that do not fit. Looks at values, and its result's size depends on
            them: not for a compiled graph.

    Cost:
        A sort of the edges, by torch.
    """
    op = "csr_from_edges"
    check_same_device(op, "src", src, dst=dst)
    for name, ends in (("src", src), ("dst", dst)):
        if ends.dtype != torch.int64:
            raise ValueError(f"{op}: {name} is {dtype_name(ends.dtype)}, must be int64; convert it with .long()")
        if ends.shape != (src.numel(),):
            raise ValueError(
                f"{op}: {name} has shape {tuple(ends.shape)}, must be ({src.numel()},); pass two nodes for each edge"
            )
    if not 0 <= num_nodes < 1 << 31:
        raise ValueError(f"{op}: num_nodes is {num_nodes}, must be in [0, 2^31); number the nodes from 0")
    if src.numel():
        low, high = (int(end) for end in torch.cat([src, dst]).aminmax())
        if low < 0 or high >= num_nodes:
            raise ValueError(
                f"{op}: src and dst are in [{low}, {high}], must be in [0, {num_nodes}); number the nodes from 0"
            )
    edges = src * num_nodes + dst
    if undirected:
        edges = torch.cat([edges, dst * num_nodes + src])
    edges = torch.unique(edges)
    ends = torch.arange(num_nodes + 1, device=src.device) * num_nodes
    return torch.searchsorted(edges, ends), edges % max(num_nodes, 1)
