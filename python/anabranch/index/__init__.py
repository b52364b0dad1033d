"""The index room: an ordered map on an arena of words that Python, torch, C++ and CUDA share."""

from anabranch.index.float_keys import float_keys, float_keys_inverse
from anabranch.index.module import BSkipListModule
from anabranch.index.ops import (
    IndexStatus,
    bskiplist_erase,
    bskiplist_find,
    bskiplist_gather,
    bskiplist_insert,
    bskiplist_lower_bound,
    bskiplist_range_count,
)
from anabranch.index.storage import (
    bskiplist_bulk_load,
    bskiplist_empty,
    bskiplist_init,
    bskiplist_validate,
    nodes_for,
)

__all__ = [
    "BSkipListModule",
    "IndexStatus",
    "bskiplist_bulk_load",
    "bskiplist_empty",
    "bskiplist_erase",
    "bskiplist_find",
    "bskiplist_gather",
    "bskiplist_init",
    "bskiplist_insert",
    "bskiplist_lower_bound",
    "bskiplist_range_count",
    "bskiplist_validate",
    "float_keys",
    "float_keys_inverse",
    "nodes_for",
]
