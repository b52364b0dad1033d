"""Nothing of a model that is not on the CPU is read by the host while a policy runs: on "meta" there are no values.

A read raises there. (A torch without CUDA cannot slice fake CUDA tensors; what a GPU computes is not shown here.)
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import transformers
from skip_cases import COMMON, HIDDEN, INTERMEDIATE, LAYERS, Hashed, Sequences

from anabranch import skip
from anabranch.skip import KeyValueRule

pytestmark = pytest.mark.cpu

POLICIES: dict[str, Any] = {
    "keep": lambda: Hashed(),
    "gate": lambda: Hashed(gate=True),
    "widths": lambda: Hashed(widths=(0, 40, INTERMEDIATE)),
    "sequences": lambda: Sequences([[1, 0, 1, 2], [1, 1, 0, 1]]),
    "holes": lambda: Sequences([[1, 0, 1, 2], [1, 1, 0, 1]], KeyValueRule.HOLE, revives=True),
    "cosine": lambda: skip.CosineSkip(0.8),
    "router": lambda: skip.LayerRouter(LAYERS, HIDDEN),
    "temporal": lambda: skip.TemporalDrop([1, 2], HIDDEN, 3),
    "width router": lambda: skip.WidthRouter(LAYERS, HIDDEN, (43, INTERMEDIATE)),
    "three ways": lambda: skip.ThreeWayRouter(LAYERS, HIDDEN, 43, INTERMEDIATE),
    "depths": lambda: skip.MixtureOfDepths(LAYERS, HIDDEN),
    "uniform": lambda: skip.UniformSkip(1.4),
    "bandit": lambda: skip.BanditSkip(LAYERS, HIDDEN, 2),
}


@pytest.fixture
def meta() -> Iterator[None]:
    with torch.device("meta"):
        yield


@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("name", POLICIES)
def test_inference(name: str, static: bool, meta: None) -> None:
    config = transformers.LlamaConfig(**COMMON)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    skip.apply(model, POLICIES[name]().eval())
    kind: Any = transformers.StaticCache if static else transformers.DynamicCache
    cache = kind(config=config, **({"max_cache_len": 20} if static else {}))
    with torch.no_grad():
        for length in (5, 1, 1, 1, 1):
            mask = torch.ones((2, 1, length, 20), dtype=torch.bool) if static else None
            positions = torch.arange(length)[None]
            tokens = torch.zeros((2, length), dtype=torch.int64)
            out = model(tokens, attention_mask=mask, position_ids=positions, cache=cache, use_cache=True)
            assert out.logits.shape == (2, length, 97) and out.logits.device.type == "meta"


@pytest.mark.parametrize("name", ["keep", "gate", "widths", "sequences", "depths", "width router"])
def test_training(name: str, meta: None) -> None:
    model = transformers.AutoModelForCausalLM.from_config(transformers.LlamaConfig(**COMMON)).train()
    skip.apply(model, POLICIES[name]().train())
    logits = model(torch.zeros((2, 5), dtype=torch.int64)).logits
    logits.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
