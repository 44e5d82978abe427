"""T-KLVAE (paper section 3.1): equal to the image KLVAE at initialisation, temporal afterwards."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from nuwaxl.kernels import ops
from nuwaxl.train.config import TKLVAEConfig
from nuwaxl.train.networks import layout
from nuwaxl.train.networks.temporal import TemporalConv
from nuwaxl.train.networks.tklvae import TKLVAE
from tests.train.tiny import TKLVAE_TINY, randomise, without

VIDEO = torch.rand(2, 5, 3, 16, 24, generator=torch.Generator().manual_seed(1)) * 2 - 1


def with_spatial_weights(network: TKLVAE, of: TKLVAE) -> TKLVAE:
    result = network.load_state_dict(of.state_dict(), strict=False)
    assert not result.unexpected_keys
    assert all("temporal" in name for name in result.missing_keys)
    return network


@pytest.mark.parametrize("kernel", [3, 5])
def test_at_initialisation_it_returns_what_the_image_klvae_returns(kernel: int) -> None:
    image = TKLVAE(without(TKLVAE_TINY, "none"))
    randomise(image)
    video = with_spatial_weights(TKLVAE(replace(TKLVAE_TINY, temporal_kernel=kernel)), image)
    torch.testing.assert_close(video.encode(VIDEO), image.encode(VIDEO), rtol=1e-5, atol=1e-5)
    latents = image.encode(VIDEO)
    torch.testing.assert_close(video.decode(latents), image.decode(latents), rtol=1e-5, atol=1e-5)


def test_the_temporal_setting_changes_the_temporal_layers_alone() -> None:
    networks = {name: TKLVAE(without(TKLVAE_TINY, name)) for name in ("none", "random", "identity")}
    shapes = {
        name: {key: tensor.shape for key, tensor in network.state_dict().items()} for name, network in networks.items()
    }
    assert shapes["random"] == shapes["identity"]
    assert shapes["none"] == {key: shape for key, shape in shapes["random"].items() if "temporal" not in key}
    assert len(shapes["none"]) < len(shapes["random"])
    expected = networks["none"].encode(VIDEO)
    for name, equal in (("identity", True), ("random", False)):
        found = with_spatial_weights(networks[name], networks["none"]).encode(VIDEO)
        assert torch.allclose(found, expected, rtol=1e-5, atol=1e-5) is equal, name
    # With the identity's temporal weights, T-KLVAE-R is T-KLVAE: it is the initialisation that differs.
    networks["random"].load_state_dict(networks["identity"].state_dict())
    assert torch.equal(networks["random"].encode(VIDEO), networks["identity"].encode(VIDEO))


def test_the_image_klvae_treats_every_frame_alone_and_the_trained_tklvae_does_not() -> None:
    for temporal, mixes in (("none", False), ("random", True)):
        network = TKLVAE(without(TKLVAE_TINY, temporal))
        randomise(network)
        changed = VIDEO.clone()
        changed[0, 2] = -changed[0, 2]
        difference = (network.encode(changed) - network.encode(VIDEO)).abs().amax(dim=(2, 3, 4))
        assert difference[0, 2] > 1e-3
        assert bool(difference[0, 1] > 1e-6) is mixes
        assert difference[1].max() == 0  # another video of the batch never changes


def test_every_spatial_3x3_convolution_is_followed_by_a_temporal_one() -> None:
    network = TKLVAE(TKLVAE_TINY)
    spatial = [m for m in network.modules() if isinstance(m, torch.nn.Conv2d) and m.kernel_size == (3, 3)]
    temporal = [m for m in network.modules() if isinstance(m, TemporalConv)]
    assert len(spatial) == len(temporal) > 20


def test_shapes_and_standardisation() -> None:
    network = TKLVAE(TKLVAE_TINY)
    assert network.encode(VIDEO).shape == (2, 5, 3, 4, 6)
    assert network.decode(network.encode(VIDEO)).shape == VIDEO.shape
    network.latent_shift.copy_(torch.tensor([0.5, -1.0, 2.0]))
    network.latent_scale.copy_(torch.tensor([2.0, 0.5, 3.0]))
    mean, _ = network.moments(VIDEO)
    torch.testing.assert_close(network.encode(VIDEO)[:, :, 1], (mean[:, :, 1] + 1.0) * 0.5)
    torch.testing.assert_close(network.decode(network.encode(VIDEO)), network.reconstruct(mean), rtol=1e-4, atol=1e-5)


def test_temporal_parameters_are_all_and_only_the_temporal_layers() -> None:
    network = TKLVAE(TKLVAE_TINY)
    spatial = sum(p.numel() for p in TKLVAE(without(TKLVAE_TINY, "none")).parameters())
    temporal = sum(p.numel() for p in network.temporal_parameters())
    assert temporal > 0
    assert spatial + temporal == sum(p.numel() for p in network.parameters())


def test_temporal_layers_learn_from_the_first_step() -> None:
    network = TKLVAE(TKLVAE_TINY)
    network.decode(network.encode(VIDEO)).square().mean().backward()
    convs = {name: m for name, m in network.named_modules() if isinstance(m, TemporalConv)}
    assert all(m.weight.grad is not None and m.weight.grad.abs().max() > 0 for m in convs.values())


def test_an_even_temporal_kernel_is_refused() -> None:
    with pytest.raises(ValueError, match="temporal_kernel to be odd"):
        TKLVAEConfig(temporal_kernel=4)


def test_on_a_gpu_the_norms_call_the_operator_and_answer_as_they_do_without(monkeypatch: pytest.MonkeyPatch) -> None:
    network = TKLVAE(TKLVAE_TINY).eval()
    randomise(network)
    network.to(memory_format=torch.channels_last)
    norms = sum(isinstance(module, torch.nn.GroupNorm) for module in network.modules())
    of_attention = sum(name.endswith("group_norm") for name, _ in network.named_modules())  # without SiLU
    called: list[int] = []

    def spy(x: torch.Tensor, *arguments: object) -> torch.Tensor:
        called.append(x.shape[-1])
        return ops.group_norm_silu(x, *arguments)

    def answers() -> list[torch.Tensor]:
        with torch.no_grad():
            latents = network.encode(VIDEO)
            return [latents, network.decode(latents)]

    plain = answers()
    # The layers take this for a GPU with Triton; the operators themselves still see the CPU.
    there = SimpleNamespace(on_triton=lambda tensor: True, group_norm_silu=spy)
    monkeypatch.setattr(layout, "ops", there)
    fused = answers()
    assert len(called) == norms - of_attention
    for found, expected in zip(fused, plain, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
