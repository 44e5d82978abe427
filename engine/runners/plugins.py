"""Runners from outside the engine, which it does not import: entry points of the group `nuwaxl.runners`.

The name of an entry point is the first word of its devices, `torch` for "torch:cuda:0"; the rest is the plugin's own.
It names a module, or any object, with the functions of `RunnerPlugin`.
"""

from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Protocol

from nuwaxl.engine.bundle import Bundle
from nuwaxl.engine.runners.base import Runner
from nuwaxl.errors import InputError

GROUP = "nuwaxl.runners"


class RunnerPlugin(Protocol):
    """What an entry point of the group gives. All raise InputError for a device that is not there."""

    def processor(self, device: str) -> str:
        """All that the speed of a device depends on, for costs that are kept."""

    def precision(self, device: str) -> str | None:
        """What its networks compute in, as bundles call it ("bf16"); None where that is for the bundle to say."""

    def open_runner(self, bundle: Bundle, device: str, threads: int) -> Runner:
        """Load a bundle on a device; `threads` is how many cores the runner may use."""


def plugin_names() -> list[str]:
    """Names of what is installed, sorted."""
    return sorted(_installed())


def plugin_for(device: str) -> RunnerPlugin:
    """The plugin of a device such as "torch:cuda:0".

    Raises:
        InputError: none of that name is installed, or it cannot be imported.
    """
    name = device.partition(":")[0]
    entry = _installed().get(name)
    if entry is None:
        raise InputError(
            expected=f"a runner {name!r} among the entry points {GROUP}",
            found=f"{plugin_names()}",
            fix="install the package that brings it, or name another device",
        )
    try:
        plugin: RunnerPlugin = entry.load()
    except ImportError as error:
        raise InputError(
            expected=f"what the runner {name!r} needs", found=str(error), fix=f"pip install 'nuwaxl[{name}]'"
        ) from error
    return plugin


@cache
def _installed() -> dict[str, EntryPoint]:
    return {entry.name: entry for entry in entry_points(group=GROUP)}
