"""Devices as the user names them, and the workers they mean."""

import os
import platform
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from nuwaxl.engine.runners.plugins import plugin_for, plugin_names
from nuwaxl.errors import InputError

MAX_WORKERS = 64
MAX_ACTORS = 1024

DeviceKind = Literal["cpu", "cuda", "tensorrt", "tensorrt-rtx"]
GPU_KINDS: tuple[DeviceKind, ...] = ("cuda", "tensorrt", "tensorrt-rtx")

_AVAILABLE = (
    'use "cpu" for one worker, "cpu:N" for N workers that share the cores, "cuda:I" for the GPU of number I, '
    '"tensorrt:I" or "tensorrt-rtx:I" for the same with the bundle\'s plans, '
    'or, alone, "ray" or "ray:N" for those of a Ray cluster'
)
# What --help says of a device list.
DEVICES_HELP = (
    "cpu: one worker with all cores; cpu:2: two that share them; cuda:0,cuda:1: two GPUs; tensorrt:0, tensorrt-rtx:0: "
    "a GPU with the bundle's plans; torch:cuda:0, torch:cpu: through PyTorch (docs/gpu.md); "
    "ray: every device of a Ray cluster; ray:2: two of them"
)


def processor() -> str:
    """This machine's processor, as far as the system tells it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            name = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.processor()
    return f"{platform.machine()} {name}"


@dataclass(frozen=True)
class Worker:
    """One worker: the thread that runs batches, on one device.

    Attributes:
        name: what statistics call it, "cpu#0", "cpu#1", ...; "cuda:0", "tensorrt:0", ...; "ray#0", ... on a cluster;
            else the device as it was asked for, and its number.
        threads: how many cores its inference runtime may use.
        alone: no other worker shares the machine, so idle threads may spin.
        processor: of the machine it is on; a GPU's name.
        precision: what it computes in, "bf16" or "tf32", where that is not for the bundle to say.
        plugin: the device of a plugin's runner (runners/plugins.py), "torch:cuda:0"; None for the engine's own.
        kind: what runs it, where that is the engine's own.
        index: the GPU's number, 0 on the CPU.
    """

    name: str
    threads: int
    alone: bool
    processor: str = field(default_factory=processor)
    precision: str | None = None
    plugin: str | None = None
    kind: DeviceKind = "cpu"
    index: int = 0

    @property
    def description(self) -> str:
        """What its speed depends on, for costs that are kept."""
        return f"{self.processor}, {self.threads} threads, {'alone' if self.alone else 'shared'}"


def parse_devices(devices: str) -> tuple[Worker, ...]:
    """Workers of a device list such as "cpu", "cpu:2", "cuda:0,cuda:1" or "torch:cuda:0,torch:cuda:1". "cpu:2" is two
    workers, the cores split evenly; "cuda" is "cuda:0"; each of a plugin's devices is one. Whether there is such a GPU
    is seen when its runner is opened.

    A GPU serves one worker, whatever runs it: two of them would take turns there, each with the weights and with its
    measured costs as if it were alone.

    Raises:
        InputError: an unknown device, no worker, a GPU twice, or more than MAX_WORKERS.
    """
    cores = available_cores()
    on_cpu = 0
    gpus: list[tuple[DeviceKind, int]] = []
    plugins: list[str] = []
    taken: dict[int, str] = {}  # GPUs, and what asked for them
    for item in devices.split(",") if isinstance(devices, str) else [repr(devices)]:
        item = item.strip()
        if item.partition(":")[0] in plugin_names():
            plugins.append(item)
            # As CUDA's own devices are called; a plugin may have others.
            if named := re.search(r":cuda(?::([0-9]{1,18}))?(?![^/])", item):
                _take(taken, int(named[1] or 0), item)
            continue
        match = re.fullmatch(rf"(cpu|{'|'.join(GPU_KINDS)})(?::([0-9]{{1,18}}))?", item)
        if item.partition(":")[0] == "ray" and "," in devices:
            raise InputError(expected="devices: ray alone", found=f'"{devices}"', fix="leave out ray or the others")
        if match is None:
            known = ["cpu", "cpu:N", *(f"{kind}:I" for kind in GPU_KINDS), "ray", "ray:N"]
            known += [f"{name}:DEVICE" for name in plugin_names()]
            raise InputError(expected=f"devices: {', '.join(known)}", found=f'"{item}"', fix=_AVAILABLE)
        number = int(match[2]) if match[2] else None
        if match[1] == "cpu":
            if number == 0:
                raise InputError(expected="devices: at least one worker", found=item, fix=_AVAILABLE)
            on_cpu += 1 if number is None else number
        else:
            _take(taken, number or 0, item)
            gpus.append((next(kind for kind in GPU_KINDS if kind == match[1]), number or 0))
    count = on_cpu + len(gpus) + len(plugins)
    if count > MAX_WORKERS:
        raise InputError(
            expected=f"devices: at most {MAX_WORKERS} workers",
            found=f"{count}",
            fix=f'use "cpu:{cores}", one a core',
        )
    alone = count == 1
    own = [Worker(f"cpu#{i}", threads=max(1, cores // on_cpu), alone=alone) for i in range(on_cpu)]
    own += [Worker(f"{kind}:{index}", 1, alone, kind=kind, index=index) for kind, index in gpus]
    threads = max(1, cores // count)
    return (*own, *(_of_plugin(device, f"{device}#{i}", threads, alone) for i, device in enumerate(plugins)))


def _of_plugin(device: str, name: str, threads: int, alone: bool) -> Worker:
    plugin, own = plugin_for(device), device.partition(":")[2]
    return Worker(name, threads, alone, plugin.processor(own), plugin.precision(own), device)


def _take(taken: dict[int, str], gpu: int, item: str) -> None:
    if gpu in taken:
        raise InputError(
            expected="devices: every GPU once",
            found=f"{taken[gpu]} and {item}, both GPU {gpu}",
            fix="leave one of them out, or name another GPU",
        )
    taken[gpu] = item


def check_tf32(devices: str, workers: Sequence[Worker]) -> None:
    """Refuse TF32 for workers of a device list that cannot be told: only ONNX Runtime's CUDA provider is, at its start.

    Raises:
        InputError: no worker, or not every one that is not a CPU, is such.
    """
    elsewhere = [worker for worker in workers if worker.plugin is not None or worker.kind not in ("cpu", "cuda")]
    if elsewhere or not any(worker.kind == "cuda" for worker in workers):
        raise InputError(
            expected="TF32 for devices cuda:I",
            found=f"devices {devices}",
            fix="leave --tf32 (tf32=True) out: plans of TensorRT are built without TF32, torch:cuda:I takes a type "
            "after a slash, and a processor and Ray's devices compute in float32",
        )


@dataclass(frozen=True)
class Actors:
    """Devices of a Ray cluster: so many, or, where `count` is None, all that fit."""

    count: int | None


def parse_ray(devices: str) -> Actors | None:
    """The actors that "ray" or "ray:N" asks for; None for any other list, which parse_devices reads.

    Raises:
        InputError: no actor, or more than MAX_ACTORS.
    """
    match = re.fullmatch(r"ray(?::([0-9]{1,18}))?", devices.strip()) if isinstance(devices, str) else None
    if match is None:
        return None
    count = int(match[1]) if match[1] else None
    if count is not None and not 1 <= count <= MAX_ACTORS:
        raise InputError(
            expected=f"devices: ray:N with N from 1 to {MAX_ACTORS}",
            found=devices.strip(),
            fix='use "ray" for all devices of the cluster',
        )
    return Actors(count)


def available_cores() -> int:
    """Cores this process may use: those it may run on, no more than OMP_NUM_THREADS, by which users limit libraries."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    said = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()  # a list where parallel regions are nested
    return min(cores, int(said)) if said.isdecimal() and int(said) > 0 else cores
