"""Edge streams from Parquet, by pyarrow where it is installed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import IO, Any

import numpy as np

from anabranch.temporal.edge_layout import positions_of
from anabranch.temporal.edge_list import EdgeList
from anabranch.temporal.edge_nodes import Collected
from anabranch.temporal.edge_numbers import scaled_time
from anabranch.temporal.edge_text import Array

_TICKS = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
_LARGEST = (1 << 63) - 1


class _BadValue(Exception):
    """A value that is no part of an event, and its place in its batch."""

    def __init__(self, place: int, name: str, value: object, must: str) -> None:
        super().__init__(place, name, value, must)
        self.place, self.name, self.value, self.must = place, name, value, must


def load_parquet(
    file: IO[bytes], path: object, columns: Sequence[int | str] | None, bipartite: bool, time_scale: int
) -> EdgeList:
    """As `load_edges`. Ids are integers or strings, times integers, floats, date-times or strings, by their types."""
    try:
        import pyarrow as arrow
        from pyarrow import parquet
    except ImportError:
        raise ModuleNotFoundError(f"load_edges: {path} is Parquet, which needs pyarrow; pip install pyarrow") from None

    try:
        table = parquet.ParquetFile(file)
        schema = table.schema_arrow
        chosen = _columns_of(schema, columns, path)
        numeric = all(arrow.types.is_integer(schema.field(place).type) for place in chosen[:2])
        names = [schema.names[place] for place in chosen]
        collected = Collected(numeric, bipartite, tuple(names[3:]), len(chosen) - 3)
        row = 0
        # Read by position, not by name: a name may be there twice.
        for batch in table.iter_batches(batch_size=1 << 18):
            picked = [batch.column(place) for place in chosen]
            try:
                ids_of = _numeric_ids if numeric else _text_ids
                src, dst = ids_of(picked[0], names[0]), ids_of(picked[1], names[1])
                features = [_features(part, name) for part, name in zip(picked[3:], names[3:], strict=True)]
                collected.add(src, dst, _times(picked[2], names[2], time_scale), features)
            except _BadValue as bad:
                where = f"row {row + bad.place} of {path}"
                raise ValueError(
                    f"load_edges: {where}: {bad.name} is {bad.value}, must be {bad.must}; mend that row or take it out"
                ) from None
            row += batch.num_rows
    except (arrow.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"load_edges: {path} is a damaged Parquet file ({reason}), must be whole; fetch or write it again"
        ) from None
    if row == 0:
        raise ValueError(f"load_edges: {path} has no event, must have one or more; is it the right file?")
    return collected.finish()


def _columns_of(schema: Any, columns: Sequence[int | str] | None, path: object) -> list[int]:
    import pyarrow as arrow

    if columns is not None:
        return positions_of(columns, schema.names, len(schema.names), path)
    if len(schema.names) < 3:
        raise ValueError(
            f"load_edges: {path} has the columns {schema.names}, must have src, dst and time; is it the right file?"
        )
    types = [field.type for field in schema]
    numbers = [
        arrow.types.is_integer(one) or arrow.types.is_floating(one) or arrow.types.is_boolean(one) for one in types
    ]
    return [0, 1, 2, *(place for place in range(3, len(types)) if numbers[place])]


def _values(part: Any, name: str) -> Any:
    """The column without nulls."""
    if part.null_count:
        place = int(np.argmax(part.is_null().to_numpy(zero_copy_only=False)))
        raise _BadValue(place, name, "null", "a value")
    return part


def _first_bad(good: Array, part: Any, name: str, must: str) -> None:
    if not good.all():
        place = int(np.argmin(good))
        raise _BadValue(place, name, part[place], must)


def _numeric_ids(part: Any, name: str) -> Array:
    values = _values(part, name).to_numpy(zero_copy_only=False)
    _first_bad((values >= 0) & (values <= _LARGEST), part, name, "from 0 to 2^63 - 1")
    return values.astype(np.int64)


def _text_ids(part: Any, name: str) -> list[str]:
    texts = [str(value) for value in _values(part, name).to_pylist()]
    _first_bad(np.array([bool(text) for text in texts], bool), part, name, "the name of a node")
    return texts


def _features(part: Any, name: str) -> Array:
    with np.errstate(over="ignore"):
        try:
            values = _values(part, name).to_numpy(zero_copy_only=False).astype(np.float32)
        except (ValueError, TypeError):
            raise _BadValue(0, name, part[0], "a number") from None
    _first_bad(np.isfinite(values), part, name, "a finite number (in the range of float32)")
    return values


def _times(part: Any, name: str, scale: int) -> Array:
    import pyarrow as arrow

    kind = _values(part, name).type
    must = f"a time that is whole after time_scale {scale}, and an int64"
    if arrow.types.is_timestamp(kind) or arrow.types.is_integer(kind):
        ticks = _TICKS[kind.unit] if arrow.types.is_timestamp(kind) else 1
        plain = part.cast(arrow.int64()) if ticks > 1 or not arrow.types.is_integer(kind) else part
        values = plain.to_numpy(zero_copy_only=False)
        small = (values <= _LARGEST) & (values >= -_LARGEST)
        values = np.where(small, values, 0).astype(np.int64)
        common = np.gcd(ticks, scale)
        factor, divisor = scale // int(common), ticks // int(common)
        _first_bad(
            small & (values % divisor == 0) & (np.abs(values // divisor) <= _LARGEST // factor), part, name, must
        )
        return values // divisor * factor
    texts = [str(value) for value in part.to_pylist()]
    date_times = bool(texts) and "-" in texts[0][1:] and "e" not in texts[0]
    times = [scaled_time(text, date_times, scale) for text in texts]
    _first_bad(np.array([time is not None for time in times], bool), part, name, must)
    return np.array(times, np.int64)
