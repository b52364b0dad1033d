"""Trains NAT to predict the next links of your edge stream, saving what it has after each epoch.

    python examples/train_nat.py FILE.csv --epochs 2
    python examples/train_nat.py FILE.csv --epochs 3 --resume   # goes on with the third

FILE has lines `source, destination, time`, with or without a header; more columns are features; nodes may be any
words. The first 70 % of the events train, the next 15 % validate, the last 15 % tell how good it is.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

import torch

from anabranch.papers.link_prediction import evaluate, train_epoch
from anabranch.papers.nat import NAT
from anabranch.temporal import EdgeList, NegativeSampler, TimeSplit, load_edges, split_by_time, unseen_nodes


def save(path: Path, **state: Any) -> None:
    """Whole or not at all: an interrupted run leaves the checkpoint before it."""
    unfinished = path.with_suffix(".part")
    torch.save(state, unfinished)
    os.replace(unfinished, path)


def train(model: NAT, edges: EdgeList, split: TimeSplit, options: argparse.Namespace) -> None:
    optimizer = torch.optim.Adam(model.parameters(), lr=options.lr)
    sampler = NegativeSampler(split.train.dst, options.seed)
    first = 0
    if options.resume:
        state = torch.load(options.checkpoint, weights_only=True)
        # The caches of the neighbourhoods are buffers, so they are in the state dict; dropout's generator is not.
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["generator"])
        first = state["epoch"]
        print(f"resumed after epoch {first}")
    for epoch in range(first, options.epochs):
        model.reset_state()  # the stream begins again; what was learned stays
        seconds = train_epoch(model, optimizer, split.train, sampler, batch_size=options.batch_size, epoch=epoch)
        # Validation goes on where training stopped, with full caches, and fills them further; so it comes after saving.
        save(
            options.checkpoint,
            model=model.state_dict(),
            optimizer=optimizer.state_dict(),
            generator=torch.get_rng_state(),
            epoch=epoch + 1,
        )
        found = evaluate(model, split.validation, sampler, unseen_nodes(split.train))
        speed = len(split.train) / seconds
        print(f"epoch {epoch + 1}: {speed:,.0f} events/s, validation AP {found.all.ap:.4f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, metavar="FILE.csv")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--events", type=int, help="use the first so many events only")
    parser.add_argument("--batch-size", type=int, default=100)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--checkpoint", type=Path, default=Path("nat.pt"))
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint")
    options = parser.parse_args()
    if options.resume and not options.checkpoint.exists():
        parser.error(f"{options.checkpoint} is not there; train without --resume first")
    torch.manual_seed(options.seed)
    edges = load_edges(options.file)
    if options.events is not None:
        edges = edges[: options.events]
    split = split_by_time(edges)
    print(f"{len(edges):,} events among {edges.num_nodes:,} nodes; {len(split.train):,} train")
    model = NAT(edges.num_nodes, edges.features, time_origin=int(edges.time[0]), seed=options.seed)
    train(model, edges, split, options)

    # The test continues the stream that the last epoch has read, up to the end of the validation.
    model.load_state_dict(torch.load(options.checkpoint, weights_only=True)["model"])
    sampler = NegativeSampler(edges.dst, options.seed + 1)
    unseen = unseen_nodes(split.train)
    evaluate(model, split.validation, sampler, unseen)
    test = evaluate(model, split.test, sampler, unseen)
    known, new = test.transductive.ap, test.inductive.ap
    print(f"test AP {test.all.ap:.4f}, AUC {test.all.auc:.4f}; transductive AP {known:.4f}, inductive {new:.4f}")


if __name__ == "__main__":
    main()
