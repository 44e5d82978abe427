"""Which of a bundle's kernels a GPU is given, and what happens where none fits."""

import logging
from ctypes.util import find_library
from pathlib import Path
from types import SimpleNamespace

import pytest

from nuwaxl.engine.bundle import Bundle
from nuwaxl.engine.runners import custom_ops

from .custom_ops import Launcher, with_kernels


@pytest.fixture(autouse=True)
def nothing_was_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(custom_ops, "_said", set())


@pytest.mark.parametrize(
    ("sm", "compiled", "expected"),
    [
        (90, {80, 90}, 90),
        (89, {80, 86, 90}, 86),  # binaries of one major number run on what is later in it,
        (89, {80, 87}, 80),
        (87, {80, 86}, None),  # nor on boards, whatever their number
        (87, {80, 87}, 87),
        (100, {90}, None),
        (103, {100}, None),  # but not those that use what only their own generation has
        (120, {80, 90}, None),
        (80, {86}, None),
    ],
)
def test_a_gpu_runs_the_kernels_of_its_generation(sm: int, compiled: set[int], expected: int | None) -> None:
    assert custom_ops.matching(sm, compiled) == expected


def test_without_a_matching_kernel_the_bodies_run_and_it_is_said_once(
    own_bundle: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bundle = with_kernels(own_bundle, 80, 90)
    registered: list[str] = []
    options = SimpleNamespace(register_custom_ops_library=registered.append)
    with caplog.at_level(logging.WARNING, logger="nuwaxl"):
        for _ in range(2):
            library = custom_ops.KernelLibrary(bundle, 120, 0)
            library.register(options, "step")
    assert registered == []
    (message,) = [record.getMessage() for record in caplog.records]
    assert "expected kernels for sm_120" in message
    assert "sm_80, sm_90" in message
    assert "--sm 120" in message


def test_with_kernels_that_fit_the_library_is_registered_where_graphs_call_them(
    own_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(custom_ops, "_library", Launcher)
    registered: list[str] = []
    options = SimpleNamespace(register_custom_ops_library=registered.append)
    library = custom_ops.KernelLibrary(with_kernels(own_bundle, 80, 90), 86, 0)
    assert library.sm == 80
    for graph in ("text", "prepare", "step", "decode", "encode"):
        library.register(options, graph)
    assert registered == [str(custom_ops.library_path())] * 2


def test_the_library_is_given_the_kernels_of_the_gpu_and_loads_them(
    own_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    launcher = Launcher()
    monkeypatch.setattr(custom_ops, "_library", lambda: launcher)
    custom_ops.KernelLibrary(with_kernels(own_bundle, 80, 90, 100), 90, 3)
    image = b"\x7fELF\0cubin of 90"
    # Device, name, entry, image and its bytes; the grid; warps, shared bytes and hidden pointers.
    (given,) = launcher.added
    assert given[:3] == [3, b"guided_update-float32", b"entry"]
    assert (given[3], given[4]) == (image.partition(b"\0")[0], len(image))  # ctypes shows it up to its first zero
    assert given[5:] == [3, 5, 1024, 8, 4096, 2]
    assert launcher.loaded == ["guided_update-float32"]


def test_where_the_driver_refuses_a_kernel_the_bodies_run_and_it_is_said_once(
    own_bundle: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(custom_ops, "_library", lambda: Launcher(refused="guided_update-float32"))
    bundle = with_kernels(own_bundle, 90)
    with caplog.at_level(logging.WARNING, logger="nuwaxl"):
        for _ in range(2):
            library = custom_ops.KernelLibrary(bundle, 90, 0)
            library.register(SimpleNamespace(), "step")
    assert library.sm is None
    (message,) = [record.getMessage() for record in caplog.records]
    assert "do not load (expected cuModuleLoadData to succeed; found CUDA_ERROR_OUT_OF_MEMORY); the graphs'" in message
    assert message.endswith(": free memory of the GPU")


def test_the_real_library_says_why_it_does_not_load_a_kernel(
    own_bundle: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """There is no driver, or it finds no code in the file, or no context of the thread."""
    with caplog.at_level(logging.WARNING, logger="nuwaxl"):
        library = custom_ops.KernelLibrary(with_kernels(own_bundle, 90), 90, 0)
    assert library.sm is None
    (message,) = [record.getMessage() for record in caplog.records]
    assert "found that they do not load (expected " in message
    if find_library("cuda") is None:
        assert "expected the CUDA driver; found libcuda.so.1: " in message


def test_a_bundle_without_kernels_registers_nothing(tiny_bundle: Path, caplog: pytest.LogCaptureFixture) -> None:
    library = custom_ops.KernelLibrary(Bundle.open(tiny_bundle), 90, 0)
    library.register(SimpleNamespace(), "step")
    assert not caplog.records
