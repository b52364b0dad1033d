"""`BanditSkip`: which layers an adapter can replace, found by trying (DAS)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from anabranch.skip.otherwise import LowRank
from anabranch.skip.policies.common import check_at_least, check_layers, check_size, layer_tuple
from anabranch.skip.policy import Action, Decision, KeyValueRule, Layer, Policy, State


class BanditSkip(Policy):
    """Bypasses `num_skipped` layers by adapters, `y = x + W2 relu(W1 norm(x))`; scores learn which to spare.

    A score s per layer, p = sigmoid(s). Each training step bypasses layers drawn without replacement with chances in
    proportion to p (`sample`), more and more of them over the warm-up. After it, every few steps (`explore`) draws
    candidate sets and updates by their losses (`update`): reward `R_k = exp(-loss_k)`, `s_i += rate (R_k - mean R) p_i
    (1 - p_i)` for each layer i of set k. At the end `finish` bypasses the layers of highest score for good. A training
    loop is

        for step, batch in enumerate(data):
            policy.sample(step)
            loss(model, batch).backward(); optimizer.step()
            if policy.explores(step):
                policy.explore(lambda: float(loss(model, held_out)))
        policy.finish()

    Gradient: the adapters' from the model's own loss, those of bypassed layers alone (W1 from the second step on, since
    W2 starts at 0, where a bypassed layer is the identity). Scores have none: they move by rewards.

    Cost: of a decision, a look into a set on the host; of a bypassed layer, its adapter. `sample` and `explore` run on
    the host, and read losses.

    Source: DAS (arXiv 2309.01479). Its two releases differ: 3 candidates at rate .05 on a held-out batch; 5 at .1 every
    3 steps on the training batch, with the number of bypassed layers ramped. The defaults are the second's.

    Args:
        num_layers, hidden_size: of the model.
        num_skipped: layers bypassed in the end, fewer than there are candidates.
        rank: of the adapters; 32 or 512 in the releases.
        layers: candidates; default all.
        rate: of the update; warmup_steps: of the ramp; every: steps between explorations; num_candidates: sets each.
        seed: of the draws.

    Raises:
        ValueError: an argument out of range; in `check`, another model.
    """

    scope = "layer"
    key_value_rule = KeyValueRule.HOLE
    revives = False
    scores: Tensor

    def __init__(
        self,
        num_layers: int,
        hidden_size: int,
        num_skipped: int,
        *,
        rank: int = 32,
        layers: Iterable[int] | None = None,
        rate: float = 0.1,
        warmup_steps: int = 0,
        every: int = 3,
        num_candidates: int = 5,
        seed: int = 0,
    ) -> None:
        super().__init__()
        op = "BanditSkip"
        check_at_least(op, 1, num_layers=num_layers, hidden_size=hidden_size, rank=rank, every=every)
        check_at_least(op, 2, num_candidates=num_candidates)
        check_at_least(op, 0, warmup_steps=warmup_steps)
        self.layers = layer_tuple(op, range(num_layers) if layers is None else layers, num_layers)
        if not 1 <= num_skipped < len(self.layers):
            raise ValueError(
                f"{op}: num_skipped is {num_skipped}, must be at least 1 and below the {len(self.layers)} candidates; "
                "leave something to choose"
            )
        if not rate > 0:
            raise ValueError(f"{op}: rate is {rate}, must be above 0; the releases have 0.05 and 0.1")
        self.num_layers = num_layers
        self.hidden_size = hidden_size
        self.num_skipped = num_skipped
        self.rate = rate
        self.warmup_steps = warmup_steps
        self.every = every
        self.num_candidates = num_candidates
        self.down_proj = nn.Parameter(torch.randn(len(self.layers), rank, hidden_size) * hidden_size**-0.5)
        self.up_proj = nn.Parameter(torch.zeros(len(self.layers), hidden_size, rank))
        # On the CPU whatever the default device: only the host works with them.
        self.register_buffer("scores", torch.zeros(len(self.layers), dtype=torch.float64, device="cpu"))
        self._generator = torch.Generator("cpu").manual_seed(seed)
        self._bypassed: frozenset[int] = frozenset()
        self._index = {layer: index for index, layer in enumerate(self.layers)}

    @property
    def bypassed(self) -> frozenset[int]:
        """The layers that are bypassed now."""
        return self._bypassed

    def check(self, num_layers: int, hidden_size: int, intermediate_size: int) -> None:
        check_size("BanditSkip", "num_layers", self.num_layers, num_layers)
        check_size("BanditSkip", "hidden_size", self.hidden_size, hidden_size)

    def skippable_layers(self, num_layers: int) -> set[int]:
        check_layers("BanditSkip", self.layers, num_layers)
        return set(self.layers)

    def decide(self, layer: int, step: int, x: Tensor, state: State) -> Decision:
        if layer not in self._bypassed:
            return None
        index = self._index[layer]
        adapter = LowRank(self.down_proj[index].to(x.dtype), self.up_proj[index].to(x.dtype))
        return Layer(Action.SKIP, otherwise=adapter)

    def num_bypassed(self, step: int) -> int:
        """How many layers a training step bypasses: `floor(num_skipped (step + 1) / (warmup_steps + 1))`, up to all."""
        return min(self.num_skipped, self.num_skipped * (step + 1) // (self.warmup_steps + 1))

    def draw(self, count: int) -> frozenset[int]:
        """`count` layers without replacement, with chances in proportion to sigmoid(score)."""
        if count == 0:
            return frozenset()
        chances = self.scores.cpu().sigmoid()
        chosen = torch.multinomial(chances, count, replacement=False, generator=self._generator)
        return frozenset(self.layers[index] for index in chosen.tolist())

    def sample(self, step: int) -> frozenset[int]:
        """Draws the layers that training step `step` bypasses, and bypasses them."""
        self._bypassed = self.draw(self.num_bypassed(step))
        return self._bypassed

    def explores(self, step: int) -> bool:
        """Whether scores are updated after training step `step`: every few steps once the warm-up is over."""
        return step >= self.warmup_steps and (step - self.warmup_steps + 1) % self.every == 0

    @torch.no_grad()
    def explore(self, loss: Callable[[], float]) -> None:
        """Draws `num_candidates` sets, calls `loss` (without gradients) while each is bypassed, and updates."""
        sets = [self.draw(self.num_skipped) for _ in range(self.num_candidates)]
        losses = []
        for candidate in sets:
            with self.bypassing(candidate):
                losses.append(float(loss()))
        self.update(sets, losses)

    @torch.no_grad()
    def update(self, sets: Sequence[Iterable[int]], losses: Sequence[float]) -> None:
        """Moves the scores by the rewards of sets of layers. All slopes are taken before the first move.

        Raises:
            ValueError: not one loss per set, a loss that is NaN, or a layer that is no candidate.
        """
        values = torch.tensor(list(losses), dtype=torch.float64, device="cpu")
        if len(sets) != len(losses) or not losses or bool(values.isnan().any()):
            raise ValueError(
                f"BanditSkip.update: losses is {list(losses)} for {len(sets)} sets, must be one number for each; "
                "leave out sets whose loss is NaN"
            )
        members = torch.zeros(len(sets), len(self.layers), dtype=torch.float64, device="cpu")
        for row, layers in enumerate(sets):
            for layer in layers:
                self._check_candidate("update", layer)
                members[row, self._index[layer]] = 1
        rewards = torch.exp(-values)
        p = self.scores.cpu().sigmoid()
        self.scores += (self.rate * ((rewards - rewards.mean()) @ members) * p * (1 - p)).to(self.scores)

    def _check_candidate(self, method: str, layer: int) -> None:
        if layer not in self._index:
            raise ValueError(
                f"BanditSkip.{method}: layer is {layer}, must be one of {list(self.layers)}; pass sets that were drawn"
            )

    @contextmanager
    def bypassing(self, layers: Iterable[int]) -> Iterator[None]:
        """While in it these candidates are bypassed, and no others. Raises ValueError for a layer that is none."""
        chosen = frozenset(layers)
        for layer in chosen:
            self._check_candidate("bypassing", layer)
        before, self._bypassed = self._bypassed, chosen
        try:
            yield
        finally:
            self._bypassed = before

    def finish(self) -> frozenset[int]:
        """Bypasses the `num_skipped` layers of highest score (ties: the lower layer) for good, and returns them."""
        order = self.scores.sort(descending=True, stable=True).indices.tolist()
        self._bypassed = frozenset(self.layers[index] for index in order[: self.num_skipped])
        return self._bypassed

    def get_extra_state(self) -> dict[str, Any]:
        return {"bypassed": sorted(self._bypassed)}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self._bypassed = frozenset(state["bypassed"])
