"""Sparse training of neural networks: train a run, do a study, count FLOPs, rebuild a report."""

from __future__ import annotations

import contextlib
import io
import json
import os
import platform
import re
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from itertools import groupby
from typing import Annotated

import tyro

from regrow_lab.commands.data_sets import Data
from regrow_lab.commands.report import Report
from regrow_lab.commands.signals import exit_code, terminating
from regrow_lab.commands.study import Study
from regrow_lab.commands.train import Train
from regrow_lab.commands.tune.command import Tune
from regrow_lab.config import RunConfig
from regrow_lab.methods import method_of
from regrow_lab.store import folders, whole_files
from regrow_lab.store.escaping import complain

# torch takes seconds to import: only a command that needs it imports it, inside its run().


@dataclass(frozen=True)
class Flops:
    """Count the FLOPs of a model, dense and sparse, for one sample and for training, without training it."""

    model: tyro.conf.Positional[str]
    """The model, by name or package.module:build."""
    data: str = "digits"
    """What a model of your own is given, as `regrow train` has it; the lab's are counted for what they are made for."""
    sparsity: float | None = None
    """Share of zero weights. By default 0.9 (0 for dense)."""
    distribution: str | None = None
    """uniform, er or erk. By default erk where the method takes one."""
    method: str = "rigl"
    """The method, by name or package.module:recipe."""
    every: int = 100
    """Steps between two updates of the masks (dT)."""
    total_steps: int = 88_000
    """Steps of the whole training, which gradual pruning averages over."""
    pruning_start: float = 700.5 / 88_000
    """Share of the training before gradual pruning begins."""
    json: bool = False
    """Print JSON."""

    def run(self) -> int:
        """Print the numbers."""
        sparsity = 0.9 * method_of(self.method).takes_sparsity if self.sparsity is None else self.sparsity
        config = RunConfig(
            model=self.model,
            data=self.data,
            method=self.method,
            sparsity=sparsity,
            distribution=self.distribution,
            every=self.every,
            pruning_start=self.pruning_start,
        )
        if self.total_steps < 1:
            raise ValueError(f"total_steps must be 1 or more, given {self.total_steps}")
        from regrow_lab.run.cost import account, in_words

        counted = account(config, self.total_steps)
        print(json.dumps(counted) if self.json else in_words(counted))
        return 0


Command = (
    Annotated[Train, tyro.conf.subcommand("train")]
    | Annotated[Study, tyro.conf.subcommand("study")]
    | Annotated[Tune, tyro.conf.subcommand("tune")]
    | Annotated[Flops, tyro.conf.subcommand("flops")]
    | Annotated[Report, tyro.conf.subcommand("report")]
    | Annotated[Data, tyro.conf.subcommand("data")]
)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line: returns 0, 1 where a run failed, 2 for a slip of the user, 130 or 143 where it was stopped."""
    try:
        if (sys.argv[1:] if arguments is None else arguments) == ["--version"]:
            print(f"regrow {version('regrow')}, torch {version('torch')}, Python {platform.python_version()}")
            return 0
        with terminating():
            code = _parse(arguments).run()
        sys.stdout.flush()
        return code
    except (whole_files.NotWrittenError, folders.LostError, folders.ClaimedError) as error:
        complain(error)
        return 1
    except BrokenPipeError:  # whoever read the output has ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except OSError as error:
        where = f"{error.filename} cannot be used" if error.filename else "it cannot be done"
        complain(f"{where} ({error.strerror or error}): give another file or folder")
        return 2
    except ValueError as error:
        complain(error)
        return 2
    except KeyboardInterrupt as interrupt:
        complain("stopped")
        return exit_code(interrupt)


def _parse(arguments: Sequence[str] | None) -> Train | Study | Tune | Flops | Report | Data:
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(
                Command,
                prog="regrow",
                description=f"{__doc__} (`regrow --version`: what is installed.)",
                args=arguments,
            )
    except SystemExit as stop:
        if not stop.code:
            raise
        raise ValueError(_without_box(complaint.getvalue())) from None


def _without_box(text: str) -> str:
    """What tyro says in a box of several lines and ruled-off parts, as one line."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", text)
    lines = [line.strip("│╰╯ ") for line in plain.splitlines()[1:]]
    parts = (" ".join(part) for is_rule, part in groupby(lines, lambda line: not line.strip("─-")) if not is_rule)
    return "; ".join(part.rstrip(".") for part in parts)
