"""The four characters. Each has one fixed look: a few large flat shapes above its feet, in pixels."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from PIL import Image

from nuwaxl.train.data.cartoon.brush import Brush, Color, Point, shade
from nuwaxl.train.data.cartoon.script import JUMP_PERIOD, MARKS, Act

WALK_PERIOD = 12  # frames of two steps
WAVE_PERIOD = 12
JUMP_HEIGHT = 9.0  # pixels
GROUND = 57.0  # row on which everyone's feet stand

RED: Color = (225, 35, 50)
BLUE: Color = (50, 95, 230)
YELLOW: Color = (255, 222, 25)
GREEN: Color = (45, 160, 70)
# The colour by which each character is known.
COLORS: dict[str, Color] = {"Mona": RED, "Bruno": BLUE, "Pip": YELLOW, "Rex": GREEN}

_INK: Color = (25, 20, 35)
_WHITE: Color = (255, 255, 255)
_SKIN: Color = (255, 212, 178)
_HAIR: Color = (105, 55, 25)
_PALE_BLUE: Color = (180, 210, 255)
_ORANGE: Color = (250, 130, 20)
_PALE_GREEN: Color = (220, 240, 150)


@dataclass(frozen=True)
class Pose:
    """Where a character is and how it holds itself in one frame."""

    x: float  # pixels
    lift: float  # pixels above the ground: the bob of a step, or a jump
    facing: int  # -1 left, 0 to the viewer, 1 right
    swing: float  # of the legs, -1 to 1
    wave: float  # 0: arm down, 1: arm up, a little more or less while it waves
    jump: float  # 0 on the ground to 1 at the top


def pose_at(act: Act, since: int, frames: int) -> Pose:
    """The pose `since` frames into an act of `frames` frames. Who does not walk looks towards the middle."""
    x = MARKS[act.start] + (MARKS[act.end] - MARKS[act.start]) * since / frames
    facing = act.direction or 1 - act.start
    lift = swing = wave = jump = 0.0
    if act.action == "walks":
        angle = 2 * math.pi * since / WALK_PERIOD
        swing, lift = math.sin(angle), 1.0 - abs(math.sin(angle))
    elif act.action == "waves":
        raised = min(1.0, since / 4, (frames - since) / 4)
        wave = raised * (0.75 + 0.2 * math.sin(2 * math.pi * since / WAVE_PERIOD))
    elif act.action == "jumps":
        phase = (since % JUMP_PERIOD) / (JUMP_PERIOD - 4)  # four frames on the ground between two jumps
        jump = max(0.0, 4 * phase * (1 - phase))
        lift = JUMP_HEIGHT * jump
    return Pose(x, lift, facing, swing, wave, jump)


def draw_character(canvas: Image.Image, name: str, pose: Pose, shadow: Color) -> None:
    """Draw one character and its shadow on the enlarged canvas."""
    width = (6.5 if name == "Pip" else 9.0) * (1 - 0.3 * pose.jump)
    Brush(canvas, pose.x, GROUND).ellipse(0, 0, width, 1.8, shadow)
    mirror = -1 if pose.facing < 0 else 1
    _DRAW[name](Brush(canvas, pose.x, GROUND - pose.lift, mirror), pose, abs(pose.facing))


def _hand(shoulder: Point, length: float, wave: float) -> Point:
    """Where the hand is: hanging at wave = 0, stretched outwards and up at wave = 1."""
    angle = math.radians(-65 + 130 * wave)
    return shoulder[0] + length * math.cos(angle), shoulder[1] + length * math.sin(angle)


def _arms(brush: Brush, pose: Pose, shoulder: Point, length: float, width: float, fill: Color, waving: int = 1) -> None:
    """Both arms: both rise in a jump and swing in a walk, the `waving` one (1 front, -1 back) waves."""
    for side in (-1, 1):
        wave = pose.wave if side == waving else 0.0
        x, y = _hand(shoulder, length, max(wave, 0.7 * pose.jump, 0.2 * abs(pose.swing)))
        brush.limb((side * shoulder[0], shoulder[1]), (side * x, y), width, fill)


def _legs(
    brush: Brush, pose: Pose, apart: float, hip: float, step: float, width: float, fill: Color, shoe: Color
) -> None:
    """Both legs with feet. In a walk they swing against each other; in a jump they are drawn up."""
    for side in (-1, 1):
        foot = (side * apart + side * step * pose.swing, 1.2 + 2.0 * pose.jump)
        brush.limb((side * apart, hip), foot, width, fill)
        brush.ellipse(foot[0] + 0.6, foot[1], width / 2 + 1.6, width / 4 + 1.3, shoe, outline=True)


def _eyes(brush: Brush, x: float, y: float, apart: float) -> None:
    for side in (-1, 1):
        brush.ellipse(x + side * apart, y, 1.15, 1.5, _INK)


def _draw_mona(brush: Brush, pose: Pose, turn: int) -> None:
    face = 1.8 * turn
    for side in (-1, 1):
        brush.ellipse(side * 7.4 - face / 2, 20.5, 3.2, 3.6, _HAIR, outline=True)
    brush.ellipse(-face / 3, 24.8, 7.8, 7.4, _HAIR, outline=True)
    _legs(brush, pose, 2.6, 7.0, 3.0, 2.4, _SKIN, (90, 30, 40))
    _arms(brush, pose, (4.6, 16.0), 7.5, 2.4, _SKIN)
    brush.polygon([(-4.2, 18.5), (4.2, 18.5), (8.2, 5.5), (-8.2, 5.5)], RED, outline=True)
    brush.ellipse(face / 3, 23.4, 6.3, 6.0, _SKIN)
    brush.cap(face / 4, 24.2, 6.8, 6.2, 190, 350, _HAIR)
    _eyes(brush, face, 22.9, 2.5)
    brush.line([(face - 1.5, 19.8), (face, 19.2), (face + 1.5, 19.8)], 0.9, (200, 60, 70))
    brush.ellipse(4.6, 30.2, 2.4, 1.9, RED, outline=True)


def _draw_bruno(brush: Brush, pose: Pose, turn: int) -> None:
    face = 2.0 * turn
    _legs(brush, pose, 4.4, 7.0, 2.8, 5.0, BLUE, BLUE)
    _arms(brush, pose, (7.6, 18.5), 8.5, 4.2, BLUE)
    brush.ellipse(0, 13.5, 9.6, 10.0, BLUE, outline=True)
    brush.ellipse(face * 0.8, 12.4, 5.8, 6.4, _PALE_BLUE)
    for side in (-1, 1):
        brush.ellipse(side * 6.2 - face / 3, 32.0, 3.1, 3.1, BLUE, outline=True)
    brush.ellipse(0, 26.6, 8.6, 7.6, BLUE, outline=True)
    brush.ellipse(face, 24.0, 4.4, 3.3, _PALE_BLUE)
    brush.ellipse(face * 1.1, 25.4, 1.7, 1.2, _INK)
    _eyes(brush, face * 0.9, 28.4, 3.3)


def _draw_pip(brush: Brush, pose: Pose, turn: int) -> None:
    face = 2.4 * turn
    _legs(brush, pose, 2.8, 4.0, 2.2, 1.2, _ORANGE, _ORANGE)
    for lean in (-1.8, 0.0, 1.8):
        brush.limb((lean / 2, 18.0), (lean * 1.2, 21.0), 1.2, YELLOW)
    _arms(brush, pose, (6.6, 10.5), 4.8, 2.8, YELLOW, waving=-1)
    brush.ellipse(0, 11.0, 8.4, 8.2, YELLOW, outline=True)
    _eyes(brush, face, 13.4, 2.9)
    if turn:
        brush.polygon([(6.6, 12.4), (11.6, 10.6), (6.6, 9.0)], _ORANGE, outline=True)
    else:
        brush.polygon([(-2.4, 11.2), (2.4, 11.2), (0, 8.0)], _ORANGE, outline=True)


def _draw_rex(brush: Brush, pose: Pose, turn: int) -> None:
    face = 3.6 * turn
    brush.polygon([(-2, 13), (-11.0, 4.0 + 1.5 * pose.swing), (-2, 4)], GREEN, outline=True)
    for x, y in ((-6.2, 13.0), (-6.4, 19.5), (-5.6, 26.0)):
        brush.polygon([(x + 2.5, y + 3), (x - 2.4, y + 1.2), (x + 2.5, y - 2.5)], _ORANGE, outline=True)
    _legs(brush, pose, 3.4, 6.5, 2.6, 4.0, GREEN, GREEN)
    brush.ellipse(0, 13.0, 7.0, 9.2, GREEN, outline=True)
    brush.ellipse(0.6 * face, 12.0, 4.4, 6.8, _PALE_GREEN)
    _arms(brush, pose, (5.2, 15.5), 6.2, 2.4, GREEN)
    brush.ellipse(face / 4, 26.0, 7.4, 6.2, GREEN, outline=True)
    brush.ellipse(face * 1.4, 23.6, 5.6, 3.9, GREEN, outline=True)
    brush.ellipse(face * 1.4, 25.2, 4.8, 3.0, GREEN)  # hides the outline between head and snout
    brush.line([(face * 1.4 - 3.5, 22.6), (face * 1.4 + 3.0, 22.2)], 0.9, shade(GREEN, 0.4))
    for side in (-1, 1):
        brush.ellipse(face * 0.6 + side * 2.7, 28.6, 2.2, 2.3, _WHITE)
        brush.ellipse(face * 0.6 + side * 2.7 + 0.5 * turn, 28.4, 1.15, 1.4, _INK)


_DRAW: dict[str, Callable[[Brush, Pose, int], None]] = {
    "Mona": _draw_mona,
    "Bruno": _draw_bruno,
    "Pip": _draw_pip,
    "Rex": _draw_rex,
}
