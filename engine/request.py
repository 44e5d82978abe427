"""One render, fully specified: every default filled in, every value checked, before any work starts."""

from dataclasses import dataclass
from typing import Any, Literal, cast

from nuwaxl.engine._core import Plan
from nuwaxl.engine.bundle_schema import SAMPLERS, Manifest, SamplerName
from nuwaxl.engine.checks import finite_number, one_of, whole_number
from nuwaxl.engine.samplers import SamplerTable, sampler_table
from nuwaxl.engine.story import Story, check_seed
from nuwaxl.errors import InputError

Policy = Literal["level", "eager"]
POLICIES: tuple[Policy, ...] = ("level", "eager")

# A render keeps all its latents and its plan in memory; this bounds a slip of the keyboard, not a real story
# (18 hours).
MAX_FRAMES = 2**20

# On a CPU larger batches are no faster (docs/bench.md) and cost memory in proportion.
DEFAULT_MAX_BATCH = 2


@dataclass(frozen=True)
class Request:
    """What to render, apart from the story. See Engine.render for the meaning of each."""

    plan: Plan
    table: SamplerTable
    frames: int
    seed: int
    steps: int
    guidance: float
    sampler: SamplerName
    policy: Policy
    max_batch: int
    negative_prompt: str


def resolve(
    manifest: Manifest,
    story: Story,
    *,
    frames: Any = None,
    seed: Any = None,
    steps: Any = None,
    guidance: Any = None,
    sampler: Any = None,
    policy: Any = "eager",
    max_batch: Any = None,
    negative_prompt: Any = "",
    depth: Any = None,
) -> Request:
    """Fill what is None from the story, then from the bundle's defaults, and check everything.

    Raises:
        InputError: a value of the wrong kind or out of its range, or more frames than the tree of `depth`
            spans.
    """
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
    guidance = finite_number("guidance", manifest.sampler.guidance if guidance is None else guidance, least=0)
    sampler = cast(SamplerName, one_of("sampler", manifest.sampler.name if sampler is None else sampler, SAMPLERS))
    if not isinstance(negative_prompt, str):
        raise InputError(
            expected="negative_prompt: a string", found=repr(negative_prompt), fix="change negative_prompt"
        )
    return Request(
        plan=_plan(frames, manifest.network.length, depth),
        table=sampler_table(sampler, manifest.diffusion, steps),
        frames=frames,
        seed=seed,
        steps=steps,
        guidance=guidance,
        sampler=sampler,
        policy=cast(Policy, one_of("policy", policy, POLICIES)),
        max_batch=whole_number("max_batch", DEFAULT_MAX_BATCH if max_batch is None else max_batch, least=1),
        negative_prompt=negative_prompt,
    )


def _plan(frames: int, length: int, depth: Any) -> Plan:
    if depth is None:
        return Plan(frames, length)
    deepest = next(m for m in range(1, 64) if (length - 1) ** m + 1 >= MAX_FRAMES)
    depth = whole_number("depth", depth, least=1, most=deepest)
    span = Plan.span(length, depth)
    if frames > span:
        raise InputError(
            expected=f"at most {span} frames, the span of a tree of depth {depth} with segments of {length}",
            found=f"{frames}",
            fix="render fewer frames, or leave depth out to get one that is deep enough",
        )
    return Plan(frames, length, depth)
