"""expert_pack and expert_ffn_packed on arbitrary input: right where it is valid, else a ValueError, never a crash."""

from __future__ import annotations

import functools
import re
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from anabranch import plan

ops = torch.ops.anabranch
pytestmark = pytest.mark.cpu  # packing is for CPUs alone
MESSAGE = re.compile(r"^(pack_experts|expert_ffn): .+, must .+", re.DOTALL)
FLOATING = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
HUGE = [-(2**63), -(2**31), -1, 0, 2**30, 2**31, 2**62, 2**63 - 1]
BLOCKS = (96, 192)  # features of a packed block: gate and up, down
ACTIVATIONS = {0: lambda x: x, 4: torch.relu, 5: lambda x: torch.relu(x) ** 2}  # exact on whole numbers

fuzz = functools.partial(settings, deadline=None, derandomize=True)


@functools.cache
def num_isas() -> int:
    """Instruction sets of this machine."""
    before, count = ops.cpu_isa(), 1
    try:
        while count < 9:
            ops.set_cpu_isa(count)
            count += 1
    except ValueError:
        return count
    finally:
        ops.set_cpu_isa(before)
    raise AssertionError("an instruction set of no number was accepted")


def whole_numbers(*shape: int, dtype: torch.dtype, high: int = 1) -> torch.Tensor:
    return torch.randint(-high, high + 1, shape).to(dtype)


NAMES = [argument.name for argument in ops.expert_ffn_packed.default._schema.arguments]


def valid_call(data: st.DataObject) -> tuple[dict[str, Any], torch.Tensor]:
    """Arguments of expert_ffn_packed, and y in float64. Small whole numbers: every sum is exact in every dtype."""
    draw = data.draw
    dtype, quantized = draw(st.sampled_from(FLOATING)), draw(st.booleans())
    quantized = quantized and dtype != torch.float64
    items, experts, in_features = draw(st.integers(0, 5)), draw(st.integers(0, 3)), draw(st.integers(1, 6))
    inner = draw(st.integers(1, 8) | st.sampled_from([95, 96, 97, 193]))
    out = draw(st.integers(1, 8) | st.sampled_from([191, 192, 193]) | st.just(in_features))
    gated, biased, narrow = draw(st.booleans()), draw(st.booleans()), draw(st.booleans())
    null = draw(st.integers(0, 2)), draw(st.integers(0, 2)) if in_features == out else 0
    isa, activation = draw(st.integers(0, num_isas() - 1)), draw(st.sampled_from(list(ACTIVATIONS)))
    parts, groups = 2 if gated else 1, experts + sum(null)
    stored = torch.int8 if quantized else dtype

    x = whole_numbers(in_features, items, dtype=dtype).t()  # not contiguous
    gate_up = whole_numbers(experts, parts * inner, in_features, dtype=stored)
    down = whole_numbers(experts, out, inner, dtype=stored)
    scales = [2.0 ** torch.randint(-1, 1, (experts, n)) if quantized else None for n in (parts * inner, out)]
    biases = [whole_numbers(experts, n, dtype=dtype) if biased else None for n in (parts * inner, out)]
    widths = torch.randint(0, inner + 1, (experts,), dtype=torch.int32) if narrow else None
    routed = plan.from_mask(torch.rand(items, groups) < 0.5, capacity=items * groups + 2)
    accumulate = torch.float64 if dtype == torch.float64 else torch.float32
    weights = whole_numbers(routed.capacity, dtype=accumulate, high=2) if draw(st.booleans()) else None

    matrices = [
        m.double() * (1 if s is None else s.double().unsqueeze(2)) for m, s in zip((gate_up, down), scales, strict=True)
    ]
    y = torch.zeros(items, out, dtype=torch.float64)
    for g in range(groups):
        entries = slice(int(routed.group_offsets[g]), int(routed.group_offsets[g + 1]))
        ids = routed.item_ids[entries].long()
        rows = x[ids].double()
        if g < experts:
            hidden = rows @ matrices[0][g].T + (0 if biases[0] is None else biases[0][g].double())
            hidden = ACTIVATIONS[activation](hidden[:, :inner]) * (hidden[:, inner:] if gated else 1)
            if widths is not None:
                hidden[:, int(widths[g]) :] = 0
            rows = hidden @ matrices[1][g].T + (0 if biases[1] is None else biases[1][g].double())
        elif g < experts + null[0]:
            continue
        y.index_add_(0, ids, rows if weights is None else rows * weights[entries, None].double())

    by_item = routed.transpose()
    packed_gate_up = ops.expert_pack(gate_up, parts, False, False, BLOCKS[0], isa)
    packed_down = ops.expert_pack(down, 1, False, False, BLOCKS[1], isa)
    arguments = (x, packed_gate_up, scales[0], biases[0], packed_down, scales[1], biases[1])
    arguments += (routed.group_offsets, routed.item_ids, weights, by_item.item_offsets, by_item.entry_ids, widths)
    arguments += (inner, out, activation, gated, *null, isa)
    return dict(zip(NAMES, arguments, strict=True)), y


@fuzz(max_examples=250)
@given(st.data())
def test_valid_calls_are_right(data: st.DataObject) -> None:
    torch.manual_seed(0)
    arguments, y = valid_call(data)
    found = ops.expert_ffn_packed(*arguments.values())
    assert torch.equal(found, y.to(arguments["x"].dtype))


def one_row_more(tensor: torch.Tensor) -> torch.Tensor:
    return torch.cat((tensor, tensor[:1] if tensor.shape[0] else tensor.new_zeros(1, *tensor.shape[1:])))


def with_value(tensor: torch.Tensor, at: int, value: int) -> torch.Tensor:
    changed = tensor.clone()
    changed[at] = value
    return changed


@fuzz(max_examples=400)
@given(st.data())
def test_flawed_calls_are_refused(data: st.DataObject) -> None:
    torch.manual_seed(0)
    arguments, _ = valid_call(data)
    tensors = [name for name, value in arguments.items() if isinstance(value, torch.Tensor)]
    flaws = ["dtype", "size", "dim", "activation", "isa", "null", "negative", "overflow", "offsets", "capacity"]
    entries = int(arguments["group_offsets"][-1])
    flaws += ["item_ids", "entry_ids"] if entries else []
    flaws += ["width"] if arguments["expert_widths"] is not None and arguments["gate_up"].shape[0] else []
    flaw = data.draw(st.sampled_from(flaws))
    if flaw in ("dtype", "size", "dim"):
        # Scales may have any number of dimensions.
        name = data.draw(st.sampled_from([n for n in tensors if flaw != "dim" or not n.endswith("scales")]))
        change = {"dtype": lambda t: t.long(), "size": one_row_more, "dim": lambda t: t[..., None]}[flaw]
        changed = {name: change(arguments[name])}
    elif flaw == "activation":
        changed = {"activation": data.draw(st.sampled_from([-1, 6, *(h for h in HUGE if h != 0)]))}
    elif flaw == "isa":
        changed = {"isa": data.draw(st.sampled_from([num_isas(), 9, *(h for h in HUGE if h != 0)]))}
    elif flaw == "null":
        zero, identity = data.draw(st.sampled_from([(1, 0), (0, 1), (2**40, 0)]))
        changed = {"num_zero": arguments["num_zero"] + zero, "num_identity": arguments["num_identity"] + identity}
    elif flaw == "negative":
        both = arguments["num_zero"] + arguments["num_identity"]
        changed = {"num_zero": -1, "num_identity": both + 1}
    elif flaw == "overflow":  # in 64 bits, with two experts or more, the sum of the three is the number of groups
        offsets = torch.zeros(max(arguments["gate_up"].shape[0] - 2, 0) + 1, dtype=torch.int32)
        changed = {"group_offsets": offsets, "item_offsets": torch.zeros_like(arguments["item_offsets"])}
        changed |= {"num_zero": 2**63 - 1, "num_identity": 2**63 - 1}
    elif flaw == "offsets":
        name = data.draw(st.sampled_from(["group_offsets", "item_offsets"]))
        changed = {name: with_value(arguments[name], 0, data.draw(st.sampled_from([-1, 1, 2**31 - 1])))}
    elif flaw == "capacity":
        name = data.draw(st.sampled_from(["group_offsets", "item_offsets"]))
        past = arguments["item_ids"].shape[0] + 1
        changed = {name: with_value(arguments[name], -1, data.draw(st.sampled_from([past, 2**31 - 1, -1])))}
    elif flaw == "width":
        wrong = [-1, arguments["intermediate"] + 1, 2**31 - 1]
        changed = {"expert_widths": with_value(arguments["expert_widths"], 0, data.draw(st.sampled_from(wrong)))}
    else:
        bound = arguments["x"].shape[0] if flaw == "item_ids" else entries
        wrong = data.draw(st.sampled_from([-1, -(2**31), bound, 2**31 - 1]))
        changed = {flaw: with_value(arguments[flaw], entries - 1, wrong)}
    with pytest.raises(ValueError, match=MESSAGE):
        ops.expert_ffn_packed(*(arguments | changed).values())


@fuzz(max_examples=200)
@given(st.sampled_from(["intermediate", "out_features"]), st.sampled_from([-16, -1, 1, 16, *HUGE]), st.data())
def test_other_sizes_than_were_packed(name: str, change: int, data: st.DataObject) -> None:
    """Packing pads, so a size that is off by little can be undetectable: then the call must at least be harmless."""
    torch.manual_seed(0)
    arguments, _ = valid_call(data)
    value = arguments[name] + change if abs(change) <= 16 else change
    arguments |= {name: min(max(value, -(2**63)), 2**63 - 1)}
    try:
        y = ops.expert_ffn_packed(*arguments.values())
    except ValueError as error:
        assert MESSAGE.match(str(error))
    else:
        assert y.shape == (arguments["x"].shape[0], arguments["out_features"])
        assert abs(change) <= 16


@fuzz(max_examples=400)
@given(
    st.sampled_from([*FLOATING, torch.int8, torch.int32, torch.bool]),
    st.lists(st.integers(0, 40), min_size=2, max_size=4),
    st.integers(-1, 3) | st.sampled_from(HUGE),
    st.integers(-1, 50) | st.sampled_from(HUGE),
    st.integers(-1, 5) | st.sampled_from(HUGE),
    st.tuples(st.booleans(), st.booleans(), st.booleans()),
)
def test_expert_pack(
    dtype: torch.dtype, shape: list[int], parts: int, block: int, isa: int, flags: tuple[bool, bool, bool]
) -> None:
    torch.manual_seed(0)
    interleaved, transposed, strided = flags
    weight = torch.randint(-99, 100, shape).to(dtype)
    if strided:
        weight = weight.mT.contiguous().mT
    features = shape[2 if transposed else 1] if len(shape) == 3 else 0
    valid = len(shape) == 3 and min(shape[1:]) > 0 and dtype in (*FLOATING, torch.int8)
    valid = (
        valid and 0 <= isa < num_isas() and 0 < parts <= features and features % parts == 0 and 0 < block < 2**30 - 1
    )
    if not valid:
        with pytest.raises(ValueError, match=MESSAGE):
            ops.expert_pack(weight, parts, interleaved, transposed, block, isa)
        return
    packed = ops.expert_pack(weight, parts, interleaved, transposed, block, isa)
    assert packed.dtype == dtype and packed.shape[0] == shape[0]
    for values, matrix in zip(packed, weight, strict=True):  # the same values, some zeros more
        padding = torch.zeros(values.numel() - matrix.numel(), dtype=torch.float64)
        assert torch.equal(values.double().sort()[0], torch.cat((matrix.flatten().double(), padding)).sort()[0])
