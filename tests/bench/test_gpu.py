"""`make gpu`, its code at tiny sizes on the CPU: what every piece finds, the gates, files that survive a failure."""

import json
import subprocess
import sys
import time
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch.utils._pytree import tree_leaves  # noqa: E402

from nuwaxl.bench.gpu import (  # noqa: E402
    cli,
    flops,
    kernels,
    model,
    opponents,
    ours,
    parity,
    piece,
    plain,
    profile,
    report,
    tests,
)
from nuwaxl.bench.gpu.gates import Gate, gates  # noqa: E402
from nuwaxl.bench.gpu.model import Workload, workload  # noqa: E402
from nuwaxl.bench.gpu.piece import Piece  # noqa: E402
from nuwaxl.engine import Plan  # noqa: E402
from nuwaxl.engine.bundle import demo_bundle  # noqa: E402
from nuwaxl.engine.devices import Worker  # noqa: E402
from nuwaxl.errors import InputError, NuwaxlError  # noqa: E402
from nuwaxl.kernels import bench, ops  # noqa: E402
from nuwaxl.train.config import ModelConfig, MTDConfig  # noqa: E402
from nuwaxl.train.networks.spatial import Attention  # noqa: E402
from nuwaxl.train.presets import SD15  # noqa: E402

ROOT = Path(__file__).parents[2]


def test_the_engine_renders_the_workload_and_the_baseline(tmp_path: Path) -> None:
    found: list[dict[str, Any]] = []
    work = workload(8, tiny=True)
    ours.measure(work, "torch:cpu", tmp_path, time.monotonic() + 1000, lambda f: found.append(dict(f)), [], 16)
    last = found[-1]
    # What is known is told before what takes long.
    for figure, number in (("devices", 0), ("open_s", 1), ("step_ms", 2), ("warm_s", 3), ("wall_s", 4), ("ar_how", 5)):
        assert [figure in figures for figures in found] == [*[False] * number, *[True] * (len(found) - number)]
    assert ["profile" in figures for figures in found] == [*[False] * 6, True]  # it would slow what comes after it
    assert (last["frames"], last["segments"], last["steps"]) == (20, 11, 3)  # 1 + 3 + 7 of L = 4
    assert last["wall_s"] > 0
    assert last["batch_sizes"][0] == 1
    assert last["batch_sizes"][-1] <= 16
    assert len(last["step_ms"]) == len(last["batch_sizes"])
    assert last["ar_how"] == "measured"
    assert last["ar_windows"] == 7  # 4 frames, then 3 more each
    assert last["ar_reduction"] == pytest.approx(1 - last["wall_s"] / last["ar_wall_s"])
    expected = last["batch"] * last["flop"]["executed"] / (last["batch_step_ms"] / 1e3) / 1e12
    assert last["tflop_s"] == pytest.approx(expected)
    profile = (tmp_path / last["profile"]).read_text()
    assert "nuwaxl::temporal_attention" in profile


@pytest.mark.parametrize(
    ("worker", "gpu"),
    [
        (Worker("cuda:1", 1, True, kind="cuda", index=1), 1),
        (Worker("tensorrt:0", 1, True, kind="tensorrt"), 0),
        (Worker("torch:cuda:2/eager#0", 1, True, plugin="torch:cuda:2/eager"), 2),
        (Worker("torch:cpu#0", 1, True, plugin="torch:cpu"), None),
    ],
)
def test_a_step_is_profiled_on_every_device_that_the_profiler_sees(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, worker: Worker, gpu: int | None
) -> None:
    began: list[tuple[int, ...]] = []

    class Runner:
        def start(self, segments: Any) -> Any:
            began.append(segments.x.shape)
            return SimpleNamespace(step=lambda timestep, *rest: began.append(timestep.shape))

    asked: list[int | None] = []

    def written(call: Any, path: Path, title: str, gpu: int | None) -> None:
        call()
        asked.append(gpu)

    work = workload(8, tiny=True)
    bundle = model._in_memory(work, tmp_path)
    engine: Any = SimpleNamespace(workers=(worker,), _runners=(Runner(),), bundle=bundle)
    monkeypatch.setattr(ours, "write_profile", written)
    assert ours._profile(engine, work, 3, tmp_path, "cuda:1/x") == {"profile": "profile-cuda-1-x-8.md"}
    assert (began, asked) == ([(3, 4, 4, 4, 4), (3,)], [gpu])

    def refused(*_: object) -> None:
        raise ValueError("no counters")

    monkeypatch.setattr(ours, "write_profile", refused)
    assert ours._profile(engine, work, 3, tmp_path, "cuda:1") == {"profile": "none: no counters"}
    engine.workers = (Worker("cpu#0", 1, True),)
    assert ours._profile(engine, work, 3, tmp_path, "cpu") == {}


def test_a_profile_of_nothing_is_none(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="expected torch's profiler to see what ran"):
        profile.write_profile(lambda: None, tmp_path / "profile.md", "", None)
    assert not list(tmp_path.iterdir())


def test_our_answers_are_as_near_to_float32_as_the_plain_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    work = workload(8, tiny=True)
    found = parity.measure(work, "cpu")
    assert 1e-4 < found["step_error"] < 1.25 * found["plain_step_error"]
    assert 0 < found["frames_error"] < 1.25 * found["plain_frames_error"]
    assert [gate.passed for gate in gates({"parity": {"figures": found}}, []) if "parity" in gate.name] == [True, True]

    # A step that leaves out a term of the update is seen.
    update = ops.guided_update
    monkeypatch.setattr(ops, "guided_update", lambda x, history, *rest: update(0 * x, history, *rest))
    assert parity.measure(work, "cpu")["step_error"] > 0.1


def test_without_time_the_baseline_is_added_up(tmp_path: Path) -> None:
    found: list[dict[str, Any]] = []
    news = lambda figures: found.append(dict(figures))  # noqa: E731
    ours.measure(workload(8, tiny=True), "torch:cpu", tmp_path, time.monotonic(), news, [], 16)
    last = found[-1]
    first = next(figures for figures in found if "profile" in figures)
    assert "step_ms" in first
    assert "warm_s" not in first, "the profile says why the render is slow that is stopped"
    assert last["ar_how"] == "extrapolated"
    steps_s = last["ar_windows"] * last["steps"] * last["step_ms"][0] / 1e3
    assert last["ar_wall_s"] == pytest.approx(steps_s + last["decode_s"])


def test_the_opponent_is_added_up_in_its_favour(tmp_path: Path) -> None:
    found: list[dict[str, Any]] = []
    work = workload(8, tiny=True)
    opponents.measure(work, torch.device("cpu"), torch.float32, "eager", [2, 1], tmp_path, found.append)
    last = found[-1]
    cheapest = min(ms / batch for ms, batch in zip(last["step_ms"], last["batch_sizes"], strict=True))
    assert last["total_s"] == pytest.approx((11 * 3 * cheapest + 5 * last["decode_ms"]) / 1e3)
    assert last["how"] == "extrapolated"
    assert "wall_s" not in last


def test_the_opponents_networks_are_plain_in_the_type_asked_for_and_channels_last(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen: list[tuple[torch.dtype, bool]] = []
    stepped = plain.step

    def step(mtd: Any, x: torch.Tensor, *rest: Any) -> Any:
        weight = mtd.mid_resnet.conv1.weight
        seen.append((weight.dtype, weight.is_contiguous(memory_format=torch.channels_last)))
        return stepped(mtd, x, *rest)

    monkeypatch.setattr(plain, "step", step)
    monkeypatch.setattr(ops, "on_triton", lambda *_: True)  # as on a GPU: they must be kept from the operators
    first = Piece("eager", "cpu", True, str(tmp_path), 60.0, pixels=8)
    monkeypatch.setattr(piece, "_TYPE_ON_CPU", torch.bfloat16)
    assert piece.main(first.command()[-1]) == 0
    assert set(seen) == {(torch.bfloat16, True)}
    assert json.loads(first.result.read_text())["figures"]["batch_sizes"] == [2, 1]

    monkeypatch.setattr(opponents, "without_operators", nullcontext)
    with pytest.raises(NuwaxlError, match="expected the plain network for comparison; found nuwaxl"):
        piece.main(first.command()[-1])


def test_the_opponents_batches_go_depth_by_depth() -> None:
    found = plain.batches(Plan(1024, 16), 8)
    assert [len(batch) for batch in found] == [1, 5, *[8] * 8, 5]
    assert [segment for batch in found for segment in batch] == list(range(75))
    assert opponents.sizes_of(Workload(SD15, 256, 1024), 8) == [8, 5, 1]


def test_the_opponents_render_is_the_engines(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    work, made = workload(8, tiny=True), model.networks

    def moved(config: ModelConfig, device: torch.device) -> Any:
        text, mtd, tklvae = made(config, device)
        for network in (mtd, tklvae):
            parity._move_what_is_constant(network, torch.Generator().manual_seed(1))
        return text, mtd, tklvae

    monkeypatch.setattr(model, "networks", moved)
    with model.open_engine(work, "torch:cpu", tmp_path) as engine:
        expected = np.concatenate([clip.frames for clip in engine.render(model.story(), frames=work.frames)])
    assert expected.std() > 10
    device = torch.device("cpu")
    # What batches are filled up to, and whether tensors stay where they are, as CUDA graphs want it.
    for sizes, kept in (([], None), ([2, 3], None), ([3], {})):
        theirs = plain.PlainNetworks(*moved(work.config, device), device, "eager")
        theirs.sizes, theirs._kept = sizes, kept
        theirs.decode = None  # type: ignore[method-assign, assignment]  # all windows are queued before one is asked for
        with torch.no_grad():
            clips = plain.render(model.new_job(work, tmp_path), theirs, 3)
        assert [clip.first_frame for clip in clips] == [0, 4, 8, 12, 16]
        frames = np.concatenate([clip.frames for clip in clips])
        assert np.abs(frames.astype(int) - expected).max() <= 1
    # What CUDA graphs read stays where it was, and torch knows it.
    with torch.no_grad():
        first, second = (theirs.start(job.begin(0)) for job in [_encoded(work, tmp_path, theirs)] * 2)
    for mine, other in zip(tree_leaves(first._prepared), tree_leaves(second._prepared), strict=True):
        assert mine is other
        assert mine._dynamo_static_input_type
    assert first._x is second._x
    assert first._history is second._history


@pytest.mark.parametrize("views", [False, True])
def test_nothing_compiles_while_the_clock_of_the_opponents_render_runs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, views: bool
) -> None:
    def begin_decode(networks: Any, latents: Any) -> Any:
        return partial(plain._array, networks._decode(torch.from_numpy(latents)))

    if views:  # a fault that the render before the clock has to find
        monkeypatch.setattr(plain.PlainNetworks, "begin_decode", begin_decode)
        monkeypatch.setattr(plain.PlainNetworks, "decode", lambda *given: begin_decode(*given)())
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    compiled, timed = [], opponents._render_s

    def render_s(*given: Any) -> Any:
        compiled.append(opponents._graphs())
        found = timed(*given)
        compiled[-1] = opponents._graphs() - compiled[-1]
        return found

    monkeypatch.setattr(opponents, "_render_s", render_s)
    torch._dynamo.reset()
    found: list[dict[str, Any]] = []
    work, before = workload(8, tiny=True), opponents._graphs()
    try:
        opponents.measure(work, torch.device("cpu"), torch.float32, "default", [2, 1], tmp_path, found.append)
    finally:
        torch._dynamo.reset()
    assert compiled == [0, 0]
    assert found[-1]["wall_compiled"] == 0
    assert opponents._graphs() - before == 3 + views  # a step of two sizes, decoding, and decoding of a view


@pytest.mark.parametrize(("sizes", "frames"), [([8], 48), ([5, 8], 80), ([1, 5, 8], 144)])
def test_the_render_before_the_opponents_has_every_size_of_it(sizes: list[int], frames: int) -> None:
    work = Workload(SD15, 256, 1024)
    networks: Any = SimpleNamespace(filled=partial(plain.PlainNetworks.filled, SimpleNamespace(sizes=sizes)))
    before = opponents.before(work, networks, 8)
    assert before.frames == frames
    run_as = {networks.filled(len(batch)) for batch in plain.batches(Plan(frames, 16), 8)}
    assert run_as == set(sizes)


def _encoded(work: Workload, folder: Path, networks: Any) -> Any:
    job = model.new_job(work, folder)
    job.encode_text(networks, lambda: None)
    return job


def test_kernels_are_measured_against_their_roofline() -> None:
    found = kernels.measure("cpu", tiny=True)
    names = {row["kernel"] for row in found["rows"]}
    assert names >= {*kernels.GATED, "attention backward", "group norm + SiLU", "sampler update"}
    for row in found["rows"]:
        assert row["us"] > 0
        compute = row["tflop_s"] / found["figures"]["matmul_tflop_s"]
        assert row["of_roof"] == pytest.approx(max(row["of_copy"], compute))


def test_a_kernel_that_fails_leaves_the_others_their_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("no such\ninstruction")

    monkeypatch.setattr(ops, "temporal_conv", broken)
    told: list[dict[str, Any]] = []
    with pytest.raises(NuwaxlError, match=r"found errors of conv \+ injection;"):
        kernels.measure("cpu", tiny=True, news=lambda found: told.append(found))
    rows = told[-1]["rows"]
    assert [len(found["rows"]) for found in told] == list(range(1, len(rows) + 1))
    errors = [row for row in rows if "error" in row]
    assert {row["error"] for row in errors} == {"RuntimeError: no such instruction"}
    assert len(errors) == 4  # two sizes, two batches
    assert all(row["of_roof"] > 0 for row in rows if row not in errors)
    gate = next(gate for gate in gates({"kernels": told[-1]}, []) if gate.name.startswith("conv"))
    assert (gate.passed, gate.note) == (None, "it failed")
    assert "RuntimeError: no such instruction" in bench.table({**told[-1]["figures"], "rows": rows})


def test_kernels_after_one_that_lost_the_gpu_are_measured_by_another_process(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("illegal address")

    began: list[list[str]] = []
    # Nothing would come after it; here the call returns, and the test is the other process.
    monkeypatch.setattr("os.execv", lambda program, command: began.append(command))
    monkeypatch.setattr(bench, "gpu_is_lost", lambda: True)
    first = Piece("kernels", "cpu", True, str(tmp_path), 60.0)
    with monkeypatch.context() as failing:
        failing.setattr(ops, "temporal_conv", broken)
        assert piece.main(first.command()[-1]) == 0
    rows = json.loads(first.result.read_text())["rows"]
    assert [("error" in row, row["kernel"]) for row in rows[-2:]] == [
        (False, "attention backward"),
        (True, "conv + injection"),
    ]
    (command,) = began
    # Now it would work, but its other sizes are left out.
    with pytest.raises(NuwaxlError, match=r"found errors of conv \+ injection;"):
        piece.main(command[-1])
    found = json.loads(first.result.read_text())
    assert found["rows"][: len(rows)] == rows
    whole = kernels.measure("cpu", tiny=True)
    sizes = [[(row["kernel"], row["b"], row["c"]) for row in each["rows"]] for each in (found, whole)]
    assert sizes[0] == sizes[1]
    errors = [row for row in found["rows"] if "error" in row]
    assert {row["kernel"] for row in errors} == {"conv + injection"}
    assert [row["error"].partition(":")[0] for row in errors] == ["RuntimeError", *["not tried"] * 3]


@pytest.mark.parametrize("lost", [False, True])
def test_a_gpu_that_refuses_everything_is_lost(monkeypatch: pytest.MonkeyPatch, lost: bool) -> None:
    def synchronize() -> None:
        if lost:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    assert not bench.gpu_is_lost(), "there is none"
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    assert bench.gpu_is_lost() == lost


def test_the_pieces_need_no_onnx() -> None:
    code = (
        "import sys; sys.modules |= dict.fromkeys(('onnx', 'onnxscript', 'onnxruntime', 'av'))\n"
        "import nuwaxl.bench.gpu.cli, nuwaxl.bench.gpu.piece"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


def test_gpu_tests_that_cannot_be_imported_leave_the_others(tmp_path: Path) -> None:
    (tmp_path / "test_broken.py").write_text("import no_such_package\n")
    (tmp_path / "test_good.py").write_text("def test_good() -> None: ...\n")
    found = tests.measure(tmp_path, 600.0, "not slow", str(tmp_path))
    assert found["figures"] | {"log": ""} == {"passed": 1, "failed": 1, "skipped": 0, "exit_status": 1, "log": ""}


def test_gpu_tests_after_one_that_lost_the_gpu_run_in_another_process(tmp_path: Path) -> None:
    # The repository's own hooks, over a torch whose GPU is lost for good by two of the tests.
    (tmp_path / "conftest.py").write_text(
        f"""
import sys, types
from importlib.util import module_from_spec, spec_from_file_location

lost = []

def synchronize():
    if lost:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

cuda = types.SimpleNamespace(is_available=lambda: True, synchronize=synchronize, lost=lost)
sys.modules["torch"] = types.SimpleNamespace(cuda=cuda)
spec = spec_from_file_location("shared", {str(ROOT / "tests" / "conftest.py")!r})
shared = module_from_spec(spec)
spec.loader.exec_module(shared)
pytest_runtest_setup, pytest_runtest_makereport = shared.pytest_runtest_setup, shared.pytest_runtest_makereport
"""
    )
    (tmp_path / "test_kernels.py").write_text(
        """
import pytest, torch

@pytest.mark.gpu
@pytest.mark.parametrize("number", range(6))
def test_kernel(number):
    if number in (1, 3):
        torch.cuda.lost.append(number)
    assert number != 4
    torch.cuda.synchronize()

def test_elsewhere(): ...
"""
    )
    found = tests.measure(tmp_path, 600.0, "gpu or not gpu", str(tmp_path))
    counts = {name: found["figures"][name] for name in ("passed", "failed", "skipped", "exit_status")}
    assert counts == {"passed": 4, "failed": 3, "skipped": 0, "exit_status": 1}
    assert [row["failed"].rpartition("::")[2] for row in found["rows"]] == [f"test_kernel[{n}]" for n in (1, 3, 4)]


@pytest.mark.slow
def test_gpu_tests_that_do_not_end_leave_the_others(tmp_path: Path) -> None:
    (tmp_path / "test_good.py").write_text("def test_good() -> None: ...\n")
    (tmp_path / "test_wait.py").write_text("import time\ndef test_wait() -> None: time.sleep(100)\n")
    began = time.monotonic()
    found = tests.measure(tmp_path, 20.0, "not slow", str(tmp_path))
    assert time.monotonic() - began < 40
    assert found["figures"]["passed"] == 1
    assert found["figures"]["exit_status"] not in tests.WHOLE
    assert gates({"tests": found}, [])[0].found is None, "nobody knows of the rest"


def test_operations_are_those_of_the_formulas() -> None:
    attention = Attention(channels=32, context_dim=32, heads=4).to("meta")
    tokens = torch.empty(3, 7, 32, device="meta")
    products = 2 * 3 * 7 * 32 * 32 * 4  # query, key, value, out
    scores = 2 * 2 * 3 * 7 * 7 * 32
    assert flops._count(lambda: attention(tokens, *attention.keys_values(tokens))) == products + scores

    # The operators by hand: two of qkv with 3 heads of 8 over 5 frames, 3 taps from 4 to 4 channels.
    qkv, x = torch.empty(2, 5, 6, 3 * 24, device="meta"), torch.empty(2, 5, 6, 4, device="meta")
    assert flops._count(lambda: ops.temporal_attention(qkv, 3)) == 2 * 2 * (2 * 6) * 5 * 5 * 24
    weight, bias = torch.empty(3, 4, 4, device="meta"), torch.empty(4, device="meta")
    assert flops._count(lambda: ops.temporal_conv(x, weight, bias)) == 2 * 2 * 5 * 6 * 3 * 4 * 4

    config = workload(8, tiny=True).config
    found = flops.step_flop(config)
    assert 0.5 * found["network"] < found["executed"] < found["network"]
    # Twice the frames' height is twice the pixels, and more than twice the work because of spatial attention.
    mtd: MTDConfig = config.mtd
    from dataclasses import replace

    taller = flops.step_flop(replace(config, mtd=replace(mtd, latent_height=2 * mtd.latent_height)))
    assert 2.0 < taller["network"] / found["network"] < 4.0


def test_the_peak_is_the_data_sheets_where_the_device_is_known() -> None:
    assert flops.peak_tflop_s("NVIDIA H200") == 989.4
    assert flops.peak_tflop_s("NVIDIA H100 PCIe") == 756.0
    assert flops.peak_tflop_s("another") is None


PIECES: dict[str, Any] = {
    "tests": {"figures": {"passed": 9, "failed": 0, "skipped": 1, "exit_status": 0}},
    "kernels": {
        "rows": [
            {"kernel": "attention", "c": 320, "b": 8, "of_copy": 0.9, "of_copy_alike": 1.0, "times_faster": 1.5}
            | {"of_roof": 0.9},
            {"kernel": "conv + injection", "c": 320, "b": 8, "of_copy": 0.7, "of_copy_alike": 0.8, "times_faster": 3.0}
            | {"of_roof": 0.85},
            {"kernel": "sampler update"},
        ],
        "figures": {"matmul_tflop_s": 780.0},
    },
    "ours-torch-cuda-0-eager-256": {
        "figures": {"devices": "a", "wall_s": 60.0, "tflop_s": 400.0, "device_name": "NVIDIA H200"}
    },
    "ours-torch-cuda-0-256": {
        "figures": {
            "devices": "b",
            "precision": "bfloat16",
            "wall_s": 48.0,
            "tflop_s": 494.7,
            "device_name": "NVIDIA H200",
        }
    },
    "compile-max-autotune-256": {"figures": {"mode": "max-autotune", "total_s": 60.0, "decode_ms": 9.0}},
    "compile-reduce-overhead-256": {"figures": {"mode": "reduce-overhead", "total_s": 55.0}},  # stopped before decoding
}


def test_every_gate_has_its_figure_and_says_by_how_much_it_is_missed() -> None:
    by_name = {gate.name: gate for gate in gates(PIECES, [256, 128])}
    assert by_name["GPU tests that fail"].passed
    assert by_name["attention, c 320, b 8: of copy bandwidth"].passed
    sdpa = by_name["attention, c 320, b 8: times SDPA"]
    assert (sdpa.passed, sdpa.missed_by) == (False, pytest.approx(0.25))
    # The convolution by the issue's plain gate and by its own bound.
    assert by_name["conv + injection, c 320, b 8: of copy bandwidth"].missed_by == pytest.approx(0.125)
    assert by_name["conv + injection, c 320, b 8: of the roofline"].note == "bound by tensor cores"
    wall = by_name["256 px: 1024 frames"]
    assert (wall.found, wall.limit, wall.passed, wall.note) == (48.0, 51.0, True, "on b, bfloat16")
    faster = by_name["256 px: times torch.compile, max-autotune"]
    assert (faster.found, faster.how, faster.passed) == (1.25, "extrapolated", False)
    assert by_name["256 px: times torch.compile, reduce-overhead"].passed is None
    assert by_name["256 px: step MFU"].found == pytest.approx(0.5)
    # Nothing was measured at 128: said, and neither passed nor missed.
    unmeasured = ("1024 frames", "step MFU", "times torch.compile, reduce-overhead")
    assert [by_name[f"128 px: {name}"].passed for name in unmeasured] == [None] * 3


def test_a_render_of_the_opponents_counts_before_what_was_added_up() -> None:
    gate = gate_of_a_render(wall_s=72.0, wall_compiled=0, filled_wall_s=80.0)
    assert (gate.found, gate.how, gate.passed) == (1.5, "measured", True)
    assert gate.note == "72.0 s; added up in its favour 60.0 s; rendered in batches filled up 80.0 s"


def gate_of_a_render(**figures: float) -> Gate:
    """Of the opponent's, ours being 48 s and its parts 60 s together."""
    theirs = {"mode": "max-autotune", "total_s": 60.0, "decode_ms": 9.0, **figures}
    pieces = {**PIECES, "compile-max-autotune-256": {"figures": theirs}}
    return next(gate for gate in gates(pieces, [256]) if gate.name.endswith("max-autotune"))


def test_a_render_in_batches_that_are_filled_up_passes_no_gate() -> None:
    gate = gate_of_a_render(filled_wall_s=80.0)
    assert (gate.found, gate.how, gate.passed) == (1.25, "extrapolated", False)
    assert gate.note == "60.0 s; rendered in batches filled up 80.0 s"


def test_a_render_within_which_torch_compiled_passes_no_gate() -> None:
    gate = gate_of_a_render(wall_s=72.0, wall_compiled=2)
    assert (gate.found, gate.how, gate.passed) == (1.25, "extrapolated", False)
    assert gate.note == "60.0 s; rendered 72.0 s, in which it compiled"


def test_the_limits_are_the_issues() -> None:
    pieces = {**PIECES, "parity": {"figures": {"step_error": 1.0, "plain_step_error": 1.0}}}
    limits = {gate.name: (gate.limit, gate.at_most) for gate in gates(pieces, [256, 128])}
    assert limits == {
        "GPU tests that fail": (0.0, True),
        "attention, c 320, b 8: of copy bandwidth": (0.8, False),
        "attention, c 320, b 8: times SDPA": (2.0, False),
        "conv + injection, c 320, b 8: of copy bandwidth": (0.8, False),
        "conv + injection, c 320, b 8: of the roofline": (0.8, False),
        "parity, step: error over the plain network's": (1.25, True),
        "parity, frames: error over the plain network's": (1.25, True),
        "256 px: 1024 frames": (51.0, True),
        "128 px: 1024 frames": (26.0, True),
        **{
            f"{size} px: {name}": limit
            for size in (256, 128)
            for name, limit in (
                ("times torch.compile, reduce-overhead", (1.3, False)),
                ("times torch.compile, max-autotune", (1.3, False)),
                ("step MFU", (0.4, False)),
            )
        },
    }


def test_a_piece_that_was_stopped_while_it_opened_is_no_render(tmp_path: Path) -> None:
    stopped = {"state": "stopped", "seconds": 87.0, "figures": {"devices": "cuda:0", "open_s": 40.0}}
    pieces = {"ours-cuda-0-128": stopped}
    found = gates(pieces, [128])
    assert {gate.found for gate in found} == {None}
    document = {"schema": report.SCHEMA, "pieces": pieces, "gates": [gate.to_json() for gate in found]}
    report.write(tmp_path, document)
    assert "- open_s: 40" in (tmp_path / report.TABLE_FILE).read_text()


def test_sizes_that_were_measured_before_keep_their_gates() -> None:
    names = [gate.name for gate in gates(PIECES, [128])]
    assert "256 px: 1024 frames" in names
    assert len(names) == len(set(names))


@pytest.mark.parametrize("figures", [(0, 0, 147, 0), (0, 0, 0, 5)])
def test_gpu_tests_of_which_none_passed_say_nothing(figures: tuple[int, ...]) -> None:
    counts = dict(zip(("passed", "failed", "skipped", "exit_status"), figures, strict=True))
    assert gates({"tests": {"figures": counts}}, [])[0].passed is None


def test_a_missed_limit_of_zero_has_no_share(tmp_path: Path) -> None:
    failed = {"tests": {"figures": {"passed": 1, "failed": 2, "skipped": 0, "exit_status": 1}}}
    gate = gates(failed, [])[0].to_json()
    assert (gate["found"], gate["passed"], gate["missed_by"]) == (2, False, None)


def test_the_document_and_the_table_are_written_and_added_to(tmp_path: Path) -> None:
    document = report.read(tmp_path)
    assert document == {"schema": "nuwaxl-gpu/1", "pieces": {}}
    document["pieces"] = {name: {"state": "done", "seconds": 1.0, **piece} for name, piece in PIECES.items()}
    document["gates"] = [gate.to_json() for gate in gates(PIECES, [256])]
    report.write(tmp_path, document)
    assert report.read(tmp_path) == document
    lines = (tmp_path / report.TABLE_FILE).read_text().splitlines()
    assert "| 256 px: times torch.compile, max-autotune | 1.25 x | at least 1.3 x | MISS by 4% | " in "\n".join(lines)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["gpu.json", "gpu.md"]


@pytest.mark.parametrize("parts", ["tests,kernels,parity,ours,eager,compile", "compile"])
def test_what_takes_all_the_time_that_is_left_comes_last(parts: str) -> None:
    arguments = cli._parser().parse_args(["--parts", parts, "--budget", "7000"])
    pieces = cli._pieces(arguments, arguments.sizes, tiny=False)
    assert [each.name for each in pieces[-2:]] == ["compile-max-autotune-256", "compile-max-autotune-128"]
    assert {each.most_s for each in pieces[-2:]} == {7000.0}
    others = {each.name: each.most_s for each in pieces[:-2]}
    assert max(others.values()) < 500
    if parts == "compile":
        assert list(others) == ["compile-reduce-overhead-256", "compile-reduce-overhead-128"]
    else:
        assert {"ours-torch-cuda-0-256", "ours-torch-cuda-0-eager-128", "eager-256"} < set(others)
    on_onnx = cli._parser().parse_args(["--devices", "cuda:0", "--parts", "ours", "--sizes", "256"])
    assert [each.name for each in cli._pieces(on_onnx, on_onnx.sizes, tiny=False)] == ["ours-cuda-0-256"]


def test_a_run_adds_to_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {"state": "done", "seconds": 1.0, "error": ""}
    monkeypatch.setattr(cli, "_run", lambda each, deadline: {**answers, "figures": {"passed": 1}})
    command = ["--device", "cpu", "--out", str(tmp_path)]
    assert cli.main([*command, "--parts", "kernels"]) == 0
    later = [
        {"state": cli.NOT_BEGUN, "seconds": 0.0},
        {"state": "stopped", "seconds": 5.0, "error": "after 5 s", "figures": {"mode": "x"}},
        {"state": "failed", "seconds": 5.0, "error": "broken", "figures": {}},
    ]
    for again in later:
        monkeypatch.setattr(cli, "_run", lambda each, deadline, again=again: again)
        assert cli.main([*command, "--parts", "kernels,parity"]) == 1
        pieces = report.read(tmp_path)["pieces"]
        assert (pieces["kernels"]["state"], pieces["kernels"]["figures"]) == ("done", {"passed": 1})
        assert pieces["kernels"]["error"].startswith(f"not again by a later run: {again['state']}")
    assert (pieces["parity"]["state"], pieces["parity"]["figures"]) == ("stopped", {"mode": "x"})


def test_a_missed_gate_is_the_exit_status(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "_machine", lambda tiny: {"device": "a GPU"})
    figures = {"passed": 1, "failed": 0, "skipped": 0, "exit_status": 0}
    monkeypatch.setattr(cli, "_run", lambda each, deadline: {"state": "done", "seconds": 1.0, "figures": figures})
    command = ["--out", str(tmp_path), "--parts", "tests"]
    assert cli.main(command) == 0
    figures["failed"] = 1
    assert cli.main(command) == 1


def test_figures_of_another_gpu_are_not_mixed_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli, "_run", lambda each, deadline: {"state": "done", "seconds": 1.0})
    for device, status in (("NVIDIA H100", 0), ("NVIDIA H100", 0), ("NVIDIA H200", 2)):
        monkeypatch.setattr(cli, "_machine", lambda tiny, device=device: {"device": device})
        assert cli.main(["--out", str(tmp_path), "--parts", "parity"]) == status
    assert "expected figures of NVIDIA H200 in" in capsys.readouterr().err


def test_a_bundle_of_another_network_is_not_rendered_as_sd15(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"expected Network\(.*found Network\("):
        model.open_engine(Workload(SD15, 64, 1024), "cpu", tmp_path, [demo_bundle()])


class Fails(Piece):
    """Writes something, then waits, with a process of its own, or dies."""

    def command(self) -> list[str]:
        child = "import subprocess; print(subprocess.Popen(['sleep', '100']).pid, flush=True)"
        wait = f"{child}; import time; time.sleep(100)" if self.mode == "wait" else "raise ValueError('broken')"
        write = f"open({str(self.result)!r}, 'w').write('{{\"figures\": {{\"kept\": 1}}}}')"
        return [sys.executable, "-c", f"{write}\n{wait}"]


@pytest.mark.parametrize(
    ("mode", "state", "error"), [("wait", "stopped", "after 2 s"), ("die", "failed", "ValueError: broken")]
)
def test_a_piece_that_ends_badly_keeps_what_it_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str, state: str, error: str
) -> None:
    monkeypatch.setattr(cli, "_LEAST_S", 1)
    monkeypatch.setattr(cli, "Piece", Fails)
    piece = Fails("ours", "cpu", True, str(tmp_path), 2.0, pixels=8, mode=mode)
    entry = cli._run(piece, time.monotonic() + 100)
    assert (entry["state"], entry["error"], entry["figures"]) == (state, error, {"kept": 1})
    if mode == "wait":
        child = Path(f"/proc/{int(piece.result.with_suffix('.log').read_text())}/status")
        deadline = time.monotonic() + 30
        while child.exists() and "State:\tZ" not in child.read_text() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert time.monotonic() < deadline, "its process has ended, too"


def test_all_processes_of_torch_compiles_piece_take_the_same_ptxas(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    compiles, renders = (Piece(kind, "cuda:0", False, str(tmp_path), 90.0) for kind in ("compile", "ours"))
    monkeypatch.setattr(torch, "__file__", str(tmp_path / "__init__.py"))
    monkeypatch.delenv("TRITON_PTXAS_PATH", raising=False)
    assert "TRITON_PTXAS_PATH" not in cli._environment(compiles)
    ptxas = tmp_path / "bin" / "ptxas"
    ptxas.parent.mkdir()
    ptxas.touch(mode=0o755)
    assert cli._environment(compiles)["TRITON_PTXAS_PATH"] == str(ptxas)
    assert "TRITON_PTXAS_PATH" not in cli._environment(renders), "ours is compiled as a user's is"
    monkeypatch.setenv("TRITON_PTXAS_PATH", "another")
    assert cli._environment(compiles)["TRITON_PTXAS_PATH"] == "another"


def test_a_piece_that_has_no_time_left_is_not_begun(tmp_path: Path) -> None:
    piece = Piece("kernels", "cpu", True, str(tmp_path), 90.0)
    assert cli._run(piece, time.monotonic() + 1)["state"] == "no time left"


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what is missing only where it is")
def test_without_a_gpu_one_line_says_so(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert cli.main(["--out", str(tmp_path / "out")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "expected a GPU that torch can use; found none by torch" in line
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what is missing only where it is")
def test_make_gpu_without_a_gpu_is_one_line_and_builds_nothing() -> None:
    command = ["make", "--no-print-directory", "gpu", f"GPU_PYTHON={sys.executable}"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode != 0
    assert result.stdout == ""
    assert result.stderr.startswith("make gpu: expected a GPU that torch can use; found none by")
    assert "Building" not in result.stderr


@pytest.mark.slow
def test_all_of_it_runs_on_the_cpu_at_a_tiny_size(tmp_path: Path) -> None:
    # Every piece in its own process, the opponent through torch.compile too; the figures mean nothing.
    command = [sys.executable, "-m", "nuwaxl.bench.gpu", "--device", "cpu", "--out", str(tmp_path), "--budget", "3000"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=3000, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    document = json.loads((tmp_path / report.JSON_FILE).read_text())
    assert {name: piece["state"] for name, piece in document["pieces"].items()} == dict.fromkeys(
        ["tests", "kernels", "parity", "ours-torch-cpu-8", "compile-default-8", "eager-8"], "done"
    )
    assert document["pieces"]["tests"]["figures"]["failed"] == 0
    compiled = document["pieces"]["compile-default-8"]["figures"]
    assert compiled["batch_sizes"] == [2, 1]
    assert compiled["wall_s"] > 0
    assert compiled["filled_wall_s"] > 0
    assert compiled["wall_compiled"] == 0


@pytest.mark.slow
@pytest.mark.parametrize("absent", [{"av"}, {"av", "onnx", "onnxruntime", "onnxscript", "diffusers", "transformers"}])
def test_the_gpu_tests_are_found_without_what_a_gpu_machine_may_lack(tmp_path: Path, absent: set[str]) -> None:
    # tests/conftest.py leaves out what reads or writes videos there, or is about ONNX.
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n"
        "class Refuse:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name.split('.')[0] in {absent!r}:\n"
        "            raise ModuleNotFoundError(name)\n"
        "import importlib.util\n"
        "found = importlib.util.find_spec\n"
        f"importlib.util.find_spec = lambda name, package=None: None if name in {absent!r} else found(name, package)\n"
        "sys.meta_path.insert(0, Refuse())\n"
    )
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "--collect-only", "tests"]
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(tmp_path)}
    result = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-1000:]
    assert ("test_torch_runner.py" in result.stdout) == ("onnx" not in absent)
    assert "test_temporal_attention.py" in result.stdout
