"""From a data set on the device to the batches of an epoch: a function of seed, epoch and number, without state."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Generator, Tensor
from torch.utils.data import DataLoader

from regrow_lab.data.augment import Augmentation
from regrow_lab.data.folder import Listing, decode_files

Batch = tuple[Tensor, Tensor]
IGNORED = -100
"""The label of what is not to be predicted (torch's own ignore_index)."""
MOST_WORKERS = 8


class Part(Protocol):
    """Training, validation or test data, cut into batches of inputs and labels on the device."""

    def __len__(self) -> int:
        """Number of samples in an epoch."""
        ...

    def batches(
        self, order: Tensor, batch_size: int, *, seed: int = 0, epoch: int = 0, first: int = 0
    ) -> Iterator[Batch]:
        """The batches of an epoch.

        Args:
            order: a permutation of the samples' numbers, on the CPU.
            batch_size: samples in each batch; the last may be smaller.
            seed: of what is random beside the order.
            epoch: likewise: each epoch is random in its own way.
            first: number of the batch to begin with, for a run that goes on inside an epoch.
        """
        ...


@dataclass(frozen=True)
class Parts:
    """What a run trains on, and what it is measured on at its end."""

    train: Part
    validation: Part | None
    test: Part
    num_classes: int
    example: Tensor
    """One sample as the net takes it, with the batch dimension."""
    is_text: bool = False


def generator_for(device: torch.device, *key: object) -> Generator:
    """A generator on `device` that depends on the key alone."""
    digest = hashlib.blake2b("/".join(map(str, key)).encode(), digest_size=8).digest()
    return Generator(device).manual_seed(int.from_bytes(digest) >> 1)


@dataclass(frozen=True)
class Vectors:
    """Samples that are used as they are."""

    inputs: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def batches(
        self, order: Tensor, batch_size: int, *, seed: int = 0, epoch: int = 0, first: int = 0
    ) -> Iterator[Batch]:
        """See Part."""
        for chosen in order.to(self.labels.device).split(batch_size)[first:]:
            yield self.inputs.index_select(0, chosen), self.labels.index_select(0, chosen)


@dataclass(frozen=True)
class Pixels:
    """How uint8 images (… × height × width × channels) become the inputs of a net: augmented, then normalised.

    The result is float32, batch × channels × height × width, in channels-last order of memory.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    augmentation: Augmentation | None = None

    def inputs(self, images: Tensor, chosen: Tensor, *key: object) -> Tensor:
        """The inputs of the `chosen` images; the key is of what is random."""
        if self.augmentation is None:
            batch = images.index_select(0, chosen)
        else:
            batch = self.augmentation(images, chosen, generator_for(images.device, "augmentation", *key))
        # Whole rows of pixels at a time: three channels alone are too few for the vector units of a CPU.
        width = batch.shape[2]
        shift = (torch.tensor(self.mean, device=batch.device) * 255).repeat(width)
        scale = (1 / (torch.tensor(self.std, device=batch.device) * 255)).repeat(width)
        normalised = batch.flatten(2).float().sub_(shift).mul_(scale)
        return normalised.view(batch.shape).permute(0, 3, 1, 2)


@dataclass(frozen=True)
class Images:
    """Images that live on the device as uint8."""

    images: Tensor
    labels: Tensor
    pixels: Pixels

    def __len__(self) -> int:
        return len(self.labels)

    def batches(
        self, order: Tensor, batch_size: int, *, seed: int = 0, epoch: int = 0, first: int = 0
    ) -> Iterator[Batch]:
        """See Part."""
        for number, chosen in enumerate(order.to(self.labels.device).split(batch_size)):
            if number >= first:
                yield self.pixels.inputs(self.images, chosen, seed, epoch, number), self.labels[chosen]


@dataclass(frozen=True)
class StreamedImages:
    """Images too many for the memory: decoded by worker processes while the net trains, augmented on the device."""

    listing: Listing
    image_size: int
    pixels: Pixels
    device: torch.device

    def __len__(self) -> int:
        return len(self.listing.files)

    def batches(
        self, order: Tensor, batch_size: int, *, seed: int = 0, epoch: int = 0, first: int = 0
    ) -> Iterator[Batch]:
        """See Part."""
        batches = [chosen.tolist() for chosen in order.split(batch_size)][first:]
        daemon = multiprocessing.current_process().daemon  # which may have no children: it decodes by itself
        loader: DataLoader[Batch | ValueError] = DataLoader(
            _Files(self.listing, self.image_size, channels=len(self.pixels.mean)),  # type: ignore[arg-type]  # a set that gives whole batches
            batch_sampler=batches,
            num_workers=0 if daemon else min(os.cpu_count() or 1, MOST_WORKERS, len(batches)),
            collate_fn=_as_it_is,  # type: ignore[arg-type]  # which are not to be collated
            pin_memory=self.device.type == "cuda",
            generator=Generator(),  # else it would draw from the global one, and a resumed run would be another
        )
        for number, batch in enumerate(loader, start=first):
            if isinstance(batch, ValueError):
                raise batch
            images, labels = batch
            on_device = images.to(self.device, non_blocking=True)
            everything = torch.arange(len(labels), device=self.device)
            yield self.pixels.inputs(on_device, everything, seed, epoch, number), labels.to(self.device)


@dataclass(frozen=True)
class _Files:
    listing: Listing
    image_size: int
    channels: int
    """1 of images that are all grey, else 3."""

    def __len__(self) -> int:
        return len(self.listing.files)

    def __getitems__(self, numbers: list[int]) -> Batch | ValueError:
        """A whole batch at once, as DataLoader asks for it; what is wrong with a file, not buried in a traceback."""
        try:
            images = decode_files([self.listing.files[number] for number in numbers], self.image_size)
        except ValueError as error:
            return error
        return images[..., : self.channels].contiguous(), torch.tensor(
            [self.listing.labels[number] for number in numbers]
        )


def _as_it_is(batch: Batch | ValueError) -> Batch | ValueError:
    return batch


@dataclass(frozen=True)
class Windows:
    """Stretches of a text (uint8), to be predicted character by character.

    Training windows do not overlap and begin at another place in every epoch; those of a test begin at 0 and cover the
    whole text, each character once.
    """

    text: Tensor
    length: int
    moving: bool

    def __len__(self) -> int:
        last = len(self.text) - 1  # the first character is not predicted
        return (last - self.length + 1) // self.length if self.moving else -(-last // self.length)

    def batches(
        self, order: Tensor, batch_size: int, *, seed: int = 0, epoch: int = 0, first: int = 0
    ) -> Iterator[Batch]:
        """See Part. Inputs and labels are batch × length, int64; the labels are the inputs one character on."""
        device, last = self.text.device, len(self.text) - 1 - self.length
        within = torch.arange(self.length + 1, device=device)
        offset = 0
        if self.moving:
            generator = generator_for(torch.device("cpu"), "windows", seed, epoch)
            offset = int(torch.randint(self.length, (), generator=generator))
        for chosen in order.to(device).split(batch_size)[first:]:
            wanted = (chosen * self.length + offset).unsqueeze(1)
            start = wanted.clamp_max(last)  # the last window of a test reaches back over the one before it
            characters = self.text[start + within].long()
            labels = characters[:, 1:]
            yield characters[:, :-1], labels.masked_fill(start + within[:-1] < wanted, IGNORED)


def held_out(samples: int, validation: int, data: str) -> tuple[Tensor, Tensor]:
    """Numbers of the samples to train on and of those held out: one split for every seed.

    Raises ValueError if nothing would be left to train on.
    """
    if validation >= samples:
        raise ValueError(f"validation holds out {validation} samples, data {data} has {samples}: hold out fewer")
    order = torch.randperm(samples, generator=Generator().manual_seed(0))
    return order[validation:].sort().values, order[:validation].sort().values
