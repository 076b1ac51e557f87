"""torch.compile of model and optimizer step: the same run as without, and no graph more when masks change."""

from collections.abc import Iterator

import pytest
import torch
from conformance.axes import RECIPES
from conformance.training_loop import Ledger, setup, train
from torch._dynamo.testing import CompileCounter
from torch.compiler import reset

import regrow

pytestmark = [
    pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated:FutureWarning"),
]
FORMS = ("model", "step", "model and step")


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    reset()
    yield
    reset()


def run(recipe: str, optimizer: str, form: str, backend: object, precision: str = "fp32") -> tuple[Ledger, list[int]]:
    """The ledger, and the number of graphs after every call."""
    made, graphs, ledger = setup(optimizer, precision, "plain"), [], None
    forward = torch.compile(made.model, backend=backend) if "model" in form else None
    steps = torch.compile(made.optimizer.step, backend=backend) if "step" in form else None

    def attach() -> None:
        nonlocal ledger
        record = RECIPES[recipe]
        ledger = Ledger(record, regrow.attach(made.model, made.optimizer, record.algorithm, strict=True))

    def each(call: int, skipped: bool) -> None:
        ledger(call, skipped)
        graphs.append(getattr(backend, "frame_count", 0))

    train(made, precision, "plain", attach, each=each, forward=forward, step=steps)
    return ledger, graphs


def second_update(ledger: Ledger, recipe: str) -> int:
    """The call after which nothing may be compiled any more."""
    updates = RECIPES[recipe].updates
    return 2 if len(updates) < 2 else updates[1] + (2 if ledger.recipe.in_place else 0)


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_compiled_model_is_one_graph_for_the_whole_run(recipe: str) -> None:
    ledger, graphs = run(recipe, "sgd-decay", "model", CompileCounter())
    assert set(graphs) == {1}
    plain, _ = run(recipe, "sgd-decay", "", None)
    assert same(ledger, plain)


@pytest.mark.parametrize(
    ("recipe", "optimizer"), [("rigl", "sgd-decay"), ("rigl", "adamw"), ("snfs", "adam"), ("pruning", "rmsprop")]
)
def test_a_compiled_step_makes_no_graph_after_the_second_update(recipe: str, optimizer: str) -> None:
    ledger, graphs = run(recipe, optimizer, "step", CompileCounter())
    assert graphs[0] >= 1
    assert len(set(graphs[second_update(ledger, recipe) :])) == 1, graphs
    plain, _ = run(recipe, optimizer, "", None)
    assert same(ledger, plain)


@pytest.mark.parametrize(("recipe", "precision"), [("rigl", "bf16-autocast"), ("rigl-sm", "scaler")])
def test_model_and_step_compiled_through_autograd(recipe: str, precision: str) -> None:
    """The backward pass is traced too; an update happens when it should, with exact counts."""
    form = "model" if precision == "scaler" else "model and step"
    ledger, _ = run(recipe, "sgd-decay", form, "aot_eager", precision)
    assert ledger.num_updates == len(RECIPES[recipe].updates)


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_inductor(form: str) -> None:
    ledger, _ = run("rigl", "adamw", form, "inductor")
    assert ledger.num_updates == len(RECIPES["rigl"].updates)


def same(one: Ledger, two: Ledger) -> bool:
    """Whether two runs ended with the same masks and, up to the order of sums, the same weights."""
    first, second = one.sparsifier, two.sparsifier
    for name, value in first.model.named_parameters():
        torch.testing.assert_close(value, second.model.get_parameter(name))
    return all(torch.equal(mask, second.masks[name]) for name, mask in first.masks.items())
