"""UniformSkip and ContiguousSkip: which layers, in which calls, and the models that they do not fit."""

from __future__ import annotations

import itertools
from fractions import Fraction
from math import floor

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from anabranch.skip import Action, ContiguousSkip, KeyValueRule, Layer, State, UniformSkip

X = torch.zeros(2, 1, 4)


def kept_number(num_layers: int, hundredths: int) -> int:
    """floor(L / speedup) in whole numbers: what a speed-up written with two digits after the point means."""
    return num_layers * 100 // hundredths


SPEEDUPS = st.integers(100, 800)  # in hundredths


@given(st.integers(2, 80), SPEEDUPS)
@example(33, 110)
@example(21, 105)
def test_kept_layers_are_as_many_as_the_speedup_says(num_layers: int, hundredths: int) -> None:
    wanted, speedup = kept_number(num_layers, hundredths), hundredths / 100
    for pattern in ("even", "released"):
        policy = UniformSkip(speedup, pattern=pattern)
        if wanted < 2:
            with pytest.raises(ValueError, match="must leave at least 2"):
                policy.check(num_layers, 4, 4)
            continue
        kept = policy.kept_layers(num_layers)
        assert len(set(kept)) == wanted and kept == sorted(kept)
        assert kept[0] == 0 and kept[-1] == num_layers - 1
        assert policy.skippable_layers(num_layers) == set(range(num_layers)) - set(kept)


@given(st.integers(2, 80), st.data())
def test_a_speedup_that_is_a_quotient_keeps_its_divisor(num_layers: int, data: st.DataObject) -> None:
    kept = data.draw(st.integers(2, num_layers))
    assert len(UniformSkip(num_layers / kept).kept_layers(num_layers)) == kept


@given(st.integers(2, 80), SPEEDUPS)
def test_even_layers_are_the_nearest_to_even_distances(num_layers: int, hundredths: int) -> None:
    number = kept_number(num_layers, hundredths)
    if number >= 2:
        kept = UniformSkip(hundredths / 100).kept_layers(num_layers)
        half = Fraction(1, 2)
        assert kept == [floor(Fraction(i * (num_layers - 1), number - 1) + half) for i in range(number)]
        gaps = {b - a for a, b in itertools.pairwise(kept)}
        assert max(gaps) - min(gaps) <= 1


def released_rule(num_layers: int, kept: int) -> list[int]:
    chosen, layer = {0, num_layers - 1}, 0
    while len(chosen) < kept:
        layer += num_layers // (kept - 1)
        chosen.add(layer)
    return sorted(chosen)


@given(st.integers(2, 80), SPEEDUPS)
def test_released_is_the_released_loop(num_layers: int, hundredths: int) -> None:
    kept = kept_number(num_layers, hundredths)
    if kept >= 2:
        policy = UniformSkip(hundredths / 100, pattern="released")
        assert policy.kept_layers(num_layers) == released_rule(num_layers, kept)


def test_released_loses_a_block_of_eleven_and_even_does_not() -> None:
    assert UniformSkip(1.5, pattern="released").kept_layers(32) == [*range(20), 31]
    skipped = sorted(UniformSkip(1.5).skippable_layers(32))
    assert len(skipped) == 11 and all(b - a > 1 for a, b in itertools.pairwise(skipped))


@pytest.mark.parametrize("policy", [UniformSkip(2), ContiguousSkip(1, 2)], ids=["uniform", "contiguous"])
def test_prompt_runs_all_and_decoding_the_kept(policy: UniformSkip | ContiguousSkip) -> None:
    state = State(6)
    assert [policy.decide(layer, 0, X, state) for layer in range(6)] == [None] * 6
    skipped = policy.skippable_layers(6)
    for step in (1, 2):
        for layer in range(6):
            decision = policy.decide(layer, step, X, state)
            if layer in skipped:
                assert isinstance(decision, Layer) and decision.action is Action.SKIP and decision.otherwise is None
            else:
                assert decision is None
    policy.skip_prompt = True
    assert {layer for layer in range(6) if policy.decide(layer, 0, X, state) is not None} == skipped
    policy.skip_prompt = False
    assert policy.key_value_rule is KeyValueRule.ALIAS and not policy.revives and not policy.repeats
    assert policy.scope == "layer" and not list(policy.parameters())


@pytest.mark.parametrize("policy", [UniformSkip(2), ContiguousSkip(1, 2)], ids=["uniform", "contiguous"])
def test_a_prompt_in_chunks_runs_all(policy: UniformSkip | ContiguousSkip) -> None:
    """Also after it several tokens at once are decoding."""
    state, got = State(6), []
    for tokens in (3, 3, 2, 1, 2):
        decisions = [policy.decide(layer, state.step, torch.zeros(2, tokens, 4), state) for layer in range(6)]
        got.append(any(decision is not None for decision in decisions))
        state.advance(tokens)
    assert got == [False, False, False, True, True]


def test_contiguous_block() -> None:
    assert ContiguousSkip(2, 4).skippable_layers(6) == {2, 3, 4}


def test_bad_input() -> None:
    for speedup in (0.5, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="speedup is"):
            UniformSkip(speedup)
    with pytest.raises(ValueError, match="pattern is 'odd'"):
        UniformSkip(2, pattern="odd")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="must leave at least 2 of 1 layers"):
        UniformSkip(1).check(1, 4, 4)
    for first, last in ((0, 2), (3, 2)):
        with pytest.raises(ValueError, match="1 <= first <= last"):
            ContiguousSkip(first, last)
    with pytest.raises(ValueError, match="layer is 6"):
        ContiguousSkip(2, 6).check(6, 4, 4)
