"""Downloads from a server on this machine: whole, resumed, broken off, wrong."""

import dataclasses
import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from regrow_lab.commands import cli
from regrow_lab.data.fetch import Download, fetch
from regrow_lab.data.sets import IMAGE_SETS

CONTENT = bytes(range(256)) * 2000
MD5 = hashlib.md5(CONTENT).hexdigest()


class Server(ThreadingHTTPServer):
    """Serves CONTENT; `ranges`: whether it can send a rest; `break_after`: bytes after which it hangs up."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.ranges = True
        self.break_after: int | None = None
        self.asked: list[str | None] = []
        self.content = CONTENT


class Handler(BaseHTTPRequestHandler):
    """See Server."""

    server: Server

    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        self.server.asked.append(wanted)
        if self.path != "/set.tar.gz":
            self.send_error(404)
            return
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted and self.server.ranges else 0
        content = self.server.content
        if start >= len(content):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        end = len(content) if self.server.break_after is None else start + self.server.break_after
        self.wfile.write(content[start:end])

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def download(server: Server) -> Download:
    return Download(f"http://127.0.0.1:{server.server_address[1]}/set.tar.gz", "set", len(CONTENT), MD5)


def nothing(have: int, total: int | None) -> None:
    """No progress is shown."""


def test_a_file_is_fetched_once(download: Download, server: Server, tmp_path: Path) -> None:
    told: list[tuple[int, int | None]] = []
    path = fetch(download, tmp_path, lambda have, total: told.append((have, total)))
    assert path == tmp_path / "set" / "set.tar.gz"
    assert path.read_bytes() == CONTENT
    assert told[0] == (0, len(CONTENT))
    assert told[-1] == (len(CONTENT), len(CONTENT))
    assert [have for have, _ in told] == sorted(have for have, _ in told)
    assert len(told) > 5
    fetch(download, tmp_path, nothing)
    assert server.asked == [None]
    assert list(path.parent.iterdir()) == [path]


def test_one_that_broke_off_goes_on_where_it_stopped(download: Download, server: Server, tmp_path: Path) -> None:
    server.break_after = 200_000
    for have in (200_000, 400_000):
        with pytest.raises(ValueError, match=f"broke off after {have:,} bytes .*: the same command goes on from there"):
            fetch(download, tmp_path, nothing)
    assert not (tmp_path / "set/set.tar.gz").exists()
    assert (tmp_path / "set/set.tar.gz.part").read_bytes() == CONTENT[:400_000]
    assert fetch(download, tmp_path, nothing).read_bytes() == CONTENT
    assert server.asked == [None, "bytes=200000-", "bytes=400000-"]


def test_a_server_without_ranges_sends_all_again(download: Download, server: Server, tmp_path: Path) -> None:
    server.break_after = 1000
    with pytest.raises(ValueError, match="broke off"):
        fetch(download, tmp_path, nothing)
    server.break_after, server.ranges = None, False
    assert fetch(download, tmp_path, nothing).read_bytes() == CONTENT


@pytest.mark.parametrize("part", [CONTENT, CONTENT + b"too much", CONTENT[:5]])
def test_whatever_stands_there_already(download: Download, tmp_path: Path, part: bytes) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set/set.tar.gz.part").write_bytes(part)
    assert fetch(download, tmp_path, nothing).read_bytes() == CONTENT


def test_a_wrong_checksum_is_said_and_the_file_deleted(download: Download, server: Server, tmp_path: Path) -> None:
    server.content = CONTENT[:-1] + b"x"
    with pytest.raises(ValueError, match=r"sent another file than the published one \(MD5 .*\); it was deleted"):
        fetch(download, tmp_path, nothing)
    assert list((tmp_path / "set").iterdir()) == []


def test_a_file_that_was_changed_is_fetched_again(download: Download, tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set/set.tar.gz").write_bytes(b"something else")
    assert fetch(download, tmp_path, nothing).read_bytes() == CONTENT


def test_a_server_that_does_not_have_it_or_does_not_answer(download: Download, server: Server, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"/other answers 404 Not Found: try again later"):
        fetch(dataclasses.replace(download, url=download.url.replace("set.tar.gz", "other")), tmp_path, nothing)
    port = server.server_address[1]
    with pytest.raises(ValueError, match="broke off after 0 bytes"):
        fetch(dataclasses.replace(download, url=f"http://127.0.0.1:{port}0/set.tar.gz"), tmp_path, nothing)


def test_the_command(
    download: Download, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(IMAGE_SETS, "cifar10", dataclasses.replace(IMAGE_SETS["cifar10"], downloads=(download,)))
    assert cli.main(["data", "fetch", "cifar10", "--to", str(tmp_path)]) == 0
    assert (tmp_path / "set/set.tar.gz").read_bytes() == CONTENT
    assert "set.tar.gz: checksum right" in capsys.readouterr().out.replace("\n", "")
    assert cli.main(["data", "fetch", "imagenet", "--to", str(tmp_path)]) == 2
    assert "there is no download of 'imagenet': choose one of cifar10, cifar100" in capsys.readouterr().err
    monkeypatch.setenv("REGROW_DATA", str(tmp_path))
    assert cli.main(["data", "list"]) == 0
    out = capsys.readouterr().out
    assert out.count("not there") == 6
    assert "CIFAR-10 (JPEG)" in out
