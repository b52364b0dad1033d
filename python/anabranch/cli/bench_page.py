"""The benchmark as one HTML page: rooflines, rates and tables of every room, on a phone too, by day and by night."""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence

from anabranch.cli.bench_index_rows import IndexRow
from anabranch.cli.bench_marks import MARKS, NAMES, OURS_MARK, mark
from anabranch.cli.bench_peers import absent_line
from anabranch.cli.bench_rates import rates
from anabranch.cli.bench_record import Record, RoomRecord
from anabranch.cli.bench_roofline import has_roofline, roofline
from anabranch.cli.bench_rooms import ROOMS
from anabranch.cli.bench_rows import Row
from anabranch.cli.page import html_table, page_text

_STYLE = """
:root{color-scheme:light dark;--ink:#1d2126;--soft:#59616b;--faint:#d8dce1;--paper:#fff;--roof:#1d2126}
@media(prefers-color-scheme:dark){
:root{--ink:#e4e8ec;--soft:#a2abb5;--faint:#343b44;--paper:#14181d;--roof:#e4e8ec}}
body{color:var(--ink);background:var(--paper);max-width:1200px;overflow-wrap:anywhere}
h2{font-size:1.35rem;margin-top:2.6rem}h3{font-size:1rem;margin:.2rem 0}.note{color:var(--soft)}
nav a{margin-right:1rem}a{color:inherit}td,th{border-color:var(--faint);white-space:nowrap;padding-right:.9rem}
td,th{text-align:right;font-variant-numeric:tabular-nums}
.rows :is(td,th):nth-child(2),.held :is(td,th):first-child{text-align:left}figure{margin:0}
.panels{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,380px),1fr));gap:1.2rem}
.panels svg{display:block;min-width:0;width:100%;max-width:520px}
svg text{font-size:13px;fill:var(--ink);stroke:var(--paper)}svg .number{font-weight:600}svg .bound{fill:var(--soft)}
svg .grid{stroke:var(--faint)}svg .rail{stroke:var(--faint);stroke-width:2}
svg .roof{stroke:var(--roof);stroke-width:2;fill:none}svg .lead{stroke:var(--soft);stroke-width:.6}
svg .mark{stroke:var(--paper)}.key{display:inline-block;margin-right:1.1rem;white-space:nowrap}
.key svg{width:18px;height:18px;min-width:0;vertical-align:-4px;margin-right:.2rem}"""


def page(record: Record) -> str:
    """The whole page, with nothing outside it."""
    machine = record.machine
    versions = ", ".join(f"{package} {version}" for package, version in record.versions.items())
    took = f"{record.seconds:.0f} s" + (", --quick" if record.quick else "")
    about = [
        f"{machine['device']}, {machine['cores']} cores, CPU kernels: {machine['cpu_kernels']}; {versions}; {took}"
    ]
    if record.interrupted:
        about.append("Interrupted: the last room is not complete.")
    if line := absent_line(record.absent):
        about.append(line[:1].upper() + line[1:])
    parts = [f"<p class=note>{html.escape(text)}.</p>" for text in about]
    parts += [
        "<nav>" + "".join(f'<a href="#{room.room}">{room.room}</a>' for room in record.rooms) + "</nav>",
        "<p>A point's height under the roof is the share of the machine's measured limit that it reaches; numbers are "
        "those of the rows in the table below each picture. Of rates an upright line is the limit: of arithmetic, "
        "bandwidth or cache lines from random places. Ratios are a peer's time over ours: above 1, ours is faster.</p>",
    ]
    for room in record.rooms:
        parts += _room(room)
    return page_text("anabranch bench", "anabranch: speed beside the machine's limit", parts, _STYLE)


def _room(room: RoomRecord) -> Iterator[str]:
    shape = ", ".join(f"{name} {value}" for name, value in room.shape.items())
    yield f'<section id="{room.room}"><h2>{room.room}</h2>'
    yield f"<p class=note>{html.escape(shape)}; median of {room.repeats}.</p>"
    yield f"<p class=note>{_limits(room)}</p><p>{_legend(room)}</p><div class=panels>"
    numbered = list(enumerate(room.rows, 1))
    peers = ROOMS[room.room].peers
    for dtype, threads in dict.fromkeys((row.dtype, row.threads) for row in room.rows):
        own = [(number, row) for number, row in numbered if (row.dtype, row.threads) == (dtype, threads)]
        limits = room.limits[dtype, threads]
        on = f"{dtype}, {threads} thread{'s' if threads > 1 else ''}"
        if with_flops := [(number, row) for number, row in own if has_roofline(row)]:
            yield f"<figure><h3>{on}</h3>{roofline(with_flops, limits, peers)}</figure>"
        if others := [(number, row) for number, row in own if not has_roofline(row)]:
            yield f"<figure><h3>{on}: rates</h3>{rates(others, limits, peers, room.unit)}</figure>"
    yield f"</div><div class=rows>{_table(room)}</div>"
    if room.bars:
        yield f"<h3>Held to</h3><div class=held>{html_table(_bars(room))}</div>"
    yield "</section>"


def _limits(room: RoomRecord) -> str:
    """One sentence for each number of threads, and how much they moved."""
    lines = []
    for threads in dict.fromkeys(threads for _, threads in room.limits):
        found = {dtype: one for (dtype, of), one in room.limits.items() if of == threads}
        used = {row.dtype for row in room.rows if row.threads == threads}
        if not used:
            continue
        one = next(iter(found.values()))
        peaks = [f"{dtype} {limits.peak / 1e9:.0f} GFLOP/s" for dtype, limits in found.items() if dtype in used]
        parts = [part for part in peaks if not part.startswith("int64")] + [f"{one.bandwidth / 1e9:.1f} GB/s"]
        if one.lines and ROOMS[room.room].lines:
            parts.append(f"{one.lines / 1e6:.0f} million random lines/s")
        drift = max(room.drift(dtype, threads) for dtype in used)
        end = f"at the end they were up to {drift:.0%} away" if room.limits_after else "not measured again at the end"
        lines.append(f"Limits of {threads} thread{'s' if threads > 1 else ''}: {', '.join(parts)}; {end}.")
    return "<br>".join(lines)


def _legend(room: RoomRecord) -> str:
    names = {name for row in room.rows for name in row.medians_ms if name != row.ours}
    shown = [("ours", OURS_MARK)] + [
        (NAMES.get(name, name), style)
        for name, style in MARKS.items()
        if name in names and name in ROOMS[room.room].peers
    ]
    return "".join(
        f'<span class=key><svg viewBox="0 0 20 20">{mark(*style, 10, 10)}</svg>{html.escape(name)}</span>'
        for name, style in shown
    )


def _table(room: RoomRecord) -> str:
    """Every row: ours, the others' times over ours, and the limit."""
    others = [name for row in room.rows for name in row.medians_ms if name != row.ours]
    others = list(dict.fromkeys(others))
    rated = any(isinstance(row, IndexRow) for row in room.rows)
    measured = "thousand/s" if rated else "ms"
    rows: list[tuple[str, ...]] = [
        (
            *("#", "workload", "dtype", "threads", room.unit, "ours", measured, "spread"),
            *(f"x {name}" for name in others),
            *(f"limit {measured}", "of limit"),
        )
    ]
    for number, row in enumerate(room.rows, 1):
        share = row.of_limit(row.ours)
        rows.append(
            (
                *(str(number), row.workload, row.dtype, str(row.threads), f"{row.tokens:,}", row.ours),
                _measured(row, row.medians_ms[row.ours]),
                f"{row.spreads[row.ours]:.0%}",
                *(_ratio(row.ratio(name)) for name in others),
                _measured(row, row.limit_ms) if row.limit_ms else "-",
                f"{share:.0%}" if share else "-",
            )
        )
    return html_table(rows)


def _measured(row: Row, milliseconds: float) -> str:
    return f"{1e6 / milliseconds:,.1f}" if isinstance(row, IndexRow) else f"{milliseconds:.4g}"


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _bars(room: RoomRecord) -> Sequence[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [("what", "is", "", "must", "goal", "")]
    for bar in room.bars:
        goal = "-" if bar.goal is None else f"{bar.goal:.4g}"
        sign, verdict = "≥" if bar.at_least else "≤", "ok" if bar.holds else "MISSED"
        rows.append((bar.what, f"{bar.value:.4g}", sign, f"{bar.must:.4g}", goal, verdict))
    return rows
