"""Draws a picture on import, for the server of tests/forks.py: its forks then have the compiled functions (0.3 s)."""

from __future__ import annotations

import av
import numpy as np

from lavila.data.host.decode import planes_of
from lavila.data.host.render import ClipRenderer
from lavila.data.pictures import PictureSpec
from lavila.records import ClipPlan

SPEC = PictureSpec(
    frames=1, size=16, view_grid=(1, 1), cuts_window=True, pads_black=False, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0),
    antialias=False, half=False,
)  # fmt: skip
PLAN = ClipPlan(
    position=0, row=0, frames=np.zeros((1, 1), np.int32), window=(0, 0, 32, 32), resized=(16, 16),
    crops=np.zeros((1, 2), np.int32), flip=False, caption=0.0,
)  # fmt: skip
ClipRenderer(SPEC).render(
    PLAN, [planes_of(av.VideoFrame(32, 32, "yuv420p"))], np.zeros((1, 1, 1, 3, 16, 16), np.float32)
)
