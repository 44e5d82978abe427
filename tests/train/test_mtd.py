"""MTD (paper section 3.2): per-frame at initialisation, conditions and prompts where they belong afterwards."""

from dataclasses import replace

import pytest
import torch

from nuwaxl.train.config import MTDConfig
from nuwaxl.train.networks.mtd import MTD
from tests.train.tiny import MTD_TINY, mtd_inputs, randomise


def randomised(config: MTDConfig = MTD_TINY) -> MTD:
    network = MTD(config)
    randomise(network)
    return network


def test_at_initialisation_frames_do_not_see_each_other_nor_the_condition() -> None:
    network, inputs = MTD(MTD_TINY), mtd_inputs(2)
    base = network(**inputs)
    unconditioned = network(**{**inputs, "condition": inputs["condition"] * 0, "mask": inputs["mask"] * 0})
    assert torch.equal(base, unconditioned)
    changed = inputs["x"].clone()
    changed[0, 2] += 1.0
    difference = (network(**{**inputs, "x": changed}) - base).abs().amax(dim=(2, 3, 4))
    assert difference[0, 2] > 1e-3
    difference[0, 2] = 0
    assert difference.max() == 0


def test_at_initialisation_a_segment_is_its_frames_one_by_one() -> None:
    """The same spatial weights in a network of L = 1 give each frame's output: the 2-D U-Net applied to every frame."""
    network, inputs = MTD(MTD_TINY), mtd_inputs(1)
    single = MTD(replace(MTD_TINY, length=1))
    single.load_state_dict(network.state_dict())
    for frame in range(MTD_TINY.length):
        one = {name: value if name == "timestep" else value[:, [frame]] for name, value in inputs.items()}
        torch.testing.assert_close(single(**one)[:, 0], network(**inputs)[:, frame], rtol=1e-5, atol=1e-5)


def test_condition_and_mask_reach_the_middle_frames_once_trained() -> None:
    network, inputs = randomised(), mtd_inputs(1)
    base = network(**inputs)
    for name in ("condition", "mask"):
        changed = inputs[name].clone()
        changed[:, 0] *= -1.0
        difference = (network(**{**inputs, name: changed}) - base).abs().amax(dim=(0, 2, 3, 4))
        assert difference.min() > 1e-5, f"{name} of the first frame does not reach every frame"


def test_prompts_are_per_frame() -> None:
    """With time mixing at its identity the prompt of one frame changes that frame alone."""
    network, inputs = MTD(MTD_TINY), mtd_inputs(1)
    changed = inputs["prompt"].clone()
    changed[:, 3] += 1.0
    difference = (network(**{**inputs, "prompt": changed}) - network(**inputs)).abs().amax(dim=(0, 2, 3, 4))
    assert difference[3] > 1e-5
    assert difference[[0, 1, 2, 4]].max() == 0


def test_segments_of_a_batch_do_not_see_each_other() -> None:
    network, inputs = randomised(), mtd_inputs(3)
    together = network(**inputs)
    for row in range(3):
        alone = network(**{name: value[[row]] for name, value in inputs.items()})
        torch.testing.assert_close(alone[0], together[row], rtol=1e-4, atol=1e-5)


def test_injection_is_equations_10_and_11() -> None:
    network, inputs = randomised(), mtd_inputs(1)
    injection = network.injection
    folded = injection(inputs["condition"], inputs["mask"])
    features_c = injection.condition(inputs["condition"].flatten(0, 1))
    features_m = injection.mask(inputs["mask"].flatten(0, 1))
    for i, level in enumerate(injection.levels):
        w_c, b_c = injection.condition_layers[i](features_c[level])
        w_m, b_m = injection.mask_layers[i](features_m[level])
        h = torch.randn(w_c.shape)
        expected = w_c * h + b_c + h
        expected = w_m * expected + b_m + expected
        torch.testing.assert_close(folded[i].scale * h + folded[i].shift, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("multi_scale", "symmetric", "levels"),
    [
        (True, True, [0, 1, 1, 1, 1, 0, 0]),
        (True, False, [1, 1, 0, 0]),
        (False, True, [0, 0, 0]),
        (False, False, [0, 0]),
    ],
)
def test_injection_ablations_choose_levels_and_sides(multi_scale: bool, symmetric: bool, levels: list[int]) -> None:
    network = MTD(replace(MTD_TINY, multi_scale=multi_scale, symmetric=symmetric))
    assert network.injection.levels == levels
    randomise(network)
    inputs = mtd_inputs(1)
    base = network(**inputs)
    assert base.shape == inputs["x"].shape
    assert not torch.equal(network(**{**inputs, "condition": -inputs["condition"]}), base)


@pytest.mark.parametrize(("multi_scale", "symmetric"), [(True, False), (False, True), (False, False)])
def test_injection_ablations_change_the_injection_alone(multi_scale: bool, symmetric: bool) -> None:
    full = MTD(MTD_TINY)
    ablated = MTD(replace(MTD_TINY, multi_scale=multi_scale, symmetric=symmetric))
    own, others = (
        {name: tensor for name, tensor in network.state_dict().items() if not name.startswith("injection.")}
        for network in (full, ablated)
    )
    assert [(name, tensor.shape) for name, tensor in own.items()] == [(n, t.shape) for n, t in others.items()]
    ablated.load_state_dict(own, strict=False)
    inputs = mtd_inputs(1)
    torch.testing.assert_close(ablated(**inputs), full(**inputs), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("multi_scale", [True, False])
@pytest.mark.parametrize("symmetric", [True, False])
def test_only_the_chosen_layers_see_the_condition(multi_scale: bool, symmetric: bool) -> None:
    """Every layer is watched at work: with an injection or without."""
    network = randomised(replace(MTD_TINY, multi_scale=multi_scale, symmetric=symmetric))
    seen: dict[str, bool] = {}
    for name, module in network.named_modules():
        if hasattr(module, "temporal_conv"):
            module.register_forward_pre_hook(lambda _, given, name=name: seen.update({name: given[2] is not None}))
    network(**mtd_inputs(1))
    levels = {"down_blocks.0": 0, "down_blocks.1": 1, "mid_layer": 1, "up_blocks.0": 1, "up_blocks.1": 0}
    assert len(seen) == 7
    for name, injected in seen.items():
        level = next(level for prefix, level in levels.items() if name.startswith(prefix))
        assert injected is ((symmetric or name.startswith("up")) and (multi_scale or level == 0)), name


@pytest.mark.parametrize("length", [8, 16, 32])
def test_the_length_changes_no_weight_and_no_frame_at_initialisation(length: int) -> None:
    short, network = MTD(MTD_TINY), MTD(replace(MTD_TINY, length=length))
    network.load_state_dict(short.state_dict())
    inputs = mtd_inputs(1, network.config)
    found = network(**inputs)
    assert found.shape[1] == length
    first = {name: value if name == "timestep" else value[:, : MTD_TINY.length] for name, value in inputs.items()}
    torch.testing.assert_close(short(**first), found[:, : MTD_TINY.length], rtol=1e-5, atol=1e-5)


def test_new_layers_learn_from_their_zero_initialised_ends_first() -> None:
    """Step 1 moves the output projections, the identities and the zero convolutions; step 2 all that lies before."""
    network, inputs = MTD(MTD_TINY), mtd_inputs(2)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)

    def still() -> set[str]:
        optimizer.zero_grad()
        network(**inputs).square().mean().backward()
        return {n for n, p in network.named_parameters() if p.grad is None or p.grad.abs().max() == 0}

    before_the_zeros = ("temporal_attention.to_qkv.", "temporal_attention.norm.", "injection.")
    expected = {
        name
        for name, _ in network.named_parameters()
        if any(part in name for part in before_the_zeros) and "zero_conv" not in name
    }
    assert expected
    assert still() == expected
    optimizer.step()
    assert still() == set()


def test_every_parameter_learns_after_the_zero_initialised_layers_have_moved() -> None:
    network = randomised()
    network(**mtd_inputs(2)).square().mean().backward()
    still = [name for name, p in network.named_parameters() if p.grad is None or p.grad.abs().max() == 0]
    assert still == []


def test_three_levels_with_attention_on_some() -> None:
    config = replace(
        MTD_TINY,
        block_channels=(8, 8, 16),
        attention=(True, True, False),
        layers_per_block=2,
        latent_height=8,
        latent_width=8,
    )
    network = randomised(config)
    inputs = mtd_inputs(1, config)
    assert network(**inputs).shape == inputs["x"].shape


def test_torch_compile_traces_it_in_one_graph() -> None:
    network, inputs = randomised(), mtd_inputs(2)
    traced = torch.compile(network, backend="eager", fullgraph=True, dynamic=False)
    assert torch.equal(traced(**inputs), network(**inputs))
