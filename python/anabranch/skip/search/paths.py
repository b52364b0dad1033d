"""`mcts_paths`: paths through a model's layers that still answer right, the labels of Dr.LLM's routers."""

from __future__ import annotations

import dataclasses
import itertools
import math
import random
from collections.abc import Callable, Iterator, Sequence

from anabranch.skip.policy import Action

Path = tuple[int, ...]
"""Layers in the order in which they run; one that is repeated stands there twice."""


@dataclasses.dataclass(frozen=True)
class FoundPath:
    """A path and its reward."""

    path: Path
    reward: float


@dataclasses.dataclass(eq=False)
class _Node:
    path: Path
    moves: list[Path]
    total: float = 0.0
    visits: int = 0
    children: list[_Node] = dataclasses.field(default_factory=list)


def mcts_paths(
    evaluate: Callable[[Path], float],
    num_layers: int,
    *,
    simulations: int = 200,
    branching: int | None = 16,
    exploration: float = 1.8,
    length_penalty: float = 3.0,
    right: float = 1.0,
    min_saved: int = 2,
    seed: int = 0,
) -> list[FoundPath]:
    """Paths through a model's layers that answer one sample at least as well, by Monte-Carlo tree search.

    The tree begins at all layers once each. A move leaves out one layer or two neighbours in the path, or runs one a
    second time; no layer runs more than twice and one always runs. A simulation walks down by the largest `R / n +
    exploration sqrt(ln N / n) - length_penalty len / L` (R: sum of rewards of n visits, N: visits of the parent),
    expands one node, evaluates it, and adds its reward on the way back. A node's moves lead to paths that were not
    evaluated when it came to be. Kept are right paths (`reward >= right`): all of them where the whole model is wrong,
    else those at least `min_saved` layers shorter.

    Source: Dr.LLM (arXiv 2510.12773), whose numbers are the defaults; labels follow by `path_labels`. `branching` is
    ours: how many moves of a node, drawn by chance, are tried before the search goes deeper. Few miss the layers that
    can be spared, all of them (None) use most of 200 simulations up on the first level of a deep model.

    Gradient: none; what is found labels `LayerRouter.supervised_loss`.

    Args:
        evaluate: reward of a path, at most 1, called once per path.
        num_layers: at least 1.
        simulations: at most so many evaluations beside the first, of the whole model.

    Returns:
        The shortest first, then the larger reward, then the earlier layers; the first is the label.

    Raises:
        ValueError: an argument out of range.

    Cost:
        `simulations + 1` evaluations; on the host O(simulations (num_layers + depth * branching)).
    """
    op = "mcts_paths"
    if num_layers < 1 or simulations < 0 or min_saved < 0 or (branching is not None and branching < 1):
        raise ValueError(
            f"{op}: num_layers is {num_layers}, simulations {simulations}, min_saved {min_saved}, "
            f"branching {branching}, must be at least 1, 0, 0 and 1; pass branching None for all moves"
        )
    rng = random.Random(seed)
    whole = tuple(range(num_layers))
    rewards: dict[Path, float] = {}

    def reward_of(path: Path) -> float:
        if path not in rewards:
            rewards[path] = float(evaluate(path))
        return rewards[path]

    def node_of(path: Path) -> _Node:
        moves = sorted(set(_moves(path)) - rewards.keys())
        rng.shuffle(moves)
        return _Node(path, moves[:branching])

    def score(parent: _Node, child: _Node) -> float:
        explored = exploration * math.sqrt(math.log(parent.visits) / child.visits)
        return child.total / child.visits + explored - length_penalty * len(child.path) / num_layers

    root = node_of(whole)
    root.total, root.visits = reward_of(whole), 1
    for _ in range(simulations):
        walk = [root]
        while not walk[-1].moves and walk[-1].children:
            parent = walk[-1]
            walk.append(max(parent.children, key=lambda child: score(parent, child)))
        if walk[-1].moves:
            child = node_of(walk[-1].moves.pop())
            walk[-1].children.append(child)
            walk.append(child)
        reward = reward_of(walk[-1].path)
        for node in walk:
            node.total += reward
            node.visits += 1
    longest = num_layers - min_saved if rewards[whole] >= right else 2 * num_layers
    kept = [FoundPath(path, value) for path, value in rewards.items() if value >= right and len(path) <= longest]
    return sorted(kept, key=lambda found: (len(found.path), -found.reward, found.path))


def _moves(path: Path) -> Iterator[Path]:
    for width in (1, 2):
        if len(path) > width:
            yield from (path[:i] + path[i + width :] for i in range(len(path) - width + 1))
    yield from (path[: i + 1] + path[i:] for i, layer in enumerate(path) if path.count(layer) == 1)


def path_labels(path: Sequence[int], num_layers: int) -> list[int]:
    """The `Action` of each layer in a path: how often it runs. A row of labels for `LayerRouter.teacher_forcing`.

    Args:
        path: the layers that run, in order, as `mcts_paths` gives them.
        num_layers: of the model.

    Returns:
        `num_layers` numbers: 0, 1 or 2.

    Raises:
        ValueError: a path that is not ascending, with a layer out of range or more than twice.

    Cost:
        O(num_layers).
    """
    labels = [0] * num_layers
    ascending = all(a <= b for a, b in itertools.pairwise(path))
    for layer in path:
        if not ascending or not 0 <= layer < num_layers or labels[layer] == int(Action.REPEAT):
            raise ValueError(
                f"path_labels: path is {tuple(path)}, must ascend through layers below {num_layers}, each at most "
                "twice; take it from mcts_paths"
            )
        labels[layer] += 1
    return labels
