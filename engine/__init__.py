"""The runtime: a bundle and a story in, a video out. No torch anywhere.

from nuwaxl.engine import Engine, Story

with Engine.open("bundle", devices="cpu:2") as engine:
    engine.render(Story.load("story.toml"), frames=1024, seed=7).save("out.mp4")
"""

from nuwaxl.engine._core import CostModel, Plan
from nuwaxl.engine.bundle import Bundle, demo_bundle
from nuwaxl.engine.bundle_schema import SamplerName
from nuwaxl.engine.engine import Engine
from nuwaxl.engine.job import Clip
from nuwaxl.engine.request import Method, Policy, Task
from nuwaxl.engine.stats import Phase, Progress, ProgressCallback, RenderStats
from nuwaxl.engine.story import Scene, Story
from nuwaxl.engine.video import Video
from nuwaxl.engine.videos import VideoResult, Videos

__all__ = [
    "Bundle",
    "Clip",
    "CostModel",
    "Engine",
    "Method",
    "Phase",
    "Plan",
    "Policy",
    "Progress",
    "ProgressCallback",
    "RenderStats",
    "SamplerName",
    "Scene",
    "Story",
    "Task",
    "Video",
    "VideoResult",
    "Videos",
    "demo_bundle",
]
