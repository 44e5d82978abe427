"""How the TensorRT runner opens a bundle's plans, and what it refuses; over fakes of CUDA and of TensorRT."""

import importlib.util
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from nuwaxl.engine import Engine
from nuwaxl.engine.bundle import Bundle, write_plans
from nuwaxl.engine.devices import parse_devices
from nuwaxl.engine.runners import opening, tensorrt
from nuwaxl.engine.runners.device import cuda as device_cuda
from nuwaxl.engine.runners.tensorrt import TensorRTRunner
from nuwaxl.errors import InputError

from .fake_tensorrt import plan_bytes
from .tensorrt_machine import BATCHES, GPU, Machine


@pytest.fixture(autouse=True)
def own_acceptances(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was accepted is kept in a folder of the test's."""
    monkeypatch.setenv("NUWAXL_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def machine(own_bundle: Path) -> Machine:
    """A machine whose plans were accepted on its GPU before."""
    return Machine(own_bundle)


def test_the_device_is_opened_by_its_name(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_cuda, "load_cuda", lambda: machine.cuda)
    monkeypatch.setattr(tensorrt, "load_tensorrt", lambda runtime: machine.trt)
    bundle = Bundle.open(machine.folder)
    workers, runners = opening.open_local(bundle, parse_devices("tensorrt"))
    assert isinstance(runners[0], TensorRTRunner)
    assert [(each.name, each.processor) for each in workers] == [("tensorrt:0", "NVIDIA Fake, tensorrt 11.4.0")]
    runners[0].close()
    assert not machine.cuda.live
    with pytest.raises(InputError, match="--target tensorrt-rtx"):
        opening.open_local(bundle, parse_devices("tensorrt-rtx"))


def test_text_and_encode_are_loaded_at_their_first_use(machine: Machine) -> None:
    loaded: list[str] = []
    load = TensorRTRunner._load

    def recorded(self: TensorRTRunner, graphs: tuple[str, ...]) -> None:
        loaded.extend(graphs)
        load(self, graphs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TensorRTRunner, "_load", recorded)
        runner = machine.runner()
        assert loaded == ["prepare", "step", "decode"]
        runner.encode_text(np.zeros((1, 3), dtype=np.int64))
    assert loaded[3:] == ["text"]


def test_tensorrt_rtx_starts_with_what_it_compiled_before(own_bundle: Path, tmp_path: Path) -> None:
    machine = Machine(own_bundle, "tensorrt-rtx")
    machine.runner().close()
    assert machine.trt.caches == []
    machine.runner()
    assert machine.trt.caches == [b"compiled"] * 3
    kept = {path.name for path in (tmp_path / "cache" / "tensorrt-rtx").iterdir()}
    loop = [plan for plan in machine.plans if plan.graph in ("prepare", "step", "decode")]
    assert kept == {f"{Path(plan.file).stem}-90.cache" for plan in loop}, "one for each generation of GPUs"
    plain = Machine(own_bundle, "tensorrt")
    plain.runner().close()
    plain.runner()
    assert plain.trt.caches == []


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda machine: setattr(machine.trt, "__version__", "11.5.0"), "one for tensorrt 11.4.0"),
        (lambda machine: setattr(machine.cuda, "capability", (10, 0)), "one for SM 90"),
    ],
)
def test_another_version_or_gpu_than_the_plans_is_refused(
    machine: Machine, change: Callable[[Machine], None], found: str
) -> None:
    change(machine)
    with pytest.raises(InputError, match=f"{found}; run nuwaxl-export .* --target tensorrt, on this machine"):
        machine.runner()
    assert not machine.cuda.live


def test_an_engine_that_is_not_what_the_manifest_says_is_refused(machine: Machine) -> None:
    bundle = Bundle.open(machine.folder)
    for graph, batches, message in (
        ("decode", BATCHES, "other tensors"),
        ("prepare", (1, 4), r"of shapes .* in profile 1"),
        ("prepare", (1,), "1 profiles"),
    ):
        plan = next(plan for plan in machine.plans if plan.graph == "prepare")
        (machine.folder / plan.file).write_bytes(plan_bytes(bundle.file(graph), batches))
        write_plans(machine.folder, machine.plans)
        with pytest.raises(InputError, match=message):
            machine.runner()
    machine.trt.refuse = True
    with pytest.raises(InputError, match="TensorRT refused to load it"):
        machine.runner()


def test_a_damaged_plan_is_refused_by_who_uses_it(machine: Machine) -> None:
    step, text = (next(plan for plan in machine.plans if plan.graph == graph) for graph in ("step", "text"))
    (machine.folder / text.file).unlink()
    runner = machine.runner()  # it does not use it yet
    with pytest.raises(InputError, match=f"{text.file}; found No such file or directory; build it again: nuw"):
        runner.encode_text(np.zeros((1, 3), dtype=np.int64))
    (machine.folder / step.file).write_bytes(b"")
    with pytest.raises(InputError, match=f"{step.file}; found 0 bytes; build it again: nuwaxl-export .* --batches 1,2"):
        machine.runner()
    Engine.open(machine.folder, devices="cpu").close()


def test_plans_without_a_common_batch_are_refused(machine: Machine) -> None:
    others = machine.add_plans((4,), (GPU,))
    mixed = [new if new.graph == "step" else old for new, old in zip(others, machine.plans, strict=True)]
    write_plans(machine.folder, mixed)
    with pytest.raises(InputError, match=r"with a batch in common; found \(1, 2\) and \(4,\)"):
        machine.runner()


@pytest.mark.parametrize("runtime", ["tensorrt", "tensorrt-rtx"])
def test_a_missing_package_is_named_with_its_extra(own_bundle: Path, runtime: str) -> None:
    if importlib.util.find_spec("tensorrt") is not None or runtime == "tensorrt-rtx":
        import nuwaxl.engine.runners.tensorrt_module as module

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module.importlib, "import_module", lambda name: (_ for _ in ()).throw(ImportError(name)))
            with pytest.raises(InputError, match=rf"nuwaxl\[{runtime}\]"):
                Engine.open(own_bundle, devices=f"{runtime}:0")
        return
    with pytest.raises(InputError, match=r"the package tensorrt; found .*nuwaxl\[tensorrt\]"):
        Engine.open(own_bundle, devices="tensorrt:0")
