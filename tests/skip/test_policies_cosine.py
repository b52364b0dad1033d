"""CosineSkip against a token-by-token oracle, causality, beam reorder, calibration."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from policy_runner import HIDDEN, Ffns, run
from torch import Tensor

from anabranch.skip import CosineSkip, Keep, State


def oracle(cosines: list[list[float]], threshold: float, start: int, end: int, until: object, may: list[bool]) -> list:
    """Which layers each token runs, from what their cosines would be: `cosines[layer][token]`."""
    num_layers, runs = len(cosines), []
    for token, allowed in enumerate(may):
        row, skip_to = [], -1
        for layer in range(num_layers):
            middle = start <= layer < num_layers - end
            ran = not middle or layer >= skip_to
            row.append(ran)
            if middle and ran and allowed and cosines[layer][token] > threshold:
                skip_to = num_layers - end if until == "end_region" else layer + 1 + until
        runs.append(row)
    return runs


def drive(policy: CosineSkip, cosines: Tensor, state: State, padding: Tensor | None = None) -> Tensor:
    """Decisions `[L, B, S]` of one call whose cosines are given."""
    num_layers, batch, length = cosines.shape
    state.padding = padding
    x = torch.zeros(batch, length, 4)
    rows = []
    for layer in range(num_layers):
        decision = policy.decide(layer, state.step, x, state)
        mask = torch.ones(batch, length, dtype=torch.bool) if decision is None else decision.mask  # type: ignore[union-attr]
        policy.observe(layer, state.step, x, x, cosines[layer].masked_fill(~mask, 1.0), state)
        rows.append(mask)
    state.advance(length)
    return torch.stack(rows)


def prompt_length(pieces: list[int]) -> int:
    """The first call, and those of several tokens up to the first of one."""
    return sum(itertools.takewhile(lambda piece: piece > 1, pieces)) or 1


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_decisions_are_the_oracles_batched_padded_and_in_pieces(data: st.DataObject) -> None:
    num_layers = data.draw(st.integers(4, 8))
    start, end = data.draw(st.integers(0, 1)), data.draw(st.integers(0, 1))
    until = data.draw(st.sampled_from(["end_region", 1, 2, 3]))
    warmup, skip_prompt = data.draw(st.integers(0, 3)), data.draw(st.booleans())
    batch, pieces = data.draw(st.integers(1, 3)), data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=3))
    length = sum(pieces)
    generator = torch.Generator(torch.get_default_device()).manual_seed(data.draw(st.integers(0, 99)))
    cosines = torch.rand(num_layers, batch, length, generator=generator)
    pads = [data.draw(st.integers(0, pieces[0] - 1)) for _ in range(batch)]
    padding = torch.arange(length) >= torch.tensor(pads)[:, None]
    policy = CosineSkip(0.6, cold_start=start, cold_end=end, warmup_tokens=warmup, until=until, skip_prompt=skip_prompt)
    state, at, parts = State(num_layers), 0, []
    for piece in pieces:
        parts.append(drive(policy, cosines[..., at : at + piece], state, padding[:, at : at + piece]))
        at += piece
    got = torch.cat(parts, 2)
    for b, pad in enumerate(pads):
        first = pad if skip_prompt else prompt_length(pieces)
        may = [t >= first + warmup for t in range(pad, length)]
        want = oracle(cosines[:, b, pad:].tolist(), float(policy.threshold), start, end, until, may)
        assert got[:, b, pad:].T.tolist() == want


def test_token_by_token_is_one_call() -> None:
    ffns, x = Ffns(6), torch.randn(3, 5, HIDDEN, dtype=torch.float64)
    policy = CosineSkip(0.9, warmup_tokens=1)
    whole, decisions = run(ffns, policy, x)
    skipped = sum(int((~d.mask).sum()) for d in decisions if isinstance(d, Keep))
    assert 0 < skipped < 4 * 15
    state = State(6)
    pieces = torch.cat([run(ffns, policy, x[:, t : t + 1], state)[0] for t in range(5)], 1)
    torch.testing.assert_close(pieces, whole, rtol=0, atol=1e-12)


def test_reorder_takes_each_sequences_token_count_along() -> None:
    policy = CosineSkip(0.0, cold_start=0, cold_end=0, warmup_tokens=3)
    state = State(3)
    drive(policy, torch.ones(3, 2, 4), state, torch.tensor([[True] * 4, [False] * 3 + [True]]))
    state.reorder(torch.tensor([1, 0, 0]))
    got = drive(policy, torch.ones(3, 3, 1), state)
    assert got[1, :, 0].tolist() == [True, False, False]


def test_asking_a_step_twice_counts_its_tokens_once() -> None:
    policy = CosineSkip(0.0, cold_start=0, cold_end=0, warmup_tokens=4)
    state, x = State(3), torch.zeros(1, 3, 4)
    policy.decide(0, 0, x, state)
    drive(policy, torch.ones(3, 1, 3), state)
    assert bool(drive(policy, torch.ones(3, 1, 1), state).all())
    assert not bool(drive(policy, torch.ones(3, 1, 1), state)[1].any())


@pytest.mark.parametrize("until", ["end_region", 1, 2])
@pytest.mark.parametrize("rate", [0.0, 0.1, 0.25])
def test_calibrated_threshold_skips_the_wished_share(until: object, rate: float) -> None:
    cosines = torch.rand(8, 4, 50) * 0.1  # never near 1
    policy = CosineSkip(0.9, warmup_tokens=0, until=until)  # type: ignore[arg-type]
    with policy.observing() as observed:
        state = State(8)
        for call in cosines.split(25, 2):
            assert bool(drive(policy, call, state).all())
    reached = policy.calibrate(observed, rate, 8)
    masks = drive(policy, cosines, State(8))
    assert float((~masks).float().mean()) == pytest.approx(reached, abs=1e-6)
    assert reached == pytest.approx(rate, abs=0.01)


def test_padding_is_not_observed() -> None:
    policy = CosineSkip(0.5)
    with policy.observing() as observed:
        drive(policy, torch.rand(4, 2, 3), State(4), torch.tensor([[True] * 3, [False, True, True]]))
    assert sorted(observed) == [1, 2] and all(rows[0].numel() == 5 for rows in observed.values())


def test_threshold_is_saved_and_nothing_is_learned() -> None:
    policy = CosineSkip(0.25)
    assert float(policy.state_dict()["threshold"]) == 0.25 and not list(policy.parameters())
    assert policy.needs_cosine and policy.scope == "ffn" and policy.skippable_layers(6) == {2, 3, 4}


def test_bad_input() -> None:
    for arguments, match in (
        ({"cold_start": -1}, "cold_start is -1"),
        ({"warmup_tokens": -1}, "warmup_tokens is -1"),
        ({"until": 0}, "until is 0"),
        ({"until": "forever"}, "until is 'forever'"),
    ):
        with pytest.raises(ValueError, match=match):
            CosineSkip(0.9, **arguments)  # type: ignore[arg-type]
    policy = CosineSkip(0.9, cold_start=2, cold_end=2)
    with pytest.raises(ValueError, match="at least 2 of 5 layers"):
        policy.check(5, 4, 4)
    rows = {1: [torch.rand(4)], 2: [torch.rand(4)], 3: [torch.rand(4)]}
    with pytest.raises(ValueError, match=r"rate is 0\.9, must be at most"):
        policy.calibrate(rows, 0.9, 5)
    with pytest.raises(ValueError, match="must lie between 0 and 1"):
        policy.calibrate(rows, -0.1, 5)
    for bad in ({}, {1: [torch.rand(4)], 2: [torch.rand(3)]}):
        with pytest.raises(ValueError, match="run whole forwards"):
            policy.calibrate(bad, 0.1, 5)
