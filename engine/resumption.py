"""Whether a render is the same as another one: then it may go on from that one's journal, or its video be taken."""

import hashlib
import json
from dataclasses import asdict
from typing import Any

from nuwaxl.engine.bundle_schema import TOKENIZER_FILE, Manifest
from nuwaxl.engine.journal import Journal, check_journal
from nuwaxl.engine.plans import graph_sha256
from nuwaxl.engine.request import Request
from nuwaxl.engine.story import Story

# Of what this code makes of the same request: noise, samplers, plans, the baseline's overlap. To be raised by whatever
# changes the frames, so that none of before is taken for one of after.
_ARITHMETIC = 1


def identity(manifest: Manifest, story: Story, request: Request) -> dict[str, Any]:
    """All that the latents depend on, as JSON values; what is long is a sha256 of it. Policy, batch sizes, TensorRT
    plans and devices are not in it, only what these compute in."""
    graphs = {name: graph_sha256(manifest, name) for name in manifest.graphs if name != "encode"}
    tokenizer = [entry.sha256 for name, entry in manifest.files.items() if name == TOKENIZER_FILE]
    return {
        "arithmetic": _ARITHMETIC,
        "model": _sha256([graphs, tokenizer, asdict(manifest.diffusion)]),
        "story": _sha256([(scene.at, scene.prompt) for scene in story.scenes]),
        "frames": request.frames,
        "method": request.plan.kind,
        "depth": request.plan.depth,
        "seed": request.seed,
        "steps": request.steps,
        "guidance": request.guidance,
        "sampler": request.sampler,
        "negative_prompt": request.negative_prompt,
        "precision": request.precision,
    }


def open_journal(manifest: Manifest, story: Story, request: Request) -> Journal | None:
    """The journal that a render is to have.

    Raises:
        InputError: see Journal.
    """
    if request.journal is None:
        return None
    n = manifest.network
    shape = (n.length, n.latent_channels, n.latent_height, n.latent_width)
    return Journal(request.journal, identity(manifest, story, request), shape)


def check_resumable(manifest: Manifest, story: Story, request: Request) -> None:
    """Check the journal that a render is to have, before any work.

    Raises:
        InputError: see Journal.
    """
    if request.journal is not None:
        check_journal(request.journal, identity(manifest, story, request))


def made_of(manifest: Manifest, story: Story, request: Request) -> str:
    """What the file of a video says of what is in it."""
    return f"nuwaxl {_sha256([identity(manifest, story, request), story.fps, manifest.network.decode_overlap])}"


def _sha256(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
