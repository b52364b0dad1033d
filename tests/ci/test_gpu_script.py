"""`.ci/gpu` runs where nobody of this project looks on: here with programs that only note that they were called."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.cpu
CI = Path(__file__).parents[2] / ".ci"
STEPS = [
    "environment",
    "build",
    "every kernel",
    "foreign wheel",
    "suite on CUDA",
    "races and graphs",
    "sanitizer",
    "bench",
]
SYSTEM_TOOLS = "bash", "basename", "dirname", "cat", "cp", "rm", "mkdir", "tail", "timeout", "grep", "sed", "tr", "wc"
# Notes its call, fails where it matches FAILS, lacks the modules named in LACKS, and writes the file after --json.
STUB = """#!/bin/bash
call="$(basename "$0") $*"
echo "$call" >> "$CALLS"
[[ -n $FAILS && $call == *$FAILS* ]] && exit 3
case "$call" in
  *find_spec*) for module in $LACKS; do [[ $call == *"'$module'"* ]] && exit 1; done ;;
  *"print(torch.cuda.get_device_name()"*) echo a-gpu ;;
esac
while [ $# -gt 1 ]; do [ "$1" = --json ] && echo {} > "$2"; shift; done
exit 0
"""


class Machine:
    """A checkout with nothing but the script, and a PATH whose programs are stubs."""

    def __init__(self, folder: Path) -> None:
        self.root, self.bin, self.calls_file = folder / "root", folder / "bin", folder / "calls"
        for path in (self.bin, self.root / "python" / "anabranch", self.root / "tests", self.root / "dist"):
            path.mkdir(parents=True)
        shutil.copytree(CI, self.root / ".ci")
        (self.root / "dist" / "anabranch-0.1.0-cp311-cp311-linux_x86_64.whl").touch()
        (self.root / "tests" / "test_fuzz.py").write_text("from hypothesis import given\n")
        (self.root / "tests" / "test_plan.py").write_text("import torch\n")
        for name in ("nvidia-smi", "nvcc", "cmake", "ninja", "python3", "compute-sanitizer"):
            (self.bin / name).write_text(STUB)
            (self.bin / name).chmod(0o755)

    def run(self, fails: str = "", lacks: str = "") -> subprocess.CompletedProcess[str]:
        # /bin and /usr/bin may hold a real nvcc or cmake: only what the script itself uses is linked beside the stubs.
        for tool in SYSTEM_TOOLS:
            link = self.bin / tool
            if not link.exists():
                link.symlink_to(shutil.which(tool))
        (self.root / "build" / "gpu" / "site").mkdir(parents=True, exist_ok=True)  # as cmake --install would
        environment = {"PATH": str(self.bin), "CALLS": str(self.calls_file), "FAILS": fails, "LACKS": lacks}
        command = [str(self.bin / "bash"), str(self.root / ".ci" / "gpu")]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)

    def calls(self) -> str:
        return self.calls_file.read_text()


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def verdicts(done: subprocess.CompletedProcess[str]) -> dict[str, str]:
    return dict(re.findall(r"^-- (.+): (ok|FAILED|NOT RUN)", done.stdout, re.MULTILINE))


def test_every_step_runs(machine: Machine) -> None:
    done = machine.run()
    assert verdicts(done) == dict.fromkeys(STEPS, "ok"), done.stdout + done.stderr
    assert done.returncode == 0
    assert done.stdout.splitlines()[-1].startswith("0 steps failed, 0 did not run")
    calls = machine.calls()
    for call in (
        "nvidia-smi --query-gpu",
        "nvcc --version",
        f"cmake -S . -B {machine.root}/build/gpu -G Ninja -DANABRANCH_CUDA=ON",
        "ninja -C",
        f"cmake --install {machine.root}/build/gpu --component python",
        "python3 -m zipfile -e dist/anabranch-",
        "python3 -m pytest --device cuda -p no:cacheprovider tests --ignore tests/gpu",
        "python3 -m pytest --device cuda -p no:cacheprovider tests/gpu",
        "compute-sanitizer --tool memcheck",
        "compute-sanitizer --tool racecheck",
        "python3 -m anabranch bench experts --device cuda",
        "python3 -m anabranch bench skip --device cuda",
        "python3 -m anabranch bench mixers --device cuda --without compiled",
    ):
        assert call in calls, f"{call} was not called:\n{calls}"
    assert calls.count("python3 .ci/every_kernel.py cuda") == 4  # the build's, the wheel's, and twice checked
    results = machine.root / "bench" / "results"
    assert all((results / f"a-gpu{room}.json").exists() for room in ("", "-skip", "-mixers"))


@pytest.mark.parametrize(
    ("call", "step"),
    [
        ("nvidia-smi", "environment"),
        ("ninja -C", "build"),
        ("zipfile", "foreign wheel"),
        ("tests/gpu --maxfail", "suite on CUDA"),
        ("no:cacheprovider tests/gpu", "races and graphs"),
        ("--tool racecheck", "sanitizer"),
        ("anabranch bench", "bench"),
    ],
)
def test_a_failing_step_is_counted_and_the_others_run(machine: Machine, call: str, step: str) -> None:
    done = machine.run(fails=call)
    assert verdicts(done) == dict.fromkeys(STEPS, "ok") | {step: "FAILED"}, done.stdout + done.stderr
    assert done.returncode == 1
    assert f"failed: {step}" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("1 steps failed, 0 did not run")


def test_what_cannot_run_is_named(machine: Machine) -> None:
    shutil.rmtree(machine.root / "dist")
    (machine.bin / "compute-sanitizer").unlink()
    done = machine.run(lacks="pytest hypothesis")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "not run: foreign wheel (there is no dist/anabranch-*.whl" in done.stdout
    assert "not run: suite on CUDA, races and graphs (python3 has no pytest)" in done.stdout
    assert "not run: sanitizer (compute-sanitizer is not on PATH)" in done.stdout
    assert "-m pytest" not in machine.calls()


def test_without_hypothesis_the_rest_of_the_suite_runs(machine: Machine) -> None:
    done = machine.run(lacks="hypothesis")
    assert "not run: 1 files of the suite (python3 has no hypothesis)" in done.stdout
    assert verdicts(done)["suite on CUDA"] == "ok"
    assert "--maxfail 20 --ignore=tests/test_fuzz.py" in machine.calls()


@pytest.mark.parametrize("missing", ["nvcc", "python3"])
def test_without_what_it_cannot_do_without_nothing_runs(machine: Machine, missing: str) -> None:
    (machine.bin / missing).unlink()
    done = machine.run()
    assert done.returncode == 2
    assert f"make gpu: {missing} is not on PATH, must be" in done.stderr
    assert not verdicts(done)


def test_without_torch_nothing_runs(machine: Machine) -> None:
    done = machine.run(lacks="torch")
    assert done.returncode == 2
    assert "has no torch" in done.stderr


def test_the_steps_end_within_eight_minutes() -> None:
    ends = [int(end) for end in re.findall(r'step (?:"[a-z A-Z]+"|[a-z]+) (\d+) ', (CI / "gpu").read_text())]
    assert len(ends) == len(STEPS)
    assert ends == sorted(set(ends))
    assert ends[-1] + 3 < 480  # 3 seconds more for a step that does not stop when asked


def test_the_comparison_of_every_kernel_runs() -> None:
    command = [sys.executable, str(CI / "every_kernel.py"), "cpu"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=dict(os.environ))
    assert done.returncode == 0, done.stderr
    assert "results on cpu equal the CPU's" in done.stdout
