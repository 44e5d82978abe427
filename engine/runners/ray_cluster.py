"""A Ray cluster's devices: connecting, choosing nodes, starting an actor a device, bringing it the bundle."""

import importlib
import os
import socket
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from time import monotonic, sleep
from types import ModuleType
from typing import Any

import numpy as np

from nuwaxl import __version__
from nuwaxl.engine.bundle import Bundle
from nuwaxl.engine.bundle_schema import MANIFEST_FILE
from nuwaxl.engine.devices import Actors, Worker
from nuwaxl.engine.runners.base import Runner
from nuwaxl.engine.runners.ray import Host, RayRunner, RunnerActor, answer, load_ray
from nuwaxl.errors import DeviceLost, InputError, NuwaxlError

_CONNECT_S = 10.0  # for the cluster's address to answer
_ROOM_S = 20.0  # for others to free enough CPUs
_SETTLE_S = 2.0  # for CPUs just freed to be known as free
_START_S = 300.0  # for the actors' processes to start: Ray gives them a low priority

_HOW_TO_CONNECT = (
    'start one with "ray start --head", or run this on a node of it (RAY_ADDRESS=HOST:PORT names one of several)'
)


@dataclass(frozen=True)
class Node:
    """A living node of the cluster: its CPUs, and how many of them nobody has reserved."""

    id: str
    address: str
    cpus: int
    free: int


@dataclass(frozen=True)
class Share:
    """What an actor gets: so many CPUs of a node. alone: nobody else has any of that node."""

    node: Node
    cpus: int
    alone: bool


def deal(nodes: Sequence[Node], count: int | None) -> list[Share] | None:
    """Shares of the free CPUs for `count` actors, as equal as can be; None where they do not fit.

    A node's free CPUs are split evenly among its actors, which have at least one each. Without a count, every node
    with a free CPU gets one actor.
    """
    actors = [int(node.free > 0 and count is None) for node in nodes]
    for _ in range(count or 0):
        # Where the next actor gets the most; of equals, where the fewest are.
        best = max(range(len(nodes)), key=lambda n: (nodes[n].free // (actors[n] + 1), -actors[n]), default=None)
        if best is None or nodes[best].free <= actors[best]:
            return None
        actors[best] += 1
    shares = [
        Share(node, node.free // number, alone=number == 1 and node.free == node.cpus)
        for node, number in zip(nodes, actors, strict=True)
        for _ in range(number)
    ]
    return shares or None


def open_runners(bundle: Bundle, actors: Actors) -> tuple[tuple[Worker, ...], tuple[Runner, ...]]:
    """An actor on every device asked for, with the bundle loaded, and the worker that each stands for.

    The actors end when their runners are closed, at the latest with this process.

    Raises:
        InputError: ray is not installed, there is no cluster, it has too little room, or a node cannot load the bundle.
        DeviceLost: an actor died while it was opened.
    """
    ray = load_ray()
    _connection.enter(ray)
    handles: list[Any] = []
    try:
        shares = _wait_for_room(ray, actors.count)
        for share in shares:
            handles.append(_actor(ray, share))
        where = [f"ray#{number} on {share.node.address}" for number, share in enumerate(shares)]
        hosts = _hosts(ray, handles, where)
        workers = tuple(
            Worker(f"ray#{number}", share.cpus, share.alone, f"ray {host.processor}")
            for number, (share, host) in enumerate(zip(shares, hosts, strict=True))
        )
        _load(ray, bundle, handles, workers, where)
    except BaseException:
        for handle in handles:
            ray.kill(handle)
        _connection.leave(ray)
        raise
    lease = _Lease(len(handles), lambda: _connection.leave(ray))
    return workers, tuple(RayRunner(handle, name, lease.end) for handle, name in zip(handles, where, strict=True))


def _wait_for_room(ray: ModuleType, count: int | None) -> list[Share]:
    """Shares for the actors, as soon as enough CPUs are free."""
    began = monotonic()
    while True:
        nodes, waited = _nodes(ray), monotonic() - began
        shares = deal(nodes, count)
        in_use = any(node.free < node.cpus for node in nodes)
        # Taking all there is, do not miss what somebody frees just now.
        if shares is not None and (count is not None or not in_use or waited > _SETTLE_S):
            return shares
        never = deal([replace(node, free=node.cpus) for node in nodes], count) is None
        if never or (shares is None and waited > _ROOM_S):
            free, cpus = (sum(getattr(node, name) for node in nodes) for name in ("free", "cpus"))
            after = "" if never else f" after {_ROOM_S:.0f} s"
            fix = f'use "ray:{free}", ' if free else ""
            raise InputError(
                expected=f"a Ray cluster with {count or 'some'} free CPUs, at least one a worker",
                found=f"{free} free of {cpus}, on {len(nodes)} nodes{after}",
                fix=fix + "add nodes, or end what holds the CPUs",
            )
        sleep(0.1)


def _nodes(ray: ModuleType) -> list[Node]:
    """The cluster's living nodes, in an order that stays."""
    # The public functions only tell the cluster's sum.
    free = importlib.import_module("ray._private.state").available_resources_per_node()
    return [
        Node(
            id=node["NodeID"],
            address=node["NodeManagerAddress"],
            cpus=int(node["Resources"].get("CPU", 0)),
            free=int(free.get(node["NodeID"], {}).get("CPU", 0)),
        )
        for node in sorted(ray.nodes(), key=lambda node: str(node["NodeID"]))
        if node["Alive"]
    ]


def _actor(ray: ModuleType, share: Share) -> Any:
    strategies = importlib.import_module("ray.util.scheduling_strategies")
    # An actor that dies has lost its latents: it is not restarted, its work begins again elsewhere.
    options = {
        "num_cpus": share.cpus,
        "max_restarts": 0,
        "scheduling_strategy": strategies.NodeAffinitySchedulingStrategy(share.node.id, soft=False),
    }
    return ray.remote(RunnerActor).options(**options).remote()


def _hosts(ray: ModuleType, handles: Sequence[Any], where: Sequence[str]) -> list[Host]:
    """Wait until all actors run."""
    references = [handle.host.remote() for handle in handles]
    ready, late = ray.wait(references, num_returns=len(references), timeout=_START_S)
    if late:
        raise InputError(
            expected=f"{len(handles)} Ray actors started within {_START_S:.0f} s",
            found=f"{len(ready)}",
            fix='end what took the CPUs meanwhile, or use fewer with "ray:N"',
        )
    hosts = []
    for reference, name in zip(references, where, strict=True):
        try:
            host: Host = answer(reference, name)
        except Exception as error:
            raise _unlike(name, " ".join(str(error).split())) from error
        if host.nuwaxl != __version__:
            raise _unlike(name, f"nuwaxl {host.nuwaxl}")
        hosts.append(host)
    return hosts


def _unlike(where: str, found: str) -> InputError:
    return InputError(
        expected=f"nuwaxl {__version__} installed for {where}",
        found=found,
        fix=f"pip install 'nuwaxl[cpu,ray]=={__version__}' in the Python environment of every node",
    )


def _load(
    ray: ModuleType, bundle: Bundle, handles: Sequence[Any], workers: Sequence[Worker], where: Sequence[str]
) -> None:
    """Load the bundle in every actor; its files go into the object store once, if a node has no copy of it."""

    def load(numbers: Sequence[int], files: dict[str, Any] | None) -> list[int]:
        """Numbers of the actors that need the files."""
        references = [handles[n].open.remote(bundle.sha256, files, workers[n]) for n in numbers]
        return [n for n, one in zip(numbers, references, strict=True) if not _loaded(one, where[n])]

    if without := load(range(len(handles)), None):
        load(without, {name: ray.put(np.fromfile(bundle.path / name, dtype=np.uint8)) for name in needed(bundle)})


def needed(bundle: Bundle) -> list[str]:
    """Files of a bundle that actors, which are on CPUs, need: all but plans for GPUs."""
    plans = {plan.file for plan in bundle.manifest.plans}
    return [*(name for name in bundle.manifest.files if name not in plans), MANIFEST_FILE]


def _loaded(reference: Any, where: str) -> bool:
    try:
        loaded: bool = answer(reference, where)
        return loaded
    except InputError as error:
        raise InputError(expected=f"for {where}, {error.expected}", found=error.found, fix=error.fix) from error
    except NuwaxlError:
        raise
    except Exception as error:
        raise DeviceLost(f"expected {where} to load the bundle; found {type(error).__name__}: {error}") from error


class _Lease:
    """Calls `over` when so many have ended."""

    def __init__(self, count: int, over: Callable[[], None]) -> None:
        self._left = count
        self._over = over

    def end(self) -> None:
        self._left -= 1
        if self._left == 0:
            self._over()


class _Connection:
    """This process's connection to a cluster. One that the process has already is used and left as it is; otherwise it
    is made for the first engine that needs it, and ends with the last."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._engines = 0
        self._own = False

    def enter(self, ray: ModuleType) -> None:
        """Connect, unless there is a connection."""
        with self._lock:
            if not ray.is_initialized():
                _connect(ray)
                self._own = True
            self._engines += 1

    def leave(self, ray: ModuleType) -> None:
        """Disconnect, if nobody else needs the connection."""
        with self._lock:
            self._engines -= 1
            if self._own and self._engines == 0:
                ray.shutdown()
                self._own = False


_connection = _Connection()


def _connect(ray: ModuleType) -> None:
    """Join the cluster that RAY_ADDRESS names, else the one that this machine is a node of."""
    address = os.environ.get("RAY_ADDRESS") or "auto"
    expected = "a Ray cluster that this machine is a node of"
    if address != "auto":
        expected = f"a Ray cluster at RAY_ADDRESS={address}, HOST:PORT"
    try:
        if address != "auto":
            host, _, port = address.rpartition(":")
            if "/" in host or not port.isdecimal():
                raise ValueError("another form of address")
            # Ray itself would try for long.
            socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_S).close()
        ray.init(address=address, log_to_driver=False, logging_level="WARNING")
    except (OSError, ValueError, OverflowError, RuntimeError) as error:
        raise InputError(expected=expected, found=" ".join(str(error).split()), fix=_HOW_TO_CONNECT) from error
