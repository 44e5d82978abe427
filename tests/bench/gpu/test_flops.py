"""Operations of a step, and what a GPU can do at best."""

from dataclasses import replace

import pytest

torch = pytest.importorskip("torch")

from nuwaxl.bench.gpu import flops  # noqa: E402
from nuwaxl.bench.gpu.model import workload  # noqa: E402
from nuwaxl.kernels import ops  # noqa: E402
from nuwaxl.train.config import MTDConfig  # noqa: E402
from nuwaxl.train.networks.spatial import Attention  # noqa: E402


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
    taller = flops.step_flop(replace(config, mtd=replace(mtd, latent_height=2 * mtd.latent_height)))
    assert 2.0 < taller["network"] / found["network"] < 4.0


def test_the_peak_is_the_data_sheets_where_the_device_is_known() -> None:
    assert flops.peak_tflop_s("NVIDIA H200") == 989.4
    assert flops.peak_tflop_s("NVIDIA H100 PCIe") == 756.0
    assert flops.peak_tflop_s("another") is None
