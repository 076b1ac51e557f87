"""Models from outside: trained sparse as they are, with exact counts and zeros that stay."""

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from conformance.training_loop import dead_entries
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import regrow

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN:UserWarning")

BATCH, LENGTH, WORDS, CLASSES = 4, 6, 30, 5


def words(seed: int) -> Tensor:
    return torch.randint(WORDS, (BATCH, LENGTH), generator=torch.Generator().manual_seed(seed))


def numbers(seed: int, *shape: int) -> Tensor:
    return torch.randn((BATCH, *shape), generator=torch.Generator().manual_seed(seed))


def classes(seed: int) -> Tensor:
    return torch.randint(CLASSES, (BATCH,), generator=torch.Generator().manual_seed(1000 + seed))


Loss = Callable[[nn.Module, int], Tensor]
"""The loss of a model on the batch of one step."""


def bert() -> tuple[nn.Module, Loss]:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = transformers.BertConfig(vocab_size=WORDS, max_position_embeddings=LENGTH, **sizes)
    return transformers.BertForMaskedLM(config), lambda model, seed: model(words(seed), labels=words(seed + 1)).loss


def gpt2() -> tuple[nn.Module, Loss]:
    transformers = pytest.importorskip("transformers")
    sizes = {"n_embd": 16, "n_layer": 2, "n_head": 2, "bos_token_id": 0, "eos_token_id": 0}
    config = transformers.GPT2Config(vocab_size=WORDS, n_positions=LENGTH, **sizes)
    return transformers.GPT2LMHeadModel(config), lambda model, seed: model(words(seed), labels=words(seed)).loss


def vit() -> tuple[nn.Module, Loss]:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = transformers.ViTConfig(image_size=8, patch_size=4, num_labels=CLASSES, **sizes)
    model = transformers.ViTForImageClassification(config)
    return model, lambda model, seed: model(numbers(seed, 3, 8, 8), labels=classes(seed)).loss


def transformer() -> tuple[nn.Module, Loss]:
    model = nn.Transformer(16, 2, 1, 1, dim_feedforward=32, batch_first=True, dropout=0.0)

    def loss(model: nn.Module, seed: int) -> Tensor:
        return (model(numbers(seed, LENGTH, 16), numbers(seed + 1, 3, 16)) - numbers(seed + 2, 3, 16)).square().mean()

    return model, loss


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase], **options: Any) -> None:
        super().__init__()
        self.embedding = nn.Embedding(WORDS, 8)
        self.recurrent = kind(8, 12, num_layers=2, bidirectional=True, batch_first=True, **options)
        self.head = nn.Linear(24 if "proj_size" not in options else 2 * options["proj_size"], CLASSES)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.recurrent(self.embedding(inputs))[0][:, -1])


def _classifies(model: nn.Module, seed: int) -> Tensor:
    return nn.functional.cross_entropy(model(words(seed)), classes(seed))


def gru() -> tuple[nn.Module, Loss]:
    return Recurrent(nn.GRU), _classifies


def lstm() -> tuple[nn.Module, Loss]:
    return Recurrent(nn.LSTM, proj_size=5), _classifies


def shared() -> tuple[nn.Module, Loss]:
    """One block used twice, and two layers tied by one weight."""
    block, first, last = nn.Linear(12, 12), nn.Linear(12, 12), nn.Linear(12, 12)
    last.weight = first.weight
    model = nn.Sequential(block, nn.ReLU(), block, nn.ReLU(), first, nn.ReLU(), last, nn.Linear(12, CLASSES))
    return model, lambda model, seed: nn.functional.cross_entropy(model(numbers(seed, 12)), classes(seed))


def fused_attention() -> tuple[nn.Module, Loss]:
    """Queries, keys and values from one matrix, in a layer that also has a fast path for evaluation."""
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, dropout=0.0)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    return model, lambda model, seed: (model(numbers(seed, LENGTH, 16)) - numbers(seed + 1, LENGTH, 16)).square().mean()


def images() -> tuple[nn.Module, Loss]:
    """Grouped and transposed convolutions, in channels_last memory."""
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1, groups=4),
        nn.ReLU(),
        nn.ConvTranspose2d(8, 6, 2, stride=2),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(24, CLASSES),
    ).to(memory_format=torch.channels_last)
    return model, lambda model, seed: nn.functional.cross_entropy(model(numbers(seed, 3, 8, 8)), classes(seed))


MODELS = [bert, gpt2, vit, transformer, gru, lstm, shared, fused_attention, images]
RECIPES = {"rigl": regrow.rigl, "rigl-sm": regrow.rigl_sm, "snfs": regrow.snfs, "pruning": regrow.gradual_pruning}


def seeded(build: Callable[[], tuple[nn.Module, Loss]]) -> tuple[nn.Module, Loss]:
    torch.manual_seed(0)
    return build()


def attach(model: nn.Module, recipe: str = "rigl") -> tuple[torch.optim.Optimizer, regrow.Sparsifier]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    extra = {"start": 2} if recipe == "pruning" else {}
    record = RECIPES[recipe](sparsity=0.8, total_steps=20, every=2, **extra)
    return optimizer, regrow.attach(model, optimizer, record, strict=True)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, loss: Loss, steps: range) -> Iterator[int]:
    for step in steps:
        loss(model, step).backward()
        optimizer.step()
        optimizer.zero_grad()
        yield step


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("build", MODELS, ids=lambda build: build.__name__)
def test_trained_sparse_as_it_is(build, recipe) -> None:
    model, loss = seeded(build)
    keys, ids = list(model.state_dict()), [id(parameter) for parameter in model.parameters()]
    optimizer, sparsifier = attach(model, recipe)
    layers = regrow.find_layers(model)
    size, budget = sum(layer.size for layer in layers.values()), sum(sparsifier.num_alive.values())
    assert set(sparsifier.masks) == set(layers)
    for _ in train(model, optimizer, loss, range(18)):
        for what, dead, expected in dead_entries(sparsifier):
            assert bool((dead == expected).all()), what
        for name, mask in sparsifier.masks.items():
            assert int(mask.sum()) == sparsifier.num_alive[name] >= 1
        if recipe != "pruning":
            assert sum(sparsifier.num_alive.values()) == budget
    assert sparsifier.num_updates == (6 if recipe.startswith("rigl") else 7)
    assert recipe != "pruning" or sum(sparsifier.num_alive.values()) == round(0.2 * size)
    assert list(model.state_dict()) == keys
    assert [id(parameter) for parameter in model.parameters()] == ids
    assert all(bool(parameter.isfinite().all()) for parameter in model.parameters())


def test_every_weight_of_gpt2_that_multiplies_is_found_but_not_the_embedding_that_is_its_output_layer() -> None:
    model, _ = gpt2()
    multiplied = regrow.count_flops(model, {"input_ids": words(0)}).layers
    assert set(regrow.find_layers(model)) == set(multiplied) - {"transformer.wte.weight"}
    _, sparsifier = attach(model)
    assert not (model.transformer.wte.weight == 0).any()
    assert model.lm_head.weight is model.transformer.wte.weight
    assert sparsifier.masks["transformer.h.0.attn.c_attn.weight"].shape == (16, 48)  # (in, out): it is transposed
    flops = regrow.count_flops(model, {"input_ids": words(0)}, sparsifier.masks)
    assert flops.sparse == sum(
        entry.dense if name not in sparsifier.masks else 2 * BATCH * LENGTH * sparsifier.num_alive[name]
        for name, entry in flops.layers.items()
    )


def test_bert_leaves_its_tied_output_layer_and_embeddings_dense() -> None:
    model, _ = bert()
    _, sparsifier = attach(model)
    assert len(sparsifier.masks) == 2 * 6 + 1
    assert not [name for name in sparsifier.masks if "embedding" in name or "decoder" in name]


def test_a_shared_module_and_a_tied_weight_have_one_mask_each() -> None:
    model, _ = shared()
    _, sparsifier = attach(model)
    assert list(sparsifier.masks) == ["0.weight", "4.weight", "7.weight"]
    assert not model[6].weight[~sparsifier.masks["4.weight"]].any()


@pytest.mark.parametrize("build", MODELS, ids=lambda build: build.__name__)
def test_an_ema_copy_is_kept_sparse_and_a_deepcopy_is_free(build) -> None:
    model, loss = seeded(build)
    optimizer, sparsifier = attach(model)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    for _ in train(model, optimizer, loss, range(10)):
        average.update_parameters(model)
        sparsifier.apply_masks(average)
        for name, mask in sparsifier.masks.items():
            assert not average.module.get_parameter(name)[~mask].any()
    twin, stepper = copy.deepcopy((model, optimizer))
    before = {name: mask.clone() for name, mask in sparsifier.masks.items()}
    for _ in train(twin, stepper, loss, range(10, 14)):
        pass
    assert any(twin.get_parameter(name)[~mask].any() for name, mask in before.items()), "a copy trains dense"
    assert all(torch.equal(mask, sparsifier.masks[name]) for name, mask in before.items())
    assert all(not model.get_parameter(name)[~mask].any() for name, mask in before.items())


@pytest.mark.parametrize("build", MODELS, ids=lambda build: build.__name__)
def test_evaluation_and_export_see_the_same_zeros(build, tmp_path) -> None:
    """A state_dict loaded into a fresh plain model gives the same loss, fast paths included."""
    model, loss = seeded(build)
    optimizer, sparsifier = attach(model)
    for _ in train(model, optimizer, loss, range(5)):
        pass
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    plain, _ = build()
    plain.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
    with torch.no_grad():
        torch.testing.assert_close(loss(plain.eval(), 0), loss(model.eval(), 0))
    assert all(not plain.get_parameter(name)[~mask].any() for name, mask in sparsifier.masks.items())
