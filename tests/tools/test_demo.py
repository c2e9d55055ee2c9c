"""The command that serves the demo's page, as a separate process."""

from __future__ import annotations

import re
import signal
import time
from pathlib import Path

import demo
import httpx2
import pytest

from lavila.demo.serving import ServingError, listen
from tests import forks
from tests.demo.conftest import colours  # noqa: F401  # a fixture
from tests.test_docs import ROOT


def serve(folder: Path, index: Path, *options: str) -> tuple[forks.Fork, str, str]:
    """The process, what it says up to the page's address, and that."""
    command = [ROOT / "tools/demo.py", "--videos", folder / "videos", "--no-open", "--port", "0"]
    process = forks.start(*command, "--model", folder / "encoder.safetensors", "--index", index, *options)
    deadline = time.monotonic() + 120
    while not (found := re.search(r"(http://\S+)\s", process.said())):
        assert process.poll() is None and time.monotonic() < deadline, process.said()
        time.sleep(0.05)
    return process, process.said(), found[1]


def end(process: forks.Fork) -> int:
    process.send_signal(signal.SIGINT)
    return process.communicate(timeout=30).returncode


def test_it_indexes_serves_and_ends_by_ctrl_c(colours: Path, tmp_path: Path) -> None:  # noqa: F811
    process, said, url = serve(colours, tmp_path / "index", "--suggest", "everything is red")
    try:
        assert "24 moments of 3 videos" in said and "broken.mp4" in said
        assert url.startswith("http://127.0.0.1:")
        hits = httpx2.get(f"{url}api/search", params={"q": "everything is red"}).json()["hits"]
        assert hits[0]["video"] == "walks/morning.mp4" and hits[0]["start"] < 4
        assert httpx2.get(f"{url}api/library").json()["suggestions"] == ["everything is red"]
    finally:
        status = end(process)
    assert status == 0


def test_it_asks_for_a_token_where_others_may_reach_it(colours: Path) -> None:  # noqa: F811
    process, _, url = serve(colours, colours / "index", "--host", "0.0.0.0")
    try:
        port = re.search(r":(\d+)/\?token=(.{20,})", url)
        assert port is not None
        here = f"http://127.0.0.1:{port[1]}"
        assert httpx2.get(f"{here}/api/library").status_code == 401
        with httpx2.Client(base_url=here, follow_redirects=True) as client:
            assert client.get("/", params={"token": port[2]}).status_code == 200
            assert client.get("/api/library").status_code == 200
    finally:
        assert end(process) == 0


@pytest.mark.parametrize(("host", "port"), [("192.0.2.1", 0), ("127.0.0.1", 99999), ("no such name", 0)])
def test_an_address_at_which_nobody_can_listen(host: str, port: int) -> None:
    with pytest.raises(ServingError, match=f"--host {host} --port {port}"):
        listen(host, port)


@pytest.mark.parametrize(("option", "value"), [("--batch-size", "0"), ("--every", "1e-9"), ("--window", "nan")])
def test_numbers_that_cannot_be(option: str, value: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        demo.main(["--videos", "x", "--model", "y", option, value])
    assert end.value.code == 2 and f"{option} {float(value):g}" in capsys.readouterr().err


def test_a_port_that_is_taken_is_said_before_any_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    taken = listen("127.0.0.1", 0)
    taken.socket.listen()
    try:
        port = str(taken.socket.getsockname()[1])
        missing = str(tmp_path / "none")
        assert demo.main(["--videos", missing, "--model", missing, "--port", port]) == 1
        assert f"--port {port}" in capsys.readouterr().err
    finally:
        taken.socket.close()
