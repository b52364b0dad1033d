"""Experts, skipping and mixers in one model, trained in every way that torch has: equal to plain float32 eager."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from dynamic_model import HIDDEN, STREAMS, build, gradients, loss_of, record, tokens
from torch import Tensor

from anabranch.mixers import HyperConnectionSequence, expand_streams
from anabranch.plan import Plan
from anabranch.skip import MixtureOfDepths, State


@pytest.mark.parametrize("kind", ["reentrant", "other"])
def test_gradient_checkpointing(kind: Literal["reentrant", "other"]) -> None:
    """Bit for bit: the kernels have one order of sums, so what is computed again is what was computed first."""
    wanted_loss, wanted = gradients(build(), tokens())
    loss, found = gradients(build(checkpointed=kind), tokens())
    assert torch.equal(loss, wanted_loss)
    for name, gradient in wanted.items():
        assert gradient.any() and torch.equal(found[name], gradient), name


def groups_of(plan: Plan) -> Tensor:
    """Which groups each item is in, as a number: bit g stands for group g."""
    groups = torch.zeros(plan.num_items, dtype=torch.int64)
    for group in range(plan.num_groups):
        first, last = plan.group_offsets[group : group + 2].tolist()
        groups[plan.item_ids[first:last].long()] += 2**group
    return groups


@pytest.mark.cpu
def test_autocast() -> None:
    """bfloat16 products around float32 streams and choices.

    A row whose choices are those of float32 differs by rounding: errors of 2**-9 in each of a dozen products on its
    way, which add up at random, so below 4 * 2**-8 of the largest logit. Few rows choose otherwise: those whose scores
    lie within a rounding of their threshold.
    """
    model, ids = build().train(), tokens(16, 16)
    decisions: list[Tensor] = []
    record(model, lambda keep: decisions.append(keep.mask.flatten()), lambda plan: decisions.append(groups_of(plan)))
    wanted = model(ids).flatten(0, 1)
    count = len(decisions)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits, loss = model(ids), loss_of(model, ids)
    assert logits.dtype == torch.bfloat16
    pairs = zip(decisions[:count], decisions[count : 2 * count], strict=True)
    same = torch.stack([ours == theirs for ours, theirs in pairs]).all(0)
    assert count == 4 and same.float().mean() > 0.9
    error = (logits.flatten(0, 1).float() - wanted)[same].abs().max()
    assert 0 < error < 4 * 2**-8 * wanted.abs().max()
    loss.backward()
    bf16 = {name: p.grad.clone() for name, p in model.named_parameters()}
    for name, gradient in gradients(build(), ids)[1].items():
        assert bf16[name].dtype == torch.float32
        assert torch.cosine_similarity(bf16[name].flatten(), gradient.flatten(), dim=0) > 0.95, name


def test_compiles_whole() -> None:
    """One graph, forward and backward, of a policy that records what its loss wants while it decides.

    A batch of another size makes it dynamic. Its kernels are eager ones, so the loss is equal to the bit.
    """
    torch.compiler.reset()
    model = build(num_layers=1)
    model.policy = MixtureOfDepths(1, HIDDEN, capacity=0.5, every=1)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for batch in (4, 5):
        wanted_loss, wanted = gradients(model, tokens(batch))
        loss, found = gradients(compiled, tokens(batch))
        assert torch.equal(loss, wanted_loss)
        for name, gradient in wanted.items():
            torch.testing.assert_close(found[f"_orig_mod.{name}"], gradient, rtol=1e-5, atol=1e-7)


def test_inductor() -> None:
    """The compiler's own kernels around ours. One layer: compiling takes most of this test."""
    torch.compiler.reset()
    model, ids = build(num_layers=1), tokens()
    wanted_loss, wanted = gradients(model, ids)
    loss, found = gradients(torch.compile(model, fullgraph=True), ids)
    torch.testing.assert_close(loss, wanted_loss)
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[f"_orig_mod.{name}"], gradient, rtol=1e-4, atol=1e-6)


def test_reversible_streams() -> None:
    """A sequence that rebuilds its streams gives the policy, which its sub-layers are handed, its gradient too."""
    model, ids = build(kinds=("jpmhc", "identity")), tokens()  # orthogonal mixing
    found = []
    for reversible in (False, True):
        model.zero_grad()
        sequence = HyperConnectionSequence(model.blocks, reversible=reversible)
        streams = sequence(expand_streams(model.embedding(ids), STREAMS), model.policy, State(2))
        streams.square().mean().backward()
        found.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys() >= {"policy.scores.1.weight", "embedding.weight"}
    for name, gradient in found[0].items():
        assert gradient.any(), name
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-3, atol=1e-6)
