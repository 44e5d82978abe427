"""The runtime: a bundle and a story in, a video out. No torch anywhere.

from nuwaxl.engine import Engine, Story

with Engine.open("bundle", devices="cpu:2") as engine:
    engine.render(Story.load("story.toml"), frames=1024, seed=7).save("out.mp4")
"""

from nuwaxl.engine._core import Plan
from nuwaxl.engine.bundle import Bundle, demo_bundle
from nuwaxl.engine.engine import Engine
from nuwaxl.engine.stats import Progress, RenderStats
from nuwaxl.engine.story import Scene, Story
from nuwaxl.engine.video import Video
from nuwaxl.engine.work import Clip

__all__ = [
    "Bundle",
    "Clip",
    "Engine",
    "Plan",
    "Progress",
    "RenderStats",
    "Scene",
    "Story",
    "Video",
    "demo_bundle",
]
