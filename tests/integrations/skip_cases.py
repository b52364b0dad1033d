"""Tiny models and policies of the tests of `skip.apply`."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from anabranch import skip
from anabranch.skip import Action, Decision, Keep, KeyValueRule, Layer, Policy, State, Width
from anabranch.skip.otherwise import Otherwise

HIDDEN, INTERMEDIATE, LAYERS, VOCABULARY = 64, 172, 4, 97
COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "intermediate_size": INTERMEDIATE,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
}
TABLE = [[1, 0, 1, 2], [2, 1, 0, 1], [1, 1, 1, 1], [1, 0, 0, 1]]  # per sequence and layer: skip, run, repeat
MODELS: dict[str, Callable[[], Any]] = {
    "llama": lambda: transformers.LlamaConfig(**COMMON),
    "llama_bias": lambda: transformers.LlamaConfig(**COMMON, mlp_bias=True, attention_bias=True),
    "qwen2": lambda: transformers.Qwen2Config(**COMMON),
    "qwen3": lambda: transformers.Qwen3Config(**COMMON, head_dim=16),
    "mistral": lambda: transformers.MistralConfig(**COMMON, sliding_window=6),
    "phi3": lambda: transformers.Phi3Config(**COMMON),
}


def build(name: str = "llama", dtype: torch.dtype = torch.float32, attention: str = "sdpa") -> Any:
    """A random model whose norms, biases and layers all matter."""
    config = MODELS[name]() if name in MODELS else name
    config._attn_implementation = attention
    torch.manual_seed(1)
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if "norm" in parameter_name:
                parameter.uniform_(0.5, 1.5)
            elif "bias" in parameter_name:
                parameter.normal_(0, 0.1)
            else:
                parameter.normal_(0, 0.15)
    return model.to(dtype).eval()


def prompt(batch: int = 2, length: int = 9) -> Tensor:
    return torch.randint(2, VOCABULARY, (batch, length))


class Never(Policy):
    """Answers that skip nothing, in each way there is."""

    def __init__(self, answer: str) -> None:
        super().__init__()
        self.answer = answer
        self.scope = "layer" if answer.startswith("layer") else "ffn"

    def decide(self, layer: int, step: int, x: Tensor, state: State) -> Decision:
        shape, device = x.shape[:2], x.device
        answers: dict[str, Decision] = {
            "none": None,
            "keep": Keep(torch.ones(shape, dtype=torch.bool, device=device)),
            "width": Width(torch.ones(shape[0], dtype=torch.int64, device=device), (0, INTERMEDIATE)),
            "layer_none": None,
            "layer_run": Layer(Action.RUN),
            "layer_each": Layer(torch.ones(shape[0], dtype=torch.int64, device=device)),
        }
        return answers[self.answer]


class Hashed(Policy):
    """Skips tokens by a hash of their own row, so causal; with a gate, else-branch or width on request."""

    def __init__(self, share: float = 0.5, gate: bool = False, otherwise: Any = None, widths: Any = None) -> None:
        super().__init__()
        self.share, self.widths, self.otherwise = share, widths, otherwise
        self.router = torch.nn.Linear(HIDDEN, 1) if gate else None
        self.asked = 0

    def check(self, num_layers: int, hidden_size: int, intermediate_size: int) -> None:
        if self.widths and max(self.widths) > intermediate_size:
            raise ValueError(
                f"Hashed: widths reach {max(self.widths)}, must be at most {intermediate_size}; lower them"
            )

    def mask(self, layer: int, x: Tensor) -> Tensor:
        # A sum of signs is the same to the bit for rows that differ by rounding only.
        signs = (x.detach().float()[..., :16] > 0).long()
        weights = torch.arange(16, device=x.device) * 7 + 3 + layer
        return (signs * weights).sum(-1) % 10 >= 10 * self.share

    def decide(self, layer: int, step: int, x: Tensor, state: State) -> Decision:
        self.asked += 1
        mask = self.mask(layer, x)
        gate = None if self.router is None else torch.sigmoid(self.router(x)[..., 0])
        if self.widths:
            index = mask.long() + (x[..., 20] > 0) * (len(self.widths) > 2)
            return Width(index, self.widths, gate, self.otherwise)
        return Keep(mask, gate, self.otherwise)


class Sequences(Policy):
    """Actions per sequence and layer: `table[b][layer]`, or one row for all as an `Action` for the batch."""

    scope = "layer"

    def __init__(
        self, table: list[list[int]], rule: KeyValueRule = KeyValueRule.COMPUTE, revives: bool = False
    ) -> None:
        super().__init__()
        self.table, self.key_value_rule, self.revives = table, rule, revives
        self.repeats = any(2 in row for row in table)
        self.otherwise: Otherwise | None = None

    def skippable_layers(self, num_layers: int) -> set[int]:
        return {layer for row in self.table for layer, action in enumerate(row) if action == 0}

    def decide(self, layer: int, step: int, x: Tensor, state: State) -> Decision:
        if "rows" not in state.memory:  # lies in the stream: beams take it along
            table = torch.tensor(self.table, device=x.device)
            state.memory["rows"] = table.repeat_interleave(x.shape[0] // len(table), 0)
        return Layer(state.memory["rows"][:, layer].clone(), self.otherwise)


class Stepwise(Policy):
    """One action for the whole batch that depends on layer and step: `actions(layer, step)`."""

    scope = "layer"

    def __init__(self, actions: Callable[[int, int], int], rule: KeyValueRule, revives: bool = True) -> None:
        super().__init__()
        self.actions, self.key_value_rule, self.revives = actions, rule, revives
        self.repeats = any(actions(layer, step) == 2 for layer in range(LAYERS) for step in range(8))

    def skippable_layers(self, num_layers: int) -> set[int]:
        return {layer for layer in range(num_layers) for step in range(8) if self.actions(layer, step) == 0}

    def decide(self, layer: int, step: int, x: Tensor, state: State) -> Decision:
        return Layer(Action(self.actions(layer, step)))


class Wrong(Policy):
    """Answers what its scope does not have."""

    def __init__(self, scope: str, answer: Any, **attributes: Any) -> None:
        super().__init__()
        self.scope, self.answer = scope, answer  # type: ignore[assignment]
        for name, value in attributes.items():
            setattr(self, name, value)

    def skippable_layers(self, num_layers: int) -> set[int]:
        return getattr(self, "layers", {1})

    def decide(self, layer: int, step: int, x: Tensor, state: State) -> Decision:
        return self.answer


def steps(model: Any, tokens: Tensor, first: int, cache: Any = None, **inputs: Any) -> Tensor:
    """Logits `[B, S, V]` of a prompt of `first` tokens and then one token at a time, with a cache."""
    cache = transformers.DynamicCache(config=model.config) if cache is None else cache
    mask = inputs.pop("attention_mask", None)
    # Since transformers 5.24 it is called "cache".
    name = "cache" if "cache" in inspect.signature(type(model).forward).parameters else "past_key_values"
    parts = []
    for begin, end in chunks(tokens.shape[1], first):
        extra = {} if mask is None else {"attention_mask": mask[:, :end]}
        if mask is not None:
            extra["position_ids"] = (mask[:, :end].cumsum(-1) - 1).clamp(min=0)[:, begin:end]
        with torch.no_grad():
            parts.append(model(tokens[:, begin:end], **{name: cache}, use_cache=True, **extra, **inputs).logits)
    return torch.cat(parts, 1)


def chunks(length: int, first: int) -> Iterator[tuple[int, int]]:
    yield 0, first
    yield from ((begin, begin + 1) for begin in range(first, length))


def with_layers(model: Any, order: list[int]) -> Any:
    """The model that runs these of its layers in this order, each with a cache slot of its own."""
    other = copy.deepcopy(model)
    skip.remove(other)
    layers = []
    for slot, index in enumerate(order):
        layer = copy.deepcopy(model.model.layers[index])
        layer.__dict__.pop("forward", None)
        layer.self_attn.layer_idx = slot
        layers.append(layer)
    other.model.layers = nn.ModuleList(layers)
    other.config.num_hidden_layers = len(layers)
    if getattr(other.config, "layer_types", None) is not None:
        other.config.layer_types = ["full_attention"] * len(layers)
    return other


def order_of(row: list[int]) -> list[int]:
    return [layer for layer, action in enumerate(row) for _ in range(action)]


def static(model: Any, length: int = 24) -> Any:
    return transformers.StaticCache(config=model.config, max_cache_len=length)
