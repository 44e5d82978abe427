"""What nuwaxl-export makes of the options for plans, and what it prints; the builds themselves are stood in for."""

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from nuwaxl.engine.bundle import Bundle, demo_bundle
from nuwaxl.engine.bundle_schema import Plan
from nuwaxl.errors import InputError
from nuwaxl.export import write
from nuwaxl.export.cli import main
from nuwaxl.export.tensorrt import cli, plans, refit
from nuwaxl.export.tensorrt.plans import Options, add_plans

from .test_add_plans import contents, make


class Module:
    __version__ = "11.4.0"


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Has both runtimes and a GPU of SM 90 that can verify nothing."""
    monkeypatch.setenv("NUWAXL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(plans, "load_tensorrt", lambda runtime: Module)
    monkeypatch.setattr(plans, "_own_sm", lambda: 90)
    monkeypatch.setattr(cli, "BundleGate", lambda: lambda *_: "")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the demo bundle."""
    return shutil.copytree(demo_bundle(), tmp_path / "demo")


Said = Callable[..., str]


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Said:
    """Run the command, which is to refuse; its one line."""

    def run(*arguments: object) -> str:
        assert main([str(each) for each in arguments]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        return error

    return run


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["tensorrt-rtx"], "found no --sm"),
        (["tensorrt-rtx", "--sm", "89", "--batches", "1,65537"], "at most 65536 segments; found 65537"),
        (["tensorrt-rtx", "--sm", "90"], "those of TensorRT-RTX; found 90"),
        (["tensorrt", "--sm", "80,89"], "expected --sm with 90, that of the GPU here"),
        (["tensorrt", "--refit-from", "absent"], "a bundle directory at absent; found nothing there"),
    ],
)
def test_what_plans_cannot_be_is_refused_before_the_checkpoint_is_read(
    refused: Said, tmp_path: Path, options: list[str], message: str
) -> None:
    error = refused(tmp_path / "no checkpoint", tmp_path / "out", "--target", *options)
    assert message in error
    assert "no checkpoint" not in error


def test_a_runtime_that_is_not_here_is_said_before_the_checkpoint_is_read(
    refused: Said, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(runtime: str) -> Any:
        raise InputError(expected=f"the package {runtime}", found="none", fix="install it")

    monkeypatch.setattr(plans, "load_tensorrt", missing)
    error = refused(tmp_path / "no checkpoint", tmp_path / "out", "--target", "tensorrt")
    assert "expected the package tensorrt" in error


def test_with_an_export_sm_names_the_kernels_and_tensorrt_builds_for_the_gpu_here(
    checkpoint: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Said
) -> None:
    asked: list[Any] = []

    def export(model: object, out: Path, *, kernels_for: Any, finish: Callable[[Path], None], **_: object) -> None:
        asked.append(kernels_for)
        finish(folder)

    monkeypatch.setattr(write, "export_bundle", export)
    monkeypatch.setattr(cli, "add_plans", lambda folder, options, **_: asked.append((folder, options)))
    assert (
        main([str(checkpoint), str(tmp_path / "out"), "--target", "tensorrt", "--sm", "80,90", "--batches", "1"]) == 0
    )
    assert asked == [(80, 90), (folder, Options("tensorrt", "11.4.0", (90,), (1,)))]
    # Without an export there is nothing that 80 could be for.
    assert "expected --sm 90, that of the GPU here" in refused(folder, "--target", "tensorrt", "--sm", "80,90")


def test_plans_of_another_bundle_are_asked_for_with_refit(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(refit, "refit_plans", lambda *arguments, **_: asked.append(arguments))
    arguments = [str(folder), "--target", "tensorrt", "--batches", "2"]
    assert main([*arguments, "--refit-from", str(demo_bundle())]) == 0
    assert asked == [(folder, demo_bundle(), Options("tensorrt", "11.4.0", (90,), (2,), refit=True))]


def test_a_line_says_of_every_plan_what_became_of_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli, "add_plans", partial(add_plans, make=make))

    def said(batches: str) -> list[str]:
        assert main([str(folder), "--target", "tensorrt", "--batches", batches]) == 0
        return capsys.readouterr().out.splitlines()

    first = said("1,2")
    plan = Bundle.open(folder).manifest.plans[0]
    name = f"{plan.graph:8} {plan.file.removeprefix('plans/')[:12]}"
    assert first[0].startswith(name)
    assert first[0].endswith("MB  2.0 s  unverified: not run yet")
    assert said("1,2")[0] == f"{name}  there already  unverified: not run yet"
    after = said("4")
    assert len(after) == 10
    assert after[5] == f"{name}  dropped: tensorrt 11.4.0, SM 90, batches 1,2"


def test_a_dry_run_builds_nothing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(folder)
    assert main([str(folder), "--target", "tensorrt-rtx", "--sm", "89", "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "tensorrt-rtx 11.4.0, SM 89"
    assert len(lines) == 7
    assert contents(folder) == before


def test_new_plans_and_refitted_ones_go_through_the_gate(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def accepted(bundle: Bundle, plan: Plan, file: Path) -> str:
        asked.append(plan.graph)
        return "GPU X"

    def refitted(folder: Path, source: Path, options: Options, **rest: Any) -> None:
        add_plans(folder, options, make=make, **rest)

    monkeypatch.setattr(cli, "BundleGate", lambda: accepted)
    monkeypatch.setattr(cli, "add_plans", partial(add_plans, make=make))
    monkeypatch.setattr(refit, "refit_plans", refitted)
    for options in (["--batches", "1"], ["--batches", "2", "--refit-from", str(demo_bundle())]):
        asked.clear()
        assert main([str(folder), "--target", "tensorrt", *options]) == 0
        plans = Bundle.open(folder).manifest.plans
        assert {plan.accepted_on for plan in plans} == {("GPU X",)}
        assert sorted(asked) == sorted(plan.graph for plan in plans)


def test_on_a_terminal_a_bar_says_how_far_each_plan_is(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[list[Any]] = []

    class Bar:
        def __init__(self, total: int, **_: object) -> None:
            self.n, self.total = 0.0, total
            drawn.append([])

        def set_description(self, text: str, refresh: bool) -> None:
            self.text = text

        def update(self, more: float) -> None:
            self.n += more
            drawn[-1].append((self.text, self.n / self.total))

        def close(self) -> None:
            drawn[-1].append("closed")

    monkeypatch.setattr(cli, "on_terminal", lambda: True)
    monkeypatch.setattr(cli, "bar", Bar)
    monkeypatch.setattr(cli, "add_plans", partial(add_plans, make=make))
    assert main([str(folder), "--target", "tensorrt", "--batches", "1"]) == 0
    graphs = [plan.graph for plan in Bundle.open(folder).manifest.plans]
    compared = "comparing with ONNX Runtime"
    assert drawn == [[(f"{graph}: half", 0.5), (f"{graph}: {compared}", 1.0), "closed"] for graph in graphs]
