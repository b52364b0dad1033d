"""The two tensors of an index: made, emptied, filled from sorted keys, and looked over."""

from __future__ import annotations

import torch
from torch import Tensor

from anabranch.core.arguments import check_same_device, dtype_name
from anabranch.core.library import cpu_only, ops

# As include/anabranch/index/layout.hpp has them.
NODE_WORDS = 128
CONTROL_WORDS = 160
_LEVELS = 10
_LEAF_KEYS = {1: 60, 2: 40}
_INNER_KEYS = {1: 80, 2: 48}


def nodes_for(capacity: int, key_words: int = 1) -> int:
    """Rows that `nodes` needs so that `capacity` keys can be inserted in any order: leaves are at least half full.

    Args:
        capacity: keys, 0 to 2^36.
        key_words: 1 or 2.

    Returns:
        The number of rows, of 1 KiB each.

    Raises:
        ValueError: capacity or key_words out of range.

    Cost:
        A few integer operations.
    """
    op = "nodes_for"
    if key_words not in _LEAF_KEYS:
        raise ValueError(f"{op}: key_words is {key_words}, must be 1 or 2; a key has one word or two")
    if not 0 <= capacity <= 2**36:
        raise ValueError(f"{op}: capacity is {capacity}, must be 0 to 2^36; give the keys there shall be room for")
    leaves = -(-capacity // (_LEAF_KEYS[key_words] // 2))
    return 2 + leaves + leaves // (_INNER_KEYS[key_words] // 2 - 1) + _LEVELS


def bskiplist_empty(
    capacity: int, *, key_words: int = 1, device: torch.device | str | None = None
) -> tuple[Tensor, Tensor]:
    """`(nodes, control)` of an empty index with room for `capacity` keys.

    Args:
        capacity: keys there shall be room for, 0 to 2^36.
        key_words: 1, or 2 for pairs.
        device: of both tensors; torch's default where None.

    Returns:
        nodes int64 `[rows, 128]` and control int64 `[160]`.

    Raises:
        ValueError: capacity or key_words out of range.

    Cost:
        34 bytes a key (51 for two words), taken and written at once.
    """
    nodes = torch.empty(nodes_for(capacity, key_words), NODE_WORDS, dtype=torch.int64, device=device)
    control = torch.empty(CONTROL_WORDS, dtype=torch.int64, device=device)
    ops.bskiplist_init(nodes, control, key_words)
    return nodes, control


def bskiplist_init(nodes: Tensor, control: Tensor, key_words: int = 1) -> None:
    """Makes `(nodes, control)` an empty index, whatever they held. Nobody may be using them.

    Args:
        nodes: int64 `[2 or more, 128]`, contiguous; `nodes_for` says how many rows.
        control: int64 `[160]`, contiguous.
        key_words: 1 or 2.

    Raises:
        ValueError: shapes, dtypes or devices that do not fit.

    Cost:
        Writes all of nodes once; on the CPU it asks for huge pages first.
    """
    check_tensors("bskiplist_init", nodes, control)
    ops.bskiplist_init(nodes, control, key_words)


def bskiplist_bulk_load(nodes: Tensor, control: Tensor, keys: Tensor, values: Tensor) -> None:
    """Fills an empty index from keys that ascend. Leaves are nine tenths full.

    Args:
        keys: int64 `[n]` or `[n, 2]`, each greater than the one before it, not in the memory of the index.
        values: int64 `[n]`, likewise.

    Raises:
        ValueError: as bskiplist_find; on the CPU also keys that do not ascend, an index that is in use, or too few
            nodes; it is then as it was.

    Cost:
        Reads keys and values once and writes a ninth more.
    """
    check_tensors("bskiplist_bulk_load", nodes, control, keys=keys, values=values)
    ops.bskiplist_bulk_load(nodes, control, keys, values)


def bskiplist_validate(nodes: Tensor, control: Tensor) -> None:
    """Raises ValueError unless every node, key and link is what it must be: for memory that came from elsewhere.

    The other functions trust the words of nodes: damaged links end a search without an answer, and on the CPU a lock
    that was left set is waited for. Of a GPU's tensors it looks at a copy on the CPU.

    Args:
        nodes, control: as `bskiplist_find`.

    Raises:
        ValueError: what is wrong first; also where someone is writing meanwhile.

    Cost:
        Reads every node that was ever used, on one thread.
    """
    check_tensors("bskiplist_validate", nodes, control)
    ops.bskiplist_validate(nodes.cpu(), control.cpu())


def check_tensors(op: str, nodes: Tensor, control: Tensor, **batch: Tensor) -> None:
    """Raises ValueError for a tensor that is not int64, or not on the device of nodes."""
    check_same_device(op, "nodes", nodes, control=control, **batch)
    for name, tensor in (("nodes", nodes), ("control", control), *batch.items()):
        if tensor.dtype != torch.int64:
            raise ValueError(
                f"{op}: {name} is {dtype_name(tensor.dtype)}, must be int64; convert it with .to(torch.int64)"
            )


cpu_only("call anabranch.index.bskiplist_validate, which copies them", "bskiplist_validate")
# What is wrong with the keys could not be said without the host waiting for the device.
cpu_only("load them on the CPU and move the index, or call bskiplist_insert", "bskiplist_bulk_load")


@torch.library.register_fake("anabranch::bskiplist_init")
def _(nodes: Tensor, control: Tensor, key_words: int) -> None:
    return None


@torch.library.register_fake("anabranch::bskiplist_bulk_load")
def _(nodes: Tensor, control: Tensor, keys: Tensor, values: Tensor) -> None:
    return None


@torch.library.register_fake("anabranch::bskiplist_validate")
def _(nodes: Tensor, control: Tensor) -> None:
    return None
