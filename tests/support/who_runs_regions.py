"""Where torch runs the regions, both storages agree bit for bit; tests of the engine ask for it."""

import pytest

from regrow.compaction.capture.region import SWITCH
from regrow.engine import native


@pytest.fixture(autouse=True)
def _torch_runs_the_regions(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    runs_engine = "runs_engine" in request.fixturenames
    monkeypatch.setenv(SWITCH, "engine" if runs_engine else "torch")


@pytest.fixture
def runs_engine() -> None:
    """The engine runs the regions of this test."""
    if not native.available():
        pytest.skip(f"needs the engine: {native.unavailable_reason()}")
