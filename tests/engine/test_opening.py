"""Runners for a list of workers."""

from pathlib import Path

import pytest

from nuwaxl.engine import Engine
from nuwaxl.engine.bundle import Bundle
from nuwaxl.engine.devices import parse_devices
from nuwaxl.engine.runners import opening
from nuwaxl.engine.runners.device import cuda as device_cuda
from nuwaxl.engine.runners.onnxruntime import OnnxRuntimeRunner
from nuwaxl.errors import InputError

from .fake_cuda import FakeCuda, Status


def test_a_gpu_on_a_machine_without_one_is_one_line(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = FakeCuda()
    cuda.fail["cudaGetDeviceCount"] = Status.cudaErrorInsufficientDriver, 0
    monkeypatch.setattr(device_cuda, "load_cuda", lambda: cuda)
    with pytest.raises(
        InputError, match=r"expected an NVIDIA GPU and its driver; found .*; use --devices cpu"
    ) as raised:
        Engine.open(tiny_bundle, devices="cuda:0")
    assert "\n" not in str(raised.value)


def test_runners_that_were_opened_are_closed_when_another_cannot_be(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = []
    monkeypatch.setattr(OnnxRuntimeRunner, "close", lambda self: closed.append(self))
    cuda = FakeCuda(gpus=0)
    monkeypatch.setattr(device_cuda, "load_cuda", lambda: cuda)
    with pytest.raises(InputError, match="cudaErrorNoDevice"):
        opening.open_local(Bundle.open(tiny_bundle), parse_devices("cpu:2,cuda"))
    assert len(closed) == 2
    assert not cuda.live
