"""What may lie where a file is expected, and would be waited for or read without an end."""

import contextlib
import os
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path


def fifo(path: Path) -> None:
    os.mkfifo(path)


def bound_socket(path: Path) -> None:
    with contextlib.chdir(path.parent), socket.socket(socket.AF_UNIX) as bound:  # a whole path may be too long
        bound.bind(path.name)


def loop(path: Path) -> None:
    path.symlink_to(path)


def ring(path: Path) -> None:
    path.with_name("other").symlink_to(path)
    path.symlink_to(path.with_name("other"))


def enormous(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(2**43)


TRAPS: dict[str, tuple[Callable[[Path], object], str]] = {
    "named pipe": (fifo, "is a named pipe, a file was expected: move it away"),
    "folder": (Path.mkdir, "is a folder, a file was expected"),
    "socket": (bound_socket, "is a socket, a file was expected"),
    "/dev/zero": (lambda path: path.symlink_to("/dev/zero"), "is a device, a file was expected"),
    "/dev/tty": (lambda path: path.symlink_to("/dev/tty"), "is a device, a file was expected"),
    "loop": (loop, r"cannot be read \(Too many levels of symbolic links\): mend that"),
    "ring": (ring, r"cannot be read \(Too many levels of symbolic links\): mend that"),
    "enormous": (enormous, r"has 8,796,093,022,208 bytes, at most [\d,]+ are read"),
}
"""What lies there: how it is put at a path, and what is said of it."""


@contextlib.contextmanager
def within(seconds: float) -> Iterator[None]:
    """Raises TimeoutError where it takes longer: a file that is waited for would hold up all tests."""

    def give_up(*_: object) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
