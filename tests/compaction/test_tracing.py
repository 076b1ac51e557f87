"""What a forward does besides its dataflow happens in compact storage as it does in dense storage, at every call."""

from collections import OrderedDict, deque, namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import regrow
from regrow.compaction.capture.tracing import UnfaithfulError, trace

pytestmark = pytest.mark.usefixtures("runs_engine")


class Net(nn.Module):
    """Two convolutions, a batch norm and a head; the cases below have forwards of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(4, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.second, self.head = nn.Conv2d(8, 8, 3, padding=1), nn.Linear(8, 5)
        self.register_buffer("seen", torch.zeros(()))
        self.calls = 0

    def features(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(self.first(x)))

    def rest(self, x: Tensor) -> Tensor:
        return self.head(self.second(x).mean((2, 3)))

    def forward(self, x: Tensor) -> Tensor:
        return self.rest(self.features(x))


def both(kind: type[Net], sparsity: float = 0.8) -> tuple[nn.Module, nn.Module]:
    """The same net, masked and compact."""
    made = []
    for storage in ("dense", "compact"):
        torch.manual_seed(0)
        model = kind()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        regrow.attach(model, optimizer, regrow.static(sparsity=sparsity, distribution=regrow.uniform), storage=storage)
        made.append(model)
    return made[0], made[1]


def images(number: int = 16) -> Tensor:
    return torch.randn(number, 4, 6, 6, generator=torch.Generator().manual_seed(number))


class Stores(Net):
    def forward(self, x: Tensor) -> Tensor:
        self.found = self.features(x)
        return self.rest(self.found)


def test_a_tensor_that_is_stored_is_a_tensor() -> None:
    for model in both(Stores):
        outputs = model(images())
        (outputs.square().mean() + model.found.abs().mean()).backward()
        assert type(model.found) is Tensor
        assert model.first.weight.grad is not None


class Counts(Net):
    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.seen += 1
        return super().forward(x)


class Collects(Net):
    def __init__(self) -> None:
        super().__init__()
        self.list: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)
        self.list.append(x)
        return self.rest(x)


def test_what_a_forward_writes_is_written_at_every_call() -> None:
    for model in both(Counts):
        for _ in range(3):
            model(images())
        assert (model.calls, model.seen.item()) == (3, 3)
    for model in both(Collects):
        for _ in range(3):
            model(images())
        assert [type(found) for found in model.list] == [Tensor] * 3


class Record:
    """What is no container and no module."""

    def __init__(self) -> None:
        self.calls = 0
        self.found: list[Tensor] = []


class CollectsDeep(Net):
    where = ""

    def __init__(self) -> None:
        super().__init__()
        self.queue: deque[Tensor] = deque(maxlen=2)
        self.nested, self.record, self.space = ({"x": [[]]},), Record(), SimpleNamespace(calls=0)

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)
        if self.where == "space":
            self.space.calls += 1
        else:
            self.written().append(x)
        return self.rest(x)

    def written(self) -> list[Tensor] | deque[Tensor]:
        return {"queue": self.queue, "nested": self.nested[0]["x"][0], "record": self.record.found}.get(self.where, [])


@pytest.mark.parametrize("where", ["queue", "nested", "record", "space"])
def test_what_a_forward_writes_somewhere_inside_is_written_at_every_call(where: str) -> None:
    for model in both(type("Collects", (CollectsDeep,), {"where": where})):
        for number in (4, 5, 6):
            model(images(number))
        assert [type(each) for each in model.written()] == [Tensor] * {"queue": 2, "space": 0}.get(where, 3)
        assert model.space.calls == 3 * (where == "space")


class Frozen(Net):
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            x = self.features(x)
        return self.rest(x)


def test_a_frozen_part_stays_frozen() -> None:
    for model in both(Frozen):
        model(images()).sum().backward()
        assert model.first.weight.grad is None
        assert model.second.weight.grad is not None


class FrozenInTraining(Frozen):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if self.training else self.rest(self.features(x))


def test_a_part_that_is_frozen_in_training_alone_stays_frozen_after_a_pass_without_gradients() -> None:
    torch.manual_seed(0)
    model = FrozenInTraining().eval()  # the forward that is traced first has no frozen part
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    regrow.attach(model, optimizer, regrow.static(sparsity=0.8, distribution=regrow.uniform), storage="compact")
    model.train()
    with torch.no_grad():
        model(images())
    model(images()).sum().backward()
    assert model.first.weight.grad is None
    assert model.second.weight.grad is not None


class Draws(Net):
    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)
        return self.rest(x if torch.rand(()) < 0.5 else x + torch.randn(8, 1, 1))


class DropsAlways(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.rest(F.dropout(self.features(x), 0.5, training=True))


@pytest.mark.parametrize("kind", [Draws, DropsAlways])
def test_random_numbers_are_drawn_at_every_call_and_no_more(kind: type[Net]) -> None:
    found = []
    for model in both(kind):
        model.eval()
        torch.manual_seed(1)
        found.append([model(images()) for _ in range(6)])
        assert len({tuple(each[0].tolist()) for each in found[-1]}) > 2
    for dense, compact in zip(*found, strict=True):
        assert torch.allclose(dense, compact, atol=1e-5)


class ThroughAView(Net):
    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        flat = x.flatten(1)
        F.relu_(x)
        return self.rest(x) + flat.sum(1, keepdim=True)


class OptionalFeatures(Net):
    def forward(self, x: Tensor, more: Tensor | None = None, both: bool = False) -> Tensor:
        x = self.features(x)
        if more is not None:
            x = x + more
        return self.rest(x) + 1 if both is True else self.rest(x)


class Positions(Net):
    def __init__(self) -> None:
        super().__init__()
        self.positions = nn.Parameter(torch.randn(1, 8, 6, 6))

    def forward(self, x: Tensor) -> Tensor:
        return self.rest(self.features(x) + self.positions)


Call = Callable[[nn.Module], Tensor]
CALLS: list[tuple[type[Net], Call]] = [
    (ThroughAView, lambda model: model(images())),
    (OptionalFeatures, lambda model: model(images())),
    (OptionalFeatures, lambda model: model(images(), torch.ones(8, 6, 6))),
    (OptionalFeatures, lambda model: model(images(), None, True)),
    (OptionalFeatures, lambda model: model(images(), both=True)),
    (Positions, lambda model: torch.cat([model(images(number)) for number in (1, 4, 1)])),
    (Net, lambda model: torch.cat([model(images(0)), model(images(3))])),
]


@pytest.mark.parametrize(("kind", "call"), CALLS)
def test_the_outputs_are_those_of_dense_storage(kind: type[Net], call: Call) -> None:
    dense, compact = both(kind)
    dense.eval(), compact.eval()
    assert torch.allclose(call(dense), call(compact), atol=1e-5)


class TakesADict(Net):
    def forward(self, batch: dict[str, Tensor | None]) -> Tensor:
        x, shift = batch["x"], batch["shift"]
        x = self.first(x)
        return self.rest(x if shift is None else x + self.first(shift))


class TakesLists(Net):
    def forward(self, batch: list[list[Tensor]]) -> Tensor:
        return self.rest(F.relu(self.first(batch[0][0])) + self.first(batch[0][1]))


@dataclass
class Batch:
    x: Tensor


class TakesAnObject(Net):
    def forward(self, batch: Batch) -> Tensor:
        return self.rest(F.relu(self.first(batch.x)))


@pytest.mark.parametrize(
    ("kind", "batch"),
    [
        (TakesADict, lambda x, y: {"x": x, "shift": y}),
        (TakesADict, lambda x, y: {"x": x, "shift": None}),
        (TakesLists, lambda x, y: [[x, y]]),
        (TakesLists, lambda x, y: ([x, y[:1]],)),
        (TakesAnObject, lambda x, y: Batch(x)),
    ],
)
def test_tensors_in_containers_and_objects_have_any_size(
    kind: type[Net], batch: Callable[[Tensor, Tensor], object]
) -> None:
    dense, compact = both(kind)
    for number, size in ((4, 6), (4, 9), (1, 6)):
        x, y = (torch.randn(number, 4, size, size) for _ in range(2))
        assert torch.allclose(dense(batch(x, y)), compact(batch(x, y)), atol=1e-5)


class Output(dict):  # type: ignore[type-arg]
    """A container of one's own, as the outputs of Hugging Face's models are."""


Pair = namedtuple("Pair", ["first", "second"])


class Hands(Net):
    """Gives its values in a container of some class."""

    make: Callable[[Tensor, Tensor], object]

    def forward(self, x: Tensor) -> object:
        return type(self).make(*(self.rest(self.features(part)) for part in (x, 2 * x)))


@pytest.mark.parametrize(
    ("make", "is_cut"),
    [
        (lambda a, b: {"a": a, "b": b}, True),
        (lambda a, b: OrderedDict(a=a, b=OrderedDict(b=b)), True),
        (Pair, True),
        (lambda a, b: [a, (b,)], True),
        (lambda a, b: Output(a=a, b=b), False),
        (lambda a, b: deque([a, b]), False),
    ],
)
def test_containers_keep_their_class(make: Callable[[Tensor, Tensor], object], is_cut: bool) -> None:
    kind = type("Kind", (Hands,), {"make": staticmethod(make)})
    dense, compact = both(kind)
    x = torch.randn(3, 4, 6, 6)
    expected, found = dense(x), compact(x)
    assert type(found) is type(expected)
    parts = [each.values() if isinstance(each, dict) else each for each in (expected, found)]
    for theirs, ours in zip(*parts, strict=True):
        assert type(ours) is type(theirs)
    flat = [torch.utils._pytree.tree_leaves(list(each)) for each in parts]
    torch.testing.assert_close(flat[1], flat[0], rtol=1e-4, atol=1e-5)
    assert bool(getattr(compact.forward, "regions", [])) == is_cut


def test_branches_of_different_batch_sizes() -> None:
    class Compares(Net):
        def forward(self, x: Tensor, support: Tensor) -> Tensor:
            return self.rest(self.features(x)) @ self.rest(self.features(support)).t()

    dense, compact = both(Compares)
    dense.eval(), compact.eval()
    assert torch.allclose(dense(images(12), images(5)), compact(images(12), images(5)), atol=1e-4)


def test_batch_norms_follow_their_momentum() -> None:
    for momentum in (None, 1.0):
        dense, compact = both(Net)
        for model in (dense, compact):
            model(images())
            model.norm.reset_running_stats()
            model.norm.momentum = momentum
            for number in (16, 20):
                model(images(number))
        assert torch.allclose(dense.norm.running_var, compact.norm.running_var, rtol=1e-4)


def test_a_transformer_evaluates_on_its_fast_path() -> None:
    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
            self.encoder, self.head = nn.TransformerEncoder(layer, 2), nn.Linear(16, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.encoder(x).mean(1))

    dense, compact = both(Encoder)  # type: ignore[arg-type]
    x = torch.randn(3, 5, 16)
    for model in (dense, compact):
        model(x).sum().backward()
        model.eval()
    with torch.no_grad():
        assert torch.allclose(dense(x), compact(x), atol=1e-5)


def test_weights_that_change_before_backward_are_noticed() -> None:
    for model in both(Net):
        loss = model(images()).sum()
        with torch.no_grad():
            model.second.weight.mul_(2)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


def test_tied_weights_stay_dense_in_a_net_made_compact() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.mix, self.out = nn.Embedding(20, 8), nn.Linear(8, 8), nn.Linear(8, 20, bias=False)
            self.out.weight = self.table.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.mix(self.table(x)))

    model = Tied()
    with torch.no_grad():
        for weight in (model.table.weight, model.mix.weight):
            weight.mul_(torch.rand_like(weight) < 0.2)
    numbers = torch.arange(20)
    expected = model(numbers)
    regrow.compact(model)
    assert model.mix.weight.dim() == 1
    assert model.table.weight.dim() == 2
    assert torch.allclose(model(numbers), expected, atol=1e-5)
    tied = regrow.compact(Tied(), {"out.weight": torch.ones(20, 8, dtype=torch.bool)})
    assert tied.out.weight is tied.table.weight
    assert tied.out.weight.dim() == 2


def test_redistribution_sees_clipped_gradients_of_all_layers() -> None:
    alive = []
    for storage in ("dense", "compact"):
        torch.manual_seed(0)
        model = Net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        algorithm = regrow.rigl_sg(sparsity=0.7, total_steps=20, every=3, distribution=regrow.erk)
        sparsifier = regrow.attach(model, optimizer, algorithm, storage=storage)
        for step in range(10):
            F.cross_entropy(model(images(16)), torch.arange(16) % 5).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 0.01 * (step + 1))
            optimizer.step()
            optimizer.zero_grad()
        alive.append(sparsifier.num_alive)
    assert alive[0] == alive[1]


@pytest.mark.parametrize(
    ("kind", "why"), [(Counts, "writes to"), (Frozen, "another gradient"), (Draws, "draws random")]
)
def test_a_trace_that_is_refused_leaves_no_trace(kind: type[Net], why: str) -> None:
    model, before = kind(), torch.get_rng_state()
    with pytest.raises(UnfaithfulError, match=why):
        trace(model)
    assert (model.calls, model.seen.item()) == (0, 0)
    assert torch.equal(torch.get_rng_state(), before)
