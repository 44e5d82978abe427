"""Devices as the user names them, and the workers they mean."""

import os
import re
from dataclasses import dataclass

from nuwaxl.errors import InputError

MAX_WORKERS = 64

_AVAILABLE = 'this version runs on the CPU: use "cpu" for one worker, or "cpu:N" for N workers that share the cores'


@dataclass(frozen=True)
class Worker:
    """One worker: the thread that runs batches, on one device.

    Attributes:
        name: what statistics call it, "cpu#0", "cpu#1", ...
        threads: how many cores its inference runtime may use.
        alone: no other worker shares the machine, so idle threads may spin.
    """

    name: str
    threads: int
    alone: bool


def parse_devices(devices: str) -> tuple[Worker, ...]:
    """Workers of a device list such as "cpu", "cpu:2" or "cpu:1,cpu:1". "cpu:2" is two workers, the cores
    split evenly.

    Raises:
        InputError: an unknown or unsupported device, no worker, or more than MAX_WORKERS.
    """
    cores = available_cores()
    count = 0
    for item in devices.split(",") if isinstance(devices, str) else [repr(devices)]:
        match = re.fullmatch(r"cpu(?::([0-9]+))?", item.strip())
        if match is None:
            raise InputError(expected="devices: cpu or cpu:N", found=_found(item.strip()), fix=_AVAILABLE)
        count += int(match[1]) if match[1] else 1
        if match[1] and int(match[1]) == 0:
            raise InputError(expected="devices: at least one worker", found=item.strip(), fix=_AVAILABLE)
    if count > MAX_WORKERS:
        raise InputError(
            expected=f"devices: at most {MAX_WORKERS} workers",
            found=f"{count}",
            fix=f'use "cpu:{cores}", one a core',
        )
    return tuple(Worker(f"cpu#{i}", threads=max(1, cores // count), alone=count == 1) for i in range(count))


def available_cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _found(item: str) -> str:
    if item.partition(":")[0] in ("cuda", "gpu", "tensorrt"):
        return f'"{item}", and GPUs are not supported in this version'
    return f'"{item}"'
