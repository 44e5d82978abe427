"""What [run] and [training] can ask of a training of the real networks, and that each does what it says and no more."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from nuwaxl.errors import InputError
from nuwaxl.train import checkpoint
from nuwaxl.train.distributed import Processes, Share
from nuwaxl.train.loop import train
from nuwaxl.train.networks.mtd import MTD
from nuwaxl.train.recompute import recompute_layers
from nuwaxl.train.task import Objective, Task
from nuwaxl.train.update import TrainingError, Update
from tests.train.small import mtd_task, run_config, tklvae_task, write_tklvae
from tests.train.tiny import MTD_TINY, mtd_inputs, randomise


@pytest.fixture(scope="module")
def encoded(cartoons: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """T-KLVAE weights, the latents of both videos, and a model directory to start from."""
    folder = tmp_path_factory.mktemp("encoded")
    write_tklvae(folder / "tklvae.safetensors")
    run = run_config(cartoons, folder / "first", steps=1)
    train(mtd_task(run, folder), run, resume=False, show_progress=False)
    return folder


def tasks(cartoons: Path, encoded: Path, out: Path, **changes: Any) -> list[Task]:
    run = run_config(cartoons, out, **changes)
    return [tklvae_task(run), mtd_task(run, encoded)]


def gradients(task: Task, **changes: Any) -> dict[str, Tensor]:
    """Of one step, before clipping and after averaging over parts."""
    run = run_config(Path(task.run.data), Path(task.run.out), clip=1e9, **changes)  # type: ignore[attr-defined]
    Update(task, run, Processes.join(run))(0)
    return {
        f"{name}.{key}": parameter.grad
        for name, module in task.modules.items()
        for key, parameter in module.named_parameters()
        if parameter.grad is not None
    }


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor], relative: float) -> None:
    assert set(found) == set(expected)
    assert len(found) > 20
    scale = max(float(tensor.abs().max()) for tensor in expected.values())
    for name, tensor in expected.items():
        assert float((found[name] - tensor).abs().max()) <= relative * scale, name


def test_parts_learn_what_the_whole_batch_learns(cartoons: Path, encoded: Path, tmp_path: Path) -> None:
    """Weights to 1e-5, and gradients but for the rounding of sums over all pixels."""
    whole, in_parts = (tasks(cartoons, encoded, tmp_path) for _ in range(2))
    for one, other in zip(whole, in_parts, strict=True):
        found, expected = gradients(other, accumulation=4), gradients(one)
        assert_same(found, expected, 5e-4)
        # AdamW divides a gradient by its own size: where that is rounding alone, the step is too.
        least = 1e-6 * max(float(tensor.abs().max()) for tensor in expected.values())
        compared = 0
        for name, module in one.modules.items():
            moved = other.modules[name].state_dict()
            for key, tensor in module.state_dict().items():
                firm = expected.get(f"{name}.{key}", torch.full_like(tensor, torch.inf)).abs() > least
                compared += int(firm.sum())
                torch.testing.assert_close(moved[key][firm], tensor[firm], rtol=0, atol=1e-5, msg=f"{name}.{key}")
        assert compared > 0.8 * sum(tensor.numel() for tensor in expected.values())


def test_gradient_checkpointing_changes_no_gradient(cartoons: Path, encoded: Path, tmp_path: Path) -> None:
    plain = tasks(cartoons, encoded, tmp_path)
    recomputed = tasks(cartoons, encoded, tmp_path, gradient_checkpointing=True)
    for one, other in zip(plain, recomputed, strict=True):
        assert_same(gradients(other), gradients(one), 0.0)
        assert all(set(other.modules[name].state_dict()) == set(m.state_dict()) for name, m in one.modules.items())


def test_the_logs_loss_by_depth_is_that_of_the_segments_however_they_are_shared(
    cartoons: Path, encoded: Path, tmp_path: Path
) -> None:
    found = []
    for accumulation in (1, 2):
        run = run_config(cartoons, tmp_path, accumulation=accumulation)
        task, processes = mtd_task(run, encoded), Processes.join(run)
        update = Update(task, run, processes)
        # The first step whose two parts have one segment of depth 0 and one and two of depth 1, or the other way round.
        for step in range(20):
            rng = update._rng(step)
            rng.integers(2**62)
            depths = [segment.depth for segment in task._segments(rng)]
            if {sum(Share(part, 2).of(depths)) for part in range(2)} in ({1, 2}, {0, 1}):
                break
        found.append(processes.means(update(step)))
    assert {"loss", "loss_depth_0", "loss_depth_1"} <= set(found[0]) == set(found[1])
    for name in ("loss", "loss_depth_0", "loss_depth_1"):
        assert found[1][name] == pytest.approx(found[0][name], rel=1e-4), name


def kept_bytes(forward: Callable[[], object], network: nn.Module) -> int:
    """Memory of the tensors that a forward pass keeps for the backward one, parameters apart."""
    own = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = forward()
        total = sum(kept.values())
    del result
    return total


def test_gradient_checkpointing_keeps_a_fraction_of_the_activations() -> None:
    network, inputs = MTD(MTD_TINY), mtd_inputs(2)
    plain = kept_bytes(lambda: network(**inputs), network)
    assert recompute_layers(network) == 7  # two down, one middle, four up
    assert kept_bytes(lambda: network(**inputs), network) < 0.3 * plain


def test_compile_and_gradient_checkpointing_exclude_each_other(cartoons: Path, encoded: Path, tmp_path: Path) -> None:
    run = run_config(cartoons, tmp_path, compile=True, gradient_checkpointing=True)
    with pytest.raises(InputError, match="compile or gradient_checkpointing"):
        mtd_task(run, encoded)


@pytest.mark.slow
def test_a_compiled_network_has_the_gradients_of_the_plain_one(cartoons: Path, encoded: Path, tmp_path: Path) -> None:
    plain, compiled = (mtd_task(run_config(cartoons, tmp_path, compile=compile), encoded) for compile in (False, True))
    assert_same(gradients(compiled, compile=True), gradients(plain), 1e-4)


def test_bf16_computes_the_networks_in_bf16_and_keeps_weights_and_losses_in_float32(
    cartoons: Path, encoded: Path, tmp_path: Path
) -> None:
    for task, plain in zip(*(tasks(cartoons, encoded, tmp_path) for _ in range(2)), strict=True):
        seen: set[torch.dtype] = set()
        for module in task.modules.values():
            for layer in module.modules():
                if isinstance(layer, nn.Conv2d | nn.Linear):
                    layer.register_forward_hook(lambda _, given, result: seen.add(result.dtype))  # noqa: B023
        run = run_config(cartoons, tmp_path, precision="bf16")
        figures = Update(task, run, Processes.join(run))(0)
        assert seen == {torch.bfloat16}
        for module in task.modules.values():
            assert {tensor.dtype for tensor in module.state_dict().values()} == {torch.float32}
            assert {p.grad.dtype for p in module.parameters() if p.grad is not None} == {torch.float32}
        run = run_config(cartoons, tmp_path)
        expected = Update(plain, run, Processes.join(run))(0)
        name = "l1" if "l1" in figures else "loss"
        assert figures[name] == pytest.approx(expected[name], rel=0.02)
        assert figures[name] != expected[name]


def test_prompts_are_dropped_by_whole_segments_at_the_rate_asked_for(
    cartoons: Path, encoded: Path, tmp_path: Path
) -> None:
    run = run_config(cartoons, tmp_path, batch_size=400)
    for rate, low, high in ((0.0, 0, 0), (0.25, 70, 130), (1.0, 400, 400)):
        task = mtd_task(run, encoded, prompt_dropout=rate)
        rng = np.random.default_rng(3)
        segments = task._segments(rng)
        prompts = task.prompts(rng, Share(), segments)
        empty = [frames == [""] * 3 for frames in prompts]
        assert low <= sum(empty) <= high
        for frames, segment, dropped in zip(prompts, segments, empty, strict=True):
            assert dropped or frames == task.folder.texts(segment)


def test_the_loss_sees_the_dropped_prompts(cartoons: Path, encoded: Path, tmp_path: Path) -> None:
    run = run_config(cartoons, tmp_path)
    task = mtd_task(run, encoded, prompt_dropout=1.0)
    seen: list[list[list[str]]] = []
    embed = task._embed
    task._embed = lambda prompts: seen.append(prompts) or embed(prompts)  # type: ignore[method-assign,func-returns-value]
    task.loss(np.random.default_rng(0), torch.Generator().manual_seed(0), Share(), 0)
    assert seen == [[[""] * 3] * 4]


@pytest.mark.parametrize(
    ("training", "stride", "given"), [({"depth": 1}, {1}, {0.0}), ({"depth": 2}, {1, 2}, {0.0, 1.0})]
)
def test_the_depth_changes_the_segments_and_nothing_of_the_networks(
    cartoons: Path, encoded: Path, tmp_path: Path, training: dict[str, Any], stride: set[int], given: set[float]
) -> None:
    run = run_config(cartoons, tmp_path, batch_size=60)
    task, deeper = mtd_task(run, encoded, **training), mtd_task(run, encoded, depth=3)
    segments = task._segments(np.random.default_rng(0))
    assert {int(segment.frames[1] - segment.frames[0]) for segment in segments} == stride
    assert {float(segment.mask[0]) for segment in segments} == given
    assert {int(s.frames[1] - s.frames[0]) for s in deeper._segments(np.random.default_rng(0))} == {1, 2, 4}
    for name, module in task.modules.items():
        other = deeper.modules[name].state_dict()
        assert all(torch.equal(tensor, other[key]) for key, tensor in module.state_dict().items())


def test_videos_too_short_for_a_level_that_may_be_drawn_are_refused_before_anything_is_encoded(
    cartoons: Path, encoded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_config(cartoons, tmp_path)
    # 3 frames of each of 7 levels: the global diffusion spans 129 frames of the 96 there are.
    never = {"depth_probabilities": [0.0, *[1 / 6] * 6]}
    mtd_task(run, encoded, depth=7, **never)
    monkeypatch.setattr("nuwaxl.train.mtd.LatentCache", None)
    with pytest.raises(InputError, match=r"at least 129 frames .*\(L = 3, m = 7, d = 0\); found 96 frames at most"):
        mtd_task(run, encoded, depth=7)


def is_new(name: str) -> bool:
    return "temporal" in name or name.startswith("injection.")


@pytest.mark.parametrize(
    ("training", "learns"),
    [
        ({"trainable": "temporal", "train_text": False}, lambda module, name: module == "mtd" and is_new(name)),
        ({"trainable": "temporal"}, lambda module, name: module == "text" or is_new(name)),
        ({"train_text": False}, lambda module, name: module == "mtd"),
    ],
)
def test_what_is_frozen_is_bit_equal_after_training_and_the_rest_learns(
    cartoons: Path, encoded: Path, tmp_path: Path, training: dict[str, Any], learns: Callable[[str, str], bool]
) -> None:
    start = encoded / "first" / "model"
    run = run_config(cartoons, tmp_path, steps=2)
    task = mtd_task(run, encoded, init=str(start), **training)
    train(task, run, resume=False, show_progress=False)
    for module in ("mtd", "text"):
        before = checkpoint.load_weights(start / f"{module}.safetensors")
        for folder in ("model", "step_00000002"):
            after = checkpoint.load_weights(tmp_path / folder / f"{module}.safetensors")
            for name, tensor in before.items():
                assert torch.equal(after[name], tensor) is not learns(module, name), (folder, module, name)


@pytest.mark.parametrize("training", [{"trainable": "temporal"}, {"train_text": False}])
def test_nothing_is_frozen_without_weights_to_start_from(
    cartoons: Path, encoded: Path, tmp_path: Path, training: dict[str, Any]
) -> None:
    with pytest.raises(InputError, match="name a model directory by init"):
        mtd_task(run_config(cartoons, tmp_path), encoded, **training)


@pytest.mark.parametrize("start", [1, 2])
def test_a_killed_and_resumed_game_in_parts_ends_bit_equal(cartoons: Path, tmp_path: Path, start: int) -> None:
    """Killed in the middle of step 2, before (start = 2) and after the discriminator's first step."""
    training = {"adversarial_weight": 0.5, "adversarial_start": start, "discriminator_channels": 8}

    def begin(name: str) -> tuple[Task, Any]:
        run = run_config(cartoons, tmp_path / name, steps=4, accumulation=2)
        return tklvae_task(run, **training), run

    train(*begin("whole"), resume=False, show_progress=False)
    killed, run = begin("parts")
    original, calls = killed.loss, []

    def loss(rng: np.random.Generator, generator: torch.Generator, share: Share, step: int) -> Objective:
        calls.append(step)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return original(rng, generator, share, step)

    killed.loss = loss  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        train(killed, run, resume=False, show_progress=False)
    assert calls == [0, 0, 1, 1, 2, 2]
    train(*begin("parts"), resume=True, show_progress=False)
    for folder in ("model", "step_00000004"):
        for path in sorted((tmp_path / "whole" / folder).glob("*.safetensors")):
            assert path.read_bytes() == (tmp_path / "parts" / folder / path.name).read_bytes(), path.name
    names = {path.name for path in (tmp_path / "whole" / "step_00000004").iterdir()}
    assert {"discriminator.safetensors", "discriminator_optimizer.safetensors"} <= names
    first, last = (
        checkpoint.load_weights(tmp_path / "whole" / f"step_0000000{step}" / "discriminator.safetensors")
        for step in (start, 4)
    )
    assert all(not torch.equal(first[name], last[name]) for name in first)


def test_poisoned_input_stops_the_run_with_its_file_and_the_last_good_checkpoint(
    cartoons: Path, encoded: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "poisoned"
    shutil.copytree(encoded, folder)
    run = run_config(cartoons, tmp_path / "out", steps=50, batch_size=1)
    task = mtd_task(run, folder)
    latents = np.load(task.latents.path(1))
    latents[:] = np.nan
    np.save(task.latents.path(1), latents)
    poisoned, sound = (str(task.folder.episodes[i].video) for i in (1, 0))
    with pytest.raises(TrainingError, match=r"finite loss; found nan at step \d+") as caught:
        train(task, run, resume=False, show_progress=False)
    assert poisoned in str(caught.value)
    assert sound not in str(caught.value)
    last = checkpoint.latest(tmp_path / "out")
    assert (str(last) if last else "none yet") in str(caught.value)


def test_recomputed_layers_are_those_of_all_three_networks(cartoons: Path, encoded: Path, tmp_path: Path) -> None:
    run = run_config(cartoons, tmp_path)
    video, mtd = tklvae_task(run).network, mtd_task(run, encoded)
    randomise(mtd.text)
    assert recompute_layers(video) == 4 + 8 + 4 + 2  # encoder, decoder, two middle blocks, their attentions
    assert recompute_layers(mtd.text) == 1


@pytest.mark.gpu
@pytest.mark.parametrize("changes", [{}, {"precision": "bf16", "accumulation": 2, "gradient_checkpointing": True}])
def test_both_networks_take_steps_on_a_gpu_and_go_on_from_a_checkpoint(
    cartoons: Path, encoded: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    game = {"adversarial_weight": 0.5, "adversarial_start": 1, "discriminator_channels": 8}
    for name in ("tklvae", "mtd"):
        for steps, resume in ((2, False), (4, True)):
            run = run_config(cartoons, tmp_path / name, steps=steps, device="cuda", **changes)
            task: Task = tklvae_task(run, **game) if name == "tklvae" else mtd_task(run, encoded)
            assert all(p.device.type == "cuda" for p in task.parameters())
            model = train(task, run, resume=resume, show_progress=False)
        for path in model.glob("*.safetensors"):
            for tensor in checkpoint.load_weights(path).values():
                assert bool(tensor.isfinite().all())
