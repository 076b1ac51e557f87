"""A run on scikit-learn's digits in both storages: the same masks until two scores are too close to call."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import regrow
from regrow_lab.data.digits import digits
from regrow_lab.models import find_model

pytest.importorskip("sklearn")

STEPS, BATCH = 240, 64
OPTIMIZERS: dict[str, Callable[[nn.Module], torch.optim.Optimizer]] = {
    "sgd": lambda m: torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4),
    "adamw": lambda m: torch.optim.AdamW(m.parameters(), lr=2e-3),
}


class Run:
    """A net with its optimizer and sparsifier, trained step by step."""

    def __init__(self, storage: str, optimizer: str, dtype: torch.dtype = torch.float32) -> None:
        torch.manual_seed(0)
        self.model, self.dtype = find_model("lenet-300-100")(), dtype
        self.optimizer = OPTIMIZERS[optimizer](self.model)
        recipe = regrow.rigl(sparsity=0.9, total_steps=STEPS, every=20)
        self.sparsifier = regrow.attach(self.model, self.optimizer, recipe, storage=storage)  # type: ignore[arg-type]

    def backward(self, inputs: Tensor, targets: Tensor) -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.dtype == torch.bfloat16):
            loss = nn.functional.cross_entropy(self.model(inputs), targets)
        loss.backward()

    def step(self) -> None:
        self.optimizer.step()
        self.optimizer.zero_grad()


def batches(inputs: Tensor, targets: Tensor) -> Callable[[int], tuple[Tensor, Tensor]]:
    def batch(step: int) -> tuple[Tensor, Tensor]:
        chosen = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(step))[:BATCH]
        return inputs[chosen], targets[chosen]

    return batch


def gap(before: dict[str, Tensor], name: str, dense: Tensor, compact: Tensor) -> float:
    """Relative distance of the scores between which the two storages decided differently, of the closer kind."""
    only_dense, only_compact = dense & ~compact, compact & ~dense
    found = []
    for scores in (before[f"{name} weight"].abs(), before[f"{name} gradient"].abs()):
        left, right = scores[only_dense].max(), scores[only_compact].max()
        found.append(float((left - right).abs() / torch.maximum(left, right).clamp_min(1e-30)))
    return min(found)


@pytest.mark.usefixtures("runs_engine")
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_masks_agree_until_a_near_tie(optimizer: str, capsys: pytest.CaptureFixture[str]) -> None:
    batch = batches(*digits()[:2])
    dense, compact = Run("dense", optimizer), Run("compact", optimizer)
    updates = 0
    for step in range(STEPS):
        before = {}
        for run in (dense, compact):
            run.backward(*batch(step))
        for name in dense.sparsifier.masks:
            parameter = dense.model.get_parameter(name)
            assert parameter.grad is not None
            before[f"{name} weight"] = parameter.detach().clone()
            before[f"{name} gradient"] = parameter.grad.clone()
        for run in (dense, compact):
            run.step()
        pairs = [(name, mask, compact.sparsifier.masks[name]) for name, mask in dense.sparsifier.masks.items()]
        flipped = [
            (name, gap(before, name, ours, theirs)) for name, ours, theirs in pairs if not torch.equal(ours, theirs)
        ]
        if flipped:
            with capsys.disabled():
                where = ", ".join(f"{name}: scores {distance:.1e} apart (relative)" for name, distance in flipped)
                print(f"\n{optimizer}: first flip at step {step}, after {updates} equal updates; {where}")
            assert min(distance for _, distance in flipped) < 1e-3
            break
        updates = dense.sparsifier.num_updates
        for name, value in dense.model.state_dict().items():
            torch.testing.assert_close(compact.model.state_dict()[name], value, rtol=2e-3, atol=2e-4, msg=name)
    assert updates >= 3


@pytest.mark.usefixtures("runs_engine")
def test_bfloat16_is_as_accurate() -> None:
    inputs, targets, test_inputs, test_targets = digits()
    batch = batches(inputs, targets)
    accuracies = []
    for storage, dtype in (("dense", torch.float32), ("compact", torch.float32), ("compact", torch.bfloat16)):
        run = Run(storage, "sgd", dtype)
        for step in range(STEPS):
            run.backward(*batch(step))
            run.step()
        with torch.no_grad():
            accuracies.append(float((run.model(test_inputs).argmax(1) == test_targets).float().mean()))
    assert min(accuracies) > 0.9
    assert max(accuracies) - min(accuracies) < 0.03, accuracies
