"""How the frames of a group norm are cut: known without Triton, to whoever names the kernels ahead of time."""

LARGE = 1024  # pixels of a frame, from which on a step of one segment has too few programs for a GPU as well
_PART = 256  # pixels at least,
_PARTS = 64  # in at most so many parts: every program reads the statistics of all of them


def part_of(pixels: int) -> int:
    """Pixels of a part of a frame of `pixels`, a power of two; 0 where the frame is not cut. engine/csrc/onnxruntime
    cuts frames so, too."""
    return max(_PART, (1 << (pixels - 1).bit_length()) // _PARTS) if pixels >= LARGE else 0
