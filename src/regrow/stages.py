"""Outputs of a procedure's stages on disk: a stage whose output exists is not run again."""

import os
import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

VERSION = 1


@dataclass(frozen=True)
class StageFolder:
    """A file a stage, and the settings that every one of them was made with."""

    path: Path
    settings: Mapping[str, Any]

    def load(self, name: str) -> dict[str, Any] | None:
        """What the stage gave; None if it has not run."""
        file = self.path / f"{name}.pt"
        return self._read(file) if file.exists() else None

    def save(self, name: str, output: Mapping[str, Any]) -> None:
        """Written whole or not at all, and only if it can be read again."""
        self.path.mkdir(parents=True, exist_ok=True)
        file, unfinished = self.path / f"{name}.pt", self.path / f"{name}.{os.getpid()}.tmp"
        try:
            torch.save({"version": VERSION, "settings": self.settings, **output}, unfinished)
            self._read(unfinished)
            unfinished.replace(file)
        finally:
            unfinished.unlink(missing_ok=True)

    def _read(self, file: Path) -> dict[str, Any]:
        try:
            found = torch.load(file, map_location="cpu", weights_only=True)
            version, settings = found["version"], found["settings"]
        except (RuntimeError, pickle.UnpicklingError, EOFError, KeyError, TypeError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ValueError(
                f"{file} cannot be read ({reason}): delete it to train the level anew; states of others= must be "
                "tensors and plain values"
            ) from error
        changed = [key for key, value in self.settings.items() if settings.get(key) != value]
        if version != VERSION or changed:
            what = f"{changed[0]} {settings.get(changed[0])}" if changed else f"version {version}"
            here = self.settings[changed[0]] if changed else VERSION
            raise ValueError(f"{file} was written with {what}, here it is {here}: take another folder")
        return dict(found)


def once(store: StageFolder | None, name: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What the folder holds, else what ``make`` returns, which it holds from then on."""
    found = store.load(name) if store else None
    if found is None:
        found = make()
        if store:
            store.save(name, found)
    return found
