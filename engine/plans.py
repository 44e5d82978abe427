"""Which TensorRT plan of a bundle may run where: a plan is used only where everything it was built for is the same.

A plan's key is the sha256 over its graph with the weights, its kernels, the runtime and its version, the compute
capabilities, the flags and the profiles. It names the file, so a plan that says it is for something else than it was
built for is found out too.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

from nuwaxl.engine.bundle_schema import Manifest, Plan
from nuwaxl.errors import InputError

PLANS_FOLDER = "plans"
KERNELS_FILE = "kernels.json"
RUNTIMES = ("tensorrt", "tensorrt-rtx")


@dataclass(frozen=True)
class Target:
    """What plans are wanted for: a runtime, its version, and a GPU's compute capability without the dot."""

    runtime: str
    version: str
    sm: int

    def __str__(self) -> str:
        return f"{self.runtime} {self.version} on SM {self.sm}"


def graph_sha256(manifest: Manifest, graph: str) -> str:
    """What a graph is: its file, and the file of its large weights where it has one."""
    entry = manifest.graphs[graph]
    files = [file for file in (entry.file, entry.data) if file is not None]
    return hashlib.sha256(" ".join(manifest.files[file].sha256 for file in files).encode()).hexdigest()


def named(plan: Plan, manifest: Manifest) -> Plan:
    """The plan with the file its key gives it."""
    return replace(plan, file=f"{PLANS_FOLDER}/{key(plan, manifest)}.plan")


def key(plan: Plan, manifest: Manifest) -> str:
    """The sha256 over all that a plan was built from and for."""
    facts = asdict(plan)
    del facts["file"], facts["accepted_on"]
    facts["tensors"] = asdict(manifest.graphs[plan.graph])
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def find_plan(manifest: Manifest, graph: str, target: Target, where: str) -> Plan:
    """The plan of a graph for a target, built from the graph as it is now.

    Args:
        where: the bundle, for the message.

    Raises:
        InputError: there is none; with what was built for what, and what to run.
    """
    refused = []
    for plan in manifest.plans:
        if plan.graph != graph:
            continue
        reasons = _differences(plan, manifest, target)
        if not reasons:
            return plan
        refused.append(", ".join(reasons))
    found = "; ".join(dict.fromkeys(refused)) or "no plan of this graph"
    raise InputError(
        expected=f"a plan of the graph {graph} for {target} in {where}", found=found, fix=build_hint(target, where)
    )


def build_hint(target: Target, where: str) -> str:
    """The command that builds what is missing."""
    sm = f" --sm {target.sm}" if target.runtime == "tensorrt-rtx" else ", on this machine"
    return f"run nuwaxl-export {where} --target {target.runtime}{sm}"


def build_command(plan: Plan, where: str) -> str:
    """The command that builds a plan of this key, or verifies it where it is there."""
    sm = f" --sm {','.join(map(str, plan.sm))}" if plan.runtime == "tensorrt-rtx" else ""
    flags = "".join(f" --{flag}" for flag in plan.flags)
    return f"nuwaxl-export {where} --target {plan.runtime}{sm} --batches {','.join(map(str, plan.batches))}{flags}"


def without_stale(manifest: Manifest, added: Sequence[Plan]) -> list[Plan]:
    """The added plans and then the manifest's, since the first that fits is used; but for those that the added ones
    replace on every GPU they are for, and those of which graph or kernels have changed since they were built."""

    def replaced(plan: Plan) -> bool:
        return any(
            (plan.graph, plan.runtime) == (new.graph, new.runtime) and set(plan.sm) <= set(new.sm) for new in added
        )

    return [*added, *(plan for plan in manifest.plans if not _changed(manifest, plan) and not replaced(plan))]


def _changed(manifest: Manifest, plan: Plan) -> list[str]:
    """What of the bundle is no longer as it was when a plan was built."""
    changed = []
    if plan.graph_sha256 != graph_sha256(manifest, plan.graph):
        changed.append("one of a graph that has changed since")
    kernels = manifest.files.get(KERNELS_FILE)
    if plan.kernels_sha256 and (kernels is None or kernels.sha256 != plan.kernels_sha256):
        changed.append("one with kernels that have changed since")
    return changed


def _differences(plan: Plan, manifest: Manifest, target: Target) -> list[str]:
    """Why a plan is not for a target; nothing where it is."""
    reasons = []
    if (plan.runtime, plan.version) != (target.runtime, target.version):
        reasons.append(f"one for {plan.runtime} {plan.version}")
    if target.sm not in plan.sm:
        reasons.append(f"one for SM {', '.join(map(str, plan.sm))}")
    reasons += _changed(manifest, plan)
    if not reasons and plan.file != named(plan, manifest).file:
        reasons.append(f"{plan.file}, which was built for something else than the manifest says")
    return reasons
