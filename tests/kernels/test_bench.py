"""The benchmark's command on a machine that cannot run it, and the table it prints."""

import pytest
import torch

from nuwaxl.kernels import bench


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what is missing only where it is")
def test_without_a_gpu_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main([]) == 2
    assert "expected a CUDA device; found none" in capsys.readouterr().err


@pytest.mark.parametrize("pixels", [5, 8200])
def test_torchs_form_of_attention_is_the_kernels_also_in_chunks(pixels: int) -> None:
    from nuwaxl.kernels import reference

    qkv = torch.randn(1, 2, pixels, 3 * 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(bench.sdpa(qkv), reference.temporal_attention(qkv, bench.HEADS))


def test_torchs_form_of_the_convolution_is_the_kernels() -> None:
    from nuwaxl.kernels import reference

    x, scale, shift = torch.randn(3, 2, 4, 5, 8, generator=torch.Generator().manual_seed(0)).unbind()
    weight, bias = torch.randn(3, 8, 8), torch.randn(8)
    expected = reference.temporal_conv(x, weight, bias, scale, shift)
    torch.testing.assert_close(bench.conv1d(x, weight.permute(2, 1, 0), bias, scale, shift), expected)


def test_the_table_has_one_line_a_measurement() -> None:
    row = {"kernel": "attention", "b": 1, "c": 320, "us": 10.0, "torch_us": 25.0, "times_faster": 2.5}
    row |= {"gb_s": 3000.0, "of_copy": 0.75, "of_copy_alike": 0.9, "tflop_s": 1.5}
    report = {"device": "a GPU", "torch": "2", "dtype": "float16", "length": 16, "copy_gb_s": 4000.0}
    report |= {"matmul_tflop_s": 780.0, "rows": [row] * 2}
    assert [line.split() for line in bench.table(report).splitlines()[2:]] == [
        ["attention", "1", "320", "10.0", "25.0", "2.50x", "3000", "75%", "90%", "1.5"]
    ] * 2


def test_rates_are_of_the_bytes_and_operations_that_a_kernel_must_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "seconds", lambda run, flush: 1e-3)
    b, length, pixels, c = 2, bench.LENGTH, 6, 16
    report = bench.measure([b], torch.float16, "cpu", {c: pixels})
    half, most = 2 * b * length * pixels * c, 2**20  # bytes of x; of the largest copy on a CPU, which reads and writes
    assert report["copy_gb_s"] == pytest.approx(2 * most / 1e-3 / 1e9)
    attention = 2 * 2 * b * pixels * length**2 * c  # two products, a multiply-add as two
    expected = {  # bytes, operations
        "attention": (3 * half + half, attention),  # qkv in, one out
        "attention backward": (4 * half + 3 * half, 2.5 * attention),  # five products
        "conv + injection": (3 * half + half + 2 * 3 * c * c, 2 * 3 * b * length * pixels * c * c),
        "group norm + SiLU": (2 * half, 0),
        "sampler update": (7 * 4 * b * length * 4 * 32 * 32, 0),  # five in, two out, in float32
    }
    assert {row["kernel"] for row in report["rows"]} == expected.keys()
    for row in report["rows"]:
        moved, operations = expected[row["kernel"]]
        assert row["gb_s"] == pytest.approx(moved / 1e-3 / 1e9)
        assert row["of_copy"] == pytest.approx(row["gb_s"] / report["copy_gb_s"])
        assert row["of_copy_alike"] == pytest.approx(
            max(1.0, moved / 2 / most)
        )  # of two copies in proportion, if larger
        assert row["tflop_s"] == pytest.approx(operations / 1e-3 / 1e12)
        assert row["times_faster"] == 1.0
