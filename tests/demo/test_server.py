"""The demo's server, asked without a browser."""

from __future__ import annotations

import csv
import io
import json
import pickle
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from lavila.demo.access import COOKIE, HEADERS, Access
from lavila.demo.server import create_app, read_assets
from lavila.demo.strips import HEIGHT, WIDTH
from tests.colours import COLOURS
from tests.demo.conftest import SUGGESTIONS, open_library
from tests.footage import decode

MORNING, EVENING, OLD = "walks/morning.mp4", "walks/evening.webm", "old <camera>.avi"
HERE = "http://127.0.0.1:8765"


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("made")


@pytest.fixture(scope="module")
def client(colours: Path, cache: Path) -> Iterator[TestClient]:
    with TestClient(create_app(open_library(colours, cache), Access()), base_url=HERE) as client:
        yield client


def get(client: TestClient, path: str, **asked: Any) -> Any:
    response = client.get(path, params=asked)
    assert response.status_code == 200, response.text
    return response.json()


def test_the_library_lists_every_video_and_why_one_cannot_be_read(client: TestClient) -> None:
    found = get(client, "/api/library")
    videos = {video["name"]: video for video in found["videos"]}
    assert set(videos) == {MORNING, EVENING, OLD, "broken.mp4"}
    assert videos[MORNING]["duration"] == 12.0 and videos[MORNING]["moments"] == 12 and not videos[MORNING]["reason"]
    assert videos["broken.mp4"]["moments"] == 0 and videos["broken.mp4"]["reason"]
    assert found["moments"] == 24 and tuple(found["suggestions"]) == SUGGESTIONS and not found["narrator"]


@pytest.mark.parametrize(
    ("colour", "video", "stretch"),
    [("red", MORNING, (0, 4)), ("green", MORNING, (4, 8)), ("yellow", EVENING, (0, 4)), ("white", OLD, (0, 4))],
)
def test_a_sentence_finds_the_right_moment_first(
    client: TestClient, colour: str, video: str, stretch: tuple[float, float]
) -> None:
    hits = get(client, "/api/search", q=f"everything is {colour}")["hits"]
    assert hits[0]["video"] == video
    assert stretch[0] <= hits[0]["start"] < hits[0]["stop"] <= stretch[1]
    scores = [hit["score"] for hit in hits]
    assert scores == sorted(scores, reverse=True)


def test_a_search_may_be_narrowed_and_limited(client: TestClient) -> None:
    hits = get(client, "/api/search", q="everything is red", video=[EVENING, OLD])["hits"]
    assert {hit["video"] for hit in hits} == {EVENING, OLD}
    assert len(get(client, "/api/search", q="everything is red", limit=1)["hits"]) == 1


def test_more_like_a_region_is_found_elsewhere(client: TestClient) -> None:
    example = {"like": MORNING, "from": 4.5, "to": 7.5}
    hits = get(client, "/api/search", **example)["hits"]
    assert hits and all(hit["video"] != MORNING or hit["stop"] <= 4.5 or hit["start"] >= 7.5 for hit in hits)
    curve = get(client, "/api/curve", of=MORNING, **example)
    best = curve["times"][int(np.argmax(curve["similarity"]))]
    assert 4 < best < 8


def test_the_curve_is_highest_where_the_colour_is(client: TestClient) -> None:
    curve = get(client, "/api/curve", q="everything is green", of=MORNING)
    assert len(curve["times"]) == len(curve["similarity"]) == 12
    assert 4 < curve["times"][int(np.argmax(curve["similarity"]))] < 8


def test_hits_leave_as_csv_json_and_annotations(client: TestClient) -> None:
    asked = {"q": "everything is green", "limit": 3}
    hits = get(client, "/api/search", **asked)["hits"]
    files = {kind: client.get("/export", params={**asked, "format": kind}) for kind in ("csv", "json", "annotations")}
    assert all("attachment" in file.headers["content-disposition"] for file in files.values())
    rows = list(csv.DictReader(io.StringIO(files["csv"].text)))
    assert [(row["video"], float(row["start"])) for row in rows] == [(hit["video"], hit["start"]) for hit in hits]
    assert [hit["video"] for hit in json.loads(files["json"].text)] == [hit["video"] for hit in hits]
    entries = pickle.loads(files["annotations"].content)
    assert entries[0] == (MORNING.removesuffix(".mp4"), hits[0]["start"], hits[0]["stop"], "everything is green")
    assert client.get("/export", params={**asked, "format": "exe"}).status_code == 400


def test_a_video_is_served_in_ranges(client: TestClient, colours: Path) -> None:
    data = (colours / "videos" / MORNING).read_bytes()
    whole = client.get("/media", params={"video": MORNING})
    assert whole.content == data and whole.headers["content-type"] == "video/mp4"
    assert whole.headers["accept-ranges"] == "bytes"
    middle = client.get("/media", params={"video": MORNING}, headers={"range": "bytes=100-299"})
    assert middle.status_code == 206 and middle.content == data[100:300]
    assert middle.headers["content-range"] == f"bytes 100-299/{len(data)}"
    tail = client.get("/media", params={"video": MORNING}, headers={"range": "bytes=-7"})
    assert tail.status_code == 206 and tail.content == data[-7:]
    beyond = client.get("/media", params={"video": MORNING}, headers={"range": f"bytes={len(data)}-"})
    assert beyond.status_code == 416


def colours_of(jpeg: bytes, frames: int) -> list[str]:
    """The name of the colour that each frame of a strip has at its edge or middle."""
    picture = np.asarray(Image.open(io.BytesIO(jpeg)).convert("RGB"), np.int32)
    assert picture.shape == (HEIGHT, WIDTH * frames, 3)
    names = []
    for number in range(frames):
        middle = np.median(picture[:, number * WIDTH : (number + 1) * WIDTH], axis=(0, 1))
        names.append(min(COLOURS, key=lambda name: float(np.abs(middle - COLOURS[name]).sum())))
    return names


def test_a_strip_shows_the_frames_of_its_seconds_and_is_drawn_once(client: TestClient, cache: Path) -> None:
    asked = {"video": MORNING, "start": 0, "stop": 12, "frames": 6}
    response = client.get("/strip", params=asked)
    assert colours_of(response.content, 6) == ["red", "red", "green", "green", "blue", "blue"]
    drawn = {file: file.stat().st_mtime_ns for file in (cache / "strips").rglob("*.jpg")}
    assert client.get("/strip", params=asked).content == response.content
    assert {file: file.stat().st_mtime_ns for file in (cache / "strips").rglob("*.jpg")} == drawn
    late = client.get("/strip", params={"video": MORNING, "start": 11, "stop": 13, "frames": 2})
    assert colours_of(late.content, 2) == ["blue", "blue"]  # after the end the last frame stays


@pytest.mark.parametrize(
    "changes",
    [{"start": "nan"}, {"start": 5, "stop": 4}, {"frames": 0}, {"frames": 1000}, {"frames": "x"}, {"start": -1}],
)
def test_a_strip_that_cannot_be_is_refused(client: TestClient, changes: dict[str, Any]) -> None:
    asked = {"video": MORNING, "start": 0, "stop": 2, **changes}
    assert client.get("/strip", params=asked).status_code == 400


def test_a_video_that_browsers_cannot_play_gets_a_copy_once(client: TestClient, cache: Path) -> None:
    assert get(client, "/api/video", video=MORNING)["direct"]
    assert get(client, "/api/video", video=EVENING)["direct"]
    facts = get(client, "/api/video", video=OLD)
    assert not facts["direct"] and not facts["copy"]
    assert client.get("/copy", params={"video": OLD}).status_code == 404
    ends = time.monotonic() + 60
    while (state := client.post("/api/copy", params={"video": OLD}).json())["state"] != "done":
        assert state["state"] in {"waiting", "running"}, state
        assert time.monotonic() < ends
        time.sleep(0.05)
    copy = client.get("/copy", params={"video": OLD})
    assert copy.headers["content-type"] == "video/mp4" and len(decode(copy.content)) == 40
    (file,) = (cache / "copies").iterdir()
    made = file.stat().st_mtime_ns
    assert client.post("/api/copy", params={"video": OLD}).json()["state"] == "done"
    assert file.stat().st_mtime_ns == made and get(client, "/api/video", video=OLD)["copy"]


@pytest.mark.parametrize("path", ["/media", "/copy", "/api/video", "/subtitles", "/strip?start=0&stop=1"])
@pytest.mark.parametrize(
    "name", ["../encoder.safetensors", "/etc/passwd", "walks/../broken.mp4", "walks", "..", "index/moments.arrow", "\0"]
)
def test_only_names_of_the_index_are_served(client: TestClient, path: str, name: str) -> None:
    response = client.get(path.partition("?")[0], params={"video": name, "start": 0, "stop": 1})
    assert response.status_code == 404
    assert "error" in response.json()


@pytest.mark.parametrize(
    "path",
    ["/assets/../server.py", "/assets/%2e%2e/server.py", "/assets/..%2fserver.py", "/assets/page.py", "/server.py"],
)
def test_only_the_pages_own_assets_are_served(client: TestClient, path: str) -> None:
    assert client.get(path).status_code == 404


def test_the_page_names_only_assets_that_are_there(client: TestClient) -> None:
    assets = read_assets()
    page = client.get("/").text
    named = {part.split('"')[0] for part in page.split('"/assets/')[1:]}
    for script in (name for name in assets if name.endswith(".js")):
        assert script in named, "it would be loaded late"
        named |= {part.split('"')[0] for part in assets[script].decode().split('"/assets/')[1:]}
    for name in named:
        response = client.get(f"/assets/{name}")
        assert response.status_code == 200 and response.content == assets[name]
    text = page + b"".join(assets.values()).decode()
    outside = [
        part[:40] for part in text.replace("http://www.w3.org/2000/svg", "").split("http")[1:] if part[:1] in "s:"
    ]
    assert not outside, "nothing comes from elsewhere"


def test_every_answer_keeps_the_browser_on_this_machine(client: TestClient) -> None:
    for path in ("/", "/api/library", "/assets/app.js", "/nothing", f"/media?video={MORNING}"):
        headers = client.get(path).headers
        assert {name: headers[name] for name in HEADERS} == HEADERS
    assert "default-src 'none'" in HEADERS["content-security-policy"]


@pytest.mark.parametrize(
    ("path", "asked"),
    [
        ("/api/search", {}),
        ("/api/search", {"q": "  "}),
        ("/api/search", {"q": "red", "limit": 0}),
        ("/api/search", {"q": "red", "limit": "many"}),
        ("/api/search", {"q": "x" * 1001}),
        ("/api/search", {"like": MORNING}),
        ("/api/search", {"like": MORNING, "from": 2, "to": 1}),
        ("/api/search", {"q": "red", "like": MORNING, "from": 1, "to": 2}),
        ("/api/curve", {"q": "red"}),
        ("/api/curve", {"q": "red", "of": "broken.mp4"}),
        ("/media", {}),
    ],
)
def test_what_cannot_be_answered_is_refused_with_a_reason(client: TestClient, path: str, asked: dict[str, Any]) -> None:
    response = client.get(path, params=asked)
    assert response.status_code == 400 and response.json()["error"]


def test_a_full_disk_is_an_answer(client: TestClient, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object, **more: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("lavila.demo.strips.whole_file", full)
    answer = client.get("/strip", params={"video": MORNING, "start": 0.25, "stop": 1.75, "frames": 3})
    assert answer.status_code == 500 and "No space left" in answer.json()["error"]


def test_a_video_that_has_gone_is_said_to_be(colours: Path, tmp_path: Path) -> None:
    library = open_library(colours, tmp_path)
    library.index.by_name[MORNING] = replace(library.video(MORNING), path=str(tmp_path / "gone.mp4"))
    with TestClient(create_app(library, Access()), base_url=HERE) as client:
        assert client.get("/media", params={"video": MORNING}).status_code == 404


class TestAccess:
    def test_another_name_of_this_machine_is_refused(self, client: TestClient) -> None:
        assert client.get("/api/library", headers={"host": "evil.example"}).status_code == 421
        assert client.get("/api/library", headers={"host": "localhost:8765"}).status_code == 200
        assert client.get("/api/library", headers={"host": "[::1]:8765"}).status_code == 200

    def test_a_page_of_another_site_gets_nothing_but_may_link_here(self, client: TestClient) -> None:
        other = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"}
        assert client.get(f"/media?video={MORNING}", headers=other).status_code == 403
        assert client.post(f"/api/copy?video={OLD}", headers=other).status_code == 403
        link = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}
        assert client.get("/?q=red", headers=link).status_code == 200
        assert client.get("/api/library", headers=link).status_code == 403

    def test_the_token_is_asked_for_once(self, colours: Path, tmp_path: Path) -> None:
        app = create_app(open_library(colours, tmp_path), Access(token="open sesame"))
        with TestClient(app, base_url="http://box.example:8765", follow_redirects=False) as client:
            for path in ("/api/library", f"/media?video={MORNING}", "/assets/app.js", "/nothing"):
                assert client.get(path).status_code == 401, path
            form = client.get("/", params={"q": '"red" <b>'})
            assert form.status_code == 401 and 'value="&quot;red&quot; &lt;b&gt;"' in form.text
            assert client.get("/assets/style.css").status_code == 200  # of the form
            for wrong in ("", "open", "open sesame!", "é"):
                assert client.get("/", params={"token": wrong}).status_code == 401
            assert COOKIE not in client.cookies
            right = client.get("/", params={"token": "open sesame", "q": "red", "in": MORNING})
            assert right.status_code == 303 and "sesame" not in right.headers["location"]
            assert right.headers["location"].startswith("/?q=red&in=")
            kept = right.headers["set-cookie"].lower()
            assert "httponly" in kept and "samesite=strict" in kept
            assert client.get("/api/library").status_code == 200
            client.cookies.clear()
            assert client.get("/api/library", headers={"cookie": f"{COOKIE}=another"}).status_code == 401
