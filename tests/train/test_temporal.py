"""Temporal layers against their definitions, and their identity at initialisation (eq. 1, 2)."""

from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

from nuwaxl.kernels import ops
from nuwaxl.train.networks import layout
from nuwaxl.train.networks.spatial import ResnetBlock
from nuwaxl.train.networks.temporal import TemporalAttention, TemporalConv

LENGTH = 5


def frames(channels: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(3 * LENGTH, channels, 4, 6, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kernel", [1, 3, 5])
def test_temporal_conv_is_the_identity_at_initialisation(kernel: int) -> None:
    x = frames(8)
    assert torch.equal(TemporalConv(8, kernel)(x, LENGTH), x)


@pytest.mark.parametrize("kernel", [1, 3, 5])
def test_temporal_conv_equals_conv1d_over_the_frames(kernel: int) -> None:
    layer, x = TemporalConv(8, kernel, "random"), frames(8)
    over_time = x.reshape(3, LENGTH, 8, 24).permute(0, 3, 2, 1).reshape(3 * 24, 8, LENGTH)
    expected = F.conv1d(over_time, layer.weight, layer.bias, padding=kernel // 2)
    expected = expected.reshape(3, 24, 8, LENGTH).permute(0, 3, 2, 1).reshape(x.shape)
    torch.testing.assert_close(layer(x, LENGTH), expected, rtol=1e-5, atol=1e-5)


def test_temporal_attention_is_the_identity_at_initialisation() -> None:
    x = frames(8)
    assert torch.equal(TemporalAttention(8, 2)(x, LENGTH), x)


def test_temporal_attention_mixes_the_frames_of_each_pixel_alone() -> None:
    layer, x = TemporalAttention(8, 2, "random"), frames(8)
    changed = x.clone()
    changed[0, :, 1, 2] *= -1.0  # one pixel of the first segment's first frame
    difference = (layer(changed, LENGTH) - layer(x, LENGTH)).abs().amax(dim=1).reshape(3, LENGTH, 4, 6)
    assert difference[0, :, 1, 2].min() > 1e-4
    assert (difference > 0).sum() == LENGTH


def test_temporal_attention_equals_softmax_attention_written_out() -> None:
    layer, x = TemporalAttention(8, 2, "random"), frames(8)
    tokens = layer.norm(x.reshape(3, LENGTH, 8, 24).permute(0, 3, 1, 2))  # (b, hw, L, c)
    query, key, value = layer.to_qkv(tokens).chunk(3, dim=-1)
    heads = []
    for head in (slice(0, 4), slice(4, 8)):
        weights = torch.softmax(query[..., head] @ key[..., head].transpose(-1, -2) / 4**0.5, dim=-1)
        heads.append(weights @ value[..., head])
    expected = layer.to_out(torch.cat(heads, dim=-1)).permute(0, 2, 3, 1).reshape(x.shape) + x
    torch.testing.assert_close(layer(x, LENGTH), expected, rtol=1e-5, atol=1e-5)


def test_without_positions_temporal_attention_follows_a_permutation_of_the_frames() -> None:
    order = torch.tensor([3, 0, 4, 1, 2])

    def permuted(x: torch.Tensor) -> torch.Tensor:
        return x.reshape(3, LENGTH, 8, 4, 6)[:, order].reshape(x.shape)

    x = frames(8)
    blind = TemporalAttention(8, 2, "random")
    torch.testing.assert_close(blind(permuted(x), LENGTH), permuted(blind(x, LENGTH)), rtol=1e-5, atol=1e-5)
    seeing = TemporalAttention(8, 2, "random", positions=True)
    assert not torch.allclose(seeing(permuted(x), LENGTH), permuted(seeing(x, LENGTH)), atol=1e-2)


def test_frame_positions_tell_every_frame_from_every_other() -> None:
    positions = TemporalAttention(64, 4, positions=True).frame_positions(64)
    distances = torch.cdist(positions, positions) + 9.0 * torch.eye(64)
    assert distances.min() > 0.5


def test_temporal_attention_with_positions_is_the_identity_at_initialisation() -> None:
    x = frames(8)
    assert torch.equal(TemporalAttention(8, 2, positions=True)(x, LENGTH), x)


def test_on_a_gpu_the_layers_call_the_operators_and_answer_as_they_do_without(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[str] = []

    def spy(name: str) -> None:
        operator = getattr(ops, name)
        monkeypatch.setattr(ops, name, lambda *arguments: (called.append(name), operator(*arguments))[1])

    for name in ("temporal_attention", "temporal_conv", "group_norm_silu"):
        spy(name)
    torch.manual_seed(0)
    conv, attention = TemporalConv(8, init="random"), TemporalAttention(8, 2, init="random", positions=True)
    resnet = ResnetBlock(8, 8, 2)
    x = torch.randn(6, 8, 2, 3).contiguous(memory_format=torch.channels_last)

    def answers() -> tuple[list[torch.Tensor], torch.Tensor]:
        with torch.no_grad():
            found = [conv(x, 3), attention(x, 3), resnet(x)]
        leaf = x.clone().requires_grad_()
        (conv(attention(leaf, 3), 3) + resnet(leaf)).square().sum().backward()
        assert leaf.grad is not None
        return found, leaf.grad

    plain, plain_gradient = answers()
    assert not called
    # The layers take this for a GPU with Triton; the operators themselves still see the CPU.
    there = SimpleNamespace(on_triton=lambda tensor: True, group_norm_silu=ops.group_norm_silu)
    monkeypatch.setattr(layout, "ops", there)
    fused, gradient = answers()
    # Without a gradient all of them; with one only attention, which has it.
    assert sorted(called) == ["group_norm_silu"] * 2 + ["temporal_attention"] * 2 + ["temporal_conv"]
    for found, expected in zip([*fused, gradient], [*plain, plain_gradient], strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
