"""Ordered maps from 64-bit keys to 64-bit values that many threads read and write at once."""

from anabranch.index.arrays import IndexFullError
from anabranch.index.bskiplist import BSkipList
from anabranch.index.predicted_timeline import PredictedTimeline
from anabranch.index.snapshot import Snapshot

__all__ = ["BSkipList", "IndexFullError", "PredictedTimeline", "Snapshot"]
