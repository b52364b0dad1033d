"""What a sub-layer's call returns, taken apart: for the modules that wrap one."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


def call_sublayer(
    op: str, sublayer: nn.Module, u: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Tensor, tuple[Any, ...] | None]:
    """`sublayer(u, *args, **kwargs)`: its output, and what else it returns (None if it returns no tuple).

    Raises:
        ValueError: what it returns is neither a tensor nor a tuple that begins with one.
    """
    y = sublayer(u, *args, **kwargs)
    if isinstance(y, Tensor):
        return y, None
    if isinstance(y, tuple) and y and isinstance(y[0], Tensor):
        return y[0], tuple(y[1:])
    what = f"a tuple of {[type(one).__name__ for one in y]}" if isinstance(y, tuple) else f"a {type(y).__name__}"
    raise ValueError(
        f"{op}: the sub-layer returns {what}, must return a tensor or a tuple that begins with one; "
        "wrap it in a module that does"
    )
