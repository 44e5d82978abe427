"""The contact sheet: which frames, where they lie, and what is written under them."""

import io

import numpy as np
import pytest
from PIL import Image, ImageFont

from nuwaxl.bench.sheet import GAP, LINE, MAX_LINES, ContactSheet, spread, wrap
from nuwaxl.engine import Clip, Story

FONT = ImageFont.load_default(13)


def make_sheet(frames: int, story: Story, height: int = 64, width: int = 64, clip_length: int = 7) -> ContactSheet:
    """A sheet of a video whose frame n has the colour (n % 256, n // 256, 77)."""
    sheet = ContactSheet(story, frames=frames, height=height, width=width)
    for first in range(0, frames, clip_length):
        numbers = np.arange(first, min(first + clip_length, frames))
        colors = np.stack([numbers % 256, numbers // 256, np.full_like(numbers, 77)], axis=-1)
        video = np.broadcast_to(colors[:, None, None], (len(numbers), height, width, 3)).astype(np.uint8)
        sheet.add(Clip(first, video))
    return sheet


@pytest.mark.parametrize("frames", [1, 2, 31, 32, 33, 1024, 3376])
def test_frames_are_spread_evenly_from_the_first_to_the_last(frames: int) -> None:
    numbers = spread(frames)
    assert len(numbers) == min(frames, 32)
    assert numbers[0] == 0
    assert numbers[-1] == frames - 1 or frames == 1
    gaps = np.diff(numbers)
    if frames > 1:
        assert gaps.min() >= 1
        assert gaps.max() - gaps.min() <= 1


def test_the_sheet_shows_the_frames_in_eight_columns_and_four_rows() -> None:
    image = make_sheet(1024, Story([(0, "Mona waves")])).image()
    assert image.mode == "RGB"
    assert image.size == (GAP + 8 * (192 + GAP), GAP + 4 * (192 + 2 * LINE + 2 * GAP))
    numbers = spread(1024)
    pixels = np.asarray(image)
    for place, number in enumerate(numbers):
        x = GAP + place % 8 * (192 + GAP)
        y = GAP + place // 8 * (192 + 2 * LINE + 2 * GAP)
        shown = pixels[y : y + 192, x : x + 192].reshape(-1, 3)
        assert (shown == (number % 256, number // 256, 77)).all()


def test_frames_are_enlarged_by_whole_pixels() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)
    sheet = ContactSheet(Story([(0, "noise")]), frames=3, height=64, width=64)
    sheet.add(Clip(0, frames))
    shown = np.asarray(sheet.image())[GAP : GAP + 192, GAP : GAP + 192]
    assert (shown == frames[0].repeat(3, axis=0).repeat(3, axis=1)).all()


def test_number_and_prompt_are_written_under_each_frame() -> None:
    def captions(story: Story) -> list[bytes]:
        """Pixels of the number and of the prompt under each of two frames."""
        sheet = ContactSheet(story, frames=2, height=64, width=64)
        sheet.add(Clip(0, np.zeros((2, 64, 64, 3), np.uint8)))
        pixels = np.asarray(sheet.image())
        top = GAP + 192 + 4
        return [
            pixels[top + line * LINE : top + (line + 1) * LINE, x : x + 192].tobytes()
            for x in (GAP, 2 * GAP + 192)
            for line in (0, 1)
        ]

    number_0, same_0, number_1, same_1 = captions(Story([(0, "one prompt")]))
    assert number_0 != number_1
    assert same_0 == same_1
    _, first, _, second = captions(Story([(0, "one prompt"), (1, "two prompts")]))
    assert first == same_0
    assert second != first
    assert all(len(set(part)) > 10 for part in (number_0, number_1, first, second))  # ink, not blank paper


def test_a_short_video_has_a_small_sheet_and_a_large_frame_is_not_shrunk() -> None:
    story = Story([(0, "sea")])
    assert make_sheet(3, story).image().width == GAP + 3 * (192 + GAP)
    assert make_sheet(9, story).image().width == GAP + 8 * (192 + GAP)
    assert make_sheet(1, story, height=256, width=320).image().width == GAP + 320 + GAP


def test_the_png_holds_the_sheet() -> None:
    sheet = make_sheet(40, Story([(0, "Mona waves"), (20, "Bruno jumps")]))
    with Image.open(io.BytesIO(sheet.png())) as image:
        assert image.format == "PNG"
        assert (np.asarray(image) == np.asarray(sheet.image())).all()


def test_a_sheet_keeps_only_the_frames_that_it_shows() -> None:
    video = np.zeros((1000, 8, 8, 3), np.uint8)
    sheet = ContactSheet(Story([(0, "sea")]), frames=1000, height=8, width=8)
    sheet.add(Clip(0, video))
    kept = list(sheet._shown.values())
    assert len(kept) == 32
    assert all(frame.base is None and frame.nbytes == 8 * 8 * 3 for frame in kept)


def test_prompts_are_wrapped_at_words_to_the_width() -> None:
    text = "Mona walks to the right and Bruno stands on the right in the snowy mountains"
    lines = wrap(text, 192, FONT)
    assert 2 < len(lines) <= MAX_LINES
    assert " ".join(lines) == text
    assert all(FONT.getlength(line) <= 192 for line in lines)


@pytest.mark.parametrize("text", ["x" * 500, "word " * 200, f"a {'y' * 300} b"])
def test_what_does_not_fit_is_cut_with_an_ellipsis(text: str) -> None:
    lines = wrap(text, 192, FONT)
    assert len(lines) <= MAX_LINES
    assert all(FONT.getlength(line) <= 192 for line in lines)
    assert any(line.endswith("...") for line in lines)
