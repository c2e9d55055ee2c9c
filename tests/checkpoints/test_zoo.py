"""The zoo: its figures are those published, its files come whole through every fault of a server and a connection."""

from __future__ import annotations

import hashlib
import logging
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

from lavila.checkpoints import zoo as zoo_module
from lavila.checkpoints.download import Patience, download
from lavila.checkpoints.errors import CheckpointError
from lavila.checkpoints.layouts import architecture_of
from lavila.checkpoints.published import PUBLISHED, pictures
from lavila.checkpoints.store import load_model
from lavila.checkpoints.zoo import ZOO, fetch, zoo_name
from lavila.checkpoints.zoo_command import commands, main, markdown, table
from tests.checkpoints.published_files import layouts, published_state, tiny, write
from tests.golden_files import golden_json

REPOSITORY = Path(__file__).parents[2]
CONTENT = bytes(range(256)) * 20_000  # 5 MB: several blocks
MD5 = hashlib.md5(CONTENT).hexdigest()
QUICK = Patience(attempts=3, wait_seconds=0.01, timeout_seconds=5)


@dataclass
class Server:
    """What a web server does with one file, and what it was asked."""

    content: bytes = CONTENT
    drops: list[int] = field(default_factory=list)  # bytes after which each of the first answers breaks off
    states: list[int] = field(default_factory=list)  # HTTP states of the first answers; 0 = as usual
    ranges: bool = True  # whether it understands Range
    lies: bool = False  # answers a Range with another one
    length: bool = True  # whether it says how much comes
    slow: float = 0.0  # seconds before each answer
    asked: list[str] = field(default_factory=list)  # the Range of each request
    url: str = ""


@pytest.fixture
def server() -> Iterator[Server]:
    state = Server()
    pause = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None: ...

        def do_GET(self) -> None:
            state.asked.append(self.headers.get("Range", ""))
            pause.wait(state.slow)
            status = state.states.pop(0) if state.states else 0
            if status:
                self.send_error(status)
                return
            start = 0
            requested = re.fullmatch(r"bytes=(\d+)-", state.asked[-1])
            if requested and state.ranges:
                start = int(requested[1]) if not state.lies else 0
                if start >= len(state.content):
                    self.send_response(416)
                    self.send_header("Content-Range", f"bytes */{len(state.content)}")
                    self.end_headers()
                    return
                self.send_response(206)
                self.send_header("Content-Range", f"bytes {start}-{len(state.content) - 1}/{len(state.content)}")
            else:
                self.send_response(200)
            body = state.content[start:]
            if state.length:
                self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[: state.drops.pop(0)] if state.drops else body)

    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{running.server_address[1]}/some/model.pth"
    thread = threading.Thread(target=running.serve_forever)
    thread.start()
    yield state
    running.shutdown()
    running.server_close()
    thread.join()


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "model.pth"


def get(server: Server, target: Path, *, md5: str = MD5[:6], **options: object) -> Path:
    return download(server.url, target, md5=md5, patience=QUICK, **options)  # type: ignore[arg-type]


def left(target: Path) -> list[str]:
    return sorted(path.name for path in target.parent.iterdir())


def test_a_whole_file_comes_once(server: Server, target: Path) -> None:
    progress: list[tuple[int, int | None]] = []
    assert get(server, target, on_progress=lambda done, total: progress.append((done, total))) == target
    assert target.read_bytes() == CONTENT
    assert left(target) == ["model.pth", "model.pth.lock"]
    assert progress[0] == (0, len(CONTENT))
    assert progress[-1] == (len(CONTENT), len(CONTENT))
    assert len(progress) > 4
    get(server, target)
    assert server.asked == [""]


def test_dropped_connections_are_gone_on_with(server: Server, target: Path) -> None:
    server.drops = [1_500_000, 0, 0, 2_000_000]  # two in a row bring nothing: fewer than give up
    get(server, target)
    assert target.read_bytes() == CONTENT
    assert server.asked == ["", *["bytes=1500000-"] * 3, "bytes=3500000-"]


def test_a_later_call_continues_where_an_earlier_one_gave_up(server: Server, target: Path) -> None:
    server.drops = [1_000_000, 0, 0, 0]
    message = r"3 times.*1000000 bytes"
    with pytest.raises(CheckpointError, match=message) as error:
        get(server, target)
    assert f"{server.url} and put at {target}" in str(error.value)
    assert left(target) == ["model.pth.lock", "model.pth.part"]
    get(server, target)
    assert target.read_bytes() == CONTENT
    assert server.asked[-1] == "bytes=1000000-"


def test_a_server_that_ignores_ranges_sends_all_again(server: Server, target: Path) -> None:
    server.drops, server.ranges = [1_000_000], False
    get(server, target)
    assert target.read_bytes() == CONTENT
    assert server.asked == ["", "bytes=1000000-"]


def test_a_server_that_answers_another_range_is_not_believed(server: Server, target: Path) -> None:
    server.drops, server.lies = [1_000_000], True
    get(server, target)
    assert target.read_bytes() == CONTENT
    assert server.asked == ["", "bytes=1000000-", ""]


def test_a_server_that_does_not_say_how_much_comes(server: Server, target: Path) -> None:
    server.length = False
    get(server, target)
    assert target.read_bytes() == CONTENT


def test_what_was_whole_but_not_yet_renamed_is_taken(server: Server, target: Path) -> None:
    target.parent.mkdir()
    target.with_name("model.pth.part").write_bytes(CONTENT)
    get(server, target)
    assert target.read_bytes() == CONTENT
    assert server.asked == [f"bytes={len(CONTENT)}-"]


@pytest.mark.parametrize("stale", [b"x" * 1000, b"x" * (len(CONTENT) + 5), b"x" * len(CONTENT)], ids=len)
def test_a_part_of_another_file_is_thrown_away(stale: bytes, server: Server, target: Path) -> None:
    target.parent.mkdir()
    target.with_name("model.pth.part").write_bytes(stale)
    get(server, target)
    assert target.read_bytes() == CONTENT
    assert server.asked[-1] == ""


def test_wrong_bytes_are_not_kept(server: Server, target: Path) -> None:
    server.content = CONTENT[:-1] + b"x"
    with pytest.raises(CheckpointError, match=rf"MD5 [0-9a-f]{{32}}.*{MD5[:6]}"):
        get(server, target)
    assert left(target) == ["model.pth.lock"]
    get(server, target, md5="")
    assert target.read_bytes() == server.content


def test_states_that_pass_are_waited_for(server: Server, target: Path) -> None:
    server.states = [500, 503]
    get(server, target)
    assert target.read_bytes() == CONTENT
    assert len(server.asked) == 3


def test_states_that_stay_are_errors(server: Server, target: Path) -> None:
    server.states = [500] * 9
    with pytest.raises(CheckpointError, match=r"HTTP 500.*3 times"):
        get(server, target)
    assert len(server.asked) == 3
    for status in (404, 403):
        server.states = [status]
        with pytest.raises(CheckpointError, match=rf"HTTP {status}"):
            get(server, target)
    assert len(server.asked) == 5  # at once
    assert left(target) == ["model.pth.lock"]


def test_without_network_the_message_says_where_to_put_the_file(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_names(*_: object, **__: object) -> None:
        raise socket.gaierror(-3, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", no_names)
    url = "http://example.invalid/model.pth"
    with pytest.raises(CheckpointError, match=r"gaierror") as error:
        download(url, target, md5="", patience=Patience(wait_seconds=60))
    assert f"It can also be fetched elsewhere from {url} and put at {target}" in str(error.value)


def test_a_server_that_is_not_there_is_an_error(target: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/model.pth"
    with pytest.raises(CheckpointError, match=r"ConnectionRefusedError.*3 times"):
        download(url, target, patience=QUICK)


def test_what_cannot_be_written_is_an_error(server: Server, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(CheckpointError, match=r"No space left on device.*LAVILA_HOME"):
        get(server, target)
    monkeypatch.undo()
    target.with_name("model.pth.part").mkdir()
    with pytest.raises(CheckpointError, match=r"model\.pth\.part.*Is a directory"):
        get(server, target)


def test_processes_at_once_download_once(server: Server, target: Path) -> None:
    server.slow = 0.3
    code = (
        "import sys; from pathlib import Path; from lavila.checkpoints.download import download\n"
        "print(download(sys.argv[1], Path(sys.argv[2]), md5=sys.argv[3]))\n"
    )
    command = [sys.executable, "-c", code, server.url, str(target), MD5]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY) for _ in range(3)]
    assert [process.communicate(timeout=60)[0].strip() for process in running] == [str(target)] * 3
    assert server.asked == [""]
    assert target.read_bytes() == CONTENT


def test_a_killed_download_is_gone_on_with_by_another_process(server: Server, target: Path) -> None:
    server.drops = [1_000_000] + [0] * 1000
    code = (
        "import sys; from pathlib import Path; from lavila.checkpoints.download import download\n"
        "download(sys.argv[1], Path(sys.argv[2]))\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, server.url, str(target)], cwd=REPOSITORY)
    part = target.with_name("model.pth.part")
    waiting = threading.Event()
    for _ in range(1000):
        if part.exists() and part.stat().st_size == 1_000_000:
            break
        waiting.wait(0.02)
    process.kill()
    process.wait()
    server.drops = []
    get(server, target)
    assert target.read_bytes() == CONTENT
    assert server.asked[-1] == "bytes=1000000-"


@pytest.fixture
def served_zoo(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Server:
    """A zoo whose lavila_tsf_b_ep5 is a tiny model on the local server."""
    server.content = write(tmp_path / "tiny.pth", published_state(tiny("clip"))).read_bytes()
    model = replace(ZOO["lavila_tsf_b_ep5"], md5=hashlib.md5(server.content).hexdigest()[:6])
    monkeypatch.setitem(ZOO, model.name, model)
    monkeypatch.setattr(zoo_module, "BASE_URL", server.url.removesuffix("some/model.pth"))
    monkeypatch.setenv("LAVILA_HOME", str(tmp_path / "home"))
    return server


def test_load_model_downloads_by_name(
    served_zoo: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        model = load_model("lavila_tsf_b_ep5", num_frames=2)
        assert torch.equal(model.logit_scale, tiny("clip").logit_scale)  # type: ignore[arg-type]
    assert served_zoo.asked == [""]
    assert "ep_0005.md5sum_d73a9c.pth: 0 of 0 MB" in caplog.text
    assert [path.name for path in (tmp_path / "home").iterdir()] == ["checkpoints"]
    Path("lavila_tsf_b_ep5").mkdir()  # a folder of one's own that happens to have the name, but no model
    assert load_model("lavila_tsf_b_ep5", num_frames=2) is not None


def test_the_command_downloads_and_prints_the_table(served_zoo: Server, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["lavila_tsf_b_ep5"]) == 0
    file = ZOO["lavila_tsf_b_ep5"].file
    assert capsys.readouterr().out == f"{file}\n"
    assert file.read_bytes() == served_zoo.content
    assert main([]) == 0
    out = capsys.readouterr().out
    assert out == table() + "\n"
    (line,) = [line for line in out.splitlines() if line.startswith("lavila_tsf_b_ep5 ")]
    assert "  yes  " in line
    assert out.count("  yes  ") == 1
    assert line.endswith("egtea zero-shot 16f mean acc 28.9; egomcq zero-shot 4f intra acc 59.9")
    assert len(out.splitlines()) == 21
    served_zoo.states = [404]
    assert main(["lavila_tsf_l_ep3"]) == 1
    assert re.search(r"\nerror: lavila_tsf_l_ep3: http://127.*: HTTP 404 ", capsys.readouterr().err)
    with pytest.raises(SystemExit):
        main(["tsf"])
    assert "not in the zoo: tsf; known: baseline_tsf_b, " in capsys.readouterr().err


def test_the_command_runs_without_warnings_and_without_torch() -> None:
    command = [sys.executable, "-X", "importtime", "-W", "error", "-m", "lavila.checkpoints.zoo_command"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, check=True)
    assert result.stdout.startswith("name ")
    assert " torch\n" not in result.stderr


def test_files_are_recognised_by_their_names() -> None:
    model = ZOO["ek100_cls_tsf_l"]
    assert zoo_name(f"/elsewhere/{model.url.rpartition('/')[2]}") == model.name
    assert zoo_name("mine.pth") == ""
    assert len({model.file for model in ZOO.values()}) == len(ZOO)


def test_the_cache_is_in_the_home_folder_unless_said_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LAVILA_HOME", raising=False)
    monkeypatch.setenv("HOME", "/somebody")
    assert ZOO["egovlp_best"].file.parent == Path("/somebody/.cache/lavila/checkpoints")
    monkeypatch.setenv("LAVILA_HOME", "/data/models")
    assert ZOO["egovlp_best"].file.parent == Path("/data/models/checkpoints")


def test_figures_are_those_published() -> None:
    published = golden_json("checkpoints/zoo")["checkpoints"]
    assert list(ZOO) == [one["name"] for one in published]
    for one in published:
        ours = ZOO[one["name"]]
        size = {"CLIP_OPENAI_TIMESFORMER_BASE": "B", "CLIP_OPENAI_TIMESFORMER_LARGE": "L"}.get(ours.model)
        arch = f"VideoClassifier{'MultiHead' * (len(ours.num_classes) > 1)}(TSF-{size})"
        assert ours.url == one["url"]
        assert ours.md5 == (one["md5_prefix"] or "")
        assert (arch if ours.num_classes else ours.model) == one["arch"]
        assert list(ours.num_classes) == one.get("num_classes", [])
        assert ours.frames == one["frames"]
        assert ours.start == one.get("pretrain", "")
        tower = PUBLISHED[ours.model]["tower"]
        assert ours.image_size == tower["image_size"]
        seen = pictures({"tower": {**tower, "num_frames": ours.frames}})
        assert seen == {"mean": [*ours.pictures.mean], "std": [*ours.pictures.std], "frames": ours.frames}


def scores(name: str) -> dict[tuple[str, str, int, str], float]:
    found = {(s.task, s.how, s.frames, metric): v for s in ZOO[name].scores for metric, v in s.values.items()}
    assert len(found) == sum(len(score.values) for score in ZOO[name].scores)
    return found


def test_scores_are_those_published() -> None:
    results = golden_json("checkpoints/zoo")["results"]
    rest = {name: scores(name) for name in ZOO}
    for name, values in results["narrator_ego4d_val"].items():
        for metric in values if name in ZOO else ():
            assert rest[name].pop(("ego4d narration", "captions", 4, metric)) == values[metric]
    for task, models in results["fine_tuned"].items():
        for name, values in models.items():
            for metric, value in values.items():
                assert rest[name].pop((task, "fine-tuned", 16, metric.replace("_", " "))) == value
    for family, (best, first) in {
        "egovlp": ("egovlp_best", "egovlp_ep1"),
        "lavila_tsf_b": ("lavila_tsf_b_ep5", "lavila_tsf_b_ep1"),
        "lavila_tsf_l": ("lavila_tsf_l_ep3", "lavila_tsf_l_ep1"),
    }.items():
        values = results["zero_shot"][family]
        for metric in ("mAP", "nDCG"):
            pair = [rest[best].pop(("ek100_mir", "zero-shot", frames, f"avg {metric}")) for frames in (4, 16)]
            assert "/".join(map(str, pair)) == values[f"ek100_mir_{metric}_4f/16f"]
        assert rest[best].pop(("egtea", "zero-shot", 16, "mean acc")) == values["egtea_mean_acc"]
        assert rest[best].pop(("egomcq", "zero-shot", 4, "intra acc")) == values["egomcq_intra"]
        assert rest[first].pop(("charades_ego", "zero-shot", 16, "mAP")) == values["charades_ego_mAP"]
    assert not any(rest.values())


def test_every_checkpoint_has_a_layout_that_is_checked() -> None:
    architectures = {
        layout: architecture_of({name: tuple(shape) for name, shape in one["tensors"].items()})
        for layout, one in layouts().items()
        if not layout.startswith("OPENAI")
    }
    for model in ZOO.values():
        tower = {**PUBLISHED[model.model]["tower"], "num_frames": model.frames}
        found = [
            layout
            for layout, architecture in architectures.items()
            if tower.items() <= architecture["tower"].items()
            and tuple(architecture.get("num_classes", ())) == model.num_classes
            and (model.num_classes or layouts()[layout]["model"] == model.model)
        ]
        assert len(found) == 1, (model.name, found)


def test_the_documents_table_is_the_one_of_the_data() -> None:
    text = (REPOSITORY / "docs" / "MODEL_ZOO.md").read_text(encoding="utf-8")
    assert markdown() in text
    for name in ZOO:
        assert f"| `{name}` |" in markdown()
    for recipe, *_ in commands().values():
        assert (REPOSITORY / "lavila/configs" / f"{recipe}.yaml").is_file()
        assert f"--config {recipe}" in markdown()


def test_fetch_takes_what_was_put_there_by_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAVILA_HOME", str(tmp_path))
    model = ZOO["egovlp_best"]
    model.file.parent.mkdir()
    model.file.write_bytes(b"x")
    assert fetch(model) == model.file
