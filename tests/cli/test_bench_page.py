"""The page of a benchmark: what is measured is what is drawn, and Chromium shows it, on a phone as on a desk."""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import struct
import subprocess
import xml.etree.ElementTree as ElementTree
import zlib
from pathlib import Path

import pytest
import torch

from anabranch.cli.arguments import ROOMS as NAMES
from anabranch.cli.bench import measured_rows
from anabranch.cli.bench_limits import Limiter
from anabranch.cli.bench_page import page
from anabranch.cli.bench_peers import Absent
from anabranch.cli.bench_record import Record, RoomRecord, new_record, read_record, to_json
from anabranch.cli.bench_roofline import HEIGHT, WIDTH, has_roofline, roofline
from anabranch.cli.bench_rooms import ROOMS
from anabranch.cli.bench_rows import Row
from anabranch.cli.bench_settings import Settings
from anabranch.cli.machine import Limits
from anabranch.cli.progress import StatusLine

pytestmark = pytest.mark.cpu
CPU = torch.device("cpu")
CHEAPEST = {
    "experts": ("forward", [2]),
    "skip": ("lowrank", [4]),
    "mixers": ("matrix", [64]),
    "index": ("batches", [2000]),
    "temporal": ("pairs", [32]),
}
CHROMIUM = os.environ.get("CHROME") or next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None
)
# Into the page's copy: what a reader would see is measured in the page itself.
PROBE = """<script>
const found = {width: innerWidth, scroll: document.documentElement.scrollWidth, rooms: {}};
for (const room of document.querySelectorAll("section")) {
  found.rooms[room.id] = [...room.querySelectorAll("figure > svg")].map(svg => {
    const box = svg.getBoundingClientRect();
    const outside = [...svg.querySelectorAll(".mark")].filter(mark => {
      const at = mark.getBoundingClientRect();
      return at.width == 0 || at.left < box.left || at.right > box.right || at.top < box.top || at.bottom > box.bottom;
    });
    const letters = Math.min(...[...svg.querySelectorAll("text")].map(text => text.getBoundingClientRect().height));
    return [box.width, box.height, svg.querySelectorAll(".ours .mark").length, outside.length, letters];
  });
}
(window.parent || window).document.title = JSON.stringify(found);
</script>"""


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> Record:
    """A real run of the cheapest mode of each room, written and read again."""
    before = torch.get_num_threads()
    made = new_record(CPU, [Absent("PyG", "pip install torch_geometric", ["temporal"])], quick=True)
    try:
        limits = Limiter(Settings(list(NAMES), "cpu"), CPU).now("limits")
        for name, (mode, tokens) in CHEAPEST.items():
            settings = Settings([name], "cpu", [mode], tokens=tokens, repeats=1, quick=True)
            room = RoomRecord(name, ROOMS[name].unit, {"quick": True}, 1, limits, limits)
            room.rows = list(measured_rows(settings, name, CPU, limits, StatusLine()))
            made.rooms.append(room)
    finally:
        torch.set_num_threads(before)
    path = tmp_path_factory.mktemp("bench") / "bench.json"
    path.write_text(to_json(made))
    return read_record(path)


def drawings(text: str) -> list[ElementTree.Element]:
    return [ElementTree.fromstring(one) for one in re.findall(r'<svg class="(?:roofline|rates)".*?</svg>', text)]


def test_every_row_is_drawn_and_listed(record: Record) -> None:
    text = page(record)
    assert "Absent: PyG (pip install torch_geometric)." in text
    for room in record.rooms:
        assert room.rows, room.room
        section = text[text.index(f'<section id="{room.room}">') :].partition("</section>")[0]
        drawn = drawings(section)
        assert sum(len(one.findall("g[@class='ours']")) for one in drawn) == len(room.rows)
        peers = [name for row in room.rows for name in row.medians_ms if name != row.ours]
        shown = sum(name in ROOMS[room.room].peers for name in peers)
        assert sum(len(one.findall("g[@class='peer']")) for one in drawn) == shown
        for row in room.rows:
            assert f"<td>{html.escape(row.workload)}</td>" in section
    assert not re.search(r"(src|href)=[\"']?(https?:|//)", text)  # nothing outside


def test_a_points_height_is_its_share_of_the_limit() -> None:
    """Read back from the drawing: a decade of GFLOP/s is as high everywhere, and the roof is the limit."""
    limits = Limits(peak=1e12, bandwidth=1e10)
    flops = [2e9, 2e9, 5e10]
    nbytes = [1e9, 1e7, 1e8]
    rows = []
    for number, (work, moved) in enumerate(zip(flops, nbytes, strict=True)):
        limit = limits.milliseconds(work, moved)
        times = {"packed": limit * 2, "torch": limit * 20}
        rows.append(
            Row(
                str(number), "float32", 1, 1, 1, times, dict.fromkeys(times, 0.0), limit, None, flops=work, nbytes=moved
            )
        )
    assert all(map(has_roofline, rows))
    drawing = ElementTree.fromstring(roofline(list(enumerate(rows, 1)), limits, ("torch",)))
    ours = [float(one.attrib["cy"]) for one in drawing.findall("g[@class='ours']/circle")]
    peers = [float(one.attrib["cy"]) for one in drawing.findall("g[@class='peer']/circle")]
    decade = peers[0] - ours[0]
    assert peers == pytest.approx([y + decade for y in ours], abs=0.2)
    (roof,) = drawing.findall("polyline")
    start, ridge, end = (tuple(map(float, point.split(","))) for point in roof.attrib["points"].split())
    assert ridge[1] == end[1]
    half = decade * 0.30103
    slope = (ridge[1] - start[1]) / (ridge[0] - start[0])
    for one, y in zip(drawing.findall("g[@class='ours']/circle"), ours, strict=True):
        x = float(one.attrib["cx"])
        above = ridge[1] if x >= ridge[0] else ridge[1] + slope * (x - ridge[0])
        assert y == pytest.approx(above + half, abs=0.3)
    numbers = [one.text for one in drawing.findall("text[@class='number']")]
    assert numbers == ["1", "2", "3"]
    for one in drawing.iter("circle"):
        assert 0 < float(one.attrib["cx"]) < WIDTH and 0 < float(one.attrib["cy"]) < HEIGHT


def chromium(page_file: Path, width: int, height: int, *options: str) -> str:
    # Without a sandbox: it needs privileges that containers lack, and the page is ours.
    command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    command += [f"--user-data-dir={page_file.parent / 'profile'}", f"--window-size={width},{height}", *options]
    done = subprocess.run([*command, page_file.as_uri()], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr[-500:]
    return done.stdout


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium or google-chrome on PATH, and CHROME names none")
@pytest.mark.parametrize("width", [390, 1200])
def test_chromium_shows_every_plot(record: Record, tmp_path: Path, width: int) -> None:
    """In a frame: a window of Chromium may not be as narrow as a phone."""
    framed = html.escape(page(record) + PROBE)
    file, picture = tmp_path / "frame.html", tmp_path / "page.png"
    frame = f'<iframe style="border:0;width:{width}px;height:2000px" srcdoc="{framed}"></iframe>'
    file.write_text(f"<!doctype html><meta charset=utf-8><body style='margin:0'>{frame}", encoding="utf-8")
    seen = chromium(file, width, 2000, "--dump-dom")
    title = re.search(r"<title>(.*?)</title>", seen)
    assert title is not None
    found = json.loads(html.unescape(title[1]))
    assert found["width"] == width
    assert found["scroll"] <= width  # the page never scrolls sideways
    assert list(found["rooms"]) == list(NAMES)
    for room in record.rooms:
        plots = found["rooms"][room.room]
        assert sum(ours for _, _, ours, _, _ in plots) == len(room.rows)
        for plot_width, plot_height, _, outside, letters in plots:
            assert 300 <= plot_width <= width and plot_height > 40
            assert outside == 0
            assert letters >= 11  # the height of a line, in pixels
    chromium(file, width, 2000, f"--screenshot={picture}")
    content = picture.read_bytes()
    assert struct.unpack(">II", content[16:24]) == (width, 2000)
    assert len(set(pixel_rows(content))) > 300  # a blank page has one or two


def pixel_rows(png: bytes) -> list[bytes]:
    """The rows of a PNG as they are stored: filtered, so that equal rows of colours make few different ones."""
    at, data, width = 8, b"", struct.unpack(">I", png[16:20])[0]
    while at < len(png):
        size, kind = struct.unpack(">I4s", png[at : at + 8])
        data += png[at + 8 : at + 8 + size] if kind == b"IDAT" else b""
        at += size + 12
    stride = 1 + width * {2: 3, 6: 4}[png[25]]
    raw = zlib.decompress(data)
    return [raw[start : start + stride] for start in range(0, len(raw), stride)]
