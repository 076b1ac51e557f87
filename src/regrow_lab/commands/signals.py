"""SIGTERM and Ctrl-C: asked to stop, a run still writes its checkpoint."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

TERMINATED = 128 + signal.SIGTERM
"""Exit code of a program that was told to end, as a shell gives it."""


class TerminatedError(KeyboardInterrupt):
    """SIGTERM came: as Ctrl-C, with another exit code."""


def exit_code(interrupt: KeyboardInterrupt) -> int:
    """130 after Ctrl-C, 143 after SIGTERM."""
    return TERMINATED if isinstance(interrupt, TerminatedError) else 128 + signal.SIGINT


@contextmanager
def terminating() -> Iterator[None]:
    """While it lasts, SIGTERM raises TerminatedError as Ctrl-C does KeyboardInterrupt, so that all that is open is
    closed in order. One that comes while that goes on ends the process at once."""
    came = False

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal came
        if came:
            os.write(sys.stderr.fileno(), b"regrow: stopped at once; the same command goes on from what is written\n")
            os._exit(128 + number)
        came = True
        raise TerminatedError if number == signal.SIGTERM else KeyboardInterrupt

    ignored = signal.getsignal(signal.SIGINT) == signal.SIG_IGN  # by a shell, for what it runs in the background
    with _handled({signal.SIGTERM: handle} if ignored else {signal.SIGTERM: handle, signal.SIGINT: handle}):
        yield


@contextmanager
def asking_to_stop() -> Iterator[Callable[[], int]]:
    """While it lasts, SIGTERM and Ctrl-C are only noted; yields a function that gives the number of the one that came,
    or 0. A second one interrupts at once."""
    came = 0

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal came
        if came:
            raise TerminatedError if number == signal.SIGTERM else KeyboardInterrupt
        came = number

    with _handled({signal.SIGTERM: handle, signal.SIGINT: handle}):
        yield lambda: came


@contextmanager
def _handled(handlers: dict[signal.Signals, Callable[[int, FrameType | None], None]]) -> Iterator[None]:
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
