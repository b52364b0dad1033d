"""The actions of one layer, checked before anything runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from anabranch.skip.policy import Action, Layer

if TYPE_CHECKING:
    from anabranch.skip.runtime.layer import LayerForward


def checked_action(
    forward: LayerForward, decision: Layer, x: Tensor, on_host: Callable[[Tensor], bool]
) -> Tensor | Action:
    """The decision's action for x `[B, S, H]`: one where all sequences have the same, else int64 `[B]`.

    Where reading it would wait for a GPU nobody looks: what the layer may not do becomes RUN, and a number above REPEAT
    becomes that.

    Raises:
        ValueError: the action or the gate has another shape, dtype or value.
    """
    action, gate, batch = decision.action, decision.gate, x.shape[0]
    if gate is not None and (gate.shape != x.shape[:1] or not gate.is_floating_point()):
        raise forward.unfit(gate, f"a floating gate [{batch}]")
    if not isinstance(action, Tensor):
        if action not in list(Action):
            raise forward.unfit(action, f"an Action or int64 [{batch}]")
        return Action(action)
    if action.shape != x.shape[:1] or action.dtype != torch.int64:
        raise forward.unfit(action, f"an Action or int64 [{batch}]")
    if not on_host(action):
        lowest = Action.SKIP if forward.index in forward.shared.skippable else Action.RUN
        return action.clamp(lowest, Action.REPEAT if forward.shared.policy.repeats else Action.RUN)
    if not len(action):
        return Action.RUN
    if bool(((action < Action.SKIP) | (action > Action.REPEAT)).any()):
        raise forward.unfit(action, f"values of Action and not {action.tolist()}")
    first = action[0]
    return Action(int(first)) if bool((action == first).all()) else action
