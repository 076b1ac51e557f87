"""The workers of one command: started, listened to, started again when they die.

Any number of workers, of one command or of many on many machines, may work on one search. One that dies leaves its
trial to the others, and the runs that it had finished are not trained again.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any

from regrow_lab.launch.local import Local
from regrow_lab.launch.outcome import TRIES, WorkerError
from regrow_lab.tuning.errors import GOES_ON, settings
from regrow_lab.tuning.problem import Problem
from regrow_lab.tuning.search import Search, begin
from regrow_lab.tuning.worker import work


def search(options: Search, problems: Sequence[Problem], workers: int, say: Callable[[str], None]) -> None:
    """Do the searches, with `workers` processes, or as many on each GPU; `say` gets a line a trial.

    Raises:
        ValueError: the storage cannot be used, or holds another search of this name.
        SearchError, store.NotWrittenError: the search was changed by others, or cannot be written.
        WorkerError: the workers die, or cannot go on; what was trained is kept.
    """
    options = dataclasses.replace(options, study=settings(options.directory))
    devices = Local(workers=workers, device=options.device).devices()
    begin(options, problems)
    context = multiprocessing.get_context("spawn")
    alive: dict[Connection, Any] = {}
    deaths = 0

    def start(number: int) -> None:
        ours, theirs = context.Pipe(duplex=False)
        its = dataclasses.replace(options, device=devices[number])
        process = context.Process(target=work, args=(theirs, its, tuple(problems)), daemon=True)
        process.start()
        theirs.close()
        alive[ours] = (number, process)

    try:
        for number in range(len(devices)):
            start(number)
        while alive:
            for connection in wait(list(alive)):
                assert isinstance(connection, Connection)
                try:
                    kind, text = connection.recv()
                except (EOFError, OSError):
                    number, process = alive.pop(connection)
                    process.join()
                    if process.exitcode == 0:
                        continue
                    deaths += 1
                    if deaths == TRIES * len(devices):
                        raise WorkerError(
                            f"workers died {deaths} times (exit code {process.exitcode}); {GOES_ON}"
                        ) from None
                    say(f"worker {number} died (exit code {process.exitcode}): another takes its trial over")
                    start(number)
                    continue
                if kind == "error":
                    raise WorkerError(text)
                say(text)
    finally:
        for _, process in alive.values():
            process.terminate()
        for _, process in alive.values():
            process.join()
    options.check_folder()
