"""`skip.report`, and the meter on models that skip."""

from __future__ import annotations

import pytest
import torch
from skip_cases import HIDDEN, INTERMEDIATE, LAYERS, Hashed, Never, Sequences, Stepwise, build, prompt
from torch import Tensor

from anabranch import skip
from anabranch.cli.machine import Limits
from anabranch.core.cost import CostMeter
from anabranch.skip import Decision, Keep, KeyValueRule, Policy, State, Width
from anabranch.skip.runtime.depth import Depth

LIMITS = Limits(peak=48e9, bandwidth=8e9)  # float32: crossover at 4 * 48 / (2 * 8) = 12 tokens
FLOPS, BYTES = 6 * HIDDEN * INTERMEDIATE, 3 * HIDDEN * INTERMEDIATE * 4


class Fixed(Policy):
    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.mask = mask

    def decide(self, layer: int, step: int, x: Tensor, state: State) -> Decision:
        return Keep(self.mask) if layer == 1 else None


def test_kept_tokens_flops_bytes_and_times() -> None:
    model, tokens = build(), prompt(2, 9)
    mask = torch.zeros(2, 9, dtype=torch.bool)
    mask[0, :5] = True
    skip.apply(model, Fixed(mask))
    with torch.no_grad():
        model(tokens)
        model(tokens)
    report = skip.report(model, LIMITS)
    dense, skipped = report.layers[0], report.layers[1]
    assert (dense.calls, dense.kept_tokens, dense.total_tokens) == (2, 36, 36)
    assert dense.executed_flops == dense.dense_flops == 36 * FLOPS
    assert (skipped.calls, skipped.kept_tokens, skipped.total_tokens) == (2, 10, 36)
    assert (skipped.executed_flops, skipped.dense_flops) == (10 * FLOPS, 36 * FLOPS)
    assert skipped.executed_bytes == skipped.dense_bytes == 2 * BYTES
    assert skipped.dense_ms == pytest.approx(1e3 * 36 * FLOPS / 48e9)  # 18 tokens a call: arithmetic bounds
    assert skipped.executed_ms == pytest.approx(1e3 * 2 * BYTES / 8e9)  # 5: reading does
    assert report.crossover_rows == 12 and report.advice == ""
    assert report.total.kept_tokens == 3 * 36 + 10


def test_nothing_kept_reads_nothing() -> None:
    model, tokens = build(), prompt(1, 4)
    skip.apply(model, Fixed(torch.zeros(1, 4, dtype=torch.bool)))
    with torch.no_grad():
        model(tokens)
    layer = skip.report(model, LIMITS).layers[1]
    assert layer.kept_tokens == layer.executed_flops == layer.executed_bytes == 0 and layer.executed_ms == 0
    assert layer.dense_bytes == BYTES


def test_widths() -> None:
    model, tokens = build(), prompt(2, 3)

    class Fixed(Policy):
        def decide(self, layer: int, step: int, x: Tensor, state: State) -> Decision:
            index = torch.tensor([0, 1]) if layer == 0 else torch.tensor([[0, 1, 2], [0, 0, 1]])
            return Width(index, (0, 43, INTERMEDIATE))

    skip.apply(model, Fixed())
    with torch.no_grad():
        model(tokens)
    per_sequence, per_token = skip.report(model, LIMITS).layers[:2]
    assert per_sequence.kept_tokens == 3 and per_token.kept_tokens == 3
    assert per_sequence.executed_flops == 3 * FLOPS // 4 and per_sequence.executed_bytes == BYTES // 4
    assert per_token.executed_flops == (2 * 43 + INTERMEDIATE) * 6 * HIDDEN and per_token.executed_bytes == BYTES


@pytest.mark.parametrize("each", [False, True])
def test_whole_layers(each: bool) -> None:
    model, tokens = build(), prompt(2, 4)
    table = [[1, 0, 2, 1], [1, 1, 1, 0]] if each else [[1, 0, 2, 1]]
    skip.apply(model, Sequences(table))
    with torch.no_grad():
        model(tokens)
    report = skip.report(model, LIMITS)
    assert [layer.kept_tokens for layer in report.layers] == ([8, 4, 12, 4] if each else [8, 0, 16, 8])
    assert [layer.executed_bytes // BYTES for layer in report.layers] == ([1, 1, 2, 1] if each else [1, 0, 2, 1])
    assert all(layer.dense_flops == 8 * FLOPS for layer in report.layers)


def test_it_says_when_skipping_cannot_pay() -> None:
    """Between 2 tokens per call and the crossover, where tokens are decided one by one."""
    model, tokens = build(), prompt(3, 20)
    skip.apply(model, Hashed())
    with torch.no_grad():
        model(tokens)
    assert skip.report(model, LIMITS).advice == ""  # 60 tokens a call
    model.generate(tokens[:1], max_new_tokens=5, do_sample=False)
    assert skip.report(model, LIMITS).advice == ""  # one token a call
    model.generate(tokens, max_new_tokens=5, do_sample=False)
    report = skip.report(model, LIMITS)
    assert report.bound_calls > 0 and "cannot pay" in report.advice and "2 to 12 tokens" in report.advice
    assert report.advice in str(report)
    skip.apply(model, Stepwise(lambda layer, step: int(layer != 1), KeyValueRule.COMPUTE))
    model.generate(tokens, max_new_tokens=5, do_sample=False)
    assert skip.report(model, LIMITS).advice == ""  # whole layers for the whole batch do pay


@pytest.mark.parametrize("device_path", [False, True])
@pytest.mark.parametrize("kind", ["width", "layer"])
def test_one_decision_for_one_sequence_is_none_token_by_token(
    kind: str, device_path: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if device_path:
        monkeypatch.setattr(Depth, "on_host", staticmethod(lambda tensor: False))
    model, tokens = build(), prompt(1, 6)

    class Half(Policy):
        def decide(self, layer: int, step: int, x: Tensor, state: State) -> Decision:
            return Width(torch.zeros(len(x), dtype=torch.int64), (86, INTERMEDIATE))

    skip.apply(model, Half() if kind == "width" else Sequences([[1, 0, 1, 1]]))
    with torch.no_grad():
        model(tokens)
    assert skip.report(model, LIMITS).bound_calls == 0 and skip.report(model, LIMITS).advice == ""
    with torch.no_grad():
        model(tokens.repeat(2, 1)[:, :3])
    assert (skip.report(model, LIMITS).bound_calls > 0) == (kind == "width" or device_path)


def test_the_table_and_measured_limits() -> None:
    model, tokens = build(), prompt()
    skip.apply(model, Never("none"))
    with torch.no_grad():
        model(tokens)
    report = skip.report(model)
    assert report.peak > 0 and report.bandwidth > 0
    lines = str(report).splitlines()
    assert len(lines) == LAYERS + 3 and lines[0].split()[:2] == ["layer", "kept"]
    assert lines[1].split()[:3] == ["0", "18/18", "100.0"]


def test_a_model_without_a_policy_has_no_report() -> None:
    with pytest.raises(ValueError, match="LlamaForCausalLM has no policy"):
        skip.report(build())


@pytest.mark.cpu
def test_the_meter_names_the_layers() -> None:
    model, tokens = build(), prompt(2, 9)
    mask = torch.zeros(2, 9, dtype=torch.bool)
    mask[0, :5] = True
    skip.apply(model, Fixed(mask))
    with CostMeter(model) as meter, torch.no_grad():
        model(tokens)
    (name, cost), *rest = meter.by_module().items()
    assert name == "model.layers.1" and not rest  # what runs everything is the model's own modules
    assert cost.executed_flops == 5 * FLOPS and cost.dense_flops == 18 * FLOPS
