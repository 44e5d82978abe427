"""The programs in docs/embedding.md: they run, print what the page says, have types, and are those of the example."""

import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/embedding.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$(?:\n\n```text\n(.*?)^```$)?", PAGE, flags=re.MULTILINE | re.DOTALL)
PROGRAMS = [pytest.param(code, output, id=f"{n}") for n, (kind, code, output) in enumerate(BLOCKS) if kind == "python"]


def environment(packages: Path) -> dict[str, str]:
    """With the package found where an installed one is: in a folder of packages."""
    if not (packages / "nuwaxl").exists():
        packages.mkdir()
        (packages / "nuwaxl").symlink_to(ROOT / "src/nuwaxl")
    return {**os.environ, "PYTHONPATH": str(packages), "OMP_NUM_THREADS": "1"}


@pytest.mark.parametrize(("code", "output"), PROGRAMS)
def test_a_program_of_the_page_runs_and_prints_what_it_says(
    code: str, output: str, tiny_bundle: Path, story_file: Path, tmp_path: Path
) -> None:
    (tmp_path / "bundle").symlink_to(tiny_bundle)
    (tmp_path / "program.py").write_text(code)
    ran = subprocess.run(
        [sys.executable, "program.py"],
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout == output or (not output and ran.stdout)


def test_the_page_has_programs_of_every_part() -> None:
    names = [
        "save(",
        "for clip in",
        "render_many(",
        "progress=",
        "cancel",
        "async for",
        "ThreadPool",
        "spawn",
        "costs(",
    ]
    programs = "".join(code for kind, code, _ in BLOCKS if kind == "python")
    assert [name for name in names if name not in programs] == []
    assert sum(bool(output) for _, _, output in BLOCKS) >= len(names) - 1


def test_users_programs_pass_mypy_strict_against_the_installed_package(tmp_path: Path) -> None:
    programs = []
    for number, (kind, code, _) in enumerate(BLOCKS):
        if kind == "python":
            programs.append(f"program_{number}.py")
            (tmp_path / programs[-1]).write_text(code)
    # Without py.typed this would find no types; and a wrong program must be told from a right one.
    (tmp_path / "wrong.py").write_text(
        "from nuwaxl.engine import Engine, Story\n"
        'video = Engine.open().render(Story([(0, "sky")]), frames=1, policy="fast")\n'
        "size: str = video.frames\n"
    )
    checked = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--no-error-summary", *programs, "wrong.py"],
        cwd=tmp_path,
        env=environment(tmp_path / "packages"),
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    errors = checked.stdout.splitlines()
    assert len(errors) == 2, checked.stdout + checked.stderr
    assert errors[0].startswith("wrong.py:2: ")
    assert '"policy"' in errors[0]
    assert errors[1].startswith("wrong.py:3: ")


@pytest.mark.parametrize(("kind", "file"), [("cpp", "own_devices.cpp"), ("cmake", "CMakeLists.txt")])
def test_the_cpp_of_the_page_is_that_of_the_example(kind: str, file: str) -> None:
    lines = (ROOT / "examples/cpp" / file).read_text(encoding="utf-8").splitlines()
    (block,) = [code.splitlines() for found, code, _ in BLOCKS if found == kind]
    windows = ["\n".join(lines[first : first + len(block)]) for first in range(len(lines))]
    assert "\n".join(block) in [textwrap.dedent(window) for window in windows]
