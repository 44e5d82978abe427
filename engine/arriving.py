"""A decoded window on its way from a device to the host, while the device goes on."""

from collections.abc import Callable

from nuwaxl.engine.batch import Item
from nuwaxl.engine.job import Clip
from nuwaxl.errors import DeviceLost


class Arriving:
    """At most one clip of one device; false where there is none."""

    def __init__(self) -> None:
        self._clip: tuple[Item, Callable[[], Clip], float] | None = None

    def __bool__(self) -> bool:
        return self._clip is not None

    def begin(self, item: Item, clip: Callable[[], Clip], start: float) -> None:
        """A window whose decoding was queued: `clip` waits for it."""
        assert self._clip is None
        self._clip = item, clip, start

    def wait(self, came: Callable[[Item, Clip, float], None], failed: Callable[[Item, BaseException], None]) -> None:
        """Wait for the clip, if there is one, and hand it over.

        Args:
            came: takes a window, its clip, and when its decoding began.
            failed: takes a window and why there is no clip of it.

        Raises DeviceLost; the scheduler then gives the window to another device.
        """
        if self._clip is None:
            return
        (item, take, start), self._clip = self._clip, None
        try:
            came(item, take(), start)
        except DeviceLost:
            raise
        except BaseException as error:
            failed(item, error)
