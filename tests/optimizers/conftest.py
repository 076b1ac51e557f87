"""Torch runs the regions of compact layers here, so that both storages agree, and nothing is timed first."""

import pytest

from regrow.compaction.capture.region import SWITCH


@pytest.fixture(autouse=True)
def _torch_runs_the_regions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SWITCH, "torch")
