"""The search for block sizes: every variant computes what the default does, and all there is of it."""

import pytest
import torch

pytest.importorskip("triton")

from nuwaxl.errors import NuwaxlError
from nuwaxl.kernels import bench, tune
from nuwaxl.kernels.triton.launch import Specialisation

interpreted = pytest.mark.skipif(torch.cuda.is_available(), reason="the interpreter is for machines without a GPU")


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what is missing only where it is")
def test_without_a_gpu_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert tune.main([]) == 2
    assert "expected a CUDA device; found none" in capsys.readouterr().err


@interpreted
@pytest.mark.parametrize(("kernel", "levels"), [("attention", {16: 3}), ("conv", {80: 5}), ("norm", {96: 70})])
def test_every_variant_gives_the_defaults_answer(
    kernel: str, levels: dict[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "LENGTH", 3)
    rows = tune.measure(1, torch.float32, [kernel], "cpu", levels, most=6)
    assert len(rows) >= 4
    assert sum(row["default"] for row in rows) == 1
    assert len({row["variant"] for row in rows}) == len(rows)
    assert max(row["difference"] for row in rows) < 1e-6
    assert [row["us"] for row in rows] == sorted(row["us"] for row in rows)


@interpreted
def test_a_variant_that_fails_leaves_the_others_their_times(monkeypatch: pytest.MonkeyPatch) -> None:
    launch = tune.launch

    def refusing(variant: Specialisation, *arguments: object) -> None:
        if variant.constants["BLOCK_P"] == 64:
            raise RuntimeError("out of resource: shared memory")
        launch(variant, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(tune, "launch", refusing)
    monkeypatch.setattr(bench, "LENGTH", 1)
    seen: list[int] = []
    rows = tune.measure(
        1, torch.float32, ["norm"], "cpu", {16: 2, 32: 2}, most=3, news=lambda rows: seen.append(len(rows))
    )
    assert seen == [3, 6]
    failed = [row for row in rows if "error" in row]
    assert {row["error"] for row in failed} == {"RuntimeError: out of resource: shared memory"}
    assert 0 < len(failed) < len(rows)
    assert "us" not in rows[2]  # the last of its size
    assert tune.table(rows).count("(default)") == 2

    # One that takes the GPU along ends it; what was found is told before.
    monkeypatch.setattr(bench, "gpu_is_lost", lambda: True)
    with pytest.raises(NuwaxlError, match="the variants of norm, c = 16, to run; found that CUDA refuses"):
        tune.measure(1, torch.float32, ["norm"], "cpu", {16: 2}, most=3, news=lambda rows: seen.append(len(rows)))
    assert 0 < seen[-1] <= 3


@pytest.mark.parametrize("channels", bench.LEVELS)
def test_variants_compute_few_channels_that_are_not_there(channels: int) -> None:
    variants = list(tune.convolution_variants(16, channels, torch.bfloat16, branches=1, sm=90))
    assert len(variants) > 20
    for variant in variants:
        computed = variant.grid.fixed * int(variant.constants["BLOCK_N"])
        assert channels <= computed <= 1.25 * channels
        assert variant.grid.block == variant.constants["BLOCK_M"]
