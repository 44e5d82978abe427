"""A machine with a GPU and TensorRT, both fakes, and a bundle with plans for it."""

from pathlib import Path

from nuwaxl.engine.bundle import Bundle, write_plans
from nuwaxl.engine.bundle_schema import Plan
from nuwaxl.engine.devices import Worker
from nuwaxl.engine.plans import graph_sha256, named
from nuwaxl.engine.runners.device.cuda import CudaDevice
from nuwaxl.engine.runners.tensorrt import TensorRTRunner

from .fake_cuda import FakeCuda
from .fake_tensorrt import FakeTensorRT, plan_bytes

BATCHES = (1, 2)
GPU = "NVIDIA Fake"


class Machine:
    """A GPU, a TensorRT on it, and a bundle with plans for both."""

    def __init__(self, folder: Path, runtime: str = "tensorrt", accepted_on: tuple[str, ...] = (GPU,)) -> None:
        self.cuda = FakeCuda()
        self.trt = FakeTensorRT(self.cuda, capturable=True if runtime == "tensorrt-rtx" else None)
        self.folder = folder
        self.runtime = runtime
        self.plans = self.add_plans(BATCHES, accepted_on)

    def add_plans(self, batches: tuple[int, ...], accepted_on: tuple[str, ...]) -> list[Plan]:
        bundle = Bundle.open(self.folder)
        plans = []
        (self.folder / "plans").mkdir(exist_ok=True)
        for graph in bundle.manifest.graphs:
            sha = graph_sha256(bundle.manifest, graph)
            plan = Plan(graph, "", self.runtime, "11.4.0", (90,), batches, (), sha, "", accepted_on)
            plans.append(named(plan, bundle.manifest))
            (self.folder / plans[-1].file).write_bytes(plan_bytes(bundle.file(graph), batches))
        write_plans(self.folder, plans)
        return plans

    def runner(self) -> TensorRTRunner:
        worker = Worker(f"{self.runtime}:0", threads=1, alone=True, kind=self.runtime)  # type: ignore[arg-type]
        return TensorRTRunner(Bundle.open(self.folder), worker, CudaDevice(0, self.cuda), self.trt)
