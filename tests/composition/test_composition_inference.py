"""Experts, skipping and mixers in one model: exported, saved, copied, packed and counted."""

from __future__ import annotations

import copy
import io
import pickle
from pathlib import Path

import pytest
import torch
from dynamic_model import EXPERTS, HIDDEN, INTERMEDIATE, VOCABULARY, DynamicModel, build, loss_of, record, tokens
from torch import Tensor
from torch.export import Dim, export

from anabranch import Cost, CostMeter
from anabranch.skip import MixtureOfDepths


@torch.no_grad()
def logits_of(model: torch.nn.Module, batch: int = 4) -> Tensor:
    return model(tokens(batch))


def test_export_and_aoti(tmp_path: Path) -> None:
    """Any batch, in the exported graph and compiled ahead of time. One layer: compiling takes most of this test."""
    model = build(num_layers=1).eval()
    with torch.no_grad():
        program = export(model, (tokens(),), dynamic_shapes=({0: Dim("batch", min=2, max=64)},))
    names = {str(node.target) for node in program.graph.nodes}
    ours = ("gated_ffn_inference", "expert_ffn_inference", "stream_pre", "stream_post")
    assert names >= {f"anabranch.{name}.default" for name in ours}  # opaque: no decomposition, so no other numerics
    torch.export.save(program, tmp_path / "model.pt2")
    loaded = torch.export.load(tmp_path / "model.pt2").module()
    package = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "compiled.pt2"))
    compiled = torch._inductor.aoti_load_package(package)
    for batch in (2, 4, 7):
        wanted = logits_of(model, batch)
        assert torch.equal(logits_of(loaded, batch), wanted)
        torch.testing.assert_close(compiled(tokens(batch)), wanted)


def test_export_of_a_policy() -> None:
    """A policy with another rule in training than in inference exports the latter."""
    model = build()
    model.policy = MixtureOfDepths(2, HIDDEN, capacity=0.5, every=1)
    with torch.no_grad():
        program = export(model.eval(), (tokens(),), dynamic_shapes=({0: Dim("batch", min=2, max=64)},))
    assert torch.equal(logits_of(program.module(), 7), logits_of(model, 7))


def test_saved_and_copied(tmp_path: Path) -> None:
    """state_dict by torch and safetensors, deep copy, pickle; packed experts pack for themselves in a copy."""
    model, other = build(), build(seed=5)
    wanted = logits_of(model)
    assert not torch.equal(logits_of(other), wanted)
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    buffer.seek(0)
    other.load_state_dict(torch.load(buffer, weights_only=True))
    assert torch.equal(logits_of(other), wanted)
    safetensors = pytest.importorskip("safetensors.torch")
    safetensors.save_file(model.state_dict(), tmp_path / "model.safetensors")
    other = build(seed=5)
    other.load_state_dict(safetensors.load_file(tmp_path / "model.safetensors"))
    assert torch.equal(logits_of(other), wanted)

    model = pack(model)
    packed = logits_of(model)
    torch.testing.assert_close(packed, wanted)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert twin.blocks[1].sublayer.moe.packed is None and torch.equal(logits_of(twin), packed)
        with torch.no_grad():
            for parameter in twin.parameters():
                parameter.mul_(1.01)
        assert not torch.equal(logits_of(twin), packed) and torch.equal(logits_of(model), packed)
    model.load_state_dict(build(seed=5).state_dict())
    torch.testing.assert_close(logits_of(model), logits_of(build(seed=5)))


def pack(model: DynamicModel) -> DynamicModel:
    for block in model.blocks[1::2]:
        block.sublayer.moe.pack()
    return model


@pytest.mark.parametrize("packed", [False, True])
def test_costs_add_up(packed: bool) -> None:
    """The meter's sum over the model is what the decisions say, added up by hand."""
    model, ids = build(), tokens(3)
    if packed and ids.device.type == "cpu":
        pack(model)
    kept: list[int] = []
    sizes: list[list[int]] = []
    record(
        model, lambda keep: kept.append(int(keep.mask.sum())), lambda plan: sizes.append(plan.group_sizes().tolist())
    )
    with CostMeter(model) as meter:
        logits_of(model, 3)
    rows, per_row, wanted = ids.numel(), 3 * HIDDEN * INTERMEDIATE, Cost()
    for number in kept:
        read = 4 * per_row * (number > 0)
        wanted += Cost(1, number, rows, 2 * per_row * number, 2 * per_row * rows, read, 4 * per_row)
    for counts in sizes:
        number, dense = sum(counts[:EXPERTS]), rows * EXPERTS  # the identity, the last group, multiplies nothing
        touched = sum(count > 0 for count in counts[:EXPERTS])
        read, every = 4 * per_row * touched, 4 * per_row * EXPERTS
        wanted += Cost(1, number, dense, 2 * per_row * number, 2 * per_row * dense, read, every)
    assert meter.total() == wanted and len(kept) == len(sizes) == 2
    names = [f"blocks.{i}.sublayer" + (".moe" if i % 2 else "") for i in range(4)]
    assert list(meter.by_module()) == names and sum(meter.by_module().values(), Cost()) == wanted
    assert 0 < sum(kept) < 2 * rows


def test_what_checkpointing_computes_again_is_counted_again() -> None:
    costs = []
    for checkpointed in ("no", "other"):
        model = build(checkpointed=checkpointed)
        with CostMeter(model) as meter:
            loss_of(model, tokens()).backward()
        costs.append(meter.by_module())
    assert costs[1] == {name: cost + cost for name, cost in costs[0].items()}


def test_shapes_without_memory() -> None:
    """On the meta device, where torch has no autocast to switch off; weights come later."""
    with torch.device("meta"):
        model = DynamicModel()
    assert model(tokens().to("meta")).shape == (4, 9, VOCABULARY)
    model = model.to_empty(device=tokens().device)
    model.load_state_dict(build().state_dict())
    assert torch.equal(logits_of(model), logits_of(build()))
