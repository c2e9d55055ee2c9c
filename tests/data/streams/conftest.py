"""Videos that the tests of this folder share."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.data.streams.videos import VIDEOS, Video, source, video


@pytest.fixture(scope="session")
def video_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Video]:
    """The video of a codec and layout; each is made once."""
    path = source(tmp_path_factory.mktemp("streams"))
    made: dict[tuple[str, str], Video] = {}

    def find(codec: str, layout: str) -> Video:
        if (codec, layout) not in made:
            made[codec, layout] = video(path, codec, layout)
        return made[codec, layout]

    return find


@pytest.fixture(params=VIDEOS, ids=" ".join)
def one(request: pytest.FixtureRequest, video_of: Callable[[str, str], Video]) -> Video:
    """Each codec in each layout."""
    return video_of(*request.param)
