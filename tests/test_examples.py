"""What examples/ prints, of small runs: the numbers that each is about."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from anabranch.experts import DynamicMoE

FOLDER = Path(__file__).parents[1] / "examples"
pytestmark = [
    pytest.mark.cpu,
    pytest.mark.skipif(not FOLDER.exists(), reason="an installed wheel has no examples beside its tests"),
]


def run(name: str, *arguments: object, launcher: tuple[str, ...] = ()) -> str:
    """The output of an example, which must end well."""
    command = [sys.executable, *launcher, str(FOLDER / name), *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def numbers(pattern: str, text: str) -> list[float]:
    found = re.search(pattern, text)
    assert found is not None, f"{pattern!r} is not in {text!r}"
    return [float(group) for group in found.groups()]


@pytest.mark.skipif(
    importlib.util.find_spec("transformers") is None
    or importlib.util.find_spec("transformers.models.qwen4_exp") is None,
    reason="needs a transformers that has qwen4_exp",
)
def test_patch_transformers() -> None:
    out = run("patch_transformers.py", "--keep", 0.25, "--layers", 2, "--tokens", 64)
    (experts,) = numbers(r"experts: difference (\S+)", out)
    count, mixers = numbers(r"mixers: (\d+) hyper-connections, difference (\S+)", out)
    (kept,) = numbers(r"all kept: difference (\S+)", out)
    # Each number is a maximum over float32 sums in another order; a wrong weight or row is above a percent.
    assert max(experts, mixers, kept) < 1e-5 and count == 5
    (skipped,) = numbers(r"25% kept: difference (\S+)", out)
    (saved,) = numbers(r"saved (\S+)% of", out)
    assert skipped > 1e-3 and 70 < saved < 80


def test_train_nat_resumes(tmp_path: Path) -> None:
    """Stopped after an epoch and resumed, it prints what a run without a stop does."""
    torch.manual_seed(0)
    lines = ["from,to,when"]
    for event in range(1200):  # people in circles of 5 write round and round
        person = int(torch.randint(60, ()))
        lines.append(f"p{person},p{person // 5 * 5 + (person + 1 + event // 60 % 4) % 5},{event}")
    file = tmp_path / "edges.csv"
    file.write_text("\n".join(lines))
    options = ("--batch-size", 50, "--checkpoint")
    first = run("train_nat.py", file, *options, tmp_path / "a.pt")
    resumed = run("train_nat.py", file, *options, tmp_path / "a.pt", "--resume", "--epochs", 2)
    whole = run("train_nat.py", file, *options, tmp_path / "b.pt", "--epochs", 2)
    assert "1,200 events among 60 nodes; 840 train" in first and "resumed after epoch 1" in resumed
    assert resumed.splitlines()[-1] == whole.splitlines()[-1] != first.splitlines()[-1]
    (ap,) = numbers(r"test AP (\S+),", whole)
    assert ap > 0.75  # chance is 0.5


def test_embedding_rows() -> None:
    out = run("embedding_rows.py", "--rows", 1000, "--steps", 160, "--batch", 256, "--life", 100, "--window", 40)
    (unbounded,) = numbers(r"beforehand: AUC (\S+)", out)
    (hashed,) = numbers(r"trick: AUC (\S+)", out)
    allocated, reused = numbers(r"allocator: +AUC (\S+); \d+ rows taken (\d+) were reused", out.replace(",", ""))
    assert hashed + 0.02 < allocated < unbounded and reused > 100


def test_expert_parallel(tmp_path: Path) -> None:
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    out = run("expert_parallel.py", "--steps", 5, "--save", tmp_path / "moe.pt", launcher=launcher)
    assert "rank 0 of 2 holds 3 of 6 experts" in out and "rank 1 of 2 holds 3 of 6 experts" in out
    first, last, whole = numbers(r"loss (\S+) at first, (\S+) after 5 steps; one process: (\S+)", out)
    assert last < first and abs(last - whole) < 2e-4
    (apart,) = numbers(r"difference of a weight: (\S+)", out)
    assert apart < 1e-4  # five steps of at most 0.01
    moe = DynamicMoE(32, 64, 6, router=lambda logits: None)
    moe.load_state_dict(torch.load(tmp_path / "moe.pt", weights_only=True))


def test_readme_names_every_example() -> None:
    readme = (FOLDER / "README.md").read_text(encoding="utf-8")
    names = {path.name for path in FOLDER.glob("*.py")}
    assert names == set(re.findall(r"\[(\w+\.py)\]\(\1\)", readme))
    for name in names:
        text = (FOLDER / name).read_text(encoding="utf-8")
        assert f"examples/{name}" in text[: text.index('"""', 3)]  # the command that runs it
