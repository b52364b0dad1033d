"""What `cmake --install` gives a C++ project: moved elsewhere, found, built against and run, with no torch in sight."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CMAKE = shutil.which("cmake")
BUILDS = sorted(ROOT.glob("build/*/libanabranch_kernels.a"), key=lambda path: path.stat().st_mtime)
pytestmark = [
    pytest.mark.cpu,
    pytest.mark.skipif(not CMAKE or not shutil.which("ninja"), reason="needs cmake and ninja"),
    pytest.mark.skipif(not BUILDS, reason="needs kernels built in build/"),
]


def cmake(*arguments: str | Path, code: int = 0) -> str:
    done = subprocess.run([str(CMAKE), *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def prefix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("package")
    cmake("--install", BUILDS[-1].parent, "--prefix", folder / "installed", "--component", "cpp")
    return (folder / "installed").rename(folder / "moved")


def configure(source: Path, build: Path, prefix: Path, code: int = 0) -> str:
    return cmake("-S", source, "-B", build, "-G", "Ninja", f"-DCMAKE_PREFIX_PATH={prefix}", code=code)


def test_the_example_project_builds_and_runs(prefix: Path, tmp_path: Path) -> None:
    files = [path for path in (prefix / "lib").rglob("*") if path.suffix == ".cmake"]
    assert files and not [path for path in files if str(ROOT) in path.read_text()]
    configure(ROOT / "examples/cpp", tmp_path / "build", prefix)
    cmake("--build", tmp_path / "build")
    for program, result in {"index": "400000 trades", "experts": "from the definition"}.items():
        done = subprocess.run([tmp_path / "build" / program], capture_output=True, text=True)
        assert done.returncode == 0 and result in done.stdout, done.stdout + done.stderr


def test_another_version_is_refused_by_name(prefix: Path, tmp_path: Path) -> None:
    project = "cmake_minimum_required(VERSION 3.12)\nproject(p LANGUAGES CXX)\nfind_package(anabranch 0.2 REQUIRED)\n"
    (tmp_path / "CMakeLists.txt").write_text(project)
    said = configure(tmp_path, tmp_path / "build", prefix, code=1)
    assert "anabranchConfig.cmake, version: 0.1" in said


def test_as_a_folder_of_another_project(tmp_path: Path) -> None:
    """Configured without a look for Python, through which torch would be found; the kernels are of another build."""
    (tmp_path / "CMakeLists.txt").write_text(f"""
        cmake_minimum_required(VERSION 3.24)
        project(p LANGUAGES CXX)
        add_subdirectory({ROOT} anabranch)
        file(WRITE ${{CMAKE_BINARY_DIR}}/main.cpp "int main() {{ return 0; }}")
        add_executable(main ${{CMAKE_BINARY_DIR}}/main.cpp)
        target_link_libraries(main PRIVATE anabranch::kernels)
    """)
    cmake("-S", tmp_path, "-B", tmp_path / "build", "-G", "Ninja", f"-DANABRANCH_KERNELS={BUILDS[-1]}")
    assert "Python_EXECUTABLE" not in (tmp_path / "build/CMakeCache.txt").read_text()
    cmake("--build", tmp_path / "build", "--target", "main")
