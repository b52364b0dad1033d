"""The index demo: to its last line on a folder of sources, interrupted, and its contenders against each other."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from test_demo import command, parse

from anabranch.cli.demo_index import conclusions, edit_rows, table_rows
from anabranch.cli.index_contenders import Contender, Index, SortedArrays, contenders
from anabranch.cli.index_corpus import POSITION_BITS, Corpus, read_corpus, source_files
from anabranch.cli.index_measure import Editors, IndexResult, Reader, build, query
from anabranch.cli.index_report import throughput, time_text, write_report
from anabranch.cli.main import main

pytestmark = pytest.mark.cpu


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    folder = tmp_path / "sources"
    (folder / "package").mkdir(parents=True)
    for number in range(8):
        text = "\n".join(f"def function_{number}_{line}(argument): return argument + {line}" for line in range(50))
        path = folder / "package" / f"file_{number}.py"
        path.write_text(text)
        os.utime(path, (1e9 + number, 1e9 + number))
    return folder


@pytest.fixture
def corpus(sources: Path) -> Corpus:
    return read_corpus(source_files(sources), 5.0)


def table_of(lines: list[str], second: str, rows: int) -> list[list[str]]:
    """The table whose second column is named so, without its header."""
    head = next(number for number, line in enumerate(lines) if re.match(rf"map +{second} ", line))
    return [re.split(r"  +", line.rstrip()) for line in lines[head + 1 : head + 1 + rows]]


def test_demo_runs_to_its_last_line(tmp_path: Path, sources: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("sortedcontainers")
    out = tmp_path / "report.html"
    assert main(["demo", "--job", "index", "--minutes", "0.02", "--text", str(sources), "--out", str(out)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("2,000 words, 403 different, in 8 files of ") for line in lines)
    rows = table_of(lines, "entries", 3)
    assert [row[0] for row in rows] == ["anabranch", "numpy, rebuilt", "sortedcontainers"]
    assert all(row[1] == "2,000" and float(row[2]) > 0 for row in rows)
    assert rows[1][3:5] == ["16.0", "16.0"]
    assert all(float(row[3]) > 16 and float(row[4]) > 16 for row in (rows[0], rows[2]))
    edits = table_of(lines, "edit threads", 4)
    assert [row[1] for row in edits] == ["4", "4", "1", "1"]
    assert [row[5] for row in edits] == ["every ms", "always", "never", "never"]
    assert all(float(row[2]) > 0 for row in edits)
    times = [cell for row in rows for cell in row[5:9]] + [cell for row in edits for cell in row[3:5]]
    times += [cell for row in edits[:2] for cell in row[7:9]]
    assert all(re.fullmatch(r"[\d.]+(e\+\d+)? (µs|ms|s)", cell) for cell in times)
    assert any(line.endswith("are equal: anabranch; numpy, rebuilt; sortedcontainers.") for line in lines)
    assert lines[-1] == f"wrote {out}"
    report = parse(out)
    for section in ("Latency", "latest 10 during edits", "Entries edited a second"):
        assert section in report.seen
    assert report.tags.count("svg") == 2
    assert set(tmp_path.iterdir()) == {sources, out}


def test_ctrl_c_leaves_a_report(tmp_path: Path, sources: Path) -> None:
    out = tmp_path / "report.html"
    running = subprocess.Popen(
        command("demo", "--job", "index", "--minutes", 2, "--text", sources, "--out", out),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell's background job, as CI may be, hands its children an ignored Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert running.stdout is not None
    running.stdout.readline()  # the words are read
    time.sleep(0.5)
    running.send_signal(signal.SIGINT)
    text, errors = running.communicate(timeout=60)
    assert running.returncode == 130, errors
    assert "Traceback" not in errors
    assert "interrupted" in text
    assert "are equal" not in text
    assert "Latency" in parse(out).seen


@pytest.mark.parametrize(("text", "wanted"), [("missing", "is no folder"), (".", "hold no words")])
def test_a_folder_without_words_is_refused(tmp_path: Path, text: str, wanted: str) -> None:
    with pytest.raises(ValueError, match=f"--text: .*{wanted}.*; name"):
        read_corpus(source_files(tmp_path / text), 1.0)


def test_only_packages_below_the_folder_are_left_out(tmp_path: Path) -> None:
    folder = tmp_path / "site-packages" / "mine"
    (folder / "dist-packages").mkdir(parents=True)
    (folder / "folder.py").mkdir()
    (folder / "gone.py").symlink_to(tmp_path / "nowhere.py")
    for name in ("kept.py", "dist-packages/other.py", "text.txt"):
        (folder / name).write_text("word")
    assert source_files(folder) == [folder / "kept.py"]


def test_prefixes_and_words_are_ranges_of_keys(corpus: Corpus) -> None:
    words = {corpus.vocabulary[key >> POSITION_BITS] for key in corpus.keys.tolist()}
    assert {"def", "argument", "function_7_49"} <= words
    first, last = corpus.range_of("function_3")
    found = sorted({corpus.vocabulary[key >> POSITION_BITS] for key in corpus.keys.tolist() if first <= key < last})
    assert found == sorted(word for word in words if word.startswith("function_3"))
    file, line = divmod(int(corpus.values[-1]), 1 << 32)
    assert corpus.files[file].name == "file_7.py"  # the one that changed last
    assert line == 50


@pytest.mark.parametrize("make", contenders())
def test_contenders_are_right_after_edits(corpus: Corpus, make: type[Contender]) -> None:
    contender, result = make(), IndexResult(make.name)
    assert build(contender, corpus, result, 5.0) == 8
    editors = Editors(contender, corpus, result, 8)
    run = editors.run(0.0, 1, "never", None)
    assert run.edited == 2 * 3 * 250
    assert len(run.edits) == 3
    editors.check(seed=0)
    assert result.checked


def test_check_notices_what_is_wrong(corpus: Corpus) -> None:
    class Deaf(SortedArrays):
        """Forgets the last place of every word, and with `few` the last entry of a prefix."""

        few = False

        def latest(self, first: int, last: int, count: int) -> list[int]:
            return super().latest(first, last, count + 1)[1:]

        def prefix(self, first: int, last: int, limit: int) -> tuple[np.ndarray, np.ndarray]:
            keys, values = super().prefix(first, last, limit)
            return (keys[:-1], values[:-1]) if self.few and limit <= 1000 else (keys, values)

    index, deaf, forgetful = Index(), Deaf(), Deaf()
    forgetful.few = True
    for contender, wanted in ((index, "entries"), (deaf, "latest places of"), (forgetful, "entries of")):
        result = IndexResult(contender.name)
        editors = Editors(contender, corpus, result, build(contender, corpus, result, 5.0))
        if isinstance(contender, Index):
            contender.map[int(corpus.keys[7])] += 1
        with pytest.raises(RuntimeError, match=f"{wanted}.* differ from a recomputation"):
            editors.check(seed=0)
        assert not result.checked


def test_reader_notices_an_answer_that_is_not_of_the_word(corpus: Corpus) -> None:
    class Wrong(SortedArrays):
        answer: tuple[int, ...] = ()  # added to the word's first key

        def latest(self, first: int, last: int, count: int) -> list[int]:
            return [first + one for one in self.answer]

    contender = Wrong()
    ask = Reader(contender, corpus, 0.0, seed=0)
    for contender.answer in ((), (5, 0), ((1 << POSITION_BITS) - 1,)):
        assert ask() >= 0
    for contender.answer in ((0, 5), (5, 5), (1 << POSITION_BITS,), (-1,), tuple(range(11, 0, -1))):
        with pytest.raises(RuntimeError, match="answers"):
            ask()


def test_four_threads_edit_and_every_entry_is_right(tmp_path: Path, corpus: Corpus) -> None:
    contender, result = Index(), IndexResult("anabranch")
    files = build(contender, corpus, result, 5.0)
    query(contender, corpus, result, 0.01, seed=0)
    editors = Editors(contender, corpus, result, files)
    run = editors.run(0.2, 4, "always", Reader(contender, corpus, 0.0, seed=0))
    assert len(run.edits) >= 12  # at least three of each thread
    assert run.edited == 2 * 250 * len(run.edits)
    assert run.queries
    editors.check(seed=0)
    for rows in (table_rows([result]), edit_rows([result])):
        assert rows[1][0] == "anabranch"
        assert len(rows[0]) == len(rows[1])
    assert any("Fewer than 2,001 entries" in note for note in conclusions([result], 2001))
    assert not any("Fewer" in note for note in conclusions([result], 2000))
    write_report(tmp_path / "one.html", [result], [table_rows([result])], [])
    assert parse(tmp_path / "one.html").tags.count("svg") == 2


def test_an_error_of_an_editor_is_raised(corpus: Corpus) -> None:
    class Full(SortedArrays):
        def edit(self, old: np.ndarray, new: np.ndarray, values: np.ndarray) -> None:
            raise MemoryError("full")

    contender, result = Full(), IndexResult("full")
    editors = Editors(contender, corpus, result, build(contender, corpus, result, 5.0))
    with pytest.raises(MemoryError, match="full"):
        editors.run(0.1, 2, "never", None)


def test_without_sortedcontainers_the_others_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert contenders() == [Index, SortedArrays]
    assert any("not installed" in note for note in conclusions([], 0))


def test_throughput_is_of_each_stretch_of_time() -> None:
    assert throughput([]) == []
    over_time = [(0.1 * step, 200_000 * step) for step in range(1, 11)] + [
        (1.0 + 0.1 * step, 2_000_000) for step in (1, 2)
    ]
    rates = throughput(over_time)
    assert [at for at, _ in rates] == [at for at, _ in over_time]
    assert [rate for _, rate in rates] == pytest.approx([2.0] * 10 + [0.0] * 2)
    assert len(throughput([(0.001 * step, step) for step in range(1, 5001)])) <= 40


def test_times_have_a_unit_that_suits_them() -> None:
    assert [time_text(value) for value in (2.5, 0.0125, 3.4e-6)] == ["2.5 s", "12.5 ms", "3.4 µs"]
