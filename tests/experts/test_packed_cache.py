"""A module's packed weights: made again when the weights change, and left out of copies and files."""

from __future__ import annotations

import copy
import io
import pickle
from functools import partial

import pytest
import torch

from anabranch.experts import DynamicMoE, expert_ffn, route_top_k

pytestmark = pytest.mark.cpu  # there is nothing to pack on a GPU


def test_a_module_packs_once_and_again_after_every_change() -> None:
    moe = DynamicMoE(24, 40, 4, partial(route_top_k, k=2), bias=True)
    x = torch.randn(9, 24)
    with torch.no_grad():
        before = moe(x)
        moe.pack()
        torch.testing.assert_close(moe(x), before)
        first = moe.packed
        assert first is not None
        moe(x)
        assert moe.packed is first
        moe.down_proj.mul_(2)
        torch.testing.assert_close(moe(x), expert_of(moe, x))
        assert moe.packed is not first
        moe.load_state_dict({name: tensor * 0.5 for name, tensor in moe.state_dict().items()})
        torch.testing.assert_close(moe(x), expert_of(moe, x))
    optimizer = torch.optim.SGD(moe.parameters(), lr=0.1)
    moe(x).square().sum().backward()  # trains on the weights themselves
    optimizer.step()
    with torch.no_grad():
        torch.testing.assert_close(moe(x), expert_of(moe, x))
        moe.double()
        assert moe(x.double()).dtype == torch.float64
        moe.unpack()
        assert moe.packed is None
    assert "packed" not in "".join(moe.state_dict())


WRITES = {
    "fused": lambda moe: torch.optim.SGD(moe.parameters(), lr=0.1, fused=True).step(),
    "data": lambda moe: moe.down_proj.data.mul_(2),
    "init": lambda moe: torch.nn.init.normal_(moe.gate_up_proj.data),
    "numpy": lambda moe: moe.down_proj.detach().numpy().__imul__(2),
}


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("call", [False, True])
def test_writes_that_no_version_counts(write: str, call: bool) -> None:
    """`call`: with a call that has gradients after the write, which frees the copy whatever was written."""
    moe, x = DynamicMoE(24, 40, 4, partial(route_top_k, k=2)), torch.randn(9, 24)
    moe.pack()
    moe(x).square().sum().backward()
    with torch.no_grad():
        before = moe(x)
        versions = [parameter._version for parameter in moe.parameters()]
        WRITES[write](moe)
        assert [parameter._version for parameter in moe.parameters()] == versions
    if call:
        moe(x)
        assert moe.packed is None
    with torch.no_grad():
        torch.testing.assert_close(moe(x), expert_of(moe, x), rtol=1e-4, atol=1e-4)
        assert not torch.allclose(moe(x), before)


def test_one_weight_that_no_sample_meets_is_seen_after_a_call_with_gradients() -> None:
    moe, x = DynamicMoE(24, 40, 4, partial(route_top_k, k=4)), torch.randn(9, 24)
    moe.pack()
    with torch.no_grad():
        moe(x)
        moe.down_proj.data[0, 3, 5] += 100
    moe(x)
    with torch.no_grad():
        torch.testing.assert_close(moe(x), expert_of(moe, x, 4), rtol=1e-4, atol=1e-4)


def test_weights_with_nans_are_packed_once() -> None:
    moe, x = DynamicMoE(24, 40, 4, partial(route_top_k, k=2)), torch.randn(9, 24)
    moe.pack()
    with torch.no_grad():
        moe.down_proj.fill_(torch.nan)
        moe(x)
        first = moe.packed
        moe(x)
        assert moe.packed is first


def test_weights_at_the_place_of_older_ones_are_seen() -> None:
    """Freed memory goes to the next tensor of that size: an address says nothing about what lies there."""
    moe = DynamicMoE(24, 40, 4, partial(route_top_k, k=2))
    moe.pack()
    x, memory = torch.randn(9, 24), bytearray(moe.down_proj.nbytes)
    for _ in range(2):
        torch.frombuffer(memory, dtype=torch.float32).normal_()
        moe.down_proj = torch.nn.Parameter(torch.frombuffer(memory, dtype=torch.float32).view(4, 24, 40))
        with torch.no_grad():
            torch.testing.assert_close(moe(x), expert_of(moe, x), rtol=1e-4, atol=1e-4)


def test_weights_made_in_inference_mode() -> None:
    with torch.inference_mode():
        moe = DynamicMoE(24, 40, 4, partial(route_top_k, k=2))
        moe.pack()
        x = torch.randn(9, 24)
        torch.testing.assert_close(moe(x), expert_of(moe, x))
        first = moe.packed
        moe(x)
    assert first is not None and moe.packed is first


def test_a_packed_module_is_copied_and_saved_without_its_packed_weights() -> None:
    moe, x = DynamicMoE(24, 40, 4, partial(route_top_k, k=2)), torch.randn(9, 24)
    moe.pack(torch.int8)
    with torch.no_grad():
        y = moe(x)
        file = io.BytesIO()
        torch.save(moe, file)
        file.seek(0)
        for other in (copy.deepcopy(moe), pickle.loads(pickle.dumps(moe)), torch.load(file, weights_only=False)):
            assert other.packed is None
            assert torch.equal(other(x), y)
            assert other.packed is not None and other.packed.gate_up.dtype == torch.int8
            other.down_proj.zero_()
            assert (other(x) == 0).all()
            assert torch.equal(moe(x), y)


def expert_of(moe: DynamicMoE, x: torch.Tensor, k: int = 2) -> torch.Tensor:
    """What the module computes, from its weights."""
    routed = route_top_k(x @ moe.gate.weight.T, k)
    biases = {"gate_up_bias": moe.gate_up_bias, "down_bias": moe.down_bias}
    return expert_ffn(x, moe.gate_up_proj, moe.down_proj, routed, **biases)
