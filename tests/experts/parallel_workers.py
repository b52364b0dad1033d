"""What the ranks run in the tests of ExpertParallel: against one process, overlap, traffic."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from parallel_cases import (
    CASES,
    HIDDEN,
    Case,
    close,
    forward_backward,
    full_gradients,
    world_mesh,
)
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from anabranch.experts import ExpertParallel
from anabranch.experts.exchange import Exchange, shard_bounds, split_plan
from anabranch.plan import from_top_k


def equals_one_process(rank: int) -> None:
    """Every case against the DynamicMoE on the rows of all ranks, forward and all gradients."""
    mesh, num_ranks = world_mesh(), dist.get_world_size()
    for name, case in CASES.items():
        xs, dys = (tensors[:num_ranks] for tensors in case.batch())
        whole = case.moe()
        y, dx = forward_backward(whole, torch.cat(xs), torch.cat(dys))
        layer = ExpertParallel(case.moe(), mesh)
        mine = slice(sum(case.rows[:rank]), sum(case.rows[: rank + 1]))
        first: list[Tensor] = []
        for repeat in range(2):
            layer.zero_grad()
            our_y, our_dx = forward_backward(layer, xs[rank], dys[rank])
            local = [p.grad.to_local() for p in layer.experts.parameters()] + [layer.gate.weight.grad]
            outcome = [our_y, our_dx, *local]
            assert repeat == 0 or all(map(torch.equal, outcome, first)), f"{name}: not repeatable"
            first = [tensor.clone() for tensor in outcome]
        close(f"{name}: y", our_y, y[mine])
        close(f"{name}: dx", our_dx, dx[mine])
        for parameter, gradient in full_gradients(layer).items():
            close(f"{name}: {parameter}", gradient, whole.get_parameter(parameter).grad / num_ranks)
        with torch.no_grad():
            assert torch.equal(layer(xs[rank]), our_y), f"{name}: inference differs"


def other_dtypes_and_paths(rank: int) -> None:
    """Autocast, weights narrower than the rows, rows without gradient, checkpointing, routing, sums of gradients."""
    mesh, case = world_mesh(), Case(6, (8, 5), options=(("identity_experts", 1),))
    (x, dy), whole = (tensors[rank] for tensors in case.batch()), case.moe()
    layer = ExpertParallel(case.moe(), mesh)
    y, routing = layer(x.reshape(-1, 1, HIDDEN), return_routing=True)
    assert y.shape == (case.rows[rank], 1, HIDDEN)
    assert routing.plan.num_items == case.rows[rank]
    assert torch.equal(routing.logits, whole(x, return_routing=True)[1].logits)

    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, expected = layer(x), whole(x)
    assert y.dtype == torch.float32
    close("autocast", y.bfloat16(), expected.bfloat16())
    narrow = ExpertParallel(case.moe().bfloat16(), mesh)
    close("narrow weights", narrow(x).bfloat16(), case.moe().bfloat16()(x).bfloat16())

    forward_backward(layer, x, dy)
    plain = [gradient.clone() for gradient in full_gradients(layer).values()]
    for change in ("no gradient of x", "checkpointed", "sum", "compiled"):
        layer.zero_grad()
        module, factor = layer, 1
        if change == "sum":
            module = layer = ExpertParallel(case.moe(), mesh, gradient_reduction="sum")
            factor = 2
        elif change == "checkpointed":
            module = partial(checkpoint, layer, use_reentrant=False)
        elif change == "compiled":
            module = torch.compile(layer, backend="aot_eager")
        forward_backward(module, x, dy, x_needs_grad=change != "no gradient of x")
        for (name, gradient), before in zip(full_gradients(layer).items(), plain, strict=True):
            expected = before if name == "gate.weight" else before * factor
            assert torch.equal(gradient, expected), f"{change}: {name}"
        if change == "sum":
            plain = [gradient.clone() for gradient in full_gradients(layer).values()]


def sends_each_row_once(rank: int) -> None:
    """A row travels once to a rank with two of its experts, and not at all for this rank's or null experts."""
    num_rows, other = 5 + rank, 1 - rank
    bounds = shard_bounds(3, 2)
    assert bounds == [0, 2, 3]
    # Group 3 is a null expert, and all that row 0 has.
    indices = torch.tensor([[0, 1, 2, 3]]).repeat(num_rows, 1)
    indices[0] = 3
    weights = torch.rand(num_rows, 4, dtype=torch.float64)
    split = split_plan(from_top_k(indices, weights, num_groups=4), bounds, world_mesh().get_group(), 0)
    travel, arrive = num_rows - 1, 4 + other
    ours, theirs = slice(*bounds[rank : rank + 2]), slice(*bounds[other : other + 2])
    num_ours, num_theirs = ours.stop - ours.start, theirs.stop - theirs.start
    assert split.send_rows[other] == travel
    assert split.send_pairs[other] == num_theirs * travel
    assert split.recv_rows[other] == arrive
    assert split.recv_pairs[other] == num_ours * arrive
    assert split.send_rows[rank] == split.recv_rows[rank] == split.send_pairs[rank] == split.recv_pairs[rank] == 0
    assert split.rows.item_ids.tolist() == list(range(1, num_rows))
    assert split.pair_rows.tolist() == list(range(travel)) * num_theirs
    assert torch.equal(split.pair_weights, weights[1:, theirs].T.flatten())
    assert split.own.group_sizes().tolist() == [travel] * num_ours + [num_rows + 3]
    received = split.received(torch.arange(arrive).repeat(num_ours), torch.ones(num_ours * arrive))
    assert received.group_sizes().tolist() == [arrive] * num_ours


class Events(TorchDispatchMode):
    """Order of the transfers' starts and waits and of the FFNs; `after` is called with each event."""

    def __init__(self, before: Callable[[int, str], None], after: Callable[[int, str], None]) -> None:
        super().__init__()
        self.names: list[str] = []
        self.before, self.after = before, after
        self.originals = {name: getattr(Exchange, name) for name in ("start", "wait")}

    def run(self, name: str, function: Callable[..., Any], *arguments: Any, **keywords: Any) -> Any:
        self.before(len(self.names), name)
        result = function(*arguments, **keywords)
        self.names.append(name)
        self.after(len(self.names) - 1, name)
        return result

    def __enter__(self) -> Events:
        for name, original in self.originals.items():
            setattr(Exchange, name, self.watched(name, original))
        return super().__enter__()

    def watched(self, name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *arguments, **keywords: self.run(name, original, *arguments, **keywords)

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        for name, original in self.originals.items():
            setattr(Exchange, name, original)

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if "anabranch::expert_ffn" in op.name():
            return self.run("backward" if "backward" in op.name() else "ffn", op, *args, **kwargs)
        return op(*args, **kwargs)


# Sizes; rows, weights and places leave, the own rows' FFN runs, they arrive; received rows' FFN, and back.
FORWARD = ["start", "wait", *["start"] * 3, "ffn", *["wait"] * 3, "ffn", "start", "wait"]
BACKWARD = ["start", "wait", "backward", "start", "start", "backward", "wait", "wait"]


def overlaps(rank: int, folder: Path) -> None:
    """Rank 1 enters the overlapped exchanges only when rank 0 has done the FFN of its own rows.

    Had rank 0 waited before that FFN, in forward or backward, neither could go on.
    """
    store = dist.FileStore(str(folder / "events"), 2)
    case = Case(4, (5, 6))
    layer = ExpertParallel(case.moe(), world_mesh())
    x, dy = (tensors[rank] for tensors in case.batch())
    forward_own, backward_own = 5, len(FORWARD) + 5

    def before(event: int, name: str) -> None:
        if rank == 1 and event + 1 in (forward_own, backward_own):
            assert name == "start", name
            store.wait([str(event + 1)], timedelta(seconds=30))

    def after(event: int, name: str) -> None:
        if rank == 0 and event in (forward_own, backward_own):
            store.set(str(event), "done")

    with Events(before, after) as events:
        forward_backward(layer, x, dy)
    assert events.names == FORWARD + BACKWARD, events.names
