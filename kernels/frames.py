"""How a group norm takes its frames: known without Triton, to whoever names the kernels ahead of time.
engine/csrc/onnxruntime decides alike."""

LARGE = 1024  # pixels of a frame, from which on a step of one segment has too few programs for a GPU as well
_PART = 256  # pixels at least,
_PARTS = 64  # in at most so many parts: every program reads the statistics of all of them

LANES = 32  # channels that a program holds, but for groups that are wider
_MOST_LANES = 64
_HELD = 1 << 15  # values that a program holds


def tile_of(pixels: int, channels: int, groups: int) -> int:
    """Pixels, a power of two, of the tile in which programs hold a frame of `pixels`; 0 where it is not held: where it
    is too large, or where whole groups leave too many lanes of a tile without work."""
    if channels == 0:
        return 0
    used = channels // groups * groups_together(channels, groups, LANES)
    lanes = power_of_two(used)
    tile = power_of_two(pixels)
    return tile if full(used) and lanes <= _MOST_LANES and pixels <= LARGE and tile * lanes <= _HELD else 0


def part_of(pixels: int) -> int:
    """Pixels of a part of a frame of `pixels` that is not held, a power of two; 0 where the frame is not cut."""
    return max(_PART, power_of_two(pixels) // _PARTS) if pixels >= LARGE else 0


def groups_together(channels: int, groups: int, widest: int) -> int:
    """That one program takes: as many as there are in `widest` channels, at least one."""
    return min(max(1, widest // (channels // groups)), groups)


def full(used: int) -> bool:
    """Whether of the lanes, a power of two, that hold so many channels at least 15 in 16 have work."""
    return 16 * used >= 15 * power_of_two(used)


def power_of_two(n: int, least: int = 1) -> int:
    """The smallest power of two that is at least n and `least`."""
    return max(least, 1 << max(n - 1, 0).bit_length())
