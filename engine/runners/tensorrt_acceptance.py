"""The gate at the first use of a plan: one that nobody has verified on this GPU is compared with ONNX Runtime before it
renders anything, and that it passed is kept in the cache folder."""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nuwaxl.engine.acceptance import TOLERANCES, Accepted, Arrays, Execute, accept
from nuwaxl.engine.bundle import Bundle
from nuwaxl.engine.bundle_schema import Plan
from nuwaxl.engine.costs import cache_folder
from nuwaxl.engine.devices import Worker, available_cores
from nuwaxl.engine.plans import build_command
from nuwaxl.engine.runners.onnxruntime import OnnxRuntimeRunner
from nuwaxl.engine.samples import Run, Samples
from nuwaxl.engine.text import PromptTokenizer
from nuwaxl.errors import InputError
from nuwaxl.files import keep_file


class Reference:
    """ONNX Runtime on the CPU, opened when it is first asked: plans that were accepted before need none.

    Raises, at the first call:
        InputError: ONNX Runtime is missing, or cannot run the bundle's graphs on the CPU.
    """

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle
        self._runner: OnnxRuntimeRunner | None = None

    def __call__(self, graph: str, inputs: Mapping[str, NDArray[np.generic]]) -> Arrays:
        if self._runner is None:
            self._runner = OnnxRuntimeRunner(self._bundle, Worker("cpu#0", available_cores(), alone=True))
        return self._runner.run(graph, inputs)


def ensure_accepted(bundle: Bundle, plan: Plan, device: str, execute: Execute, reference: Run) -> None:
    """See that a plan was accepted on a GPU of this name: at its export, here earlier, or now.

    Raises:
        PlanRefused: its answers are wrong.
        InputError: ONNX Runtime is missing, or cannot run the bundle's graphs on the CPU: those in bfloat16, which
            nuwaxl-export verifies.
    """
    if device in (*plan.accepted_on, _recorded(plan, device)):
        return
    try:
        accepted = compare(bundle, plan, execute, reference)
    except InputError as error:
        raise InputError(
            expected=f"{error.expected}, to verify the plan of {plan.graph}, which nobody has verified on this GPU",
            found=error.found,
            fix=f"run {build_command(plan, str(bundle.path))}, on this machine, which verifies them"
            if bundle.manifest.precision == "bf16"
            else error.fix,
        ) from error
    _record(plan, device, accepted)


def compare(
    bundle: Bundle, plan: Plan, execute: Execute, reference: Run, check: Callable[[], None] = lambda: None
) -> Accepted:
    """Compare a plan's answers in every bucket with those of a reference that runs graphs by name.

    Raises:
        PlanRefused: an answer is wrong.
    """
    samples = Samples(bundle.manifest, _vocabulary(bundle), reference)

    def expected(inputs: Mapping[str, NDArray[np.generic]]) -> Arrays:
        return reference(plan.graph, inputs)

    return accept(
        plan.graph,
        plan.batches,
        lambda batch: samples(plan.graph, batch),
        expected,
        execute,
        TOLERANCES[bundle.manifest.precision],
        check,
    )


def _vocabulary(bundle: Bundle) -> int:
    """Tokens that every text encoder of the bundle's tokenizer knows."""
    tokenizer = PromptTokenizer(bundle.tokenizer, bundle.manifest.network.prompt_tokens)
    return tokenizer.size


def _file(plan: Plan, device: str) -> Path:
    name = hashlib.sha256(device.encode()).hexdigest()[:16]
    return cache_folder() / "accepted-plans" / f"{Path(plan.file).stem}-{name}.json"


def _recorded(plan: Plan, device: str) -> str:
    """The device if the plan was accepted on it here, else nothing."""
    try:
        found = json.loads(_file(plan, device).read_text(encoding="utf-8"))["device"]
    except (OSError, ValueError, KeyError, TypeError):
        return ""
    return device if found == device else ""


def _record(plan: Plan, device: str, accepted: Accepted) -> None:
    """Keep that it was accepted; where that cannot be written, it is compared again the next time."""
    table = {"device": device, "reference": accepted.reference, "rows": accepted.rows}
    keep_file(_file(plan, device), json.dumps(table).encode())
