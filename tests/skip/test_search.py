"""Searches: what mcts_paths keeps and never does, labels, and oracle_search against brute force."""

from __future__ import annotations

import itertools
import math
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from anabranch.skip import mcts_paths, oracle_search, path_labels

Path = tuple[int, ...]


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 7), st.sets(st.integers(0, 6)), st.integers(0, 5), st.sampled_from([None, 1, 3, 8]))
def test_found_paths_keep_the_rules(num_layers: int, needed: set[int], seed: int, branching: int | None) -> None:
    """Right is what runs the needed layers."""
    seen: list[Path] = []

    def evaluate(path: Path) -> float:
        seen.append(path)
        return float(needed <= set(path))

    found = mcts_paths(evaluate, num_layers, simulations=60, branching=branching, seed=seed)
    assert len(seen) == len(set(seen)) <= 61 and seen[0] == tuple(range(num_layers))
    for path in seen:
        assert path and list(path) == sorted(path) and all(path.count(layer) <= 2 for layer in path)
        path_labels(path, num_layers)
    right = needed <= set(range(num_layers))
    kept = [p for p in seen if needed <= set(p) and (not right or len(p) <= num_layers - 2)]
    assert sorted(f.path for f in found) == sorted(kept)
    assert [len(f.path) for f in found] == sorted(len(p) for p in kept)
    assert found == mcts_paths(evaluate, num_layers, simulations=60, branching=branching, seed=seed)


def test_a_wrong_model_is_repaired_by_a_repeat() -> None:
    found = mcts_paths(lambda path: float(path.count(3) == 2), 6, seed=1)
    assert found and all(f.path.count(3) == 2 and f.reward == 1 for f in found)
    assert path_labels(found[0].path, 6)[3] == 2


def test_search_finds_short_paths() -> None:
    """6 of 12 layers matter; one move saves 2 at most."""
    needed = {0, 2, 5, 7, 8, 11}
    found = mcts_paths(lambda path: float(needed <= set(path)), 12)
    assert found and len(found[0].path) <= 9 and needed <= set(found[0].path)
    assert mcts_paths(lambda path: 0.0, 12) == []


def test_partial_rewards_count_as_right_from_the_given_value_on() -> None:
    found = mcts_paths(lambda path: 0.5, 4, right=0.5, simulations=30)
    assert found and all(len(f.path) <= 2 for f in found)
    assert mcts_paths(lambda path: 0.5, 4, simulations=0) == []


def even_share(path: Path) -> float:
    return sum(layer % 2 == 0 for layer in path) / len(path)


def reference(
    num_layers: int, simulations: int, branching: int | None, exploration: float, penalty: float
) -> list[Path]:
    """Paths in order of evaluation, by tables of nodes; moves are tried from the largest path on."""
    seen: list[Path] = []
    paths: dict[int, Path] = {}
    moves: dict[int, list[Path]] = {}
    children: dict[int, list[int]] = {}
    values: dict[int, list[float]] = {}

    def add(path: Path) -> int:
        counts = [path.count(layer) for layer in range(num_layers)]
        options = set()
        for at in range(len(path)):
            for skipped in (1, 2):
                if at + skipped <= len(path) and len(path) > skipped:
                    options.add(tuple(x for i, x in enumerate(path) if not at <= i < at + skipped))
            if counts[path[at]] == 1:
                options.add(tuple(sorted((*path, path[at]))))
        node = len(paths)
        paths[node], children[node], values[node] = path, [], []
        moves[node] = sorted(options - set(seen))[:branching]
        return node

    root = add(tuple(range(num_layers)))
    seen.append(paths[root])
    values[root].append(even_share(paths[root]))
    for _ in range(simulations):
        walk = [root]
        while not moves[walk[-1]] and children[walk[-1]]:
            total = len(values[walk[-1]])
            scores = [
                sum(values[c]) / len(values[c])
                + exploration * (math.log(total) / len(values[c])) ** 0.5
                - penalty * len(paths[c]) / num_layers
                for c in children[walk[-1]]
            ]
            walk.append(children[walk[-1]][scores.index(max(scores))])
        if moves[walk[-1]]:
            child = add(moves[walk[-1]].pop())
            children[walk[-1]].append(child)
            walk.append(child)
        path = paths[walk[-1]]
        if path not in seen:
            seen.append(path)
        for node in walk:
            values[node].append(even_share(path))
    return seen


@pytest.mark.parametrize("branching", [None, 3])
@pytest.mark.parametrize(("exploration", "penalty"), [(1.8, 3.0), (1.0, 0.0), (0.2, 1.0)])
def test_search_walks_as_the_formula_says(
    branching: int | None, exploration: float, penalty: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(random.Random, "shuffle", lambda self, moves: None)
    seen: list[Path] = []

    def evaluate(path: Path) -> float:
        seen.append(path)
        return even_share(path)

    options = {"simulations": 120, "branching": branching, "exploration": exploration, "length_penalty": penalty}
    mcts_paths(evaluate, 6, **options)  # type: ignore[arg-type]
    assert seen == reference(6, 120, branching, exploration, penalty) and len(seen) > 18


def test_labels_of_a_path() -> None:
    assert path_labels((0, 2, 2, 3), 5) == [1, 0, 2, 1, 0]
    for path in ((0, 5), (1, 0), (2, 2, 2), (-1,)):
        with pytest.raises(ValueError, match="path is"):
            path_labels(path, 5)


def table(num_layers: int, num_actions: int, tokens: int) -> dict[Path, torch.Tensor]:
    patterns = itertools.product(range(num_actions), repeat=num_layers)
    return {pattern: torch.randint(9, (tokens,)).double() for pattern in patterns}  # ties are frequent


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 4), st.integers(1, 3), st.floats(0, 8), st.integers(0, 99))
def test_exhaustive_is_brute_force(num_layers: int, num_actions: int, budget: float, seed: int) -> None:
    torch.manual_seed(seed)
    losses, costs = table(num_layers, num_actions, 5), [0.0, 1.0, 2.5][:num_actions]
    got = oracle_search(losses.__getitem__, num_layers, num_actions, budget=budget, costs=costs)
    assert got.patterns == list(losses)
    assert got.costs == [sum(costs[a] for a in pattern) for pattern in losses]
    torch.testing.assert_close(got.mean_losses, torch.stack([row.mean() for row in losses.values()]))
    for token in range(5):
        within = [(float(losses[p][token]), c, i) for i, (p, c) in enumerate(zip(losses, got.costs, strict=True))]
        best = min(entry for entry in within if entry[1] <= budget)
        assert (float(got.best_losses[token]), int(got.best[token])) == (best[0], best[2])
        assert float(got.difficulty[token]) == best[0] - min(entry[0] for entry in within)


def lone_layer(pattern: Path) -> torch.Tensor:
    """Token t needs action 2 in layer t, and nothing else."""
    return torch.tensor([1.0 - action / 2 for action in pattern])


def test_difficulty_is_what_more_compute_would_give() -> None:
    cheap = oracle_search(lone_layer, 4, budget=0)
    assert cheap.best_losses.tolist() == [1.0] * 4 and cheap.difficulty.tolist() == [1.0] * 4
    enough = oracle_search(lone_layer, 4, budget=2)
    assert enough.best_losses.tolist() == [0.0] * 4 and not enough.difficulty.any()
    one = oracle_search(lone_layer, 4, budget=1)
    assert one.difficulty.tolist() == [0.5] * 4


@pytest.mark.parametrize("method", ["random", "beam"])
def test_deep_models_within_the_budget(method: str) -> None:
    calls: list[Path] = []

    def loss_fn(pattern: Path) -> torch.Tensor:
        calls.append(pattern)
        return lone_layer(pattern)

    got = oracle_search(loss_fn, 12, budget=4, method=method, max_patterns=400, seed=3)  # type: ignore[arg-type]
    assert calls == got.patterns and len(set(calls)) == len(calls) <= 400
    assert (0,) * 12 in calls and ((2,) * 12 in calls or method == "beam")
    assert all(got.costs[i] <= 4 for i in got.best.tolist())
    assert sum(cost <= 4 for cost in got.costs) >= 40
    picked = torch.stack([lone_layer(got.patterns[i])[t] for t, i in enumerate(got.best.tolist())])
    torch.testing.assert_close(got.best_losses, picked)
    again = oracle_search(loss_fn, 12, budget=4, method=method, max_patterns=400, seed=3)  # type: ignore[arg-type]
    assert again.patterns == got.patterns


def test_beam_climbs_to_the_dearest_and_finds_the_best() -> None:
    weights = torch.tensor([0.1, 0.9, 0.2, 0.7, 0.3])
    got = oracle_search(lambda p: (1 - weights * torch.tensor(p) / 2).sum()[None], 5, budget=4, method="beam", beam=2)
    assert got.patterns[int(got.best[0])] == (0, 2, 0, 2, 0) and (2,) * 5 in got.patterns
    assert len(got.patterns) < 3**5


def test_random_draws_as_many_as_asked() -> None:
    got = oracle_search(lone_layer, 10, budget=6, samples=30)
    assert 30 <= len(got.patterns) <= 32


def test_gradients_are_off() -> None:
    weight = torch.ones(1, requires_grad=True)
    got = oracle_search(lambda pattern: weight * sum(pattern), 2, 2, budget=1)
    assert not got.best_losses.requires_grad


def test_bad_input() -> None:
    for arguments, match in (
        ({"num_layers": 0}, "num_layers is 0"),
        ({"num_layers": 2, "simulations": -1}, "simulations -1"),
        ({"num_layers": 2, "branching": 0}, "branching 0"),
    ):
        with pytest.raises(ValueError, match=match):
            mcts_paths(lambda path: 1.0, **arguments)  # type: ignore[arg-type]
    for arguments, match in (
        ({"num_layers": 0, "budget": 1}, "count is below 1"),
        ({"num_layers": 2, "budget": 1, "beam": 0}, "count is below 1"),
        ({"num_layers": 2, "budget": 1, "costs": [0, 1]}, "costs is"),
        ({"num_layers": 2, "budget": 1, "costs": [0, 2, 1]}, "costs is"),
        ({"num_layers": 2, "budget": 1, "costs": [1, 2, 3]}, "budget is 1"),
        ({"num_layers": 2, "budget": 1, "method": "best"}, "method is 'best'"),
        ({"num_layers": 9, "budget": 1, "method": "exhaustive"}, "exhaustive means 19683 patterns"),
    ):
        with pytest.raises(ValueError, match=match):
            oracle_search(lone_layer, **arguments)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="loss_fn returned"):
        oracle_search(lambda pattern: torch.zeros(1 + sum(pattern)), 2, budget=2)
