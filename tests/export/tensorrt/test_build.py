"""What TensorRT is asked for when it builds a plan; TensorRT-RTX itself is in test_rtx.py."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nuwaxl.engine.bundle_schema import TensorSpec
from nuwaxl.export.tensorrt import build as build_module
from nuwaxl.export.tensorrt.build import Request, build, parse

from .fake_builder import FakeTensorRT

SPECS = (TensorSpec("x", ("batch", 4, 2), "float32"), TensorSpec("tokens", ("batch",), "int64"))
REQUEST = Request(Path("graph.onnx"), "tensorrt", (90,), (1, 6), (), SPECS, ())


@pytest.fixture
def trt() -> FakeTensorRT:
    return FakeTensorRT([("x", "float", (-1, 4, 2)), ("tokens", "int64", (-1,))])


def built(request: Request, trt: FakeTensorRT) -> Any:
    return build(request, lambda phase, fraction: True, trt)


def test_the_network_has_the_types_of_the_graph_and_products_in_float32(trt: FakeTensorRT) -> None:
    assert built(REQUEST, trt) == b"plan"
    assert trt.network_flags == 1 << trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED
    assert trt.build_flags == set()


def test_plugins_are_taken_ahead_of_time(trt: FakeTensorRT, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(build_module, "_read", lambda request, parser: True)
    parse(replace(REQUEST, plugins=tmp_path), trt)
    flags = trt.NetworkDefinitionCreationFlag
    assert trt.network_flags == 1 << flags.STRONGLY_TYPED | 1 << flags.PREFER_AOT_PYTHON_PLUGINS


def test_a_plan_that_can_be_refitted_is_built_as_such(trt: FakeTensorRT) -> None:
    built(replace(REQUEST, flags=("refit",)), trt)
    assert trt.build_flags == {"refit"}


def test_every_profile_is_of_exactly_one_batch(trt: FakeTensorRT) -> None:
    built(REQUEST, trt)
    assert trt.profiles == [{"x": ((batch, 4, 2),) * 3, "tokens": ((batch,),) * 3} for batch in (1, 6)]


def test_what_was_timed_is_kept_for_the_next_build(trt: FakeTensorRT, tmp_path: Path) -> None:
    path = tmp_path / "cache" / "timing.cache"
    request = replace(REQUEST, timing_cache=path)
    built(request, trt)
    assert path.read_bytes() == b"timed "
    built(request, trt)
    assert trt.taken == [(b"", False), (b"timed ", False)], "never one of another GPU"
    assert [each.name for each in path.parent.iterdir()] == [path.name]


def test_what_another_version_timed_is_not_taken(trt: FakeTensorRT, tmp_path: Path) -> None:
    path = tmp_path / "timing.cache"
    path.write_bytes(b"old")
    trt.refused.append(b"old")
    built(replace(REQUEST, timing_cache=path), trt)
    assert trt.caches == [b"old", b""]
    assert trt.taken == [(b"", False)]
    assert path.read_bytes() == b"timed "


@pytest.mark.parametrize("place", ["file/timing.cache", "folder"])
def test_a_plan_does_without_a_timing_cache_that_can_be_neither_read_nor_written(
    trt: FakeTensorRT, tmp_path: Path, place: str
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder" / "full").mkdir(parents=True)
    assert built(replace(REQUEST, timing_cache=tmp_path / place), trt) == b"plan"
    assert trt.taken == [(b"", False)]
    assert not list(tmp_path.rglob("*.part"))
