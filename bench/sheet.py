"""The contact sheet: frames spread evenly over the video, with number and prompt under each."""

from bisect import bisect_right
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from nuwaxl.engine import Clip, Story

COLUMNS, ROWS = 8, 4
PICTURE = 192  # pixels: small frames are enlarged by the largest whole factor that stays within
GAP = 12
LINE = 16
MAX_LINES = 5  # of a prompt

_PAPER, _INK, _FAINT = (250, 250, 248), (30, 30, 35), (130, 130, 138)
_FONT_SIZE = 13


def spread(frames: int, count: int = COLUMNS * ROWS) -> list[int]:
    """Up to `count` frame numbers spread evenly from the first frame to the last, each once."""
    numbers = np.linspace(0, frames - 1, min(frames, count))
    return [int(number) for number in np.round(numbers)]


class ContactSheet:
    """Call add with every clip of a render, then image. Keeps only the frames that it shows."""

    def __init__(self, story: Story, *, frames: int, height: int, width: int) -> None:
        """A sheet for a video of `frames` frames of `height` x `width` pixels."""
        self._story = story
        self._numbers = spread(frames)
        self._size = (height, width)
        self._shown: dict[int, NDArray[np.uint8]] = {}

    def add(self, clip: Clip) -> None:
        """Keep what the sheet shows of a clip."""
        for number in self._numbers:
            if 0 <= number - clip.first_frame < len(clip.frames):
                # A copy, so that the rest of the clip is freed.
                self._shown[number] = clip.frames[number - clip.first_frame].copy()

    def image(self) -> Image.Image:
        """The sheet, RGB, 8 frames a row. Call it after the last clip."""
        height, width = self._size
        factor = max(1, PICTURE // max(height, width))
        height, width = height * factor, width * factor
        font = ImageFont.load_default(_FONT_SIZE)
        column = max(width, PICTURE)
        captions = [wrap(self._story.prompt_at(number), column, font) for number in self._numbers]
        row = height + LINE * (1 + max(map(len, captions))) + GAP
        columns = min(COLUMNS, len(self._numbers))
        rows = -(-len(self._numbers) // COLUMNS)
        sheet = Image.new("RGB", (GAP + columns * (column + GAP), GAP + rows * (row + GAP)), _PAPER)
        draw = ImageDraw.Draw(sheet)
        for place, (number, caption) in enumerate(zip(self._numbers, captions, strict=True)):
            x = GAP + place % COLUMNS * (column + GAP)
            y = GAP + place // COLUMNS * (row + GAP)
            picture = Image.fromarray(self._shown[number])
            sheet.paste(picture.resize((width, height), Image.Resampling.NEAREST), (x, y))
            for line, text in enumerate((f"frame {number}", *caption)):
                color = _FAINT if line == 0 else _INK
                draw.text((x, y + height + 4 + line * LINE), text, fill=color, font=font)
        return sheet

    def png(self) -> bytes:
        """The sheet as a PNG file."""
        file = BytesIO()
        self.image().save(file, "PNG")
        return file.getvalue()


def wrap(text: str, width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> list[str]:
    """Lines of at most `width` pixels and at most MAX_LINES of them; what does not fit ends in an ellipsis."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".lstrip()
        if font.getlength(longer) <= width or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    if len(lines) > MAX_LINES:
        lines = [*lines[: MAX_LINES - 1], f"{lines[MAX_LINES - 1]} ..."]
    return [_cut(line, width, font) for line in lines]


def _cut(line: str, width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """The line, shortened to `width` pixels."""
    if font.getlength(line) <= width:
        return line
    end = bisect_right(range(len(line)), float(width), key=lambda n: font.getlength(f"{line[:n]}..."))
    return f"{line[: end - 1]}..."
