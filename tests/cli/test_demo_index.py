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

from anabranch.cli.demo_index import check, conclusions, table_rows, time_text
from anabranch.cli.index_contenders import Index, contenders
from anabranch.cli.index_corpus import POSITION_BITS, read_corpus, source_files
from anabranch.cli.index_measure import Editors, IndexResult, build, query

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


def test_demo_runs_to_its_last_line(tmp_path: Path, sources: Path) -> None:
    out = tmp_path / "report.html"
    arguments = ["demo", "--job", "index", "--minutes", 0.03, "--text", sources, "--out", out]
    done = subprocess.run(command(*arguments), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("2,000 words, ")
    head = next(number for number, line in enumerate(lines) if line.startswith("map "))
    rows = [re.split(r"  +", line.rstrip()) for line in lines[head + 1 : head + 4]]
    assert [row[0] for row in rows] == ["anabranch", "sortedcontainers", "numpy, rebuilt"]
    assert all(row[1] == "2,000" and float(row[2]) > 0 and float(row[8]) > 0 for row in rows)
    assert all(re.fullmatch(r"[\d.]+(e\+\d+)? (µs|ms|s)", cell) for row in rows for cell in row[3:7])
    assert "After all edits every entry" in done.stdout
    assert lines[-1] == f"wrote {out}"
    report = parse(out)
    assert "Latency" in report.seen
    assert report.tags.count("svg") == 2
    assert set(tmp_path.iterdir()) == {sources, out}


def test_ctrl_c_leaves_a_report(tmp_path: Path, sources: Path) -> None:
    out = tmp_path / "report.html"
    arguments = command("demo", "--job", "index", "--minutes", 2, "--text", sources, "--out", out)
    running = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert running.stdout is not None
    running.stdout.readline()  # the words are read
    time.sleep(1.0)
    running.send_signal(signal.SIGINT)
    text, errors = running.communicate(timeout=60)
    assert running.returncode == 130, errors
    assert "interrupted" in text
    assert out.exists()


@pytest.mark.parametrize(("text", "wanted"), [("missing", "is no folder"), (".", "hold no words")])
def test_a_folder_without_words_is_refused(tmp_path: Path, text: str, wanted: str) -> None:
    with pytest.raises(ValueError, match=f"--text: .*{wanted}.*; name"):
        read_corpus(source_files(tmp_path / text), 1.0)


def test_prefixes_and_words_are_ranges_of_keys(sources: Path) -> None:
    corpus = read_corpus(source_files(sources), 5.0)
    words = {corpus.vocabulary[key >> POSITION_BITS] for key in corpus.keys.tolist()}
    assert {"def", "argument", "function_7_49"} <= words
    first, last = corpus.range_of("function_3")
    found = sorted({corpus.vocabulary[key >> POSITION_BITS] for key in corpus.keys.tolist() if first <= key < last})
    assert found == sorted(word for word in words if word.startswith("function_3"))
    file, line = divmod(int(corpus.values[-1]), 1 << 32)
    assert corpus.files[file].name == "file_7.py"  # the one that changed last
    assert line == 50


def test_contenders_answer_alike_before_and_after_edits(sources: Path) -> None:
    corpus = read_corpus(source_files(sources), 5.0)
    answers = []
    for contender in contenders():
        result = IndexResult(contender.name)
        files = build(contender, corpus, result, 5.0)
        assert files == 8
        editors = Editors(contender, corpus, result, files, 1)
        editors.run(0.0, lambda: time.sleep(0.001))
        assert result.edited == 2 * 3 * 250
        argument = corpus.vocabulary.index("argument")
        found = contender.latest(*corpus.word_range(argument), 10)
        answers.append((found, contender.prefix(*corpus.range_of("fun"), 1000)))
        if isinstance(contender, Index):
            check(contender, editors)
            contender.map[found[0]] += 1
            with pytest.raises(RuntimeError, match="differs from a recomputation"):
                check(contender, editors)
    assert len(answers) == 3
    assert all(answer == answers[0] for answer in answers)


def test_four_threads_edit_and_every_entry_is_right(sources: Path) -> None:
    corpus = read_corpus(source_files(sources), 5.0)
    contender, result = Index(), IndexResult("anabranch")
    files = build(contender, corpus, result, 5.0)
    query(contender, corpus, result, 0.01, seed=0)
    editors = Editors(contender, corpus, result, files, 4)
    editors.run(0.2, lambda: contender.latest(0, int(np.iinfo(np.int64).max), 5))
    check(contender, editors)
    rows = table_rows([result])
    assert rows[1][0] == "anabranch"
    assert len(rows[0]) == len(rows[1])
    assert any("not installed" in note for note in conclusions([result], 2000))


def test_times_have_a_unit_that_suits_them() -> None:
    assert [time_text(value) for value in (2.5, 0.0125, 3.4e-6)] == ["2.5 s", "12.5 ms", "3.4 µs"]
