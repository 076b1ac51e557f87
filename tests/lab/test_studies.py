import dataclasses
import re
from collections import Counter
from pathlib import Path

import pytest

from regrow_lab.methods import METHODS
from regrow_lab.studies import STUDIES, known_study, study_runs, usual_storage

SPARSITIES = {0.9, 0.95, 0.98, 0.99}


def test_digits_is_the_whole_grid() -> None:
    runs = study_runs("digits", 3)
    rows = Counter((run.method, run.distribution, run.multiplier) for run in runs)
    both = ("uniform", "erk")
    expected = {("dense", None, 1): 3} | {(method, None, 1): 12 for method in ("small-dense", "snip", "pruning")}
    of_vectors = {name for name, method in METHODS.items() if method.takes_distribution}
    of_vectors -= {"rigl-struct"}  # which needs convolutions
    expected |= {(method, name, 1): 12 for method in of_vectors for name in both}
    expected |= {("rigl", name, 2): 12 for name in both}
    assert rows == expected
    for row in expected.keys() - {("dense", None, 1)}:
        found = {(run.sparsity, run.seed) for run in runs if (run.method, run.distribution, run.multiplier) == row}
        assert found == {(sparsity, seed) for sparsity in SPARSITIES for seed in range(3)}


def test_digits_has_the_recipe_of_the_prototype() -> None:
    for run in study_runs("digits", 1):
        assert (run.model, run.data, run.epochs, run.batch_size) == ("lenet-300-100", "digits", 60, 64)
        assert (run.learning_rate, run.momentum, run.weight_decay, run.schedule) == (0.1, 0.9, 5e-4, "cosine")
        assert (run.drop_fraction, run.every, run.stop) == (0.3, 20, 0.75)


@pytest.mark.parametrize("name", STUDIES)
def test_a_study_holds_each_run_once_and_more_seeds_only_add(name: str) -> None:
    two, three = ([run.run_id for run in study_runs(name, seeds)] for seeds in (2, 3))
    assert len(set(three)) == len(three)
    assert set(two) < set(three)
    assert study_runs(name, 2)[0].seed == 0


@pytest.mark.parametrize("name", STUDIES)
def test_a_study_says_cost_and_expected_result(name: str) -> None:
    study = STUDIES[name]
    assert study.name == name
    assert "runs" in study.cost or "rounds" in study.cost
    assert re.search(r"\d", study.expected) or "noise" in study.expected


def test_the_page_of_studies_has_each() -> None:
    page = (Path(__file__).parents[2] / "docs" / "studies.md").read_text()
    assert set(re.findall(r"(?m)^\| `(\w+)` \| (.*) \|$", page)) == {
        (name, each.about) for name, each in STUDIES.items()
    }


def test_compact_storage_is_for_the_methods_that_can_and_usual_for_cifar_on_a_cpu() -> None:
    dense, compact = (study_runs("digits", 1, storage=storage) for storage in ("dense", "compact"))
    assert {run.storage for run in dense} == {"dense"}
    assert {run.method for run in compact if run.storage == "dense"} == {"dense", "small-dense", "snfs"}
    assert [dataclasses.replace(run, storage="dense") for run in compact] == dense
    assert usual_storage(dense, "cpu") == "dense"
    assert usual_storage(study_runs("cifar10", 1), "cpu") == "compact"
    assert usual_storage(study_runs("cifar10", 1), "cuda:1") == "dense"


def test_a_study_of_storages_keeps_them() -> None:
    for storage in ("dense", "compact"):
        runs = study_runs("storages", 2, "paper", "cifar10-jpeg", storage=storage)  # type: ignore[arg-type]
        rows = Counter((run.method, run.storage, run.precision) for run in runs)
        sparse = {
            ("rigl", storage, precision): 4 for storage in ("dense", "compact") for precision in ("float32", "bf16")
        }
        assert rows == sparse | {("dense", "dense", "float32"): 2, ("dense", "dense", "bf16"): 2}
        assert {(run.model, run.epochs, run.data) for run in runs} == {("wrn-22-2", 30, "cifar10-jpeg")}


def test_a_study_in_another_precision() -> None:
    assert {run.precision for run in study_runs("table2", 1, "paper")} == {"float32"}
    assert {run.precision for run in study_runs("table2", 1, "paper", precision="bf16")} == {"bf16"}
    assert {run.precision for run in study_runs("charlm", 1, precision="float32")} == {"float32"}
    with pytest.raises(ValueError, match="unknown precision 'half'"):
        study_runs("digits", 1, precision="half")


def test_refusals() -> None:
    with pytest.raises(ValueError, match="unknown study 'digit': choose one of digits"):
        study_runs("digit", 3)
    with pytest.raises(ValueError, match="1 seed or more, given 0"):
        study_runs("digits", 0)


def test_what_a_folder_says_of_its_study_imports_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "executed.py").write_text("from pathlib import Path\nPath('executed').touch()\n")
    monkeypatch.chdir(tmp_path)
    assert known_study("executed:STUDY") is None
    assert not (tmp_path / "executed").exists()
