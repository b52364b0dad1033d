"""`oracle_search`: the best pattern of actions for each token, the bound of every router (Duo-LLM)."""

from __future__ import annotations

import dataclasses
import itertools
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor

Pattern = tuple[int, ...]
"""One action per layer."""

Method = Literal["auto", "exhaustive", "random", "beam"]


@dataclasses.dataclass(frozen=True, eq=False)
class OracleResult:
    """What the best pattern of each token gives.

    Attributes:
        patterns: those evaluated, in order.
        costs: of each pattern.
        mean_losses: of each pattern, float64 `[P]`.
        best: int64 `[N]`, each token's best pattern within the budget; the cheaper, then the earlier among equals.
        best_losses: `[N]`, its loss.
        difficulty: `[N]`, at least 0: how much less the token loses with the best pattern at any cost.
    """

    patterns: list[Pattern]
    costs: list[float]
    mean_losses: Tensor
    best: Tensor
    best_losses: Tensor
    difficulty: Tensor


def oracle_search(
    loss_fn: Callable[[Pattern], Tensor],
    num_layers: int,
    num_actions: int = 3,
    *,
    budget: float,
    costs: Sequence[float] | None = None,
    method: Method = "auto",
    max_patterns: int = 6561,
    samples: int = 100,
    beam: int = 4,
    seed: int = 0,
) -> OracleResult:
    """The best pattern of actions for each token at a cost within a budget: what no router can beat.

    "exhaustive" tries every pattern. "random" draws `samples` distinct ones, half of them lowered to the budget action
    by action, beside the cheapest and the dearest. "beam" begins at the cheapest, raises one layer by one action at a
    time, and keeps the `beam` patterns of smallest mean loss after each round, up to the dearest. "auto" is exhaustive
    where there are at most `max_patterns` patterns (3 actions: up to 8 layers), else random.

    A pattern is evaluated with all tokens taking it. So a token's loss is exact where its neighbours take it too, and
    an estimate where each takes its own.

    Source: Duo-LLM (arXiv 2410.10846; no code): a token is hard where more compute lowers its loss, not where its loss
    is large. "beam" and the bound are ours.

    Gradient: none, `loss_fn` runs without.

    Args:
        loss_fn: losses `[N]` of the same N tokens under a pattern; `ThreeWayRouter.forced` makes it take effect.
        num_layers, num_actions: `num_actions^num_layers` patterns; actions from the cheapest to the dearest.
        budget: largest sum of costs.
        costs: of each action, rising; default 0, 1, 2, ...
        max_patterns: most that are evaluated; "beam" stops there too.

    Returns:
        An `OracleResult`: of each token the best pattern within the budget, of each pattern its cost and mean loss.

    Raises:
        ValueError: an argument out of range, a budget below the cheapest pattern, too many patterns for "exhaustive",
            or losses of another shape from call to call.

    Cost:
        Up to `max_patterns` calls of `loss_fn`; memory for some vectors `[N]` whatever their number.
    """
    op = "oracle_search"
    prices = [float(price) for price in (range(num_actions) if costs is None else costs)]
    if num_layers < 1 or num_actions < 1 or min(max_patterns, samples, beam) < 1:
        raise ValueError(f"{op}: a count is below 1, must be at least 1; see num_layers, num_actions, samples and beam")
    if len(prices) != num_actions or any(a >= b for a, b in itertools.pairwise(prices)):
        raise ValueError(f"{op}: costs is {prices}, must be {num_actions} rising numbers; order actions by their cost")
    if budget < prices[0] * num_layers:
        raise ValueError(
            f"{op}: budget is {budget}, must be at least {prices[0] * num_layers}, the cheapest pattern; raise it"
        )
    if method not in ("auto", "exhaustive", "random", "beam"):
        raise ValueError(f"{op}: method is {method!r}, must be auto, exhaustive, random or beam; auto is the default")
    count = num_actions**num_layers
    if method == "auto":
        method = "exhaustive" if count <= max_patterns else "random"
    if method == "exhaustive" and count > max_patterns:
        raise ValueError(
            f"{op}: exhaustive means {count} patterns, must be at most max_patterns={max_patterns}; "
            "take 'random' or 'beam', or raise it"
        )
    table = _Oracle(loss_fn, prices, budget, max_patterns)
    if method == "exhaustive":
        table.evaluate(itertools.product(range(num_actions), repeat=num_layers))
    elif method == "random":
        table.evaluate(_random_patterns(random.Random(seed), num_layers, prices, budget, min(samples, count)))
    else:
        _beam_search(table, num_layers, num_actions, beam)
    return table.result()


class _Oracle:
    """Evaluates patterns once each and remembers the best of every token."""

    def __init__(
        self, loss_fn: Callable[[Pattern], Tensor], prices: list[float], budget: float, max_patterns: int
    ) -> None:
        self._loss_fn = loss_fn
        self._prices = prices
        self._budget = budget
        self._max_patterns = max_patterns
        self.means: dict[Pattern, float] = {}
        self._best = self._best_costs = self._best_losses = self._least = torch.empty(0)

    def cost(self, pattern: Pattern) -> float:
        return sum(self._prices[action] for action in pattern)

    def full(self) -> bool:
        return len(self.means) >= self._max_patterns

    @torch.no_grad()
    def evaluate(self, patterns: Iterable[Pattern]) -> None:
        """The cheapest pattern comes first, so that each token has one within the budget."""
        for pattern in patterns:
            if self.full():
                return
            if pattern not in self.means:
                self._evaluate(pattern)

    def _evaluate(self, pattern: Pattern) -> None:
        losses = self._loss_fn(pattern).detach().flatten()
        if self.means and losses.shape != self._least.shape:
            raise ValueError(
                f"oracle_search: loss_fn returned {losses.numel()} losses, must be {self._least.numel()} as before; "
                "evaluate the same tokens each time"
            )
        index = len(self.means)
        if index == 0:
            self._least = losses
            self._best_losses = losses
            self._best = torch.zeros_like(losses, dtype=torch.int64)
            self._best_costs = torch.full_like(losses, self.cost(pattern), dtype=torch.float64)
        elif self.cost(pattern) <= self._budget:
            cost = self.cost(pattern)
            better = (losses < self._best_losses) | ((losses == self._best_losses) & (cost < self._best_costs))
            self._best = self._best.masked_fill(better, index)
            self._best_costs = self._best_costs.masked_fill(better, cost)
        self._least = torch.minimum(self._least, losses)
        self._best_losses = torch.where(self._best == index, losses, self._best_losses)
        self.means[pattern] = float(losses.double().mean())

    def result(self) -> OracleResult:
        patterns = list(self.means)
        return OracleResult(
            patterns=patterns,
            costs=[self.cost(pattern) for pattern in patterns],
            mean_losses=torch.tensor(list(self.means.values()), dtype=torch.float64),
            best=self._best,
            best_losses=self._best_losses,
            difficulty=self._best_losses - self._least,
        )


def _random_patterns(
    rng: random.Random, num_layers: int, prices: list[float], budget: float, samples: int
) -> Iterator[Pattern]:
    """The cheapest and the dearest, then distinct draws, every second lowered to the budget."""
    yield (0,) * num_layers
    yield (len(prices) - 1,) * num_layers
    seen: set[Pattern] = set()
    # Where few patterns lie within the budget the lowered draws run out: the tries are bounded.
    for draw in range(20 * samples):
        if len(seen) == samples:
            return
        pattern = [rng.randrange(len(prices)) for _ in range(num_layers)]
        while draw % 2 == 0 and sum(prices[action] for action in pattern) > budget and any(pattern):
            pattern[rng.choice([layer for layer, action in enumerate(pattern) if action > 0])] -= 1
        if tuple(pattern) not in seen:
            seen.add(tuple(pattern))
            yield tuple(pattern)


def _beam_search(table: _Oracle, num_layers: int, num_actions: int, beam: int) -> None:
    kept: list[Pattern] = [(0,) * num_layers]
    table.evaluate(kept)
    while kept and not table.full():
        raised = {
            (*pattern[:layer], pattern[layer] + 1, *pattern[layer + 1 :])
            for pattern in kept
            for layer in range(num_layers)
            if pattern[layer] < num_actions - 1
        }
        table.evaluate(sorted(raised))
        kept = sorted(raised & table.means.keys(), key=lambda pattern: (table.means[pattern], pattern))[:beam]
