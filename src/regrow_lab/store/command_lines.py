"""The commands that make a folder's content, in words that can be given to a shell. Nothing here imports torch."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from regrow_lab.config import RunConfig
from regrow_lab.store.whole_files import read_json

USUAL = {"scale": "small", "data": "", "storage": "dense", "precision": "", "model": "", "method": ""}
"""What a study that does not say it was done with."""


def study_command(study: Mapping[str, Any], directory: Path) -> str:
    """The command that goes on with the study that study.json describes.

    >>> study_command({"study": "digits", "seeds": 3, "scale": "small"}, Path("runs/digits"))
    'regrow study digits --seeds 3 --out runs/digits'
    >>> study_command({"study": "tune-cifar10", "seeds": 1, "scale": "paper"}, Path("x y"))
    "regrow tune cifar10 --seeds 1 --scale paper --out 'x y'"
    """
    name = str(study["study"])
    kind, _, data = name.partition("-")
    what = ["tune", data] if kind == "tune" and data else ["study", name]
    words = ["regrow", *what, *(["--seeds", str(study["seeds"])] if "seeds" in study else [])]
    for setting, usual in USUAL.items():
        if study.get(setting, usual) != usual and not (setting == "storage" and what[0] == "tune"):
            words += [f"--{setting}", str(study[setting])]
    return shlex.join([*words, "--out", str(directory)])


def words_of(run: RunConfig) -> list[str]:
    """The options of `regrow train` for a run: what differs from the defaults.

    >>> words_of(RunConfig(method="rigl", sparsity=0.9, distribution="erk", timed=True))
    ['--method', 'rigl', '--sparsity', '0.9', '--distribution', 'erk', '--timed']
    """
    words = list[str]()
    for field in dataclasses.fields(run):
        name, value = f"--{field.name.replace('_', '-')}", getattr(run, field.name)
        if value != field.default:
            words += [name] if value is True else [name, str(value)]
    return words


def train_command(run: RunConfig, directory: Path) -> str:
    """The command that trains a run in its folder under `directory`.

    >>> train_command(RunConfig(epochs=2), Path("runs/train"))
    'regrow train --epochs 2 --out runs/train'
    """
    return shlex.join(["regrow", "train", *words_of(run), "--out", str(directory)])


def maker(directory: Path, config: dict[str, Any] | None = None) -> str:
    """The command that makes a run under `directory`, as far as what stands on the disk tells."""
    with suppress(ValueError, TypeError, OSError):
        path = directory / "study.json"
        study = read_json(path) if path.exists() else {}
        if study.get("study"):
            return f"`{study_command(study, directory)}`"
        if config is not None:
            return f"`{train_command(RunConfig.from_dict(config), directory)}`"
    return "the command that trained it"
