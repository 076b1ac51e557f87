import dataclasses
import itertools
import json
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from regrow_lab.config import (
    AUGMENTATIONS,
    DISTRIBUTIONS,
    OPTIMIZERS,
    SCHEDULES,
    RunConfig,
)
from regrow_lab.data import augment
from regrow_lab.methods import METHODS
from regrow_lab.run import build, learning_rate
from regrow_lab.run.optimizer import optimizer_of

CHANGES = {
    "model": "wrn-22-2",
    "data": "another",
    "method": "snip",
    "sparsity": 0.5,
    "distribution": "uniform",
    "multiplier": 2,
    "seed": 1,
    "epochs": 61,
    "batch_size": 32,
    "learning_rate": 0.2,
    "momentum": 0.8,
    "nesterov": True,
    "weight_decay": 0.0,
    "schedule": "constant",
    "every": 10,
    "drop_fraction": 0.4,
    "stop": 0.5,
    "pruning_start": 0.1,
    "warmup_steps": 100,
    "decay_steps": 20_000,
    "decay": 0.1,
    "optimizer": "adam",
    "clip": 1.0,
    "label_smoothing": 0.1,
    "augmentation": "crop-flip",
    "validation": 100,
    "image_size": 32,
    "sequence_length": 64,
    "precision": "bf16",
    "storage": "compact",
    "compiled": True,
    "dropout": 0.0,
    "start": "rigl-sm",
    "rewind": 0.1,
    "data_order": 1,
    "timed": True,
}
OF_IMP = ("rewind", "data_order")
WITH_DISTRIBUTION = [name for name, method in METHODS.items() if method.takes_distribution]
RIGL = RunConfig(method="rigl", sparsity=0.9)


def test_every_name_of_the_configuration_stands_for_something() -> None:
    for method in METHODS.values():
        assert method.recipe is None or callable(build.imported(method.recipe))
    assert set(DISTRIBUTIONS) == set(build.DISTRIBUTIONS)
    assert set(SCHEDULES) == set(learning_rate.SCHEDULES)
    assert set(AUGMENTATIONS) == set(augment.AUGMENTATIONS)
    for name in OPTIMIZERS:
        made = optimizer_of(RunConfig(optimizer=name), torch.nn.Linear(2, 2))
        assert type(made).__name__.lower() == name


def test_run_id_reads_well_and_stays_what_it_is() -> None:
    # The names of stored folders: when one of these changes, finished runs are trained again.
    assert RunConfig().run_id == "dense-seed0-44136fa3"
    assert RunConfig(method="rigl", sparsity=0.95).run_id == "rigl-erk-s0.95-seed0-569288b6"
    longer = RunConfig(method="rigl", sparsity=0.95, distribution="uniform", multiplier=2, seed=3)
    assert longer.run_id.startswith("rigl-2x-uniform-s0.95-seed3-")


def test_changes_cover_every_field() -> None:
    assert CHANGES.keys() == {field.name for field in dataclasses.fields(RunConfig)}


def test_every_field_makes_another_run() -> None:
    runs = [RIGL]
    for name, value in CHANGES.items():
        if name in OF_IMP:
            runs.append(RunConfig(method="imp", sparsity=0.2, **{name: value}))
        else:
            changes = {name: value} | ({"distribution": None} if name == "method" else {})
            runs.append(dataclasses.replace(RIGL, **changes))
    for one, other in itertools.combinations(runs, 2):
        assert one.run_id != other.run_id


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"learning_rate": 1}, {"learning_rate": 1.0}),
        ({"clip": 10}, {"clip": 10.0}),
        ({"epochs": 50.0}, {"epochs": 50}),
        ({"multiplier": 2.0}, {"multiplier": 2}),
        ({"nesterov": 1}, {"nesterov": True}),
        ({"seed": True}, {"seed": 1}),
    ],
)
def test_equal_runs_share_a_folder(one: dict[str, object], other: dict[str, object]) -> None:
    assert RunConfig(**one) == RunConfig(**other)
    assert RunConfig(**one).run_id == RunConfig(**other).run_id
    assert json.dumps(RunConfig(**one).to_dict()) == json.dumps(RunConfig(**other).to_dict())


def test_fields_at_their_defaults_do_not_enter_the_id() -> None:
    assert RunConfig(epochs=60, model="lenet-300-100", seed=0).run_id == RunConfig().run_id


@pytest.mark.parametrize("method", WITH_DISTRIBUTION)
def test_erk_is_taken_where_no_distribution_is_given(method: str) -> None:
    assert RunConfig(method=method, sparsity=0.9) == RunConfig(method=method, sparsity=0.9, distribution="erk")


@given(
    st.builds(
        dict,
        method=st.sampled_from(WITH_DISTRIBUTION),
        sparsity=st.floats(0, 1, exclude_max=True),
        distribution=st.sampled_from(DISTRIBUTIONS),
        seed=st.integers(0, 99),
        every=st.integers(1, 1000),
    )
)
def test_to_dict_and_back(fields: dict[str, object]) -> None:
    config = RunConfig(**fields)
    assert RunConfig.from_dict(config.to_dict()) == config


def test_from_dict_refuses_what_it_does_not_know() -> None:
    with pytest.raises(ValueError, match="unknown field colour"):
        RunConfig.from_dict({"colour": "red"})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"method": "rigI", "sparsity": 0.9}, "unknown method 'rigI': choose one of dense, "),
        ({"method": "rigl", "sparsity": 1.0}, r"sparsity 1 is outside \[0, 1\)"),
        ({"method": "rigl", "sparsity": -0.1}, r"outside \[0, 1\)"),
        ({"method": "rigl", "sparsity": float("nan")}, r"sparsity nan is outside \[0, 1\)"),
        ({"sparsity": 0.5}, "dense takes no sparsity"),
        ({"distribution": "erk"}, "dense takes no distribution"),
        ({"method": "snip", "sparsity": 0.9, "distribution": "erk"}, "snip takes no distribution"),
        (
            {"method": "set", "sparsity": 0.9, "distribution": "erc"},
            "unknown distribution 'erc': choose one of uniform",
        ),
        ({"schedule": "linear"}, "unknown schedule 'linear'"),
        ({"epochs": 0}, "epochs must be 1 or more, and less than 2\\^31, given 0"),
        ({"batch_size": 10**20}, "batch_size must be 1 or more, and less than 2\\^31, given 1000"),
        ({"multiplier": 0}, "multiplier must be 1 or more"),
        ({"multiplier": float("inf")}, "multiplier must be 1 or more, and less than 2\\^31, given inf"),
        ({"multiplier": float("nan")}, "multiplier must be 1 or more, and less than 2\\^31, given nan"),
        ({"multiplier": 10**400}, "multiplier must be 1 or more, and less than 2\\^31, given 1000"),
        ({"multiplier": 1e308}, "multiplier must be 1 or more, and less than 2\\^31"),
        ({"epochs": 2**20, "multiplier": 2**12}, "times multiplier must be less than 2\\^31, given 1048576 and 4096"),
        ({"method": "rigl", "sparsity": 0.9, "start": "trained"}, "unknown start 'trained': choose one of rigl-sm"),
        ({"method": "set", "sparsity": 0.9, "start": "rigl-sm"}, "method set takes no start, given 'rigl-sm'"),
        ({"method": "imp", "sparsity": 0.9}, r"imp reaches the sparsities 1 - 0.8\^L, given 0.9: take"),
        ({"method": "imp", "sparsity": 0.2, "rewind": 1.0}, r"rewind must be a share of the training in \[0, 1\)"),
        ({"rewind": 0.1}, "method dense takes no rewind, given 0.1"),
        (
            {"method": "set", "sparsity": 0.9, "data_order": 1},
            "data_order is for dense and imp, unless .*, the method is set: ",
        ),
        ({"batch_size": 0}, "batch_size must be 1 or more"),
        ({"every": 0}, "every must be 1 or more"),
        ({"seed": -1}, "seed must be 0 or more"),
        ({"learning_rate": float("inf")}, "learning_rate must be a finite number"),
        ({"momentum": -1.0}, "momentum must be a finite number, 0 or more"),
        ({"optimizer": "sdg"}, "unknown optimizer 'sdg': choose one of sgd, adam, adamw"),
        ({"optimizer": "adam", "nesterov": True}, "nesterov is of sgd alone"),
        ({"augmentation": "flip"}, "unknown augmentation 'flip': choose one of none, crop-flip"),
        ({"precision": "fp16"}, "unknown precision 'fp16'"),
        ({"label_smoothing": 1.0}, r"label_smoothing must lie in \[0, 1\), given 1.0"),
        ({"clip": -1.0}, "clip must be a finite number"),
        ({"decay": 2.0}, r"decay must lie in \[0, 1\]"),
        ({"decay_steps": 0}, "decay_steps must be 1 or more"),
        ({"sequence_length": 0}, "sequence_length must be 1 or more"),
        ({"validation": -1}, "validation must be 0 or more"),
        ({"warmup_steps": -1}, "warmup_steps must be 0 or more"),
        ({"drop_fraction": 1.5}, r"drop_fraction must lie in \[0, 1\], given 1.5"),
        ({"stop": -0.5}, r"stop must lie in \[0, 1\]"),
        ({"storage": "sparse"}, "unknown storage 'sparse': choose one of dense, compact"),
        ({"method": "snfs", "sparsity": 0.9, "storage": "compact"}, "snfs cannot run in compact storage: choose"),
        ({"method": "set", "sparsity": 0.9, "storage": "compact", "compiled": True}, "not for compiled nets"),
    ],
)
def test_refusals_say_what_was_given_and_what_is_expected(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RunConfig(**fields)


def test_configurations_and_studies_do_not_import_torch() -> None:
    modules = "regrow_lab.config, regrow_lab.studies, regrow_lab.store.folders, regrow_lab.launch"
    program = f"import sys, {modules}; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert "regrow_lab.launch" in loaded
    assert "torch" not in loaded
