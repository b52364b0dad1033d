"""Rows of an embedding for ids without bound: an ordered index gives them out, takes them back, and uses them again.

    python examples/embedding_rows.py --rows 2000

A stream of bags of 64-bit ids is learned online by an EmbeddingBag, each batch predicted before it is trained on. Ids
are drawn by popularity, and the popular ones change all the time. Compared at the same memory:
- the hashing trick: row = id mod rows. Ids that collide share a row, and old ones leave theirs as they made it;
- an allocator of `BSkipList`s: id -> row, and (step last seen, id) -> row. An id gets a row once it has come in several
  batches of a window (most never do); rows of ids unseen for a window go to new ids.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anabranch.index import BSkipList
from anabranch.temporal import roc_auc

SMALLEST = -(2**63)


class RowAllocator:
    """Rows 1 to num_rows - 1 for the ids that deserve one; row 0 is for all others."""

    def __init__(self, num_rows: int, window: int, admit: int) -> None:
        self.window, self.admit = window, admit
        self.row_of = BSkipList()
        self.by_age = BSkipList(key="pair")
        self.sightings = BSkipList()
        self.last_seen = torch.zeros(num_rows, dtype=torch.int64)  # by row
        self.free = torch.arange(1, num_rows)
        self.reused = 0

    def __call__(self, ids: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """The row of each id of a batch, and the rows that have changed hands, to be cleared."""
        distinct, position = ids.unique(return_inverse=True)
        rows, found = self.row_of.find(distinct)
        self._touch(distinct[found], rows[found], step)
        self._evict(step - self.window)
        new = self._admitted(distinct[~found], step)[: len(self.free)]
        given, self.free = self.free[: len(new)], self.free[len(new) :]
        self.row_of.insert(new, given)
        self.last_seen[given] = step
        self.by_age.insert(_ages(self.last_seen[given], new), given)
        return self.row_of.find(distinct)[0][position], given  # 0 where not found

    def _touch(self, ids: Tensor, rows: Tensor, step: int) -> None:
        self.by_age.erase(_ages(self.last_seen[rows], ids))
        self.last_seen[rows] = step
        self.by_age.insert(_ages(self.last_seen[rows], ids), rows)

    def _evict(self, before: int) -> None:
        ages, rows = self.by_age.range(maximum=(before, SMALLEST))  # in order of age: only what goes is read
        self.by_age.erase(ages)
        self.row_of.erase(ages[:, 1].contiguous())
        self.free = torch.cat([self.free, rows])
        self.reused += len(rows)

    def _admitted(self, unknown: Tensor, step: int) -> Tensor:
        if step % self.window == 0:
            self.sightings.clear()
        counts = self.sightings.find(unknown)[0] + 1
        self.sightings.update((unknown, counts))
        return unknown[counts >= self.admit]


def _ages(steps: Tensor, ids: Tensor) -> Tensor:
    return torch.stack([steps, ids], 1)


def mixed(x: Tensor) -> Tensor:
    """A 64-bit hash, for the stream: int64 arithmetic wraps, and the masks make its shifts logical."""
    for factor, shift in ((-7046029254386353131, 32), (-4658895280553007687, 29), (-7723592293110705685, 32)):
        x = x * factor
        x = x ^ (x >> shift & 2 ** (64 - shift) - 1)
    return x


def stream(steps: int, batch: int, life: int, seed: int) -> list[tuple[Tensor, Tensor]]:
    """Batches of ids `[batch, 8]` and labels: each place in the ranking of popularity has another id after `life`
    steps, and an id's effect on the label is a number hashed from it."""
    generator = torch.Generator().manual_seed(seed)
    places = torch.arange(50_000)
    popularity = 1 / (5.0 + places) ** 1.1
    batches = []
    for step in range(steps):
        place = torch.multinomial(popularity, batch * 8, replacement=True, generator=generator)
        ids = mixed(place * 1_000_003 + (step + mixed(place) % life) // life)
        effect = (mixed(ids + 1) >> 11).double() / 2**52
        labels = torch.rand(batch, generator=generator) < torch.sigmoid(1.5 * effect.view(batch, 8).sum(1))
        batches.append((ids.view(batch, 8), labels.float()))
    return batches


def learn(rows_of: Callable[[Tensor, int], tuple[Tensor, Tensor]], num_rows: int, batches: list) -> float:
    """Area under the ROC curve of the second half's predictions, each made before its batch was learned."""
    torch.manual_seed(0)
    embedding, bias = nn.EmbeddingBag(num_rows, 1, mode="sum", padding_idx=0), nn.Parameter(torch.zeros(1))
    nn.init.zeros_(embedding.weight)
    optimizer = torch.optim.Adagrad([embedding.weight, bias], lr=0.3)
    scores, labels = [], []
    for step, (ids, label) in enumerate(batches):
        rows, changed = rows_of(ids.flatten(), step)
        with torch.no_grad():  # a new id starts with nothing: neither the old one's weight nor its optimizer's state
            embedding.weight[changed] = 0
            if step > 0:
                optimizer.state[embedding.weight]["sum"][changed] = 0
        logits = embedding(rows.view(ids.shape))[:, 0] + bias
        scores.append(logits.detach())
        labels.append(label)
        optimizer.zero_grad()
        F.binary_cross_entropy_with_logits(logits, label).backward()
        optimizer.step()
    half = len(batches) // 2
    return float(roc_auc(torch.cat(scores[half:]), torch.cat(labels[half:])))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--batch", type=int, default=512, help="bags of 8 ids")
    parser.add_argument("--life", type=int, default=300, help="steps until a popular id is another one")
    parser.add_argument("--window", type=int, default=50, help="steps after which an unseen id loses its row")
    parser.add_argument("--admit", type=int, default=8, help="batches of a window that an id must come in to get a row")
    options = parser.parse_args()
    batches = stream(options.steps, options.batch, options.life, seed=0)
    every = torch.cat([ids.flatten() for ids, _ in batches]).unique()
    print(f"{len(every):,} distinct ids in {options.steps} steps, {options.rows:,} rows")

    hashed = learn(lambda ids, _: (ids % options.rows, ids[:0]), options.rows, batches)
    allocator = RowAllocator(options.rows, options.window, options.admit)
    indexed = learn(allocator, options.rows, batches)
    unbounded = learn(lambda ids, _: (torch.searchsorted(every, ids) + 1, ids[:0]), len(every) + 1, batches)
    print(f"a row for each id of the stream, known beforehand: AUC {unbounded:.4f}")
    print(f"hashing trick: AUC {hashed:.4f}")
    print(f"allocator:     AUC {indexed:.4f}; {len(allocator.row_of):,} rows taken, {allocator.reused:,} were reused")


if __name__ == "__main__":
    main()
