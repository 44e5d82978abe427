"""The benchmark's command on a machine that cannot run it, and the table it prints."""

import pytest
import torch

from nuwaxl.kernels import bench


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what is missing only where it is")
def test_without_a_gpu_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main([]) == 2
    assert "expected a CUDA device; found none" in capsys.readouterr().err


def test_torchs_form_of_attention_is_the_kernels_also_in_chunks() -> None:
    from nuwaxl.kernels import reference

    qkv = torch.randn(1, 2, 8200, 3 * 8, generator=torch.Generator().manual_seed(0))
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
