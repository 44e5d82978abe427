"""One story's render, fully specified: every default filled in, every value checked, before any work starts."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from nuwaxl.engine._core import Plan
from nuwaxl.engine.bundle_schema import MAX_GUIDANCE, SAMPLERS, Manifest, SamplerName
from nuwaxl.engine.checks import encodable_text, finite_number, one_of, shown, whole_number
from nuwaxl.engine.samplers import SamplerTable, sampler_table
from nuwaxl.engine.story import Story, check_seed
from nuwaxl.errors import InputError
from nuwaxl.files import is_file_name

Policy = Literal["level", "eager", "latency"]
POLICIES: tuple[Policy, ...] = ("level", "eager", "latency")
Method = Literal["tree", "autoregressive"]

# A render keeps all its latents and its plan in memory; this bounds a slip of the keyboard, not a real story
# (18 hours).
MAX_FRAMES = 2**20

# The measured costs choose the batch up to here; larger ones are rarely any faster, and cost memory in proportion.
DEFAULT_MAX_BATCH = 16
MAX_BATCH = 2**16


# Frames of the window before that each is given. One is the least, and so the fewest windows: the paper's Table 1 has
# 453 s for 1024 frames and 7 s for 16, some 65 windows.
AUTOREGRESSIVE_OVERLAP = 1


@dataclass(frozen=True)
class Task:
    """A story to render among others. See Engine.render for the meaning of each; None takes the default."""

    story: Story
    frames: int | None = None
    seed: int | None = None
    steps: int | None = None
    guidance: float | None = None
    sampler: SamplerName | None = None
    negative_prompt: str = ""
    depth: int | None = None
    method: Method = "tree"
    journal: str | os.PathLike[str] | None = None


@dataclass(frozen=True)
class Schedule:
    """How work is dealt out, whatever is rendered. See Engine.render for the meaning of each."""

    policy: Policy
    max_batch: int


def resolve_schedule(policy: Any = "eager", max_batch: Any = None) -> Schedule:
    """Fill in the defaults and check.

    Raises:
        InputError: a value of the wrong kind or out of its range.
    """
    return Schedule(
        policy=cast(Policy, one_of("policy", policy, POLICIES)),
        max_batch=whole_number(
            "max_batch", DEFAULT_MAX_BATCH if max_batch is None else max_batch, least=1, most=MAX_BATCH
        ),
    )


@dataclass(frozen=True)
class Request:
    """What to render, apart from the story. See Engine.render for the meaning of each.

    Attributes:
        precision: what the devices compute in; where they differ, all of these.
    """

    plan: Plan
    table: SamplerTable
    frames: int
    seed: int
    steps: int
    guidance: float
    sampler: SamplerName
    negative_prompt: str
    precision: str
    journal: Path | None


def resolve(manifest: Manifest, task: Task, precision: str | None = None) -> Request:
    """Fill what is None from the story, then from the bundle's defaults, and check everything. `precision` is that of
    the devices; None for the bundle's.

    Raises:
        InputError: a value of the wrong kind or out of its range, or more frames than the tree of `depth`
            spans.
    """
    story = task.story
    if not isinstance(story, Story):
        raise InputError(expected="a Story", found=type(story).__name__, fix="use Story.load(path) or Story(scenes)")
    frames, seed, steps, guidance, sampler = task.frames, task.seed, task.steps, task.guidance, task.sampler
    frames = story.frames if frames is None else frames
    if frames is None:
        raise InputError(
            expected="a number of frames",
            found="none in the story and none given",
            fix="give frames (--frames N)",
        )
    frames = whole_number("frames", frames, least=1, most=MAX_FRAMES)
    seed = check_seed((story.seed or 0) if seed is None else seed)
    most = manifest.diffusion.train_steps
    steps = whole_number("steps", manifest.sampler.steps if steps is None else steps, least=1, most=most)
    guidance = manifest.sampler.guidance if guidance is None else guidance
    guidance = finite_number("guidance", guidance, least=0, most=MAX_GUIDANCE)
    sampler = cast(SamplerName, one_of("sampler", manifest.sampler.name if sampler is None else sampler, SAMPLERS))
    negative_prompt = encodable_text("negative_prompt", task.negative_prompt, fix="change negative_prompt")
    return Request(
        plan=_plan(frames, manifest, task.depth, task.method),
        table=sampler_table(sampler, manifest.diffusion, steps),
        frames=frames,
        seed=seed,
        steps=steps,
        guidance=guidance,
        sampler=sampler,
        negative_prompt=negative_prompt,
        precision=precision or manifest.precision,
        journal=None if task.journal is None else _journal(task.journal),
    )


def _journal(name: Any) -> Path:
    if not isinstance(name, (str, os.PathLike)) or not is_file_name(os.fspath(name)):
        raise InputError(expected="a file name as journal", found=shown(name), fix="give another name")
    return Path(name).absolute()


def _plan(frames: int, manifest: Manifest, depth: Any, method: Any) -> Plan:
    length = manifest.network.length
    if one_of("method", method, ("tree", "autoregressive")) == "autoregressive":
        if depth is not None:
            raise InputError(
                expected="no depth with the autoregressive method", found=repr(depth), fix="leave depth out"
            )
        return Plan.autoregressive(frames, length, AUTOREGRESSIVE_OVERLAP)
    deepest = next(m for m in range(1, 64) if (length - 1) ** m + 1 >= MAX_FRAMES)
    if depth is None:
        # Of the strides of a smaller depth the network knows the small ones with both ends given alone.
        trained = min(manifest.sampler.depth, deepest)
        return Plan(frames, length, trained if frames <= Plan.span(length, trained) else None)
    depth = whole_number("depth", depth, least=1, most=deepest)
    span = Plan.span(length, depth)
    if frames > span:
        raise InputError(
            expected=f"at most {span} frames, the span of a tree of depth {depth} with segments of {length}",
            found=f"{frames}",
            fix="render fewer frames, or leave depth out to get one that is deep enough",
        )
    return Plan(frames, length, depth)
