"""The compiled half of the index, or what says that it is missing."""

from __future__ import annotations

try:
    from anabranch._host import BSkipListBase, PredictedTimelineBase
except ImportError as error:
    _reason = error

    class _Missing:
        def __init__(self, *arguments: object) -> None:
            raise ImportError(
                "anabranch was installed without its module _host for this Python: reinstall it here with "
                f"`pip install .` ({_reason})"
            )

    class BSkipListBase(_Missing):  # type: ignore[no-redef]
        pass

    class PredictedTimelineBase(_Missing):  # type: ignore[no-redef]
        pass


__all__ = ["BSkipListBase", "PredictedTimelineBase"]
