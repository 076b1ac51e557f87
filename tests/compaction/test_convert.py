"""Trained sparse nets made compact, back, as sparse tensors, and on disk; damaged files are refused."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import convnet, mlp
from torch import Tensor, nn

import regrow
from regrow.checksummed_files import digest_of
from regrow.compaction.compact_modules import CompactLayer

safetensors = pytest.importorskip("safetensors.torch")


def sparse(model: nn.Module, sparsity: float = 0.8) -> tuple[nn.Module, dict[str, Tensor]]:
    torch.manual_seed(0)
    masks = {}
    for name, layer in regrow.find_layers(model).items():
        scores = torch.rand(layer.shape)
        masks[name] = scores > torch.quantile(scores, sparsity)
        masks[name].flatten()[-1] = True
        model.get_parameter(name).data.mul_(masks[name])
    return model, masks


def test_compact_and_back() -> None:
    model, masks = sparse(convnet())
    model.eval()
    x, state = torch.randn(4, 3, 8, 8), {k: v.clone() for k, v in model.state_dict().items()}
    expected = model(x)
    assert regrow.compact(model, masks) is model
    assert [name for name, layer in model.named_modules() if isinstance(layer, CompactLayer)] == ["0", "3", "7"]
    assert model.get_parameter("3.weight").shape == (int(masks["3.weight"].sum()),)
    torch.testing.assert_close(model(x), expected)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert regrow.to_dense(model) is model
    assert "forward" not in vars(model)
    assert [type(module) for module in model.modules()] == [type(module) for module in convnet().modules()]
    assert torch.equal(model(x), expected)


def test_without_masks_it_takes_what_is_not_zero() -> None:
    model, _ = sparse(mlp())
    with torch.no_grad():
        model.get_parameter("4.weight").fill_(1.0)
    regrow.compact(model)
    assert [isinstance(model.get_submodule(name), CompactLayer) for name in "024"] == [True, True, False]


@pytest.mark.parametrize(
    ("masks", "words"),
    [
        ({"1.weight": torch.ones(8, dtype=torch.bool)}, "names no weight"),
        ({"0.bias": torch.ones(8, dtype=torch.bool)}, "names no weight"),
        ({"9.weight": torch.ones(8, dtype=torch.bool)}, "names no weight"),
        ({"0.weight": torch.ones(8, dtype=torch.bool)}, r"expected shape \(8, 3, 3, 3\)"),
        ({"0.weight": torch.zeros(8, 3, 3, 3, dtype=torch.bool)}, "0 alive weights"),
    ],
)
def test_masks_that_do_not_fit_are_refused(masks: dict[str, Tensor], words: str) -> None:
    model = convnet()
    good = {"3.weight": torch.ones(12, 8, 3, 3, dtype=torch.bool)}
    with pytest.raises(ValueError, match=words):
        regrow.compact(model, good | masks)
    assert not any(isinstance(module, CompactLayer) for module in model.modules())


class Varied(nn.Module):
    """A weight of every kind that has no compact form, between two that have one."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 5)
        self.grouped = nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.mirrored = nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect")
        self.attention, self.recurrent = nn.MultiheadAttention(8, 2, batch_first=True), nn.GRU(8, 8, batch_first=True)
        self.lines, self.tied = nn.Conv1d(8, 8, 3, padding=1), nn.Linear(8, 8, bias=False)
        self.again = nn.Linear(8, 8)
        self.again.weight = self.tied.weight

    def forward(self, x: Tensor) -> Tensor:
        x = self.mirrored(self.grouped(torch.relu(self.first(x)))).flatten(2)
        tokens = self.lines(x).transpose(1, 2)
        tokens = self.recurrent(self.attention(tokens, tokens, tokens)[0])[0]
        return self.head(self.again(torch.relu(self.tied(tokens))).mean(1))


def test_what_has_no_compact_form_stays_dense_with_its_zeros() -> None:
    torch.manual_seed(0)
    model = Varied()
    sparsifier = regrow.attach(model, torch.optim.SGD(model.parameters(), 0.1), regrow.static(sparsity=0.8))
    masks, images = sparsifier.masks, torch.randn(2, 3, 6, 6)
    sparsifier.detach()
    expected = model(images)
    regrow.compact(model, masks)
    assert [name for name, layer in model.named_modules() if isinstance(layer, CompactLayer)] == ["first", "head"]
    torch.testing.assert_close(model(images), expected)
    assert all(torch.equal(model.state_dict()[name] != 0, mask) for name, mask in masks.items())
    with pytest.raises(ValueError, match=r"'first.weight' is compact already.*to_dense"):
        regrow.compact(model, masks)


def test_what_stays_dense_is_masked_too() -> None:
    torch.manual_seed(0)
    model, other = (Varied() for _ in range(2))
    other.load_state_dict(model.state_dict())
    masks = {name: torch.rand(layer.shape) < 0.3 for name, layer in regrow.find_layers(model).items()}
    for name, mask in masks.items():
        mask.flatten()[0] = True
        other.get_parameter(name).data.mul_(mask)
    images = torch.randn(2, 3, 6, 6)
    torch.testing.assert_close(regrow.compact(model, masks)(images), other(images))
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in model.state_dict().items())


def test_masks_of_other_types_mean_what_is_not_zero(runs_engine: None) -> None:
    images = torch.randn(3, 3, 9, 9)
    expected = None
    for dtype in (torch.bool, torch.float32, torch.int64, torch.uint8):
        model, masks = sparse(convnet())
        regrow.compact(model, {name: mask.to(dtype) for name, mask in masks.items()})
        outputs = model(images)
        expected = outputs if expected is None else expected
        assert torch.equal(outputs, expected)


def test_a_state_that_the_pattern_lacks_makes_it_larger(runs_engine: None) -> None:
    model, masks = sparse(mlp())
    regrow.compact(model, masks)
    inputs, other = torch.randn(3, 12), mlp(seed=1)
    model(inputs)
    model.load_state_dict(other.state_dict())
    torch.testing.assert_close(model(inputs), other(inputs), atol=1e-5, rtol=1e-4)
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in model.state_dict().items())


def test_a_replaced_parameter_is_what_is_saved(runs_engine: None) -> None:
    model, masks = sparse(mlp())
    regrow.compact(model, masks)
    before = model.state_dict()["0.weight"].clone()
    model[0].weight = nn.Parameter(2 * model[0].weight.detach())
    assert torch.equal(model.state_dict()["0.weight"], 2 * before)
    assert torch.equal(regrow.sparse_tensors(model)["0.weight"].to_dense(), 2 * before)
    assert torch.equal(regrow.to_dense(model).state_dict()["0.weight"], 2 * before)


def test_what_is_made_compact_in_inference_mode_can_be_trained(runs_engine: None) -> None:
    model, masks = sparse(mlp())
    with torch.inference_mode():
        regrow.compact(model, masks)
        model(torch.randn(4, 12))
    model(torch.randn(4, 12)).sum().backward()
    assert model[0].weight.grad is not None


def test_sparse_tensors() -> None:
    model, masks = sparse(nn.Sequential(nn.Conv2d(4, 8, 3), nn.Linear(6, 4)))
    dense = {name: model.get_parameter(name).detach().clone().flatten(1) for name in masks}
    with pytest.raises(ValueError, match="no layer"):
        regrow.sparse_tensors(model)
    regrow.compact(model, masks)
    for name, matrix in regrow.sparse_tensors(model).items():
        assert matrix.layout == torch.sparse_csr
        assert matrix.values().numel() == int(masks[name].sum())
        assert torch.equal(matrix.to_dense(), dense[name])
    for name, matrix in regrow.sparse_tensors(model, "bsr", (4, 2)).items():
        assert matrix.layout == torch.sparse_bsr
        assert torch.equal(matrix.to_dense(), dense[name])
    with pytest.raises(ValueError, match="do not divide '0\\.weight'"):
        regrow.sparse_tensors(model, "bsr", (4, 5))
    with pytest.raises(ValueError, match="expected 'csr' or 'bsr'"):
        regrow.sparse_tensors(model, "coo")  # type: ignore[arg-type]


@pytest.mark.parametrize("sparsity", [0.8, 0.99])
def test_a_file_holds_everything_and_states_its_size(tmp_path: Path, sparsity: float) -> None:
    model, masks = sparse(nn.Sequential(nn.Linear(64, 128), nn.BatchNorm1d(128), nn.Linear(128, 10)), sparsity)
    with torch.no_grad():
        first = int(masks["0.weight"].flatten().nonzero()[0])
        model.get_parameter("0.weight").flatten()[first] = 0.0  # alive, and 0
    x = torch.randn(4, 64)
    model(x)
    state = {k: v.clone() for k, v in model.state_dict().items()}
    regrow.compact(model, masks)
    size = regrow.save_compact(model, tmp_path / "net.safetensors")
    assert size.file == (tmp_path / "net.safetensors").stat().st_size < 0.4 * size.dense
    assert "bytes" in str(size)
    names = set(safetensors.load_file(tmp_path / "net.safetensors"))
    assert ("0.weight.mask" in names) == (sparsity == 0.8) == ("0.weight.indices" not in names)
    other = nn.Sequential(nn.Linear(64, 128), nn.BatchNorm1d(128), nn.Linear(128, 10))
    regrow.load_compact(other, tmp_path / "net.safetensors")
    assert all(torch.equal(value, state[name]) for name, value in other.state_dict().items())
    assert torch.equal(other[0].compact.indices, model[0].compact.indices)
    assert torch.equal(other(x), model(x))
    with pytest.raises(ValueError, match="already"):
        regrow.load_compact(other, tmp_path / "net.safetensors")


def change(name: str, tensor: Tensor | None) -> Any:
    def damage(tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
        tensors.pop(name, None)
        if tensor is not None:
            tensors[name] = tensor

    return damage


def shapes(found: Any) -> Any:
    return lambda tensors, metadata: metadata.update(shapes=found if isinstance(found, str) else json.dumps(found))


INT = torch.int32
DAMAGES = {
    "out of bounds": (change("2.weight.indices", torch.tensor([0, 1, 999_999], dtype=INT)), "not ascending positions"),
    "negative": (change("2.weight.indices", torch.tensor([-5, 1, 2], dtype=INT)), "not ascending positions"),
    "unsorted": (change("2.weight.indices", torch.tensor([3, 1, 7], dtype=INT)), "not ascending positions"),
    "twice": (change("2.weight.indices", torch.tensor([3, 3, 7], dtype=INT)), "not ascending positions"),
    "too few": (change("2.weight.indices", torch.tensor([3], dtype=INT)), "3 values for 1 alive"),
    "none": (change("2.weight.indices", torch.tensor([], dtype=INT)), "not ascending positions"),
    "fractions": (change("2.weight.indices", torch.tensor([1.0, 2.0, 3.0])), "odd"),
    "no positions": (change("2.weight.indices", None), "parts"),
    "both": (change("2.weight.mask", torch.zeros(8, dtype=torch.uint8)), "parts"),
    "short mask": (change("0.weight.mask", torch.zeros(2, dtype=torch.uint8)), "is not 1024 bytes"),
    "empty mask": (change("0.weight.mask", torch.zeros(1024, dtype=torch.uint8)), "values for 0 alive"),
    "square values": (change("2.weight.values", torch.ones(3, 1)), "no list of numbers"),
    "whole values": (change("2.weight.values", torch.ones(3, dtype=INT)), "no list of numbers"),
    "long values": (change("2.weight.values", torch.ones(3, dtype=torch.float64)), "float64"),
    "no bias": (change("0.bias", None), "lacks 0.bias"),
    "other bias": (change("0.bias", torch.zeros(3)), "'0.bias' has shape"),
    "extra": (change("5.bias", torch.zeros(3)), "it has 5.bias besides"),
    "no shapes": (lambda tensors, metadata: metadata.pop("shapes"), "not lists of positive numbers"),
    "broken shapes": (shapes("{"), "no sound safetensors"),
    "huge shapes": (shapes({"0.weight": [128, 64], "2.weight": [2**40, 2**40]}), "not lists of positive"),
    "negative shapes": (shapes({"0.weight": [128, 64], "2.weight": [-10, -128]}), "not lists of positive"),
    "other shapes": (shapes({"0.weight": [64, 128], "2.weight": [10, 128]}), "the model has"),
    "other names": (shapes({"0.weight": [128, 64], "7.weight": [10, 128]}), "no such weight"),
    "other format": (lambda tensors, metadata: metadata.update(format="x"), "format"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_and_hostile_files_are_refused(tmp_path: Path, damage: str) -> None:
    def build() -> nn.Sequential:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))

    model, masks = sparse(build())
    masks["2.weight"] = torch.zeros(10, 128, dtype=torch.bool)
    masks["2.weight"].flatten()[:3] = True
    regrow.compact(model, masks)
    path = tmp_path / "net.safetensors"
    regrow.save_compact(model, path)
    with safetensors.safe_open(path, "pt") as file:
        tensors, metadata = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
    spoil, words = DAMAGES[damage]
    spoil(tensors, metadata)
    metadata["blake2b"] = digest_of(tensors, metadata.get("shapes", ""))  # what the checksum does not catch
    safetensors.save_file(tensors, path, metadata)
    victim = build()
    with pytest.raises(ValueError, match=words):
        regrow.load_compact(victim, path)
    assert all(torch.equal(value, build().state_dict()[name]) for name, value in victim.state_dict().items())


@settings(max_examples=60, deadline=None)
@given(share=st.floats(0, 1, exclude_max=True))
def test_no_flipped_bit_gives_other_weights(tmp_path_factory: pytest.TempPathFactory, share: float) -> None:
    model, masks = sparse(mlp())
    regrow.compact(model, masks)
    path = tmp_path_factory.mktemp("flipped") / "net.safetensors"
    regrow.save_compact(model, path)
    content = bytearray(path.read_bytes())
    bit = int(share * 8 * len(content))
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"damaged|no sound safetensors|format") as error:
        regrow.load_compact(mlp(), path)
    assert "\n" not in str(error.value)


def test_a_file_without_its_checksum_is_refused(tmp_path: Path) -> None:
    model, masks = sparse(mlp())
    regrow.compact(model, masks)
    path = tmp_path / "net.safetensors"
    regrow.save_compact(model, path)
    with safetensors.safe_open(path, "pt") as file:
        metadata = file.metadata()
    del metadata["blake2b"]
    safetensors.save_file(safetensors.load_file(path), path, metadata)
    with pytest.raises(ValueError, match=r"net.safetensors is damaged: its tensors have no checksum beside them"):
        regrow.load_compact(mlp(), path)


def test_cut_off_files_are_refused(tmp_path: Path) -> None:
    model, masks = sparse(mlp())
    regrow.compact(model, masks)
    path = tmp_path / "net.safetensors"
    regrow.save_compact(model, path)
    content = path.read_bytes()
    for length in (0, 4, 40, len(content) - 7):
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match="no sound safetensors file"):
            regrow.load_compact(mlp(), path)
    with pytest.raises(FileNotFoundError):
        regrow.load_compact(mlp(), tmp_path / "nothing")
    with pytest.raises(ValueError, match="no layer"):
        regrow.save_compact(mlp(), path)


def test_an_attached_model_is_refused(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(8, 8))
    sparsifier = regrow.attach(model, torch.optim.SGD(model.parameters(), 0.1), regrow.static(sparsity=0.8))
    regrow.save_compact(regrow.compact(nn.Sequential(nn.Linear(8, 8)), {"0.weight": torch.eye(8)}), tmp_path / "net")
    before = copy.deepcopy(model.state_dict())
    for make in (regrow.compact, lambda model: regrow.load_compact(model, tmp_path / "net")):
        with pytest.raises(ValueError, match=r"a sparsifier is attached to this model: call its detach\(\) first"):
            make(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    sparsifier.detach()
    assert regrow.compact(model)[0].weight.dim() == 1
