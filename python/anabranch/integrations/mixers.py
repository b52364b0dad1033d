"""transformers 5.x: hyper-connections of deepseek_v4, glm5_next, hy_v4, hy_v4_vl and qwen4_exp on the stream kernels.

`patch_mixers` gives three kinds of modules a forward of ours: the hyper-connections themselves (for whoever calls
them), the decoder layers (so that reading, writing and mixing of the streams are ours and one pass does a writing and
the next reading), and the heads that end the streams. Classes are known by their names; transformers is not imported.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from torch import nn

from anabranch.integrations.mixer_layers import (
    CONNECTIONS,
    HEADS,
    LAYERS,
    connection_forward,
    head_forward,
    kind_of,
    layer_forward,
)
from anabranch.mixers.mixer import check_num_streams


def patch_mixers(model: nn.Module) -> int:
    """From now on the model's hyper-connections run on anabranch's stream kernels, with the parameters they have.

    Names and shapes of parameters stay, so checkpoints, optimizers and `from_pretrained` see no difference; hooks of
    the layers run. A second call changes nothing. Written for transformers 5.23 and 5.24: deepseek_v4, glm5_next (its
    language model), hy_v4, hy_v4_vl, qwen4_exp.

    A layer calls neither of its two hyper-connection modules nor what is in them. If one of them has a hook, or holds
    something that does more than its weights say (an adapter, a quantised layer, a hook), the layer's own forward runs
    instead and calls them; one that holds such runs its own forward too.

    Args:
        model: of transformers, or any module that holds such models.

    Returns:
        How many hyper-connection modules there are; heads are not counted.

    Raises:
        ValueError: there are none, one has less than 2 or more than 8 streams, or a module to patch has a forward of
            another's already. Nothing has changed then.

    Gradient:
        To all parameters and streams, of the model's own iterations (`Sinkhorn(backward="unrolled")`).
        Equal to transformers' within rounding: transformers rounds the coefficients to the streams' dtype (all models
        but hy_v4 and hy_v4_vl) and sums products in it, the kernels keep float32 coefficients and sums and round once.

    Cost:
        See `Connection.merge_and_connect`.
    """
    op = "patch_mixers"
    connections = [module for module in model.modules() if kind_of(module) in CONNECTIONS]
    if not connections:
        raise ValueError(
            f"{op}: model is a {type(model).__name__} without hyper-connections, must have those of deepseek_v4, "
            "glm5_next, hy_v4, hy_v4_vl or qwen4_exp of transformers; wrap sub-layers in "
            "anabranch.mixers.HyperConnection instead"
        )
    for module in connections:
        check_num_streams(op, int(module.hc_count if hasattr(module, "hc_count") else module.hc_mult))  # type: ignore[arg-type]
    found = [(name, module, _forward_of(module)) for name, module in model.named_modules()]
    for name, module, forward in found:
        if forward is not None and not _is_ours(module) and "forward" in module.__dict__:
            raise ValueError(
                f"{op}: {name} has a forward of its own, must have its class's; take that off, patch, and put it back"
            )
    for _, module, forward in found:
        if forward is not None:
            module.forward = functools.partial(forward, module)
    return len(connections)


def restore_mixers(model: nn.Module) -> None:
    """Takes `patch_mixers` back: the model computes as before. On a model without it, does nothing.

    Args:
        model: patched or not.

    Raises:
        ValueError: something (an accelerate hook) was put around a patched forward; nothing has changed then.

    Cost:
        A walk over the modules.
    """
    for name, module in model.named_modules():
        if _is_patch(module.__dict__.get("_old_forward")):
            raise ValueError(
                f"restore_mixers: {name} has a hook of accelerate's around the patch, must have the patch outermost; "
                "call accelerate.hooks.remove_hook_from_module on it first"
            )
    for module in model.modules():
        if _is_ours(module):
            del module.__dict__["forward"]


def _forward_of(module: nn.Module) -> Callable[..., Any] | None:
    kind = kind_of(module)
    if kind in LAYERS:
        return layer_forward
    if kind in CONNECTIONS:
        return connection_forward
    return head_forward if kind in HEADS else None


def _is_patch(forward: Any) -> bool:
    ours = (layer_forward, connection_forward, head_forward)
    return isinstance(forward, functools.partial) and forward.func in ours


def _is_ours(module: nn.Module) -> bool:
    return _is_patch(module.__dict__.get("forward"))
