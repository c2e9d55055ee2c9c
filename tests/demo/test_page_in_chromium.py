"""The demo's page in a real Chromium, with a real encoder, real videos and the real server."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from lavila.demo.access import Access
from lavila.demo.moments import Moment
from lavila.demo.server import create_app
from lavila.demo.serving import listen
from lavila.demo.subtitles import to_jsonl
from tests.demo.conftest import SUGGESTIONS, open_library

sync_api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt-get install chromium")

MORNING, OLD = "walks/morning.mp4", "old <camera>.avi"
SAID = ((0.0, 4.0, "#C C sees <red> & nothing else"), (4.0, 8.0, "#C C sees green"), (8.0, 12.0, "#C C sees blue"))
PATIENCE = 20.0  # seconds


@dataclass(kw_only=True)
class Site:
    """A running server, and a browser."""

    url: str
    token_url: str  # of a second server, which asks for a token
    browser: Any


@pytest.fixture(scope="module")
def site(colours: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    cache = tmp_path_factory.mktemp("made")
    narrated = cache / "narrations" / f"{MORNING}.narration"
    narrated.mkdir(parents=True)
    moments = [Moment(start=start, stop=stop, text=text, nll=1.0) for start, stop, text in SAID]
    (narrated / "morning.jsonl").write_text(to_jsonl(moments))
    listening = [listen("127.0.0.1", 0), listen("127.0.0.1", 0)]
    accesses = [listening[0].access, Access(token="open sesame")]
    servers = []
    for opened, access in zip(listening, accesses, strict=True):
        app = create_app(open_library(colours, cache), access)
        server = uvicorn.Server(uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=1))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [opened.socket]})
        thread.start()
        servers.append((server, thread))
    with sync_api.sync_playwright() as playwright:
        # A container's root has no sandbox to use.
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield Site(url=listening[0].url, token_url=listening[1].url, browser=browser)
        browser.close()
    for server, thread in servers:
        server.should_exit = True
        thread.join()


@pytest.fixture
def page(site: Site) -> Iterator[Any]:
    """A fresh page. Errors of its scripts and requests to elsewhere fail the test."""
    context = site.browser.new_context(viewport={"width": 1280, "height": 800}, accept_downloads=True)
    page = context.new_page()
    troubles: list[str] = []
    page.on("pageerror", lambda error: troubles.append(str(error)))
    page.on("request", lambda asked: asked.url.startswith("http://127.0.0.1:") or troubles.append(asked.url))
    yield page
    context.close()
    assert not troubles


def until(ask: Callable[[], Any]) -> Any:
    """What `ask` says as soon as it is true. The page's own policy forbids Playwright to wait within it."""
    ends = time.monotonic() + PATIENCE
    while not (found := ask()):
        assert time.monotonic() < ends, "it does not come"
        time.sleep(0.05)
    return found


def opened(page: Any, url: str) -> Any:
    page.goto(url)
    page.wait_for_selector("body.ready")
    return page


def search(page: Any, words: str) -> None:
    page.keyboard.press("/")
    page.keyboard.type(words)
    page.keyboard.press("Enter")
    page.wait_for_selector("#cards.hits .card")


def video(page: Any, expression: str) -> Any:
    """Something of the video element, such as `currentTime`."""
    return page.evaluate(f"document.querySelector('video').{expression}")


def colour_shown(page: Any) -> list[int]:
    """The colour of a pixel of the picture that the player shows. The wandering bar is not at the top left then."""
    return page.evaluate(
        """() => {
            const video = document.querySelector("video"), canvas = document.createElement("canvas");
            Object.assign(canvas, { width: 64, height: 36 });
            const context = canvas.getContext("2d");
            context.drawImage(video, 0, 0, 64, 36);
            const data = [...context.getImageData(0, 0, 64, 36).data];
            return [0, 1, 2].map((channel) => Math.max(...data.filter((_, place) => place % 4 === channel)));
        }"""
    )


def test_a_sentence_finds_the_moment_and_a_click_plays_from_it(site: Site, page: Any) -> None:
    opened(page, site.url)
    assert page.locator("#cards.videos .card").count() == 3
    assert "broken.mp4" in page.locator("#unread").inner_text()
    search(page, "everything is green")
    first = page.locator(".card").first
    assert "morning" in first.inner_text() and "q=everything+is+green" in page.url
    page.wait_for_selector(".card .strip.shown")  # its frames have come
    start = float(first.get_attribute("href").split("&t=")[1].split("&")[0])
    assert 4 <= start < 8
    first.click()
    until(lambda: video(page, "currentTime") > start + 0.2 and not video(page, "seeking"))
    assert not video(page, "paused") and video(page, "currentTime") < start + PATIENCE
    page.keyboard.press(" ")
    until(lambda: video(page, "paused"))
    # Which second is shown is asked of the picture, too.
    page.evaluate(f"document.querySelector('video').currentTime = {start + 0.05}")
    until(lambda: not video(page, "seeking"))
    red, green, blue = colour_shown(page)
    assert green > 120 and red < 90 and blue < 110
    page.keyboard.press(" ")
    until(lambda: not video(page, "paused"))


def test_the_timeline_has_the_curve_and_a_dragged_stretch_finds_more(site: Site, page: Any) -> None:
    opened(page, f"{site.url}?q=everything+is+green&v={MORNING}&t=5")
    page.wait_for_selector("#timeline .curve", state="attached")
    assert page.locator("#timeline .hit").count() >= 1
    box = page.locator("#timeline svg").bounding_box()
    at = lambda second: box["x"] + box["width"] * second / 12  # noqa: E731
    y = box["y"] + 30
    page.mouse.click(at(9), y)
    until(lambda: abs(video(page, "currentTime") - 9) < 0.2)
    page.mouse.move(at(1), y)
    page.mouse.down()
    page.mouse.move(at(3), y, steps=4)
    page.mouse.up()
    page.wait_for_selector("#timeline .stretch", state="attached")
    until(lambda: "a=1" in page.url or "a=0.9" in page.url)
    page.locator("#alike").click()
    until(lambda: "like=walks" in page.url and page.locator("#cards.hits .card").count())
    assert page.evaluate("document.querySelector('#query').value") == ""
    page.wait_for_selector("#timeline .curve", state="attached")
    page.go_back()
    until(lambda: "q=everything+is+green" in page.url and page.input_value("#query") == "everything is green")


def test_subtitles_and_a_transcript_to_click_on(site: Site, page: Any) -> None:
    opened(page, f"{site.url}?v={MORNING}&t=1")
    rows = page.locator("#transcript li button")
    until(lambda: rows.count() == len(SAID))
    assert SAID[0][2] in rows.first.inner_text()
    until(lambda: video(page, "textTracks[0].activeCues?.length") == 1)
    assert video(page, "textTracks[0].mode") == "showing"
    assert video(page, "textTracks[0].activeCues[0].getCueAsHTML().textContent") == SAID[0][2]
    rows.nth(2).click()
    until(lambda: video(page, "currentTime") >= 8 and video(page, "textTracks[0].activeCues?.length"))
    assert video(page, "textTracks[0].activeCues[0].text") == SAID[2][2]
    until(lambda: rows.nth(2).get_attribute("aria-current") == "true")
    with page.expect_download() as saved:
        page.locator("#transcript a").click()
    text = Path(saved.value.path()).read_text()
    assert text.startswith("WEBVTT") and text.count("-->") == len(SAID)
    # A video that cannot be read keeps nothing of the one before.
    page.evaluate("history.pushState(null, '', '/?v=broken.mp4'); window.dispatchEvent(new PopStateEvent('popstate'))")
    until(lambda: "not a readable video" in (page.text_content("#wait") or ""))
    assert page.locator("#transcript").is_hidden() and page.locator("#region").is_hidden()
    assert video(page, "textTracks[0].cues.length") == 0


def test_a_link_brings_the_same_view_back(site: Site, page: Any) -> None:
    opened(page, site.url)
    search(page, "everything is red")
    search_again = "everything is green"
    page.locator("#query").fill(search_again)
    page.keyboard.press("Enter")
    until(
        lambda: "q=everything+is+green" in page.url and page.locator("#tries").inner_text().count("everything is red")
    )
    page.locator("#filter summary").click()
    page.locator("#filter .row", has_text=MORNING).click()
    until(lambda: "in=walks" in page.url and "1 video" in page.locator("#status").inner_text())
    page.keyboard.press("Escape")
    page.locator(".card").first.click()
    until(lambda: video(page, "readyState") >= 2 and not video(page, "paused"))
    page.locator("#timeline svg").focus()
    page.keyboard.press("Home")
    for _ in range(5):
        page.keyboard.press("ArrowRight")
    page.keyboard.press("Escape")  # it closes the player
    page.go_back()
    until(lambda: page.locator("#watch").is_visible())
    page.keyboard.press("[")
    until(lambda: "a=" in page.url)

    def view(of: Any) -> dict[str, Any]:
        return {
            "query": of.input_value("#query"),
            "cards": of.locator(".card").all_inner_texts(),
            "name": of.locator("#name").inner_text(),
            "chosen": of.locator("#filter .chip").all_inner_texts(),
            "earlier": of.locator("#tries a").all_inner_texts(),
            "more": of.locator("#alike").inner_text(),
            "second": round(video(of, "currentTime"), 1),
        }

    until(lambda: not video(page, "seeking"))
    if not video(page, "paused"):
        page.keyboard.press(" ")
        until(lambda: video(page, "paused"))
    page.wait_for_timeout(300)
    before, link = view(page), page.url
    assert before["chosen"] and before["earlier"] and before["cards"]
    other = page.context.browser.new_context(viewport={"width": 1280, "height": 800})
    try:
        again = opened(other.new_page(), link)
        until(lambda: video(again, "readyState") >= 2 and not video(again, "seeking"))
        assert view(again) == before
        assert video(again, "paused")
    finally:
        other.close()


def test_a_link_to_a_video_that_is_gone_says_so(site: Site, page: Any) -> None:
    opened(page, f"{site.url}?v=gone.mp4")
    assert "gone.mp4" in page.text_content("#trouble") and page.locator("#watch").is_hidden()


def test_hits_are_exported(site: Site, page: Any) -> None:
    opened(page, f"{site.url}?q=everything+is+green")
    names = {}
    for kind in ("csv", "json", "annotations"):
        page.locator("#export").evaluate("(menu) => { menu.open = true; }")
        with page.expect_download() as saved:
            page.locator(f"#export a[data-format={kind}]").click()
        names[kind] = saved.value.suggested_filename
        if kind == "json":
            hits = json.loads(Path(saved.value.path()).read_text())
            assert hits[0]["video"] == MORNING
            assert len(hits) == page.locator(".card").count()
    assert names == {"csv": "moments.csv", "json": "moments.json", "annotations": "moments.pkl"}


def test_everything_is_done_with_keys_alone(site: Site, page: Any) -> None:
    opened(page, site.url)
    page.keyboard.press("?")
    assert page.locator("#keys").is_visible()
    page.keyboard.press("Escape")
    search(page, "everything is yellow")
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.dataset.place") == "0"
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.dataset.place") == "1"
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("Enter")
    until(lambda: video(page, "currentTime") > 0 and not video(page, "paused"))
    assert "v=walks%2Fevening.webm" in page.url
    page.keyboard.press("m")
    until(lambda: "like=walks%2Fevening.webm" in page.url)
    page.keyboard.press("Escape")
    until(lambda: page.locator("#watch").is_hidden())
    # Tab reaches the card's other button, and what has the focus shows it.
    page.locator(".card").first.focus()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "alike"
    assert page.evaluate("getComputedStyle(document.activeElement).opacity") == "1"


def test_a_video_that_chromium_cannot_play_is_played_from_a_copy(site: Site, page: Any) -> None:
    opened(page, site.url)
    search(page, SUGGESTIONS[1])
    first = page.locator(".card").first
    assert "old <camera>" in first.inner_text()
    first.click()
    until(
        lambda: "/copy?" in (video(page, "src") or "") and video(page, "currentTime") > 0 and not video(page, "paused")
    )
    until(lambda: min(colour_shown(page)) > 190)  # white, as soon as a frame is drawn
    assert page.locator("#wait").is_hidden()


def test_hostile_paths_lead_nowhere(site: Site, page: Any) -> None:
    opened(page, f"{site.url}?v=../../encoder.safetensors&q=everything+is+red&in=/etc/passwd")
    assert page.locator("#watch").is_hidden() and page.locator("#trouble").is_visible()
    statuses = page.evaluate(
        """(paths) => Promise.all(paths.map((path) => fetch(path).then((response) => response.status)))""",
        ["/media?video=..%2Fencoder.safetensors", "/assets/..%2fserver.py", "/..%2f..%2fetc/passwd"],
    )
    assert statuses == [404, 404, 404]
    opened(page, f"{site.url}?q=<img src=x onerror=alert(1)>&h=<script>alert(2)</script>")
    assert page.locator("#tries script, #tries img").count() == 0
    inline = "Object.assign(document.createElement('script'), { textContent: 'window.harm = 1' })"
    assert page.evaluate(f"() => {{ document.body.append({inline}); return window.harm; }}") is None


def test_a_token_is_asked_for_and_the_view_comes_afterwards(site: Site, page: Any) -> None:
    page.goto(f"{site.token_url}?q=everything+is+blue")
    assert page.locator("#token").is_visible()
    page.locator("#token").fill("guess")
    page.keyboard.press("Enter")
    until(lambda: page.locator("#token").is_visible() and page.input_value("#token") == "")
    page.locator("#token").fill("open sesame")
    page.keyboard.press("Enter")
    page.wait_for_selector("#cards.hits .card")
    assert "sesame" not in page.url and "q=everything+is+blue" in page.url
    assert page.evaluate("document.cookie") == ""  # no script reads it


@pytest.mark.parametrize("width", [320, 360])
def test_it_fits_a_telephone(site: Site, width: int) -> None:
    context = site.browser.new_context(viewport={"width": width, "height": 700}, has_touch=True)
    try:
        page = opened(context.new_page(), f"{site.url}?q=everything+is+green&v={MORNING}&t=5")
        page.wait_for_selector("#timeline .curve", state="attached")
        beside = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
        assert page.evaluate(beside) <= 0
        player, cards = page.locator("#watch").bounding_box(), page.locator("#cards").bounding_box()
        assert player["y"] + player["height"] <= cards["y"]  # below each other, the player first
        for menu in ("#filter", "#export"):
            page.click(f"{menu} summary")
            page.wait_for_selector(f"{menu} .sheet")
            assert page.evaluate(beside) <= 0, menu
            page.click(f"{menu} summary")
        page.click("#help")
        assert page.evaluate("document.querySelector('#keys').scrollTop") == 0  # it is read from its head on
    finally:
        context.close()
