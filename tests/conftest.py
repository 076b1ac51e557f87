"""What holds for every test: properties are the same on each run, one thread, and a skipped test says why."""

import pytest
import slurm_cluster
import torch
from hypothesis import settings

settings.register_profile("regrow", derandomize=True, deadline=None)
settings.load_profile("regrow")
torch.set_num_threads(1)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run the tests marked slow too")
    parser.addoption("--postgres", action="store_true", help="start a PostgreSQL server, and run the tests on it")
    parser.addoption("--slurm", action="store_true", help="start a SLURM cluster of one node, and run the tests on it")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    missing = {
        "gpu": None if torch.cuda.is_available() else "needs a CUDA device",
        "slurm": "needs a SLURM cluster: make test-slurm"
        if not config.getoption("--slurm")
        else slurm_cluster.missing(),
        "postgres": None if config.getoption("--postgres") else "needs PostgreSQL: make test-postgres",
        "slow": None if config.getoption("--slow") else "slow: runs with --slow",
    }
    for item in items:
        for marker, reason in missing.items():
            if reason and item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))
