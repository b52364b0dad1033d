"""Ordered maps from 64-bit keys to 64-bit values that threads share, from Python, torch and C++."""

from anabranch.index.arrays import IndexFullError
from anabranch.index.bskiplist import BSkipList
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
from anabranch.index.predicted_timeline import PredictedTimeline
from anabranch.index.snapshot import Snapshot
from anabranch.index.storage import (
    bskiplist_bulk_load,
    bskiplist_empty,
    bskiplist_init,
    bskiplist_validate,
    nodes_for,
)

__all__ = [
    "BSkipList",
    "BSkipListModule",
    "IndexFullError",
    "IndexStatus",
    "PredictedTimeline",
    "Snapshot",
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
