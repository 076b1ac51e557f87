"""Weights that share memory: one weight where they are the same entries, refused where they are not."""

import copy
import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from nets import batch
from torch import Tensor, nn

import regrow
from regrow.tied_weights import Memory, identity, overlapping, touch

STORAGES = ("dense", "compact")


class Two(nn.Module):
    """Two square layers between two others."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.a, self.b = nn.Linear(12, 40), nn.Linear(40, 40), nn.Linear(40, 40)
        self.last = nn.Linear(40, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.b(torch.relu(self.a(torch.relu(self.first(x)))))))


def by_parameter(model: Two) -> None:
    model.b.weight = nn.Parameter(model.a.weight)


def by_data(model: Two) -> None:
    model.b.weight.data = model.a.weight.data


def by_detached(model: Two) -> None:
    model.b.weight = nn.Parameter(model.a.weight.detach().view(40, 40))


def transposed(model: Two) -> None:
    model.b.weight = nn.Parameter(model.a.weight.t())


def shifted(model: Two) -> None:
    flat = torch.randn(1640)
    model.a.weight.data, model.b.weight.data = flat[:1600].view(40, 40), flat[40:].view(40, 40)


def rows(model: Two) -> None:
    model.last.weight = nn.Parameter(model.a.weight[:5])


def other_type(model: Two) -> None:
    nn.init.ones_(model.a.weight)
    model.b.weight = nn.Parameter(model.a.weight.detach().view(torch.bfloat16)[:, ::2])


SAME = {f.__name__: f for f in (by_parameter, by_data, by_detached)}
OTHERWISE = {f.__name__: f for f in (transposed, shifted, rows, other_type)}
RIGL = regrow.rigl(sparsity=0.8, total_steps=200, every=4)


def sgd(*parameters: nn.Parameter) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9)


def step(model: nn.Module, optimizer: torch.optim.Optimizer, number: int) -> None:
    inputs, targets = batch(number)
    nn.functional.cross_entropy(model(inputs), targets).backward()
    optimizer.step()
    optimizer.zero_grad()


def steps(model: nn.Module, optimizer: torch.optim.Optimizer, numbers: range) -> None:
    for number in numbers:
        step(model, optimizer, number)


@st.composite
def views(draw: st.DrawFn) -> Callable[[Tensor], Tensor]:
    shape = draw(st.lists(st.integers(1, 4), min_size=1, max_size=3))
    strides = draw(st.lists(st.integers(0, 7), min_size=len(shape), max_size=len(shape)))
    offset, dtype = draw(st.integers(0, 12)), draw(st.sampled_from([torch.float32, torch.float16]))
    return lambda base: base.view(dtype).as_strided(shape, strides, offset)


def bytes_of(view: Tensor) -> set[int]:
    places = torch.tensor(0)
    for size, stride in zip(view.shape, view.stride(), strict=True):
        places = places.unsqueeze(-1) + torch.arange(size) * stride
    first = view.data_ptr()
    size = view.element_size()
    return {first + int(place) * size + byte for place in places.flatten() for byte in range(size)}


@given(views(), views())
def test_two_views_overlap_exactly_where_they_share_a_byte(make_one, make_other) -> None:
    base = torch.zeros(100)
    one, other = make_one(base), make_other(base)
    shared = bool(bytes_of(one) & bytes_of(other))
    first, second = Memory.of(one), Memory.of(other)
    assert first is not None
    assert second is not None
    assert first.overlaps(second) == second.overlaps(first) == shared
    assert touch([one], [other]) == shared
    assert (len(list(overlapping({"one": one, "other": other}))) == 1) == (shared and first != second)


def test_what_has_no_memory_is_one_with_itself_alone() -> None:
    empty, other = torch.zeros(0, 3), torch.zeros(0, 3)
    assert identity(empty) == identity(empty) != identity(other)
    sparse = torch.eye(3).to_sparse()
    assert identity(sparse) == identity(sparse) != identity(torch.eye(3).to_sparse())
    meta = torch.empty(4, 4, device="meta")
    assert identity(meta) == identity(meta.view(4, 4)) != identity(torch.empty(4, 4, device="meta"))
    assert touch([meta], [meta.t()])


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("tie", SAME)
def test_two_parameters_of_the_same_entries_are_one_layer(tie: str, device: str) -> None:
    with torch.device(device):
        model = Two()
    SAME[tie](model)
    assert list(regrow.find_layers(model)) == ["first.weight", "a.weight", "last.weight"]
    assert set(regrow.plan(model, RIGL).num_alive) == {"first.weight", "a.weight", "last.weight"}
    with pytest.raises(ValueError, match=r"'b\.weight'.*is the same weight as 'a\.weight': name that one"):
        regrow.find_layers(model, include="b")
    counted = regrow.count_flops(model, torch.zeros(1, 12, device=device))
    assert counted.layers["a.weight"].dense == 2 * 2 * 1600
    assert "b.weight" not in counted.layers
    assert counted == regrow.count_flops(model, torch.zeros(1, 12, device=device))


@pytest.mark.parametrize("tie", ["parameter", "data"])
def test_an_output_over_the_memory_of_an_embedding_stays_dense_with_it(tie: str) -> None:
    model = nn.ModuleDict(
        {"table": nn.Embedding(50, 24), "head": nn.Linear(24, 50, bias=False), "fc": nn.Linear(24, 24)}
    )
    if tie == "data":
        model["head"].weight.data = model["table"].weight.data
    else:
        model["head"].weight = nn.Parameter(model["table"].weight)
    assert list(regrow.find_layers(model)) == ["fc.weight"]
    sparsifier = regrow.attach(model, sgd(*model.parameters()), RIGL)
    assert bool((model["table"].weight != 0).all())
    assert list(sparsifier.masks) == ["fc.weight"]


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("tie", OTHERWISE)
def test_parameters_that_share_memory_in_another_way_are_refused_with_both_names(tie: str, storage: str) -> None:
    model = Two()
    OTHERWISE[tie](model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer, second = sgd(*model.parameters()), "last" if tie == "rows" else "b"
    for refused in (
        lambda: regrow.attach(model, optimizer, RIGL, storage=storage),
        lambda: regrow.find_layers(model),
        lambda: regrow.plan(model, RIGL),
        lambda: regrow.find_layers(model, exclude=second),
    ):
        with pytest.raises(ValueError, match=rf"'a\.weight' and '{second}\.weight' are two parameters.*exclude="):
            refused()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not optimizer._optimizer_step_pre_hooks
    assert not model.a.weight._backward_hooks
    regrow.attach(model, optimizer, RIGL, storage=storage, exclude=["a", second])
    assert torch.equal(model.a.weight, before["a.weight"])


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("tie", SAME)
def test_an_optimizer_that_steps_one_weight_as_two_parameters_is_refused(tie: str, storage: str) -> None:
    model = Two()
    SAME[tie](model)
    before = model.a.weight.detach().clone()
    with pytest.raises(ValueError, match=r"'a\.weight' and 'b\.weight', two parameters over the same memory"):
        regrow.attach(model, sgd(*model.parameters()), RIGL, storage=storage)
    assert torch.equal(model.a.weight, before)
    model.b.weight = model.a.weight
    regrow.attach(model, sgd(*model.parameters()), RIGL, storage=storage)


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("tie", SAME)
def test_what_is_tied_by_memory_stays_so_while_it_trains_and_after(tie: str, storage: str) -> None:
    model = Two()
    SAME[tie](model)
    parameters = [parameter for parameter in model.parameters() if parameter is not model.b.weight]
    optimizer = sgd(*parameters)
    sparsifier = regrow.attach(model, optimizer, RIGL, storage=storage, strict=True)
    for number in range(15):
        step(model, optimizer, number)
        model.b.weight.grad = None
        state = model.state_dict()
        assert torch.equal(state["a.weight"], state["b.weight"])
        assert not state["b.weight"][~sparsifier.masks["a.weight"]].any()
    assert sparsifier.num_updates == 3
    if storage == "compact":
        assert "shared" in str(sparsifier)
    masks = {name: mask.clone() for name, mask in sparsifier.masks.items()}
    sparsifier.detach()
    assert identity(model.a.weight) == identity(model.b.weight)
    regrow.compact(model, masks if storage == "dense" else None)
    assert model.a.weight.dim() == 2
    assert identity(model.a.weight) == identity(model.b.weight)
    assert model.first.weight.dim() == 1
    counted = regrow.count_flops(model, torch.zeros(1, 12), masks)
    assert counted.layers["a.weight"].dense == 2 * 2 * 1600
    assert counted.layers["a.weight"].sparse == 2 * 2 * int(masks["a.weight"].sum())


@pytest.mark.parametrize("storage", STORAGES)
def test_a_copy_which_torch_unties_is_masked_in_both_places(storage: str) -> None:
    model = Two()
    by_parameter(model)
    optimizer = sgd(*[parameter for parameter in model.parameters() if parameter is not model.b.weight])
    sparsifier = regrow.attach(model, optimizer, RIGL, storage=storage)
    average = copy.deepcopy(model)
    assert identity(average.a.weight) != identity(average.b.weight)
    nn.init.ones_(average.a.weight)
    nn.init.ones_(average.b.weight)
    sparsifier.apply_masks(average)
    assert torch.equal(average.a.weight.bool(), sparsifier.masks["a.weight"])
    assert torch.equal(average.b.weight, average.a.weight)


def test_slices_of_one_buffer_that_do_not_overlap_are_weights_of_their_own() -> None:
    model = Two()
    flat, matrix = torch.randn(480 + 200), torch.randn(40, 80)
    model.first.weight.data, model.last.weight.data = flat[:480].view(40, 12), flat[480:].view(5, 40)
    model.a.weight.data, model.b.weight.data = matrix[:, :40], matrix[:, 40:]
    optimizer = sgd(*model.parameters())
    sparsifier = regrow.attach(model, optimizer, RIGL, strict=True)
    for number in range(9):
        step(model, optimizer, number)
    assert list(sparsifier.masks) == ["first.weight", "a.weight", "b.weight", "last.weight"]
    counted = regrow.count_flops(model, torch.zeros(1, 12), sparsifier.masks)
    for name, mask in sparsifier.masks.items():
        assert counted.layers[name].dense == 2 * mask.numel()
        assert counted.layers[name].sparse == 2 * int(mask.sum())


def test_an_optimizer_that_steps_a_flat_buffer_under_the_weights_is_refused() -> None:
    model = Two()
    flat = nn.Parameter(torch.randn(1600))
    model.a.weight.data = flat.data.view(40, 40)
    with pytest.raises(ValueError, match=r"'a\.weight' and 'parameter 0 of the optimizer', two parameters over"):
        regrow.attach(model, sgd(flat, *model.parameters()), RIGL)


def test_the_memory_of_an_attached_weight_is_attached_also_in_another_model() -> None:
    model, other = Two(), Two()
    sparsifier = regrow.attach(model, sgd(*model.parameters()), RIGL)
    other.a.weight = nn.Parameter(model.a.weight.t())
    with pytest.raises(ValueError, match="attached to these weights already"):
        regrow.attach(other, sgd(*other.parameters()), RIGL)
    with pytest.raises(ValueError, match="a sparsifier is attached to this model"):
        regrow.compact(other)
    sparsifier.detach()
    nn.init.normal_(model.a.weight)
    regrow.attach(other, sgd(*other.parameters()), RIGL)


def tied_later_by_assignment(model: Two) -> None:
    model.b.weight = model.a.weight


def tied_later_by_data(model: Two) -> None:
    model.b.weight.data = model.a.weight.data


def transposed_later(model: Two) -> None:
    model.b.weight.data = model.a.weight.data.t()


def one_more_module(model: Two) -> None:
    model.extra = nn.Linear(40, 40)
    model.extra.weight = nn.Parameter(model.a.weight.detach())


@pytest.mark.parametrize("excluded", [[], "b"], ids=["both attached", "one attached"])
@pytest.mark.parametrize("tie", [tied_later_by_assignment, tied_later_by_data, transposed_later, one_more_module])
def test_a_tie_that_comes_about_after_attaching_is_refused(tie, excluded) -> None:
    model = Two()
    optimizer = sgd(*model.parameters())
    regrow.attach(model, optimizer, RIGL, exclude=excluded)
    steps(model, optimizer, range(3))
    tie(model)
    with pytest.raises(RuntimeError, match=r"call detach\(\)"):
        steps(model, optimizer, range(3, 6))


def test_memory_that_moves_without_a_tie_raises_no_alarm() -> None:
    model = Two()
    optimizer = sgd(*model.parameters())
    sparsifier = regrow.attach(model, optimizer, RIGL)
    average = copy.deepcopy(model)
    for number in range(10):
        step(model, optimizer, number)
        for _ in range(2):  # an average is put in for an evaluation, and taken out again
            for parameter, other in zip(model.parameters(), average.parameters(), strict=True):
                parameter.data, other.data = other.data, parameter.data
        if number % 2:
            model.a.weight.data = model.a.weight.data.clone()
        sparsifier.apply_masks(model)  # the average was taken under other masks
    assert sparsifier.num_updates == 2
    assert all(math.isfinite(float(value.sum())) for value in model.state_dict().values())
