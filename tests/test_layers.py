import warnings

import pytest
import torch
from torch import nn

import regrow


def names(model: nn.Module, **options) -> list[str]:
    return list(regrow.find_layers(model, **options))


def test_every_kind_of_weight_is_found_and_nothing_else() -> None:
    model = nn.ModuleDict(
        {
            "c1": nn.Conv1d(2, 3, 3),
            "c2": nn.Conv2d(2, 3, 3),
            "c3": nn.Conv3d(2, 3, 3),
            "t2": nn.ConvTranspose2d(2, 3, 3),
            "fc": nn.Linear(4, 5),
            "attention": nn.MultiheadAttention(8, 2),
            "cross": nn.MultiheadAttention(8, 2, kdim=6, vdim=4),
            "gru": nn.GRU(4, 6, num_layers=2, bidirectional=True),
            "lstm": nn.LSTM(4, 6, proj_size=3),
            "cell": nn.GRUCell(4, 6),
            "norm": nn.LayerNorm([4, 4]),
            "bn": nn.BatchNorm2d(4),
            "embedding": nn.Embedding(10, 4),
        }
    )
    found = names(model)
    assert found[:6] == ["c1.weight", "c2.weight", "c3.weight", "t2.weight", "fc.weight", "attention.in_proj_weight"]
    assert "attention.out_proj.weight" in found
    assert {"cross.q_proj_weight", "cross.k_proj_weight", "cross.v_proj_weight"} <= set(found)
    assert {"gru.weight_ih_l0", "gru.weight_hh_l1_reverse", "lstm.weight_hr_l0", "cell.weight_hh"} <= set(found)
    assert not [name for name in found if name.startswith(("norm", "bn", "embedding")) or "bias" in name]
    assert len(found) == 7 + 4 + 8 + 3 + 2


def test_tied_weights_count_once_and_an_output_tied_to_an_embedding_not_at_all() -> None:
    model = nn.Module()
    model.a, model.b = nn.Linear(4, 4), nn.Linear(4, 4)
    model.b.weight = model.a.weight
    model.embedding, model.head = nn.Embedding(10, 4), nn.Linear(4, 10, bias=False)
    model.head.weight = model.embedding.weight
    assert names(model) == ["a.weight"]


def test_the_second_name_of_a_tied_weight_is_answered_with_the_first() -> None:
    model = nn.Module()
    model.a, model.b = nn.Linear(4, 4), nn.Linear(4, 4)
    model.b.weight = model.a.weight
    model.embedding, model.head = nn.Embedding(10, 4), nn.Linear(4, 10, bias=False)
    model.head.weight = model.embedding.weight
    with pytest.raises(ValueError, match=r"'b\.weight', .*is the same weight as 'a\.weight': name that one"):
        names(model, include="b")
    with pytest.raises(ValueError, match=r"'head\.weight'.*'embedding\.weight': an embedding, which stays dense"):
        names(model, include="head")


def test_a_shared_module_counts_once() -> None:
    block = nn.Linear(4, 4)
    assert names(nn.Sequential(block, nn.ReLU(), block)) == ["0.weight"]


def test_globs_choose_by_parameter_or_module_name() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Conv2d(1, 2, 3), nn.Linear(4, 2))
    assert names(model, include="0") == ["0.weight"]
    assert names(model, include=["2.weight", "0"]) == ["0.weight", "2.weight"]
    assert names(model, exclude=["1", "2"]) == ["0.weight"]
    assert names(model, include="*", exclude="0.*") == ["1.weight", "2.weight"]


class Raw(nn.Module):
    """A weight of a module that the library does not know."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(6, 4))
        self.fc = nn.Linear(4, 4)


def test_other_matrices_are_taken_when_named() -> None:
    assert names(Raw()) == ["fc.weight"]
    assert names(Raw(), include="table") == ["table"]
    assert names(Raw(), include=["table", "fc"]) == ["fc.weight", "table"]


@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
def test_wrappers_are_seen_through() -> None:
    model = nn.Sequential(nn.Linear(4, 4))
    assert names(torch.compile(model)) == ["0.weight"]
    assert names(nn.DataParallel(model)) == ["0.weight"]


@pytest.mark.parametrize("options", [{"include": "nosuch"}, {"exclude": "nosuch"}, {"include": ["fc", "fcc"]}])
def test_a_pattern_that_matches_nothing_is_refused_with_a_hint(options) -> None:
    with pytest.raises(ValueError, match=r"matches none of the layers fc\.weight"):
        regrow.find_layers(Raw() if "nosuch" in str(options) else nn.ModuleDict({"fc": nn.Linear(2, 2)}), **options)


def test_a_model_of_unknown_modules_is_refused_with_the_names_of_its_matrices() -> None:
    model = Raw()
    del model.fc
    with pytest.raises(ValueError, match=r"name a parameter .* in include= \(table\)"):
        regrow.find_layers(model)


def test_the_hint_names_the_nearest_layer() -> None:
    with pytest.raises(ValueError, match="did you mean 'encoder'"):
        regrow.find_layers(nn.ModuleDict({"encoder": nn.Linear(2, 2)}), include="encodr")


@pytest.mark.parametrize("model", [nn.LayerNorm(4), nn.Sequential(nn.ReLU()), nn.Embedding(3, 4)])
def test_a_model_without_sparsifiable_layers_is_refused(model) -> None:
    with pytest.raises(ValueError, match="no sparsifiable layer"):
        regrow.find_layers(model)


@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")
def test_a_lazy_module_is_refused_with_the_remedy() -> None:
    with pytest.raises(ValueError, match="run one forward pass"):
        regrow.find_layers(nn.LazyLinear(4))


def test_a_weight_without_entries_is_no_layer() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says that there is nothing to initialise
        model = nn.Sequential(nn.Linear(0, 4), nn.Linear(4, 3))
    assert list(regrow.find_layers(model)) == ["1.weight"]
