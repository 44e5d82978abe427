"""Refitting, with TensorRT stood in for: which plans are taken for which bundle, and what TensorRT is asked."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")

from nuwaxl.engine.acceptance import PlanRefused  # noqa: E402
from nuwaxl.engine.bundle import Bundle, demo_bundle  # noqa: E402
from nuwaxl.errors import InputError  # noqa: E402
from nuwaxl.export.tensorrt.build import BuildError, Request  # noqa: E402
from nuwaxl.export.tensorrt.builder import Built  # noqa: E402
from nuwaxl.export.tensorrt.plans import Options, add_plans  # noqa: E402
from nuwaxl.export.tensorrt.refit import refit_plans, topology  # noqa: E402

from .changed import add_kernels, call_a_kernel, change_graph  # noqa: E402

OPTIONS = Options("tensorrt", "11.4.0", (90,), (1, 2), refit=True)


class FakeTensorRT:
    """Engines are dictionaries: the graph they were built from, and the one they have the weights of."""

    class ILogger:
        ERROR = 1
        INTERNAL_ERROR = 0

        def __init__(self) -> None: ...

    SerializationFlag = SimpleNamespace(INCLUDE_REFIT="refit", EXCLUDE_WEIGHTS="no weights")

    def __init__(self) -> None:
        self.missing: list[str] = []
        self.loads = True
        self.takes = True

    def Runtime(self, logger: Any) -> Any:
        def deserialize(content: bytes) -> Any:
            return _Engine(json.loads(content)) if self.loads else logger.log(1, "a message\nof two lines")

        return SimpleNamespace(deserialize_cuda_engine=deserialize)

    def Refitter(self, engine: Any, logger: Any) -> Any:
        def refit() -> bool:
            engine.facts["weights"] = engine.waiting
            return True

        return SimpleNamespace(engine=engine, get_missing_weights=lambda: self.missing, refit_cuda_engine=refit)

    def OnnxParserRefitter(self, refitter: Any, logger: Any) -> Any:
        def take(path: str) -> bool:
            refitter.engine.waiting = path
            return self.takes

        return SimpleNamespace(refit_from_file=take)


class _Engine:
    def __init__(self, facts: dict[str, str]) -> None:
        self.facts = facts
        self.waiting = ""
        self.flags: set[str] = {"no weights"}

    def create_serialization_config(self) -> Any:
        return SimpleNamespace(set_flag=self.flags.add, clear_flag=self.flags.discard)

    def serialize_with_config(self, config: Any) -> bytes:
        assert self.flags == {"refit"}
        return json.dumps(self.facts).encode()


def make(request: Request, out: Path, progress: Callable[[str, float], None]) -> Built:
    out.write_text(json.dumps({"built from": str(request.graph), "weights": str(request.graph)}))
    return Built(1.0, 1)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NUWAXL_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A bundle with plans that can be refitted."""
    folder = shutil.copytree(demo_bundle(), tmp_path / "old")
    add_plans(folder, OPTIONS, make=make)
    return folder


def double_weights(model: Any) -> None:
    for tensor in model.graph.initializer:
        if tensor.data_type in (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16):
            values = onnx.numpy_helper.to_array(tensor) * np.float16(2)
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))


@pytest.fixture
def new(tmp_path: Path) -> Path:
    """The same model with other weights in its text encoder."""
    folder = shutil.copytree(demo_bundle(), tmp_path / "new")
    change_graph(folder, double_weights)
    return folder


def test_another_checkpoint_takes_the_plans_with_its_own_weights_and_under_its_own_key(old: Path, new: Path) -> None:
    made = refit_plans(new, old, OPTIONS, trt=FakeTensorRT(), gate=lambda *_: "GPU X")
    bundle = Bundle.open(new)
    assert bundle.manifest.plans == tuple(made)
    for plan in made:
        facts = json.loads((new / plan.file).read_text())
        assert facts["built from"] == str(old / f"{plan.graph}.onnx"), "nothing was built"
        assert facts["weights"] == str(new / f"{plan.graph}.onnx")
        assert plan.accepted_on == ("GPU X",)
        same = plan.file in {each.file for each in Bundle.open(old).manifest.plans}
        assert same == (plan.graph != "text"), "another key for other weights"


def test_a_refitted_plan_goes_through_the_gate(old: Path, new: Path) -> None:
    def gate(*_: object) -> str:
        raise PlanRefused("wrong")

    with pytest.raises(PlanRefused):
        refit_plans(new, old, OPTIONS, trt=FakeTensorRT(), gate=gate)
    assert not (new / "plans").exists()


def test_graphs_that_differ_in_more_than_weights_are_refused(old: Path, new: Path) -> None:
    def rename(model: Any) -> None:
        model.graph.node[5].name = "another"

    before = topology(new / "text.onnx")
    assert before == topology(old / "text.onnx")
    change_graph(new, rename)
    assert topology(new / "text.onnx") != before
    with pytest.raises(InputError, match=r"text of .* to differ from that of .* in its weights alone"):
        refit_plans(new, old, OPTIONS, trt=FakeTensorRT())


@pytest.mark.parametrize(
    "options",
    [
        Options("tensorrt", "11.4.0", (90,), (1, 4), refit=True),
        Options("tensorrt", "11.5.0", (90,), (1, 2), refit=True),
        Options("tensorrt", "11.4.0", (100,), (1, 2), refit=True),
    ],
)
def test_plans_for_something_else_are_not_refitted(old: Path, new: Path, options: Options) -> None:
    with pytest.raises(InputError, match=r"built with --refit, in .*; found none; build it there"):
        refit_plans(new, old, options, trt=FakeTensorRT())


def test_plans_with_other_kernels_are_not_refitted(old: Path, new: Path) -> None:
    for folder in (old, new):
        change_graph(folder, call_a_kernel)
        add_kernels(folder, "of the bundle")
    add_plans(old, OPTIONS, make=make)
    made = refit_plans(new, old, OPTIONS, trt=FakeTensorRT())
    assert [plan.graph for plan in made if plan.kernels_sha256] == ["text"]
    another = shutil.copytree(new, new.with_name("another"))
    add_kernels(another, "of another Triton")
    with pytest.raises(InputError, match=r"kernels of .*another, built .*; found one with other kernels; build "):
        refit_plans(another, old, OPTIONS, trt=FakeTensorRT())


def test_a_plan_of_a_graph_that_has_changed_since_is_not_refitted(old: Path, new: Path) -> None:
    change_graph(old, double_weights)  # its plan still has the first weights, and perhaps another topology
    with pytest.raises(InputError, match=r"found none; build it there: nuwaxl-export .*old --target tensorrt -"):
        refit_plans(new, old, OPTIONS, trt=FakeTensorRT())


def test_a_damaged_plan_is_not_refitted(old: Path, new: Path) -> None:
    plan = Bundle.open(old).manifest.plans[0]
    (old / plan.file).write_bytes((old / plan.file).read_bytes().upper())
    with pytest.raises(
        InputError, match=rf"{plan.file}; found .* the file has changed; .*nuwaxl-export {old} --target"
    ):
        refit_plans(new, old, OPTIONS, trt=FakeTensorRT())
    assert not (new / "plans").exists()


def test_plans_that_were_built_without_refit_are_not_taken(new: Path, tmp_path: Path) -> None:
    fixed = shutil.copytree(demo_bundle(), tmp_path / "fixed")
    add_plans(fixed, Options("tensorrt", "11.4.0", (90,), (1, 2)), make=make)
    with pytest.raises(InputError, match="built with --refit"):
        refit_plans(new, fixed, OPTIONS, trt=FakeTensorRT())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda trt: setattr(trt, "loads", False), "cannot load the plan to refit: a message of two lines"),
        (lambda trt: setattr(trt, "takes", False), "cannot take its weights"),
        (lambda trt: setattr(trt, "missing", ["a.weight", "b.weight"]), "without a.weight, b.weight"),
    ],
)
def test_what_tensorrt_refuses_leaves_the_bundle_as_it_was(
    old: Path, new: Path, change: Callable[[FakeTensorRT], None], message: str
) -> None:
    trt = FakeTensorRT()
    change(trt)
    before = {path.name for path in new.iterdir()}
    with pytest.raises(BuildError, match=message):
        refit_plans(new, old, OPTIONS, trt=trt)
    assert {path.name for path in new.iterdir()} == before
