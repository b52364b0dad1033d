"""NCN's experiment: hidden edges of a graph found again; see `anabranch.papers.ncn`.

Edges of a file's static projection, or of a generated geometric graph, are hidden; NCN, NCNC and a dot product of the
same representations learn from the others and rank the hidden ones.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from anabranch.cli.progress import table
from anabranch.papers.ncn import NCN, NCNC, DotProduct, Encoder, Graph
from anabranch.temporal import hits_at, load_edges, mean_reciprocal_rank

MODELS: dict[str, Callable[[int], nn.Module]] = {"dot product": DotProduct, "NCN": NCN, "NCNC": NCNC}


def geometric_edges(num_nodes: int = 800, degree: float = 12.0, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Points in the unit square, joined where they are near: (src, dst) with src < dst, `degree` edges a node."""
    points = torch.rand(num_nodes, 2, generator=torch.Generator("cpu").manual_seed(seed), device="cpu")
    radius = (degree / (torch.pi * num_nodes)) ** 0.5
    src, dst = ((torch.cdist(points, points) < radius).triu(1)).nonzero().unbind(1)
    return src, dst


def static_projection(path: str, columns: Sequence[int | str] | None = None) -> tuple[Tensor, Tensor, int]:
    """The distinct undirected edges of a stream, without self-loops: (src, dst) with src < dst, and the nodes."""
    edges = load_edges(path, columns=columns)
    ends = torch.stack([torch.minimum(edges.src, edges.dst), torch.maximum(edges.src, edges.dst)])
    src, dst = ends[:, ends[0] != ends[1]].unique(dim=1)
    return src, dst, edges.num_nodes


class Metrics(NamedTuple):
    """Hits@100 among shared drawn pairs, and the MRR of each edge among 50 drawn ends."""

    hits: float
    mrr: float


def run(
    src: Tensor,
    dst: Tensor,
    num_nodes: int,
    *,
    hidden_share: float,
    epochs: int,
    dim: int = 32,
    rate: float = 5e-3,
    seed: int = 0,
) -> dict[str, Metrics]:
    """Hides a share of the edges, trains each model on the others, and ranks the hidden ones.

    A step predicts a tenth of the edges that are seen, or 1024 of them, from the others: of many more the graph of a
    step would be another than that of the test.
    """
    draw = torch.Generator("cpu").manual_seed(seed)
    order = torch.randperm(len(src), generator=draw, device="cpu").to(src.device)
    num_hidden = max(1, int(hidden_share * len(src)))
    hidden, seen = order[:num_hidden], order[num_hidden:]
    train_src, train_dst, test_src, test_dst = src[seen], dst[seen], src[hidden], dst[hidden]
    batch = min(1024, max(1, len(seen) // 10))
    graph = Graph.from_edges(train_src, train_dst, num_nodes)
    all_keys = (src * num_nodes + dst).sort().values

    def other_pairs(count: int) -> tuple[Tensor, Tensor]:
        """Pairs that are no edge, hidden or not: drawn, and drawn again where they are."""
        one, two = torch.randint(num_nodes, (2, count), generator=draw, device="cpu").to(src.device)
        for _ in range(8):
            keys = torch.minimum(one, two) * num_nodes + torch.maximum(one, two)
            bad = (all_keys[torch.searchsorted(all_keys, keys).clamp(max=len(all_keys) - 1)] == keys) | (one == two)
            again = torch.randint(num_nodes, (count,), generator=draw, device="cpu").to(src.device)
            two = torch.where(bad, again, two)
        return one, two

    shared = other_pairs(10000)
    own = torch.randint(num_nodes, (num_hidden, 50), generator=draw, device="cpu").to(src.device)
    results = {}
    for name, make in MODELS.items():
        torch.manual_seed(seed)
        encoder, predictor = Encoder(num_nodes, dim).to(src.device), make(dim).to(src.device)
        both = nn.ModuleList([encoder, predictor])
        optimizer = torch.optim.Adam(both.parameters(), rate)
        step = 0
        for epoch in range(epochs):
            total = 0.0
            for chosen in torch.randperm(len(seen), generator=draw, device="cpu").to(src.device).split(batch):
                left, right = train_src[chosen], train_dst[chosen]
                rest = graph.without(left, right)
                x = encoder(rest)
                wrong = other_pairs(len(chosen))
                step += 1
                sample = {"seed": step} if isinstance(predictor, NCNC) else {}
                logits = predictor(x, rest, torch.cat([left, wrong[0]]), torch.cat([right, wrong[1]]), **sample)
                labels = torch.ones_like(logits)
                labels[len(chosen) :] = 0
                loss = nn.functional.binary_cross_entropy_with_logits(logits, labels)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                total += float(loss.detach()) * len(chosen) / len(seen)
            if epoch + 1 in (1, epochs):
                print(f"{name}: epoch {epoch + 1} of {epochs}, loss {total:.4f}", flush=True)
        both.eval()
        with torch.no_grad():
            x = encoder(graph)
            own_pairs = (test_src.repeat_interleave(50), own.reshape(-1))
            true_scores, shared_scores, own_scores = (
                torch.cat([predictor(x, graph, *part) for part in zip(*(end.split(1024) for end in ends), strict=True)])
                for ends in ((test_src, test_dst), shared, own_pairs)
            )
            mrr = mean_reciprocal_rank(true_scores, own_scores.view(-1, 50))
            results[name] = Metrics(float(hits_at(100, true_scores, shared_scores)), float(mrr))
    return results


def main(argv: Sequence[str] | None = None) -> int:
    """The command line of the experiment; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m anabranch.papers.ncn", description=__doc__.split("\n")[0])
    parser.add_argument("--data", help="edge file, its times unused; without one, a generated geometric graph")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--hidden", type=float, nargs="+", default=[0.1, 0.3, 0.5], help="shares of edges hidden")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    if options.data:
        src, dst, num_nodes = static_projection(options.data)
    else:
        num_nodes = 800
        src, dst = geometric_edges(num_nodes, seed=options.seed)
    print(f"{num_nodes} nodes, {len(src)} edges")
    rows = [["hidden", "model", "Hits@100", "MRR"]]
    for share in options.hidden:
        found = run(src, dst, num_nodes, hidden_share=share, epochs=options.epochs, seed=options.seed)
        rows += [[f"{share:.0%}", name, f"{one.hits:.4f}", f"{one.mrr:.4f}"] for name, one in found.items()]
    print(table(rows))
    return 0
