"""The images of a run: which there are, which of them a teacher chooses, and their loaders."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from mosaickd.components import build, derived_seed
from mosaickd.config.schema import training_source
from mosaickd.data.decode import Broken
from mosaickd.data.loader import (
    BalancedLoader,
    Normalize,
    ResidentLoader,
    TestBatches,
    check_batch_size,
)
from mosaickd.data.source import ImageSet, Source
from mosaickd.data.subset import fingerprint, most_uncertain
from mosaickd.engine import distributed
from mosaickd.engine.predict import predict
from mosaickd.engine.progress import counting
from mosaickd.errors import UserError
from mosaickd.losses import entropy
from mosaickd.methods.base import SourceName, Stream
from mosaickd.models.weights import weights_digest

#: logits [B, C] -> [B]
Reduce = Callable[[Tensor], Tensor]
#: (images, reduce, title, source whose normalization) -> [N]: a network's view of many images.
Predict = Callable[[ImageSet, Reduce, str, SourceName], Tensor]


@dataclass(frozen=True)
class RunData:
    """The images of one run, in memory.

    train: those that the method trains on, of `train_source`; None for a data-free method.
    """

    sources: Mapping[SourceName, Source]
    test: ImageSet
    train_source: SourceName | None
    train: ImageSet | None

    @property
    def splits(self) -> dict[str, ImageSet]:
        """Return the image sets by source and split."""
        splits = {"dataset/test": self.test}
        if self.train is not None:
            splits[f"{self.train_source}/train"] = self.train
        return splits

    @property
    def fingerprints(self) -> dict[str, str]:
        """Return what changes with the images, by source and split."""
        return {name: fingerprint(images)[:16] for name, images in self.splits.items()}

    @property
    def broken(self) -> dict[str, Broken]:
        """Return the images that were left out because they can't be read, where there are any."""
        return {name: images.broken for name, images in self.splits.items() if images.broken}


def load_data(cfg: DictConfig) -> RunData:
    """Read the test images and those that the method trains on.

    Raises UserError where images are missing or damaged, where the two sources differ in size, and
    where a batch is larger than the training images.
    """
    sources: dict[SourceName, Source] = {"dataset": build(cfg.dataset)}
    train_source = training_source(cfg)
    if train_source == "ood":
        sources["ood"] = build(cfg.ood)
        if sources["ood"].image_size != sources["dataset"].image_size:
            raise UserError(
                f"dataset.image_size is {sources['dataset'].image_size} and ood.image_size is "
                f"{sources['ood'].image_size}: give both the same"
            )
    test = distributed.rank0_first(lambda: sources["dataset"].load("test", counting))
    if train_source is None:
        return RunData(sources, test, None, None)
    train = distributed.rank0_first(lambda: sources[train_source].load("train", counting))
    data = RunData(sources, test, train_source, train)
    subset = "the ood_subset of " if train_source == "ood" and cfg.ood_subset else ""
    name = f"{subset}{sources[train_source].name}"
    check_batch_size(cfg.train.batch_size, count_train_images(cfg, data), name)
    return data


def count_train_images(cfg: DictConfig, data: RunData) -> int:
    """Return how many images the method trains on: of an ood_subset those that are chosen."""
    if data.train is None:
        return 0
    available = len(data.train)
    if data.train_source != "ood" or not cfg.ood_subset:
        return available
    count = cfg.ood_subset_size or data.sources["dataset"].train_size
    if count is None:
        raise UserError(
            "ood_subset=true takes as many images as the teacher had, and dataset.train_size "
            "doesn't say how many those were: set ood_subset_size=N"
        )
    if count > available:
        raise UserError(
            f"ood_subset=true wants {count} images, and {data.sources['ood'].name} has "
            f"{available}: set ood_subset_size=N to fewer, or leave out ood_subset"
        )
    return int(count)


def epoch_steps(cfg: DictConfig, data: RunData) -> int | None:
    """Return the iterations of an epoch: a setting, or one pass over the images, if there are."""
    if cfg.train.epoch_steps is not None or data.train is None:
        return cfg.train.epoch_steps
    return -(-count_train_images(cfg, data) // cfg.train.batch_size)


def predictor(
    cfg: DictConfig,
    data: RunData,
    network: nn.Module,
    *,
    device: torch.device,
    autocast: Callable[[], AbstractContextManager[object]],
) -> Predict:
    """Return a function that reduces the network's logits of many unaugmented images, [N]."""

    def predict_all(
        images: ImageSet, reduce: Reduce, title: str, normalization: SourceName = "dataset"
    ) -> Tensor:
        source = data.sources[normalization]
        normalize = Normalize(source.mean, source.std).to(device)
        return predict(
            network,
            images.images,
            reduce,
            prepare=lambda batch: normalize(batch.float() / 255),
            title=title,
            batch_size=cfg.train.eval_batch_size,
            device=device,
            autocast=autocast,
        )

    return predict_all


def select_ood_subset(
    cfg: DictConfig, data: RunData, teacher: nn.Module, predict: Predict, *, cache: bool = True
) -> RunData:
    """Return the data with the OOD images that the teacher is least sure about (appendix).

    cache: keep the choice beside the teacher, for other runs.
    """
    assert data.train is not None
    images, count = data.train, count_train_images(cfg, data)
    source, dataset = data.sources["ood"], data.sources["dataset"]
    key = hashlib.sha256(f"{dataset.mean} {dataset.std}".encode())
    key.update(weights_digest(teacher).encode())
    key.update(fingerprint(images).encode())
    folder = Path(cfg.teachers_dir) / dataset.label / "subsets"
    name = f"{source.label}-{count}-by-{cfg.teacher.name}-{key.hexdigest()[:16]}.safetensors"
    title = "asking the teacher about all OOD images"
    indices = distributed.rank0_first(
        lambda: most_uncertain(
            lambda: predict(images, entropy, title, "dataset"),
            count=count,
            path=folder / name,
            what=source.name,
            keep=cache,
        )
    )
    distributed.broadcast(indices)  # where it can't be kept in a file, each rank has chosen
    return replace(data, train=images.only(indices))


# ---------------------------------------------------------------------------------------- loaders


def build_test_batches(cfg: DictConfig, data: RunData, device: torch.device) -> TestBatches:
    """Return this rank's part of the test images, normalised, in batches."""
    dataset = data.sources["dataset"]
    return TestBatches(
        data.test,
        batch_size=cfg.train.eval_batch_size,
        mean=dataset.mean,
        std=dataset.std,
        device=device,
        channels_last=cfg.train.channels_last,
        part=distributed.rank(),
        parts=distributed.world_size(),
    )


def build_loaders(
    cfg: DictConfig,
    data: RunData,
    streams: Mapping[str, Stream],
    device: torch.device,
    predict: Predict | None,
) -> dict[str, ResidentLoader]:
    """Return one loader a stream; streams of the same source share its images on the device.

    predict: of the teacher, whose classes are balanced where a stream asks for that.
    """
    if data.train is None:
        return {}
    images = data.train.to(device)
    loaders = {}
    for name, stream in streams.items():
        normalization = data.sources[stream.normalization]
        own, kind = images, ResidentLoader
        if stream.balanced:
            assert predict is not None, "only a teacher can balance what has no labels"
            title = f"asking the teacher for the classes of {data.sources[stream.source].name}"
            labels = predict(
                images, lambda logits: logits.argmax(dim=1), title, stream.normalization
            )
            distributed.broadcast(labels)
            own = replace(images, labels=labels.to(device), classes=data.test.classes)
            kind = BalancedLoader
        loaders[name] = kind(
            own,
            batch_size=cfg.train.batch_size,
            mean=normalization.mean,
            std=normalization.std,
            augment=stream.augment,
            seed=derived_seed(cfg.seed, f"stream {name}"),
            device=device,
            channels_last=cfg.train.channels_last,
            name=data.sources[stream.source].name,
            share=distributed.rank_slice(cfg.train.batch_size),
        )
    return loaders
