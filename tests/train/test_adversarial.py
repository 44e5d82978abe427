"""The adversarial and the perceptual term of T-KLVAE's loss, against independent computations."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nuwaxl.errors import InputError
from nuwaxl.train import checkpoint
from nuwaxl.train.distributed import Processes, Share
from nuwaxl.train.networks.discriminator import PatchDiscriminator, hinge
from nuwaxl.train.networks.lpips import LPIPS
from nuwaxl.train.task import Game
from nuwaxl.train.update import Update, add_adversarial
from tests.train.small import run_config, tklvae_task

CONVOLUTIONS = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)  # numbers in torchvision's vgg16().features
WIDTHS = (64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)
# Gradients of biases are sums over all pixels in float32, whose order depends on how the loss is put together.
ROUNDING = 5e-4
GAME = {"adversarial_weight": 0.5, "discriminator_channels": 8}


def test_the_discriminator_judges_overlapping_patches_of_each_picture_alone() -> None:
    torch.manual_seed(0)
    network = PatchDiscriminator(3, channels=8)
    pictures = torch.randn(2, 3, 64, 64)
    logits = network(pictures)
    assert logits.shape == (2, 1, 6, 6)  # 64 -> 32 -> 16 -> 8 -> 7 -> 6, as PatchGAN with three layers
    torch.testing.assert_close(network(pictures[:1])[0], logits[0], rtol=1e-5, atol=1e-6)
    assert [m.out_channels for m in network.modules() if isinstance(m, nn.Conv2d)] == [8, 16, 32, 64, 1]
    for layers in (1, 2, 3):
        least = PatchDiscriminator.smallest_picture(layers)
        assert PatchDiscriminator(3, 8, layers)(torch.zeros(1, 3, least, least)).shape == (1, 1, 1, 1)
        with pytest.raises(RuntimeError):
            PatchDiscriminator(3, 8, layers)(torch.zeros(1, 3, least - 2**layers, least))


def test_hinge_is_its_formula() -> None:
    real, fake = torch.tensor([2.0, 0.5, -1.0]), torch.tensor([-2.0, 0.5, 1.0])
    assert float(hinge(real, fake)) == pytest.approx(0.5 * ((0 + 0.5 + 2) / 3 + (0 + 1.5 + 2) / 3))


def test_the_adversarial_weight_balances_the_gradients_at_the_last_layer() -> None:
    first, last = (nn.Parameter(torch.zeros(2)) for _ in range(2))
    first.grad, last.grad = torch.tensor([1.0, 1.0]), torch.tensor([3.0, 4.0])
    adversarial = [torch.tensor([1.0, -1.0]), torch.tensor([0.0, 0.1])]
    game = Game(nn.Identity(), last, 0.5)
    weight = add_adversarial(game, [first, last], adversarial)
    assert weight == pytest.approx(0.5 * 5.0 / (0.1 + 1e-4))
    torch.testing.assert_close(first.grad, torch.tensor([1.0 + weight, 1.0 - weight]))
    torch.testing.assert_close(last.grad, torch.tensor([3.0, 4.0 + 0.1 * weight]))
    adversarial[1].zero_()
    last.grad = torch.tensor([30.0, 40.0])
    assert add_adversarial(game, [first, last], adversarial) == pytest.approx(0.5 * 1e4)


@pytest.mark.parametrize("parts", [1, 2])
def test_a_step_has_the_gradients_of_the_whole_loss_with_its_adaptive_weight(
    cartoons: Path, tmp_path: Path, parts: int
) -> None:
    """Against latent diffusion's way: the weight from two gradients of the whole batch, then one backward pass."""
    run = run_config(cartoons, tmp_path, clip=1e9, accumulation=parts)
    task, reference = tklvae_task(run, **GAME), tklvae_task(run, **GAME)
    figures = Update(task, run, Processes.join(run))(0)

    rng = np.random.default_rng([0, 0])
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    parameters = reference.parameters()
    objective = reference.loss(rng, generator, Share(), 0)
    assert reference.game is not None
    assert objective.adversarial is not None
    last = reference.network.decoder.temporal_out.weight  # type: ignore[union-attr]
    own, of_game = (
        torch.autograd.grad(loss, last, retain_graph=True)[0] for loss in (objective.loss, objective.adversarial)
    )
    weight = 0.5 * own.norm() / (of_game.norm() + 1e-4)
    assert figures["adversarial_weight"][0] == pytest.approx(float(weight), rel=1e-4)
    expected = torch.autograd.grad(objective.loss + weight.detach() * objective.adversarial, parameters)
    scale = max(float(gradient.abs().max()) for gradient in expected)
    for parameter, gradient in zip(task.parameters(), expected, strict=True):
        assert parameter.grad is not None
        assert float((parameter.grad - gradient).abs().max()) <= ROUNDING * scale

    assert objective.discriminator is not None
    judges = [list(t.game.discriminator.parameters()) for t in (task, reference) if t.game is not None]
    expected = torch.autograd.grad(objective.discriminator, judges[1])
    scale = max(float(gradient.abs().max()) for gradient in expected)
    for parameter, gradient in zip(judges[0], expected, strict=True):
        assert parameter.grad is not None
        assert float((parameter.grad - gradient).abs().max()) <= ROUNDING * scale


def test_the_game_begins_at_its_start_step(cartoons: Path, tmp_path: Path) -> None:
    run = run_config(cartoons, tmp_path)
    task = tklvae_task(run, adversarial_start=1, **GAME)
    assert task.game is not None
    update = Update(task, run, Processes.join(run))
    before = {name: tensor.clone() for name, tensor in task.game.discriminator.state_dict().items()}
    assert set(update(0)) == {"l1", "kl", "psnr_db", "grad_norm"}
    assert all(torch.equal(tensor, before[name]) for name, tensor in task.game.discriminator.state_dict().items())
    assert {"adversarial", "adversarial_weight", "discriminator", "discriminator_grad_norm"} < set(update(1))
    assert not any(torch.equal(tensor, before[name]) for name, tensor in task.game.discriminator.state_dict().items())


def test_without_weight_there_is_no_game_and_pictures_may_be_too_small_for_one(cartoons: Path, tmp_path: Path) -> None:
    run = run_config(cartoons, tmp_path)
    assert tklvae_task(run).game is None
    with pytest.raises(InputError, match="at least 96 x 96 pixels"):
        tklvae_task(run, discriminator_layers=5, **GAME)
    with pytest.raises(InputError, match="discriminator_channels to be a multiple of 8"):
        tklvae_task(run, adversarial_weight=0.5, discriminator_channels=12)


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    """Random weights under the names of torchvision and of the lpips package, with features that stay of one size."""
    generator = torch.Generator().manual_seed(0)
    state: dict[str, Tensor] = {"classifier.0.weight": torch.zeros(1)}
    c_in = 3
    for number, width in zip(CONVOLUTIONS, WIDTHS, strict=True):
        deviation = (2 / (9 * c_in)) ** 0.5
        state[f"features.{number}.weight"] = deviation * torch.randn(width, c_in, 3, 3, generator=generator)
        state[f"features.{number}.bias"] = 0.1 * torch.randn(width, generator=generator)
        c_in = width
    for i, width in enumerate((64, 128, 256, 512, 512)):
        state[f"lin{i}.model.1.weight"] = torch.rand(1, width, 1, 1, generator=generator)
    return state


@pytest.fixture(scope="module")
def lpips_files(weights: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    folder = tmp_path_factory.mktemp("lpips")
    torch.save({name: tensor for name, tensor in weights.items() if not name.startswith("lin")}, folder / "vgg16.pth")
    torch.save({name: tensor for name, tensor in weights.items() if name.startswith("lin")}, folder / "vgg.pth")
    return str(folder / "vgg16.pth"), str(folder / "vgg.pth")


def reference_lpips(weights: dict[str, Tensor], one: Tensor, other: Tensor) -> Tensor:
    """Layer by layer as torchvision numbers them, in float64, with the paper's formula (Zhang et al. 2018, eq. 1)."""
    shift = torch.tensor([-0.030, -0.088, -0.188], dtype=torch.float64).reshape(1, 3, 1, 1)
    scale = torch.tensor([0.458, 0.448, 0.450], dtype=torch.float64).reshape(1, 3, 1, 1)
    features: list[list[Tensor]] = []
    for picture in (one, other):
        h = (picture.double() - shift) / scale
        features.append([])
        for layer in range(30):
            if layer in CONVOLUTIONS:
                h = F.conv2d(h, weights[f"features.{layer}.weight"].double(), padding=1)
                h = h + weights[f"features.{layer}.bias"].double().reshape(1, -1, 1, 1)
            elif layer in (4, 9, 16, 23):
                h = F.max_pool2d(h, kernel_size=2, stride=2)
            else:
                h = h.clamp(min=0)
            if layer in (3, 8, 15, 22, 29):
                features[-1].append(h / h.square().sum(dim=1, keepdim=True).sqrt())
    total = torch.zeros(len(one), dtype=torch.float64)
    for i, (mine, his) in enumerate(zip(*features, strict=True)):
        weighed = torch.einsum(
            "nchw,c->nhw", (mine - his).square(), weights[f"lin{i}.model.1.weight"].double().flatten()
        )
        total += weighed.mean(dim=(1, 2))
    return total


def test_lpips_is_its_formula_on_random_weights(weights: dict[str, Tensor], lpips_files: tuple[str, str]) -> None:
    network = LPIPS.load(lpips_files)
    one, other = torch.rand(2, 2, 3, 32, 48, generator=torch.Generator().manual_seed(1)) * 2 - 1
    one.requires_grad_(True)
    found = network(one, other)
    expected = reference_lpips(weights, one.detach(), other)
    assert found.shape == (2,)
    assert float(expected.min()) > 0.01
    torch.testing.assert_close(found.detach().double(), expected, rtol=1e-4, atol=1e-7)
    assert float(network(other, other).abs().max()) == 0.0
    found.sum().backward()
    assert one.grad is not None
    assert float(one.grad.abs().min(dim=0).values.max()) > 0
    assert all(parameter.grad is None for parameter in network.parameters())


def test_lpips_has_a_finite_gradient_where_a_pixel_has_no_feature(lpips_files: tuple[str, str]) -> None:
    network = LPIPS.load(lpips_files)
    for convolution in network.stages[1]:
        convolution.bias.fill_(-1e6)
    picture = torch.zeros(1, 3, 16, 16, requires_grad=True)
    network(picture, torch.ones(1, 3, 16, 16)).sum().backward()
    assert picture.grad is not None
    assert bool(picture.grad.isfinite().all())


def test_lpips_takes_one_safetensors_file_with_the_names_of_a_saved_lpips_module(
    weights: dict[str, Tensor], lpips_files: tuple[str, str], tmp_path: Path
) -> None:
    renamed = {name.replace("features.", "net.slice1."): tensor for name, tensor in weights.items()}
    checkpoint.save_weights(renamed, tmp_path / "lpips.safetensors")
    one, other = LPIPS.load([str(tmp_path / "lpips.safetensors")]), LPIPS.load(lpips_files)
    assert all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in one.state_dict().items())


def test_lpips_files_that_do_not_fit_are_refused(
    weights: dict[str, Tensor], lpips_files: tuple[str, str], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"the tensor lin0\.model\.1\.weight of 64 values; found none"):
        LPIPS.load(lpips_files[:1])
    torch.save({**weights, "features.10.weight": torch.zeros(3, 3)}, tmp_path / "wrong.pth")
    with pytest.raises(InputError, match=r"features\.10\.weight of 294912 values; found one of shape \(3, 3\)"):
        LPIPS.load([str(tmp_path / "wrong.pth")])
    torch.save(nn.Linear(1, 1), tmp_path / "code.pth")  # a pickle that would run code
    (tmp_path / "text.pth").write_text("no weights")
    for name in ("code.pth", "text.pth", "missing.pth"):
        with pytest.raises(InputError, match=f"a state dictionary of tensors in .*{name}"):
            LPIPS.load([str(tmp_path / name)])


def test_lpips_is_a_term_of_the_loss(cartoons: Path, tmp_path: Path, lpips_files: tuple[str, str]) -> None:
    run = run_config(cartoons, tmp_path, batch_size=1)
    losses = {}
    for weight in (0.0, 2.0):
        task = tklvae_task(run, lpips=list(lpips_files), lpips_weight=weight)
        found = task.loss(np.random.default_rng(0), torch.Generator().manual_seed(0), Share(), 0)
        losses[weight] = (float(found.loss.detach()), found.figures["lpips"])
    assert losses[2.0][0] == pytest.approx(losses[0.0][0] + 2.0 * losses[0.0][1], rel=1e-5)
    plain = tklvae_task(run).loss(np.random.default_rng(0), torch.Generator().manual_seed(0), Share(), 0)
    assert "lpips" not in plain.figures
    assert float(plain.loss.detach()) == pytest.approx(losses[0.0][0], rel=1e-6)
