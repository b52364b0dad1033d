"""The lines of the benchmarks' tables."""

from __future__ import annotations

from collections.abc import Sequence

from anabranch.cli.bench_index_bars import Bar
from anabranch.cli.bench_index_rows import IndexRow
from anabranch.cli.bench_rows import Row


def experts_header() -> str:
    return (
        f"{'workload':<16} {'dtype':<8} {'thr':>3} {'tokens':>6}   {'packed ms':>9} {'int8 ms':>9} {'unpacked':>9} "
        f"{'spread':>6}   {'x torch':>7} {'x transformers':>14} {'x fixed k':>9} {'x padded':>8}   "
        f"{'limit ms':>8} {'% of limit':>10} {'int8 %':>6}"
    )


def experts_row(row: Row) -> str:
    """One line: our times in ms, peers' times over ours, and the limit over ours; "-" where nothing was measured."""
    times = " ".join(f"{_number(row.medians_ms.get(name)):>9}" for name in ("packed", "int8", "unpacked"))
    ratios = " ".join(
        f"{_number(row.ratio(peer)):>{width}}"
        for peer, width in (("torch", 7), ("transformers", 14), ("fixed k", 9), ("padded", 8))
    )
    return (
        f"{row.workload:<16} {row.dtype:<8} {row.threads:>3} {row.tokens:>6}   {times} {row.spreads[row.ours]:>6.0%}   "
        f"{ratios}   {_number(row.limit_ms):>8} {_percent(row.of_limit(row.ours)):>10} "
        f"{_percent(row.of_limit('int8')):>6}" + (f"  eager: {', '.join(row.eager)}" if row.eager else "")
    )


def skip_header() -> str:
    return (
        f"{'workload':<14} {'dtype':<8} {'thr':>3} {'rows':>5} {'kept':>5}   {'packed ms':>9} {'unpacked':>9} "
        f"{'spread':>6}   {'x eager':>7} {'x naive':>7} {'x masked':>8} {'x grouped':>9}   "
        f"{'of ideal':>8} {'of onednn':>9}   {'limit ms':>8} {'% of limit':>10}"
    )


def skip_row(row: Row) -> str:
    """One line as `experts_row`. "of ideal" is our time over what runs of our own dense one, or over the time to read
    the weights where that is longer: 1 at best; "of onednn" the same of oneDNN's dense block with reordered weights."""
    times = " ".join(f"{_number(row.medians_ms.get(name)):>9}" for name in ("packed", "unpacked"))
    ratios = " ".join(
        f"{_number(row.ratio(peer)):>{width}}"
        for peer, width in (("eager", 7), ("naive", 7), ("masked", 8), ("grouped", 9))
    )
    return (
        f"{row.workload:<14} {row.dtype:<8} {row.threads:>3} {row.tokens:>5} {_percent(row.kept):>5}   {times} "
        f"{row.spreads[row.ours]:>6.0%}   {ratios}   {_number(row.of_ideal('dense')):>8} "
        f"{_number(row.of_ideal('onednn')):>9}   {_number(row.limit_ms or None):>8} "
        f"{_percent(row.of_limit(row.ours) or None):>10}" + (f"  eager: {', '.join(row.eager)}" if row.eager else "")
    )


def mixers_header() -> str:
    return (
        f"{'workload':<22} {'dtype':<8} {'thr':>3} {'tokens':>6}   {'ms':>8} {'spread':>6} {'ns/token':>9}   "
        f"{'x eager':>7} {'x compiled':>10} {'x apart':>7}   {'limit ms':>8} {'x limit':>9}   "
        f"{'held to':<10} {'is':>6} {'must':>6} {'goal':>5} {'':<6}"
    )


def mixers_row(row: Row) -> str:
    """One line: our time, peers' times over ours, our time over the limit, and what the row must reach and would like
    to ("x plain": over the same model with plain residuals)."""
    ours, target = row.medians_ms[row.ours], row.target
    ratios = " ".join(
        f"{_number(row.ratio(peer)):>{width}}" for peer, width in (("eager", 7), ("compiled", 10), ("apart", 7))
    )
    held = "" if target is None else "ns/token" if target.of == "token" else f"x {target.of}"
    reached = row.reached
    must, goal = (None, None) if target is None else (target.must, target.goal)
    verdict = "" if must is None or reached is None else "ok" if reached <= must else "MISSED"
    return (
        f"{row.workload:<22} {row.dtype:<8} {row.threads:>3} {row.tokens:>6}   {_number(ours):>8} "
        f"{row.spreads[row.ours]:>6.0%} {1e6 * ours / row.tokens:>9.0f}   {ratios}   {_number(row.limit_ms):>8} "
        f"{_number(ours / row.limit_ms):>9}   {held:<10} {_number(reached):>6} "
        f"{_number(must):>6} {_number(goal):>5} {verdict:<6}"
    )


_INDEX_PEERS = (("std::map", 10), ("torch", 7), ("numpy", 7), ("sortedcontainers", 18), ("BTrees", 8), ("dict", 6))


def index_header() -> str:
    peers = " ".join(f"{'x ' + name:>{width}}" for name, width in _INDEX_PEERS)
    return (
        f"{'workload':<22} {'thr':>3} {'keys':>9}   {'million/s':>9} {'spread':>6} {'ops':>7} {'p99 us':>7} "
        f"{'B/key':>6}   {peers}   {'limit':>7} {'% of limit':>10}"
    )


def index_row(row: Row) -> str:
    """One line: ours in million keys a second, that of the ops on tensors, p99 of one operation, memory, ours over the
    peers', and the limit in million keys a second."""
    assert isinstance(row, IndexRow)
    ours = row.ours
    p99 = row.p99_ns.get(ours)
    peers = " ".join(f"{_number(row.ratio(name)):>{width}}" for name, width in _INDEX_PEERS)
    return (
        f"{row.workload:<22} {row.threads:>3} {row.tokens:>9}   {row.millions(ours):>9.3f} {row.spreads[ours]:>6.0%} "
        f"{_number(row.millions('ops') if 'ops' in row.medians_ms else None):>7} "
        f"{_number(None if p99 is None else 1e-3 * p99):>7} {_number(row.bytes_per_key.get(ours)):>6}   {peers}   "
        f"{_number(1e3 / row.limit_ms):>7} {row.limit_ms / row.medians_ms[ours]:>10.1%}"
    )


_TEMPORAL_PEERS = (("ring", 7), ("ring C++", 10), ("torch", 7), ("dim=0", 7), ("PyG", 7))


def temporal_header() -> str:
    peers = " ".join(f"{'x ' + name:>{width}}" for name, width in _TEMPORAL_PEERS)
    return (
        f"{'workload':<24} {'thr':>3} {'batch':>6}   {'k/s':>9} {'spread':>6}   {peers}   {'limit k/s':>9} "
        f"{'% of limit':>10}"
    )


def temporal_row(row: Row) -> str:
    """One line: ours in thousand events or pairs a second, ours over the peers', and the limit in thousands."""
    assert isinstance(row, IndexRow)
    ours = row.ours
    peers = " ".join(f"{_number(row.ratio(name)):>{width}}" for name, width in _TEMPORAL_PEERS)
    limit = f"{1e6 / row.limit_ms:.1f}" if row.limit_ms else "-"
    share = f"{row.limit_ms / row.medians_ms[ours]:.1%}" if row.limit_ms else "-"
    return (
        f"{row.workload:<24} {row.threads:>3} {row.tokens:>6}   {1e3 * row.millions(ours):>9.1f} "
        f"{row.spreads[ours]:>6.0%}   {peers}   {limit:>9} {share:>10}"
    )


def bar_lines(bars: Sequence[Bar]) -> list[str]:
    """A table of bars, with what is missed named so; nothing without bars."""
    if not bars:
        return []
    lines = [f"{'held to':<66} {'is':>9}    {'must':>7} {'goal':>7}"]
    for bar in bars:
        sign, verdict = ">=" if bar.at_least else "<=", "ok" if bar.holds else "MISSED"
        lines.append(
            f"{bar.what:<66} {_number(bar.value):>9} {sign} {_number(bar.must):>7} {_number(bar.goal):>7} {verdict}"
        )
    return lines


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}" if value >= 0.1 else f"{value:.4f}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.0%}"
