"""The Python on the methods page runs, one block after another."""

import re
from pathlib import Path

import pytest
import torch

PAGE = Path(__file__).parents[1] / "docs" / "methods.md"


def test_the_methods_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    names: dict[str, object] = {"__name__": "methods"}
    for block in blocks:
        exec(compile(block, PAGE.name, "exec"), names)
    assert len(list((tmp_path / "tickets").iterdir())) == 5
    assert names["line"].above_mean >= names["line"].above_worst >= 0  # type: ignore[attr-defined]
