"""Plans come into a bundle all together or not at all; the builds themselves are stood in for."""

import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("onnx")

from nuwaxl.engine.acceptance import PlanRefused
from nuwaxl.engine.bundle import Bundle, demo_bundle, write_plans
from nuwaxl.engine.bundle_schema import Plan
from nuwaxl.errors import InputError
from nuwaxl.export.tensorrt import plans
from nuwaxl.export.tensorrt.build import BuildError, Request
from nuwaxl.export.tensorrt.builder import Built
from nuwaxl.export.tensorrt.estimate import Size, estimate, graph_size, record
from nuwaxl.export.tensorrt.plans import Options, Step, add_plans, dry_run

from .changed import add_kernels, call_a_kernel, change_graph

OPTIONS = Options("tensorrt-rtx", "1.7.1", (89,), (1, 2))
GRAPHS = {"text", "prepare", "step", "decode", "encode"}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What builds took goes into a folder of the test's."""
    monkeypatch.setenv("NUWAXL_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the demo bundle."""
    return shutil.copytree(demo_bundle(), tmp_path / "demo")


def make(request: Request, out: Path, progress: Callable[[str, float], None]) -> Built:
    """A build that writes what it was asked for."""
    progress("half", 0.5)
    out.write_text(repr(request))
    return Built(seconds=2.0, peak_bytes=300_000_000)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_every_graph_gets_a_plan_and_the_bundle_opens(folder: Path) -> None:
    heard: list[Step] = []
    made = add_plans(folder, OPTIONS, progress=heard.append, make=make, gate=lambda *_: "GPU X")
    bundle = Bundle.open(folder)
    assert bundle.manifest.plans == tuple(made)
    assert {plan.graph for plan in made} == GRAPHS
    assert all(plan.accepted_on == ("GPU X",) for plan in made)
    for plan in made:
        assert f"batches={OPTIONS.batches}" in (folder / plan.file).read_text()
        assert str(bundle.file(plan.graph)) in (folder / plan.file).read_text()
    assert [step.plan.graph for step in heard if step.finished] == [plan.graph for plan in made]
    assert any(step.done == 0.5 for step in heard)


def test_what_is_there_is_kept_and_the_rest_is_built(folder: Path) -> None:
    first = add_plans(folder, OPTIONS, make=make)
    requests: list[Request] = []

    def counted(request: Request, *rest: object) -> Built:
        requests.append(request)
        return make(request, *rest)  # type: ignore[arg-type]

    assert add_plans(folder, OPTIONS, make=counted) == first
    assert requests == []
    second = add_plans(folder, replace(OPTIONS, batches=(4,)), make=counted)
    assert len(requests) == 5
    assert Bundle.open(folder).manifest.plans == tuple(second), "the others were for the same GPU"
    assert {f"plans/{path.name}" for path in (folder / "plans").iterdir()} == {plan.file for plan in second}
    third = add_plans(folder, replace(OPTIONS, sm=(120,)), make=counted)
    assert set(Bundle.open(folder).manifest.plans) == {*second, *third}


def test_plans_for_fewer_gpus_leave_the_others_theirs_and_what_is_dropped_is_said(folder: Path) -> None:
    both = replace(OPTIONS, sm=(89, 120))
    first = add_plans(folder, both, make=make)
    heard: list[Step] = []
    second = add_plans(folder, replace(OPTIONS, batches=(1,)), make=make, progress=heard.append)
    assert Bundle.open(folder).manifest.plans == (*second, *first)
    assert all((folder / plan.file).is_file() for plan in first)
    assert not [step for step in heard if step.dropped]
    heard.clear()
    third = add_plans(folder, replace(both, batches=(4,)), make=make, progress=heard.append)
    assert Bundle.open(folder).manifest.plans == tuple(third)
    assert [step.plan for step in heard if step.dropped] == [*second, *first]


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_bytes(b"")])
def test_a_damaged_plan_is_built_again_and_another_gpus_is_dropped(
    folder: Path, damage: Callable[[Path], object]
) -> None:
    other = add_plans(folder, replace(OPTIONS, sm=(120,)), make=make)
    made = add_plans(folder, OPTIONS, make=make)
    step, text = (next(plan for plan in plans if plan.graph == "step") for plans in (made, other))
    for plan in (step, text):
        damage(folder / plan.file)
    heard: list[Step] = []
    assert add_plans(folder, OPTIONS, make=make, progress=heard.append) == made
    assert [each.plan for each in heard if each.finished and not each.kept and not each.dropped] == [step]
    assert [each.plan for each in heard if each.dropped] == [text]
    bundle = Bundle.open(folder)
    assert set(bundle.manifest.plans) == {*made, *other} - {text}
    assert all(bundle.plan(plan).is_file() for plan in bundle.manifest.plans)


def test_two_at_once_are_refused_and_the_first_goes_on(folder: Path) -> None:
    refused: list[str] = []

    def while_another_builds(request: Request, *rest: object) -> Built:
        with pytest.raises(InputError) as caught:
            add_plans(folder, replace(OPTIONS, sm=(120,)), make=make)
        refused.append(str(caught.value))
        return make(request, *rest)  # type: ignore[arg-type]

    made = add_plans(folder, OPTIONS, make=while_another_builds)
    assert len(refused) == len(GRAPHS)
    assert "found another nuwaxl-export at it; run this again once that has ended" in refused[0]
    assert Bundle.open(folder).manifest.plans == tuple(made)
    add_plans(folder, replace(OPTIONS, sm=(120,)), make=make)  # the lock has gone


def test_plans_that_come_into_the_manifest_meanwhile_stay(folder: Path) -> None:
    """As where the file system has no locks."""
    other: list[Plan] = []

    def and_another(request: Request, *rest: object) -> Built:
        if not other:
            plan = replace(plans.wanted(Bundle.open(folder).manifest, replace(OPTIONS, sm=(120,)), folder)[0])
            (folder / plan.file).write_text("another's")
            write_plans(folder, [plan])
            other.append(plan)
        return make(request, *rest)  # type: ignore[arg-type]

    made = add_plans(folder, OPTIONS, make=and_another)
    assert Bundle.open(folder).manifest.plans == (*made, *other)


class Stop(Exception):
    """What no code expects."""


@pytest.mark.parametrize("error", [BuildError("no"), KeyboardInterrupt(), Stop()])
@pytest.mark.parametrize("earlier", [False, True])
def test_a_build_that_fails_leaves_the_bundle_as_it_was(folder: Path, error: BaseException, earlier: bool) -> None:
    if earlier:
        add_plans(folder, OPTIONS, make=make)
    before = contents(folder)

    def fails(request: Request, out: Path, progress: Callable[[str, float], None]) -> Built:
        if request.graph.name == "step.onnx":
            out.write_text("half")
            raise error
        return make(request, out, progress)

    with pytest.raises(type(error)):
        add_plans(folder, replace(OPTIONS, batches=(8,)), make=fails)
    assert contents(folder) == before
    assert (folder / "plans").exists() == earlier


def test_a_plan_whose_answers_are_wrong_is_not_written(folder: Path) -> None:
    before = contents(folder)

    def gate(bundle: Bundle, plan: object, file: Path) -> str:
        assert file.is_file()
        if "step" in file.read_text():
            raise PlanRefused("graph step, output x0, batch 2, row 1: relative error 1e-01")
        return "GPU X"

    with pytest.raises(PlanRefused):
        add_plans(folder, OPTIONS, make=make, gate=gate)
    assert contents(folder) == before


def test_a_killed_run_is_cleaned_up_by_the_next(folder: Path) -> None:
    (folder / "plans").mkdir()
    (folder / "plans" / ".0123.plan.part").write_text("half")
    (folder / "plans" / "0123.plan").write_text("whole, and in no manifest")
    made = add_plans(folder, OPTIONS, make=make)
    assert {f"plans/{path.name}" for path in (folder / "plans").iterdir()} == {plan.file for plan in made}


def test_a_folder_that_cannot_be_written_is_refused(folder: Path) -> None:
    (folder / "plans").write_text("a file")
    with pytest.raises(InputError, match=r"a folder .* that can be written"):
        add_plans(folder, OPTIONS, make=make)


def test_tensorrt_keeps_its_timings_by_version_gpu_and_kernels(folder: Path, tmp_path: Path) -> None:
    requests: list[Request] = []

    def counted(request: Request, *rest: object) -> Built:
        requests.append(request)
        return make(request, *rest)  # type: ignore[arg-type]

    wanted = Options("tensorrt", "11.4.0", (90,), (1,), refit=True)
    add_plans(folder, wanted, make=counted)
    assert {request.timing_cache for request in requests} == {tmp_path / "cache" / "timing-11.4.0-sm90-none.cache"}
    assert {request.flags for request in requests} == {("refit",)}
    assert {request.plugins for request in requests} == {None}

    change_graph(folder, call_a_kernel, "step")
    names: set[str] = set()
    for kernels in ("of one Triton", "of another"):
        add_kernels(folder, kernels)
        requests.clear()
        made = {plan.graph: plan for plan in add_plans(folder, wanted, make=counted)}
        (built,) = requests  # the other graphs call no kernel
        sha256 = Bundle.open(folder).manifest.files["kernels.json"].sha256
        assert [plan.kernels_sha256 for plan in made.values() if plan.graph != "step"] == [""] * 4
        assert made["step"].kernels_sha256 == sha256
        assert built.plugins == folder
        assert built.timing_cache == tmp_path / "cache" / f"timing-11.4.0-sm90-{sha256[:16]}.cache"
        names.add(built.timing_cache.name)
    assert len(names) == 2


def test_a_gpu_without_kernels_in_the_bundle_and_tensorrt_rtx_build_bodies(folder: Path) -> None:
    change_graph(folder, call_a_kernel, "step")
    add_kernels(folder, "of SM 89", sm=89)
    for options in (Options("tensorrt", "11.4.0", (90,), (1,)), OPTIONS):
        assert {plan.kernels_sha256 for plan in add_plans(folder, options, make=make)} == {""}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("tensorrt-rtx", (), (1,), False), "found no --sm"),
        (("tensorrt-rtx", (89, 90), (1,), False), "those of TensorRT-RTX; found 90"),
        (("onnx", (89,), (1,), False), "found 'onnx'"),
    ],
)
def test_what_cannot_be_built_is_refused_before_any_work(arguments: tuple[object, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        plans.options(*arguments)  # type: ignore[arg-type]


def test_refit_without_a_driver_is_refused_with_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> int:
        raise InputError(expected="an NVIDIA GPU", found="none", fix="use another machine")

    monkeypatch.setattr(plans, "_own_sm", none)
    with pytest.raises(InputError, match="an NVIDIA GPU for --refit: TensorRT-RTX builds such plans with its driver"):
        plans.options("tensorrt-rtx", (89,), (1,), True)


def test_tensorrt_builds_for_the_gpu_here_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    class Module:
        __version__ = "11.4.0"

    monkeypatch.setattr(plans, "_own_sm", lambda: 90)
    monkeypatch.setattr(plans, "load_tensorrt", lambda runtime: Module)
    assert plans.options("tensorrt", (), (2, 1, 2), True) == Options("tensorrt", "11.4.0", (90,), (1, 2), refit=True)
    with pytest.raises(InputError, match=r"expected --sm 90, that of the GPU here.*found 89"):
        plans.options("tensorrt", (89,), (1,), False)


def test_the_estimate_grows_with_the_graph_and_learns_from_builds(folder: Path) -> None:
    bundle = Bundle.open(folder)
    lines = dry_run(bundle, OPTIONS)
    assert len(lines) == 6
    assert contents(folder) == contents(demo_bundle())
    size = graph_size(bundle.file("step"))
    assert 15e6 < size.weight_bytes < 40e6, "half weights count as the float32 they are cast to"
    assert size.nodes > 1000
    first = estimate(size, 2, "tensorrt-rtx")
    assert first.seconds is not None
    assert first.memory_bytes is not None
    assert estimate(size, 4, "tensorrt-rtx").seconds == pytest.approx(2 * first.seconds)
    record("tensorrt-rtx", size, 2, seconds=10 * first.seconds, peak_bytes=int(3 * first.memory_bytes))
    learnt = estimate(size, 2, "tensorrt-rtx")
    assert learnt.seconds == pytest.approx(10 * first.seconds)
    assert learnt.memory_bytes == pytest.approx(3 * first.memory_bytes, rel=1e-3)


def test_the_estimate_is_of_what_will_be_built(folder: Path) -> None:
    made = add_plans(folder, OPTIONS, make=make)
    (folder / made[-1].file).unlink()
    lines, of_all = dry_run(Bundle.open(folder), OPTIONS), dry_run(Bundle.open(demo_bundle()), OPTIONS)
    assert [line.split()[1:] for line in lines[:4]] == [["there", "already"]] * 4
    assert lines[4] == of_all[4]
    assert lines[4].split("  ")[-1] in lines[5], "time and memory of the one alone"
    assert lines[5] != of_all[5]


def test_a_runtime_that_was_never_measured_says_so_until_it_was(folder: Path) -> None:
    bundle = Bundle.open(folder)
    options = Options("tensorrt", "11.4.0", (90,), (1, 2))
    assert "never measured" in dry_run(bundle, options)[-1]
    record("tensorrt", Size(100, 1_000_000), 1, 5.0, 1_000_000_000)
    assert "about" in dry_run(bundle, options)[-1]


def test_the_estimate_of_all_is_the_sum_of_the_times_and_the_largest_of_the_memories(folder: Path) -> None:
    record("tensorrt-rtx", Size(1000, 1_000_000), 1, seconds=10_000.0, peak_bytes=1_000_000_000)
    found = [
        re.search(r"about (\d+) s and ([\d.]+) GB of memory", line) for line in dry_run(Bundle.open(folder), OPTIONS)
    ]
    *times, all_of_it = (int(each[1]) for each in found if each)
    *memories, largest = (float(each[2]) for each in found if each)
    assert len(times) == len(GRAPHS)
    assert all_of_it == pytest.approx(sum(times), abs=len(times))
    assert largest == max(memories) > min(memories)
