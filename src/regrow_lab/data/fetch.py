"""Downloads of published files, at a user's word alone: they go on where they stopped, and are checked before use."""

from __future__ import annotations

import os
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse
from pathlib import Path

from regrow_files import open_file
from regrow_lab.data.source import md5_of

BLOCK = 1 << 16
TIMEOUT = 30.0
"""Seconds without an answer after which a server counts as gone."""


@dataclass(frozen=True)
class Download:
    """One published file: its address, the folder it goes to under the data root, size in bytes if known, and MD5."""

    url: str
    folder: str
    size: int | None
    md5: str

    @property
    def name(self) -> str:
        """Of the file."""
        return self.url.rpartition("/")[2]


def fetch(download: Download, root: Path, progress: Callable[[int, int | None], None]) -> Path:
    """The file, in its folder under `root`; what is there already and whole is not fetched again.

    While it is under way it is called NAME.part; a later call asks the server for the rest of it alone.

    Args:
        download: what to fetch.
        root: folder of all data.
        progress: called with the bytes that are there and those there will be (None if the server does not say).

    Raises:
        ValueError: the server cannot be reached, breaks off or has no such file, the disk is full, or what came is not
            the published file (it is deleted).
        OSError: the folder cannot be made or written to.
    """
    path = root / download.folder / download.name
    if path.exists() and md5_of(path) == download.md5:
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    try:
        if not (part.exists() and md5_of(part) == download.md5):
            _receive(download, part, progress)
    except urllib.error.HTTPError as error:
        raise ValueError(f"{download.url} answers {error.code} {error.reason}: try again later") from None
    except (HTTPException, OSError) as error:
        if isinstance(error, OSError) and error.filename is not None:  # of this machine, not of the line
            raise
        have = part.stat().st_size if part.exists() else 0
        raise ValueError(
            f"{download.url} broke off after {have:,} bytes ({error}): the same command goes on from there"
        ) from None
    found = md5_of(part)
    if found != download.md5:
        part.unlink()
        raise ValueError(
            f"{download.url} sent another file than the published one (MD5 {found}, not {download.md5}); it was deleted"
        )
    os.replace(part, path)
    return path


def _receive(download: Download, part: Path, progress: Callable[[int, int | None], None]) -> None:
    have = part.stat().st_size if part.exists() else 0
    try:
        answer = _ask(download.url, have)
    except urllib.error.HTTPError as error:
        if error.code != 416:
            raise
        have = 0  # there is no rest: what is here is not a beginning of the file
        answer = _ask(download.url, have)
    with answer:
        if answer.status != 206:
            have = 0  # the server sends the whole file
        length = answer.headers.get("Content-Length")
        total = have + int(length) if length else download.size
        with open_file(part, "ab" if have else "wb") as file:
            progress(have, total)
            while block := answer.read(BLOCK):
                file.write(block)
                have += len(block)
                progress(have, total)
    if total is not None and have < total:
        raise ConnectionError(f"{total - have:,} are missing")


def _ask(url: str, start: int) -> HTTPResponse:
    request = urllib.request.Request(url, headers={"User-Agent": "regrow", "Accept-Encoding": "identity"})
    if start:
        request.add_header("Range", f"bytes={start}-")
    answer: HTTPResponse = urllib.request.urlopen(request, timeout=TIMEOUT)
    return answer
