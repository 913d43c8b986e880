"""Pictures of a camera that keep coming and show nothing of use: frozen, blank, or of another place than before.

Twice a second a frame is looked at in grey. All three are told late rather than wrongly: a still room at night is none.
"""

from __future__ import annotations

import zlib
from collections import deque
from collections.abc import Callable
from typing import Literal

import numpy as np
from numpy.typing import NDArray

PictureState = Literal["frozen", "blank", "turned"]

_EVERY = 0.5  # seconds between two frames that are looked at
# Half of the pictures of so many seconds were seen as many seconds before, which is longer than between two keyframes.
# What an encoder makes of a frozen picture comes back exactly; noise makes each keyframe another. Of frozen pictures by
# x264 at constant quality more than half came back, of still scenes with noise of 0.5 to 4 grey levels none.
FROZEN = 60.0
# Seconds without one that came back: a keyframe of another quality is followed by new ones for less.
_THAWED = 10.0
BLANK = 5.0  # seconds
_SPREAD = 12.0  # grey levels between which 95 % of a blank picture lie; a clock in its corner is the rest
TURNED = 60.0  # seconds that another place was seen, and the one before: who stands close to the camera leaves sooner
_ADOPTED = 3600.0  # seconds after which the other place is what is to be seen
_SIZE = (64, 48)  # width and height in which places are compared
_TILES = (4, 4)
_BLUR = 3.0  # pixels of _SIZE: brightness and its slopes are taken out, edges stay
_STRUCTURE = 2.0  # grey levels: standard deviation from which a tile shows anything
_FEWEST = 4  # tiles that show something, without which places are not told apart
_ALIKE = 0.5  # correlation from which two tiles show the same
_SAME, _OTHER = 0.3, 0.1  # share of such tiles from which, and up to which, it is the same or another place
# Seconds over which is averaged: who moves goes out of the one, daylight goes into the other.
_VIEW, _PLACE = 5.0, 300.0

Grey = NDArray[np.uint8]
Float = NDArray[np.float32]


class PictureWatch:
    """Follows the pictures of one camera, over all its connections."""

    def __init__(self) -> None:
        self._last = -np.inf
        self._state: PictureState | None = None
        self._frozen, self._blank, self._turned = _Frozen(), _Blank(), _Turned()

    def seen(self, seconds: float, grey: Callable[[], Grey]) -> PictureState | None:
        """How the picture is.

        Args:
            seconds: When it was taken; they rise.
            grey: Gives it, uint8 [H, W]; asked twice a second.
        """
        if seconds - self._last >= _EVERY:
            self._last = seconds
            self._state = self._judged(seconds, grey())
        return self._state

    def _judged(self, seconds: float, grey: Grey) -> PictureState | None:
        import cv2

        small = cv2.resize(grey, _SIZE, interpolation=cv2.INTER_AREA).astype(np.float32)
        frozen = self._frozen.seen(seconds, grey)
        if self._blank.seen(seconds, small):
            return "blank"
        if frozen:
            return "frozen"
        edges = small - cv2.GaussianBlur(small, (0, 0), _BLUR)
        return "turned" if self._turned.seen(seconds, edges.astype(np.float32)) else None


class _Frozen:
    def __init__(self) -> None:
        self._pictures: dict[int, tuple[float, float]] = {}  # by their checksums: when each was seen first, and last
        self._recent: deque[tuple[float, bool]] = deque()  # when one was seen, and whether long before, too
        self._back = -np.inf  # when one came back
        self._told = False

    def seen(self, seconds: float, grey: Grey) -> bool:
        picture = zlib.crc32(np.ascontiguousarray(grey).data)
        first, _ = self._pictures.get(picture, (seconds, seconds))
        self._pictures[picture] = (first, seconds)
        if len(self._pictures) > 4 * FROZEN / _EVERY:
            self._pictures = {one: at for one, at in self._pictures.items() if seconds - at[1] <= 2 * FROZEN}
        back = seconds - first >= FROZEN
        self._back = seconds if back else self._back
        self._recent.append((seconds, back))
        while seconds - self._recent[0][0] >= FROZEN:
            self._recent.popleft()
        if self._told:
            self._told = seconds - self._back < _THAWED
        elif back:
            self._told = 2 * sum(one for _, one in self._recent) >= len(self._recent)
        return self._told


class _Blank:
    def __init__(self) -> None:
        self._since: float | None = None

    def seen(self, seconds: float, small: Float) -> bool:
        low, high = np.percentile(small, (2.5, 97.5))
        if high - low > _SPREAD:
            self._since = None
            return False
        self._since = seconds if self._since is None else self._since
        return seconds - self._since >= BLANK


class _Turned:
    def __init__(self) -> None:
        self._last = -np.inf
        self._view: Float | None = None  # what is seen, without who moves
        self._place: Float | None = None  # what is to be seen; None until something was seen for long enough
        self._anchor: Float | None = None  # the view at the moment from which on it is the same
        self._steady = self._other = -np.inf  # since when it is the same, and since when another one than the place
        self._is_other = self._told = False

    def seen(self, seconds: float, edges: Float) -> bool:
        passed, self._last = seconds - self._last, seconds
        if self._view is None or passed > _VIEW:
            self._view = edges.copy()
        else:
            self._view += (edges - self._view) * np.float32(passed / _VIEW)
        if self._anchor is None or _shared(self._view, self._anchor) < _SAME:
            self._anchor, self._steady = self._view.copy(), seconds
        for_long = seconds - self._steady >= TURNED
        if self._place is None:
            self._place = self._view.copy() if for_long else None
            return False
        shared = _shared(self._view, self._place)
        if shared >= _SAME:
            self._is_other = self._told = False
            self._place += (self._view - self._place) * np.float32(min(1.0, passed / _PLACE))
        elif shared <= _OTHER and not self._is_other:
            self._is_other, self._other = True, seconds
        if self._is_other and for_long and seconds - self._other >= TURNED:
            self._told = True
        if self._told and seconds - self._other >= _ADOPTED:
            self._place, self._is_other, self._told = self._view.copy(), False, False
        return self._told


def _shared(one: Float, other: Float) -> float:
    """Share of the tiles with structure that show the same in both; 1 where hardly any has structure."""
    first, second = _tiles(one), _tiles(other)
    deviations = first.std(axis=1), second.std(axis=1)
    structured = np.maximum(*deviations) >= _STRUCTURE
    if structured.sum() < _FEWEST:
        return 1.0
    product = (first * second).mean(axis=1) - first.mean(axis=1) * second.mean(axis=1)
    correlation = product / np.maximum(deviations[0] * deviations[1], 1e-6)
    return float((correlation[structured] >= _ALIKE).mean())


def _tiles(edges: Float) -> Float:
    """[48, 64] -> [tiles, pixels of each]."""
    rows, columns = _TILES
    height, width = edges.shape[0] // rows, edges.shape[1] // columns
    return edges.reshape(rows, height, columns, width).swapaxes(1, 2).reshape(rows * columns, height * width)
