"""The opponents: plain PyTorch renders what the engine does, compiles nothing within its clock, and is added up
in its favour."""

import json
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch.utils._pytree import tree_leaves  # noqa: E402

from nuwaxl.bench import plain  # noqa: E402
from nuwaxl.bench.gpu import model, opponents, parity, piece  # noqa: E402
from nuwaxl.bench.gpu.gates import MODES  # noqa: E402
from nuwaxl.bench.gpu.model import Workload, workload  # noqa: E402
from nuwaxl.bench.gpu.piece import Piece  # noqa: E402
from nuwaxl.engine import Plan  # noqa: E402
from nuwaxl.errors import NuwaxlError  # noqa: E402
from nuwaxl.kernels import ops  # noqa: E402
from nuwaxl.train.config import ModelConfig  # noqa: E402
from nuwaxl.train.presets import SD15  # noqa: E402


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


@pytest.mark.parametrize(("mode", "compiled"), [("eager", 0), ("reduce-overhead", 2), ("max-autotune", 2)])
def test_the_opponent_is_compiled_in_the_mode_that_its_gate_names(
    monkeypatch: pytest.MonkeyPatch, mode: str, compiled: int
) -> None:
    asked: list[str] = []

    def compile(function: Any, *, mode: str, **_: Any) -> Any:
        asked.append(mode)
        return function

    monkeypatch.setattr(torch, "compile", compile)
    device = torch.device("cpu")
    plain.PlainNetworks(*model.networks(workload(8, tiny=True).config, device), device, mode)
    assert asked == [mode] * compiled  # a step, and decoding
    assert compiled == 0 or mode in MODES
