"""The demo's server: the page, and what it asks for.

    GET /                     the page
    GET /assets/NAME          its scripts and styles
    GET /api/library          the videos, and which queries to try
    GET /api/search           hits for q=WORDS, or for like=VIDEO from=S to=S; video=VIDEO (any number), limit=N
    GET /api/curve            of=VIDEO: how well each of its moments fits the same search
    GET /api/video            video=VIDEO: how a browser plays it, and what is said of it
    POST /api/copy, /api/narrate   video=VIDEO: make a copy that browsers play, or a narration; how far it is
    GET /export               the search's hits as format=csv, json or annotations
    GET /media, /copy         video=VIDEO: the file itself, or its copy; parts of it by Range
    GET /strip                video=VIDEO start=S stop=S frames=N: a JPEG
    GET /subtitles            video=VIDEO: WebVTT

Videos are called by their names in the index. No text of a request becomes a path.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

import anyio.to_thread
from anyio import CapacityLimiter
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from lavila.demo.access import Access, Guard
from lavila.demo.library import Library, NoVideoError, Wanted, WantedError
from lavila.demo.playable import media_type, playback
from lavila.demo.subtitles import to_vtt
from lavila.demo.transcripts import Transcript
from lavila.errors import UserError

log = logging.getLogger(__name__)

R = TypeVar("R")

ASSETS = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
DRAWING_THREADS = 2
KEPT = {"cache-control": "private, max-age=86400"}  # of what has the video's version in its address
FRESH = {"cache-control": "no-cache"}


def create_app(library: Library, access: Access) -> Starlette:
    """The server. It closes the library when it ends."""
    answers = _Answers(library)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        try:
            yield
        finally:
            await anyio.to_thread.run_sync(library.close)

    return Starlette(
        routes=[
            Route("/", answers.page),
            Route("/assets/{name}", answers.asset),
            Route("/api/library", answers.videos),
            Route("/api/search", answers.search),
            Route("/api/curve", answers.curve),
            Route("/api/video", answers.video),
            Route("/api/copy", answers.make_copy, methods=["POST"]),
            Route("/api/narrate", answers.narrate, methods=["POST"]),
            Route("/export", answers.export),
            Route("/media", answers.media),
            Route("/copy", answers.copy),
            Route("/strip", answers.strip),
            Route("/subtitles", answers.subtitles),
        ],
        middleware=[Middleware(Guard, access=access)],
        exception_handlers={UserError: _refused, OSError: _failed},
        lifespan=lifespan,
    )


async def _refused(_: Request, error: Exception) -> Response:
    """A request that asks for what is not there, or a video that cannot be read."""
    return JSONResponse({"error": str(error)}, 404 if isinstance(error, NoVideoError) else 400)


async def _failed(_: Request, error: Exception) -> Response:
    """A disk that is full or gone: nothing that a traceback would help with."""
    log.warning("%s", error)
    return JSONResponse({"error": f"the server cannot read or write a file: {error}"}, 500)


async def _in_thread(work: Callable[..., R], *args: Any, limiter: CapacityLimiter | None = None, **options: Any) -> R:
    return await anyio.to_thread.run_sync(partial(work, *args, **options), limiter=limiter)


class _Answers:
    def __init__(self, library: Library) -> None:
        self._library = library
        self._assets = read_assets()
        self._drawing: CapacityLimiter | None = None

    async def page(self, _: Request) -> Response:
        return Response(self._assets["index.html"], media_type="text/html", headers=FRESH)

    async def asset(self, request: Request) -> Response:
        name = request.path_params["name"]
        data = self._assets.get(name)
        if data is None:
            return JSONResponse({"error": "no such asset"}, 404)
        return Response(data, media_type=ASSETS[Path(name).suffix], headers=FRESH)

    async def videos(self, _: Request) -> Response:
        return JSONResponse(await _in_thread(self._videos))

    def _videos(self) -> dict[str, Any]:
        index = self._library.index
        return {
            "model": index.settings.model,
            "window": index.settings.window,
            "every": index.settings.every,
            "moments": index.moments.num_rows,
            "narrator": self._library.transcripts.can_narrate,
            "suggestions": self._library.suggestions,
            "videos": [
                {
                    "name": video.name,
                    "duration": round(video.duration, 3),
                    "moments": video.moments,
                    "reason": video.reason.removeprefix(f"{video.path}: "),
                    "version": f"{video.size:x}-{video.mtime_ns:x}",
                }
                for video in index.videos
            ],
        }

    async def search(self, request: Request) -> Response:
        wanted = _wanted(request)
        began = time.perf_counter()
        hits = await _in_thread(self._library.hits, wanted)
        found = [
            {
                "video": hit.video,
                "start": float(hit.start),
                "stop": float(hit.stop),
                "score": round(float(hit.score), 4),
            }
            for hit in hits
        ]
        return JSONResponse({"hits": found, "seconds": round(time.perf_counter() - began, 4)})

    async def curve(self, request: Request) -> Response:
        wanted = _wanted(request)
        times, similarity = await _in_thread(self._library.curve, wanted, _text(request, "of"))
        return JSONResponse(
            {"times": [round(float(t), 3) for t in times], "similarity": [round(float(s), 4) for s in similarity]}
        )

    async def video(self, request: Request) -> Response:
        return JSONResponse(await _in_thread(self._video, _text(request, "video")))

    def _video(self, name: str) -> dict[str, Any]:
        path = self._library.path(name)
        how = playback(path)
        said = self._library.transcripts.transcript(name, path)
        return {
            "direct": how.direct,
            "lead": round(how.lead, 4),
            "copy": self._library.copies.file(path) is not None,
            "narration": _as_json(said),
        }

    async def make_copy(self, request: Request) -> Response:
        name = _text(request, "video")
        chore = await _in_thread(lambda: self._library.copies.ask(self._library.path(name)))
        return JSONResponse({"state": chore.state, "share": round(chore.share, 3), "reason": chore.reason})

    async def narrate(self, request: Request) -> Response:
        name = _text(request, "video")
        said = await _in_thread(lambda: self._library.transcripts.ask(name, self._library.path(name)))
        return JSONResponse(_as_json(said))

    async def export(self, request: Request) -> Response:
        found = await _in_thread(self._library.export, _wanted(request), _text(request, "format"))
        disposition = f'attachment; filename="{found.name}"'
        return Response(found.data, media_type=found.media_type, headers={"content-disposition": disposition, **FRESH})

    async def media(self, request: Request) -> Response:
        path = await _in_thread(self._library.path, _text(request, "video"))
        if not path.is_file():
            raise NoVideoError("this video is a folder of files; ask for its copy")
        return FileResponse(path, media_type=media_type(path), headers=FRESH)

    async def copy(self, request: Request) -> Response:
        name = _text(request, "video")
        path = await _in_thread(lambda: self._library.copies.file(self._library.path(name)))
        if path is None:
            raise NoVideoError("this video has no copy yet")
        return FileResponse(path, media_type="video/mp4", headers=FRESH)

    async def strip(self, request: Request) -> Response:
        name = _text(request, "video")
        start, stop, frames = _number(request, "start"), _number(request, "stop"), _whole(request, "frames", 8)
        self._drawing = self._drawing or CapacityLimiter(DRAWING_THREADS)
        file = await _in_thread(
            lambda: self._library.strips.strip(self._library.path(name), start, stop, frames=frames),
            limiter=self._drawing,
        )
        return FileResponse(file, media_type="image/jpeg", headers=KEPT if "v" in request.query_params else FRESH)

    async def subtitles(self, request: Request) -> Response:
        name = _text(request, "video")
        said = await _in_thread(lambda: self._library.transcripts.transcript(name, self._library.path(name)))
        return Response(to_vtt(said.moments), media_type="text/vtt", headers=FRESH)


def read_assets() -> Mapping[str, bytes]:
    """The files of the page by name, as they are in the package. Nothing else is served under /assets."""
    files = resources.files("lavila.demo").joinpath("web").iterdir()
    return {file.name: file.read_bytes() for file in files if Path(file.name).suffix in ASSETS}


def _as_json(said: Transcript) -> dict[str, Any]:
    moments = [{"start": one.start, "stop": one.stop, "text": one.text} for one in said.moments]
    return {"state": said.state, "share": round(said.share, 3), "reason": said.reason, "moments": moments}


def _wanted(request: Request) -> Wanted:
    """The search that a request is about."""
    asked = request.query_params
    like = (asked["like"], _number(request, "from"), _number(request, "to")) if "like" in asked else None
    return Wanted(
        query=asked.get("q", ""),
        like=like,
        videos=tuple(asked.getlist("video")) or None,
        limit=_whole(request, "limit", 48),
    )


def _text(request: Request, name: str) -> str:
    found: str = request.query_params.get(name, "")
    if not found:
        raise WantedError(f"{name} is missing in the address")
    return found


def _number(request: Request, name: str) -> float:
    text = _text(request, name)
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise WantedError(f"{name}={text[:40]!r}: give a number")
    return number


def _whole(request: Request, name: str, default: int) -> int:
    text = request.query_params.get(name, str(default))
    if not text.isascii() or not text.isdigit() or len(text) > 6:
        raise WantedError(f"{name}={text[:40]!r}: give a whole number")
    return int(text)
