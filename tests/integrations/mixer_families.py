"""Tiny random models of every family that `patch_mixers` knows, and how the tests run them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

transformers = pytest.importorskip("transformers", minversion="5.23")
pytest.importorskip("transformers.models.qwen4_exp")

from transformers.models import deepseek_v4, glm5_next, hy_v4, qwen4_exp  # noqa: E402

VOCABULARY = 97
COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
    "max_position_embeddings": 64,
    "moe_intermediate_size": 16,
    "num_experts_per_tok": 2,
}
INDEX: dict[str, Any] = {"index_n_heads": 2, "index_head_dim": 16, "index_topk": 4}
LATENT: dict[str, Any] = {"q_lora_rank": 8, "kv_lora_rank": 8, "v_head_dim": 16, "num_key_value_heads": 4}
TWO_KINDS = ["linear_attention", "indexed_attention"]


def deepseek() -> Any:
    config = deepseek_v4.DeepseekV4Config(
        **COMMON, **INDEX, num_key_value_heads=1, head_dim=16, q_lora_rank=8, n_routed_experts=4, o_groups=2,
        o_lora_rank=8, sliding_window=8, partial_rotary_factor=0.5, layer_types=["sliding_attention"] * 2,
        mlp_layer_types=["moe"] * 2,
    )  # fmt: skip
    return deepseek_v4.DeepseekV4ForCausalLM(config)


def hunyuan() -> Any:
    config = hy_v4.HYV4Config(
        **COMMON, **INDEX, **LATENT, intermediate_size=24, head_dim=16, n_routed_experts=4, qk_nope_head_dim=8,
        qk_rope_head_dim=8, hc_mult=3, hc_magnitude=1.5,
    )  # fmt: skip
    return hy_v4.HYV4ForCausalLM(config)


def hunyuan_vl() -> Any:
    hy_v4_vl = pytest.importorskip("transformers.models.hy_v4_vl")
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}
    config = hy_v4_vl.HYV4VLTextConfig(
        **COMMON, **INDEX, **LATENT, intermediate_size=24, head_dim=16, n_routed_experts=4, qk_nope_head_dim=8,
        qk_rope_head_dim=8, hc_mult=3, hc_magnitude=1.5, rope_parameters=rope,
    )  # fmt: skip
    return hy_v4_vl.HYV4VLTextModel(config)


def glm() -> Any:
    config = glm5_next.Glm5NextTextConfig(
        **COMMON, **INDEX, **LATENT, intermediate_size=24, n_routed_experts=4, qk_nope_head_dim=16, index_kpool=2,
        linear_head_dim=8, linear_num_heads=4, layer_types=TWO_KINDS,
    )  # fmt: skip
    return glm5_next.Glm5NextTextModel(config)


def qwen() -> Any:
    config = qwen4_exp.Qwen4ExpTextConfig(
        **(COMMON | {"eos_token_id": 96}), num_key_value_heads=2, head_dim=16, linear_key_head_dim=8,
        linear_value_head_dim=8, linear_num_key_heads=2, linear_num_value_heads=4,
        shared_expert_intermediate_size=16, num_experts=4, hc_lowrank=6,
        indexer_n_heads=2, indexer_kv_heads=1, indexer_head_dim=16, indexer_budget=4,
        indexer_compress_ratio=2, layer_types=TWO_KINDS, ple_layer_ids=[1], ple_embed_dim=8, heads_per_ngram=2,
        ngram_vocab_size_base=20, make_ngram_vocab_size_divisible_by=4, split_ngram_parts=1,
    )  # fmt: skip
    return qwen4_exp.Qwen4ExpForCausalLM(config)


FAMILIES: list[Callable[[], Any]] = [
    deepseek,
    hunyuan,
    glm,
    qwen,
]  # hunyuan_vl has the classes of hunyuan under other names
HEADS = {deepseek: 1, hunyuan: 1, hunyuan_vl: 1, glm: 0, qwen: 0}


def build(family: Callable[[], Any], dtype: torch.dtype = torch.float32) -> Any:
    """Random, with hyper-connections that differ from token to token and layer to layer."""
    torch.manual_seed(0)
    model = family()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "hc" in name or "hyper_connection" in name:
                parameter.add_(torch.randn_like(parameter) * (0.3 if parameter.dim() < 2 else 0.1))
    return model.to(dtype)


def tokens() -> Tensor:
    return torch.randint(2, VOCABULARY, (2, 9))


def run(model: Any, ids: Tensor) -> Tensor:
    out = model(input_ids=ids, use_cache=False)
    return out.logits if hasattr(out, "logits") else out.last_hidden_state


def gradients(model: Any, ids: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    model.zero_grad()
    out = run(model, ids)
    out.float().log_softmax(-1).square().mean().backward()
    return out.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """The models are too small to share out."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
