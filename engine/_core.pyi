"""Types of the native core: the plan, the scheduler and the noise. The C++ is in engine/csrc/."""

from typing import Literal, final

import numpy as np
import numpy.typing as npt

@final
class Segment:
    """One diffusion of L frames in the tree: a global one at depth 0, local ones below (PAPER.md 3.3)."""

    @property
    def depth(self) -> int:
        """0 for the global diffusion, 1 to m - 1 for the locals."""

    @property
    def index(self) -> int:
        """Position among the segments of the same depth, from 0."""

    @property
    def first_frame(self) -> int:
        """Number of the segment's first frame, index * (L - 1) * stride."""

    @property
    def stride(self) -> int:
        """Frames from one frame of the segment to the next, (L - 1) ** (m - 1 - depth)."""

    @property
    def parent(self) -> int:
        """Id of the segment that gives the first and the last frame; -1 for the global diffusion."""

@final
class Plan:
    """The pruned tree of diffusions that generates a video of N frames.

    Keeps the segments whose first frame lies before N: 1 + 5 + 69 of them for N = 1024, L = 16, m = 3.
    Segment ids are depth-major: all of depth 0, then all of depth 1, and so on. Takes the same memory
    whatever the number of segments, since all follows from a segment's id by arithmetic.
    """

    def __init__(self, frames: int, length: int, depth: int | None = None) -> None:
        """Plan `frames` = N frames by diffusions of `length` = L frames, in a tree of `depth` = m levels.

        Without `depth`, the smallest whose tree spans N frames. Raises ValueError if frames < 1, length < 3,
        depth < 1, or the tree spans fewer than N frames.
        """

    @staticmethod
    def span(length: int, depth: int) -> int:
        """Frames that a whole tree spans, (L - 1) ** m + 1. Raises ValueError if it is more than 2 ** 62."""

    @property
    def frames(self) -> int:
        """Frames asked for, N."""

    @property
    def length(self) -> int:
        """Frames a diffusion, L."""

    @property
    def depth(self) -> int:
        """Levels of the tree, m."""

    @property
    def counts(self) -> list[int]:
        """Segments at each depth, from the global diffusion down."""

    def __len__(self) -> int:
        """Segments in all."""

    def segment(self, id: int) -> Segment:
        """The segment of that id. Raises ValueError if there is none."""

    def frames_of(self, id: int) -> npt.NDArray[np.int64]:
        """Numbers of the segment's L frames, shape (L,). They may lie past the frames asked for."""

    def children(self, id: int) -> list[int]:
        """Ids of the segments that wait for this one, at most L - 1."""

    def origin_of(self, frame: int) -> int:
        """Id of the segment that generates `frame`: the shallowest that holds it, deeper ones being given it.

        Raises ValueError if no segment of the pruned tree holds it.
        """

@final
class Work:
    """What one device does next: denoise a batch of segments, or decode a window."""

    @property
    def id(self) -> int:
        """Counts from 0 in the order of handing out."""

    @property
    def kind(self) -> Literal["diffuse", "decode"]: ...
    @property
    def items(self) -> list[int]:
        """Segment ids, all of one depth, lowest first; or the number of the one window."""

    @property
    def depth(self) -> int:
        """Depth of the segments; -1 for decode."""

    @property
    def device(self) -> int:
        """The device it was handed to."""

@final
class Scheduler:
    """Hands out the work of one render to worker threads, one a device.

    Batches hold min(max_batch, ceil(ready / devices)) segments of one depth, the shallowest that may start,
    lowest index first. Diffusion goes before decoding. Windows are handed out in order, each once all its
    frames are final. Every method may be called from any thread. Wrong use raises ValueError and changes
    nothing.
    """

    def __init__(
        self,
        plan: Plan,
        *,
        policy: str,
        devices: int,
        max_batch: int,
        decode_windows: list[tuple[int, int]],
        decode_ahead: int,
    ) -> None:
        """Schedule `plan` on `devices` workers, numbered from 0.

        policy: "level" starts a depth when the whole depth before it is done (the paper's barrier), "eager"
        a segment when its parent is done. decode_windows: (first, last) frame that each window reads, both
        included, in order, within the plan's frames. decode_ahead: the most windows that may be decoded or
        being decoded beyond the number consumed.
        """

    def next(self, device: int) -> Work | None:
        """Work for `device`, waiting for it without the GIL; None once all is handed out, or after stop().

        A device holds one work at a time: it must report done() before it asks again.
        """

    def try_next(self, device: int) -> Work | None:
        """As next(), but also None, at once, when there is no work at this moment."""

    def done(self, work: Work) -> None:
        """Publish the results of `work`, which may make segments and windows ready."""

    def consumed(self, window: int) -> None:
        """The window's clip was taken, which makes room for decoding another one."""

    def stop(self) -> None:
        """Make next() return None from now on and wake every worker waiting in it.

        Running work may still be reported done().
        """

    @property
    def stopped(self) -> bool:
        """Whether stop() was called."""

    @property
    def finished(self) -> bool:
        """Whether all work was handed out and reported done."""

def normal_noise(seed: int, depth: int, index: int, step: int, out: npt.NDArray[np.float32]) -> None:
    """Fill `out` with draws of N(0, 1), a function of the arguments alone.

    The same numbers come out whatever the batch slot, device or order. Philox4x32-10 (Salmon et al., SC 2011)
    with the seed as key and (block, step, index, depth) as counter, made normal by Box-Muller.
    seed: 0 to 2**64 - 1; depth, index, step: 0 to 2**32 - 1; out: C-contiguous float32 of any shape. Raises
    ValueError for anything else, TypeError for an `out` that cannot be written to.
    """
