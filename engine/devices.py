"""Devices as the user names them, and the workers they mean."""

import os
import platform
import re
from dataclasses import dataclass, field

from nuwaxl.engine.runners.plugins import plugin_for, plugin_names
from nuwaxl.errors import InputError

MAX_WORKERS = 64
MAX_ACTORS = 1024

_AVAILABLE = (
    'this version runs on the CPU: use "cpu" for one worker, "cpu:N" for N workers that share the cores, or, alone, '
    '"ray" or "ray:N" for those of a Ray cluster'
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
        name: what statistics call it, "cpu#0", "cpu#1", ...; "ray#0", ... on a cluster; else the device as it was
            asked for, and its number.
        threads: how many cores its inference runtime may use.
        alone: no other worker shares the machine, so idle threads may spin.
        processor: of the machine it is on.
        plugin: the device of a plugin's runner (runners/plugins.py), "torch:cuda:0"; None for the engine's own.
    """

    name: str
    threads: int
    alone: bool
    processor: str = field(default_factory=processor)
    plugin: str | None = None

    @property
    def description(self) -> str:
        """What its speed depends on, for costs that are kept."""
        return f"{self.processor}, {self.threads} threads, {'alone' if self.alone else 'shared'}"


def parse_devices(devices: str) -> tuple[Worker, ...]:
    """Workers of a device list such as "cpu", "cpu:2", "cpu:1,cpu:1" or "torch:cuda:0,torch:cuda:1". "cpu:2" is two
    workers, the cores split evenly; each of a plugin's devices is one.

    Raises:
        InputError: an unknown or unsupported device, no worker, or more than MAX_WORKERS.
    """
    cores = available_cores()
    count = 0
    plugins: list[str] = []
    for item in devices.split(",") if isinstance(devices, str) else [repr(devices)]:
        item = item.strip()
        if item.partition(":")[0] in plugin_names():
            plugins.append(item)
            continue
        match = re.fullmatch(r"cpu(?::([0-9]{1,18}))?", item)
        if match is None:
            known = ["cpu", "cpu:N", "ray", "ray:N", *(f"{name}:DEVICE" for name in plugin_names())]
            raise InputError(expected=f"devices: {', '.join(known)}", found=_found(item), fix=_AVAILABLE)
        count += int(match[1]) if match[1] else 1
        if match[1] and int(match[1]) == 0:
            raise InputError(expected="devices: at least one worker", found=item, fix=_AVAILABLE)
    if count + len(plugins) > MAX_WORKERS:
        raise InputError(
            expected=f"devices: at most {MAX_WORKERS} workers",
            found=f"{count + len(plugins)}",
            fix=f'use "cpu:{cores}", one a core',
        )
    alone = count + len(plugins) == 1
    own = [Worker(f"cpu#{i}", threads=max(1, cores // count), alone=alone) for i in range(count)]
    threads = max(1, cores // (count + len(plugins)))
    others = [
        Worker(f"{device}#{i}", threads, alone, plugin_for(device).processor(device.partition(":")[2]), device)
        for i, device in enumerate(plugins)
    ]
    return (*own, *others)


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
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _found(item: str) -> str:
    if item.partition(":")[0] in ("cuda", "gpu", "tensorrt"):
        return f'"{item}", and GPUs are not supported in this version'
    return f'"{item}"'
