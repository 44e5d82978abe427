"""The engine on the CPU against plain PyTorch on the same cores: `python -m nuwaxl.bench.against_torch BUNDLE`.

Plain PyTorch is what one would run without an engine: the modules of `nuwaxl.train` in float32 with torch's SDPA,
rendering the same film depth by depth in batches of a fixed size, each with all cores (`plain.py`), eager and through
torch.compile. They take turns with the engine, so that other load on the machine slows all alike. Prompts, diffusions
and decoding are in all times; compiling, measuring of costs and the writing of a video are in none.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from statistics import median
from time import perf_counter

import numpy as np

from nuwaxl.bench.cli import bundled_story
from nuwaxl.cli import Parser, positive_int, run, say
from nuwaxl.engine import Bundle, Clip, Engine, Task
from nuwaxl.engine.devices import available_cores, parse_devices
from nuwaxl.engine.request import resolve
from nuwaxl.errors import InputError

PROG = "python -m nuwaxl.bench.against_torch"
MODES = {"eager": "eager", "compile": "default"}  # as torch.compile calls the second one

_Render = Callable[[Task], Sequence[Clip]]


@dataclass(frozen=True)
class Opponent:
    """What a mode of plain PyTorch took.

    Attributes:
        ready_s: the film in one step before the clock, in which torch compiles.
        wall_s: of every round.
        times: wall_s over the engine's of the same round, the median of the rounds.
        most_off: the largest difference of a pixel from the engine's, of 255.
    """

    mode: str
    ready_s: float
    wall_s: list[float]
    times: float
    most_off: int


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    parser = Parser(prog=PROG, description=__doc__)
    parser.add_argument("bundle", metavar="BUNDLE", help="exported with nuwaxl-export --with-checkpoint")
    parser.add_argument(
        "--frames", type=positive_int, default=256, metavar="N", help="length of the film (default: 256)"
    )
    parser.add_argument("--rounds", type=positive_int, default=3, metavar="N", help="renders of each (default: 3)")
    parser.add_argument("--batch", type=positive_int, default=2, metavar="N", help="segments of theirs (default: 2)")
    parser.add_argument("--modes", type=_modes, default=list(MODES), metavar="LIST", help=f"of {','.join(MODES)} (all)")
    devices = "cpu:2" if available_cores() > 1 else "cpu"
    parser.add_argument("--devices", default=devices, help=f"ours: cpu, or cpu:N for N workers (default: {devices})")
    arguments = parser.parse_args(argv)
    return run(PROG, lambda: _print(arguments))


def _modes(text: str) -> list[str]:
    """Argument type: some of MODES."""
    modes = text.split(",")
    if unknown := set(modes) - set(MODES):
        raise argparse.ArgumentTypeError(f"expected some of {', '.join(MODES)}; found {', '.join(sorted(unknown))}")
    return modes


def _print(arguments: argparse.Namespace) -> None:
    ours, opponents = compare(
        arguments.bundle, arguments.frames, arguments.devices, arguments.modes, arguments.batch, arguments.rounds
    )
    say(f"{'':<16}{'s':>8}{'frames/s':>10}{'times':>8}{'ready, s':>10}{'off by':>8}")
    say(f"{arguments.devices:<16}{median(ours):>8.2f}{arguments.frames / median(ours):>10.1f}{1:>8.2f}")
    for row in opponents:
        wall_s = median(row.wall_s)
        say(
            f"{'torch ' + row.mode:<16}{wall_s:>8.2f}{arguments.frames / wall_s:>10.1f}{row.times:>8.2f}"
            f"{row.ready_s:>10.1f}{row.most_off:>8}"
        )


def compare(
    path: str, frames: int, devices: str, modes: Sequence[str], batch: int, rounds: int
) -> tuple[list[float], list[Opponent]]:
    """Render the bundled story by the engine and by plain PyTorch, `rounds` times in turn.

    Returns:
        Seconds of the engine's renders, and what each mode took.

    Raises:
        InputError: no torch, a bundle without its checkpoint or with a sampler that adds noise, other devices than
            the CPU.
    """
    bundle, task = Bundle.open(path), Task(bundled_story(), frames=frames)
    _check(bundle, task, devices)
    plain = {mode: _plain(bundle, MODES[mode], batch) for mode in modes}
    with Engine.open(bundle, devices=devices) as engine:

        def ours(task: Task) -> Sequence[Clip]:
            return list(engine.render(**vars(task)))

        ready_s = {mode: _timed(render, replace(task, steps=1))[0] for mode, render in plain.items()}
        ours(replace(task, steps=1))
        walls: dict[str, list[float]] = {mode: [] for mode in ("ours", *modes)}
        most_off = dict.fromkeys(modes, 0)
        for _ in range(rounds):
            wall_s, expected = _timed(ours, task)
            walls["ours"].append(wall_s)
            for mode, render in plain.items():
                wall_s, found = _timed(render, task)
                walls[mode].append(wall_s)
                most_off[mode] = max(most_off[mode], _most_off(expected, found))
    rows = []
    for mode in modes:
        times = median(theirs / mine for theirs, mine in zip(walls[mode], walls["ours"], strict=True))
        rows.append(Opponent(mode, ready_s[mode], walls[mode], times, most_off[mode]))
    return walls["ours"], rows


def _check(bundle: Bundle, task: Task, devices: str) -> None:
    if find_spec("torch") is None:
        raise InputError(expected="torch", found="none", fix="pip install 'nuwaxl[torch]'")
    if any(worker.plugin is not None or worker.kind != "cpu" for worker in parse_devices(devices)):
        raise InputError(
            expected="cpu or cpu:N to compare on the CPU",
            found=devices,
            fix="compare on a GPU by make gpu (docs/gpu.md)",
        )
    if resolve(bundle.manifest, task).sampler == "ddpm":
        raise InputError(
            expected="a bundle whose sampler adds no noise", found="ddpm", fix="export it with --sampler dpmpp_2m"
        )


def _plain(bundle: Bundle, mode: str, batch: int) -> _Render:
    """The bundle's networks in torch. Its number of threads is the whole process's; the engine's sessions have their
    own."""
    import torch

    from nuwaxl.bench.plain import PlainNetworks, job_of, render
    from nuwaxl.export.model import load_bundled

    torch.set_num_threads(available_cores())
    model = load_bundled(bundle)
    networks = PlainNetworks(model.text, model.mtd, model.tklvae, torch.device("cpu"), mode)

    def rendered(task: Task) -> Sequence[Clip]:
        with torch.no_grad():
            return render(job_of(bundle, task), networks, batch)

    return rendered


def _timed(render: _Render, task: Task) -> tuple[float, Sequence[Clip]]:
    began = perf_counter()
    clips = render(task)
    return perf_counter() - began, clips


def _most_off(expected: Sequence[Clip], found: Sequence[Clip]) -> int:
    return max(
        int(np.abs(one.frames.astype(int) - other.frames).max()) for one, other in zip(expected, found, strict=True)
    )


if __name__ == "__main__":
    sys.exit(main())
