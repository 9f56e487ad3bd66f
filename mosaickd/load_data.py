"""The images of a run: which there are, which of them a teacher chooses, and who deals them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from mosaickd.build import build
from mosaickd.config.schema import training_source
from mosaickd.data.broken import Broken
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
from mosaickd.errors import UserError
from mosaickd.losses import entropy
from mosaickd.methods.base import SourceName, Stream
from mosaickd.models.weights import weights_digest


class Gallery:
    """The test images, and those that the method trains on, read when it is built.

    check: called between batches of a long pass; may raise to stop.
    """

    def __init__(
        self,
        cfg: DictConfig,
        *,
        device: torch.device,
        autocast: Callable[[], AbstractContextManager[object]],
        check: Callable[[], None],
    ) -> None:
        self.cfg = cfg
        self.device = device
        self.autocast = autocast
        self.check = check
        self.sources: dict[SourceName, Source] = {"dataset": build(cfg.dataset)}
        source = training_source(cfg)
        if source == "ood":
            self.sources["ood"] = build(cfg.ood)
        dataset = self.sources["dataset"]
        if "ood" in self.sources and self.sources["ood"].image_size != dataset.image_size:
            raise UserError(
                f"dataset.image_size is {dataset.image_size} and ood.image_size is "
                f"{self.sources['ood'].image_size}: give both the same"
            )
        self.test = distributed.rank0_first(lambda: dataset.load("test"))
        self.test_batches = TestBatches(
            self.test,
            batch_size=cfg.train.eval_batch_size,
            mean=dataset.mean,
            std=dataset.std,
            device=self.device,
            channels_last=cfg.train.channels_last,
            part=distributed.rank(),
            parts=distributed.world_size(),
        )
        self.images: dict[SourceName, ImageSet] = {}
        if source is not None:
            self.images[source] = distributed.rank0_first(
                lambda: self.sources[source].load("train")
            )
            subset = "the ood_subset of " if source == "ood" and cfg.ood_subset else ""
            name = f"{subset}{self.sources[source].name}"
            check_batch_size(cfg.train.batch_size, self.count_of(source), name)

    @property
    def broken(self) -> dict[str, Broken]:
        """The images that were left out because they can't be read: where there are any."""
        splits = {"dataset/test": self.test}
        splits |= {f"{source}/train": images for source, images in self.images.items()}
        return {name: images.broken for name, images in splits.items() if images.broken}

    def count_of(self, source: SourceName) -> int:
        """How many images the method has to train on."""
        if source not in self.images:
            return 0
        available = len(self.images[source])
        if source != "ood" or not self.cfg.ood_subset:
            return available
        count = self.cfg.ood_subset_size or self.sources["dataset"].train_size
        if count is None:
            raise UserError(
                "ood_subset=true takes as many images as the teacher had, and dataset.train_size "
                "doesn't say how many those were: set ood_subset_size=N"
            )
        if count > available:
            raise UserError(
                f"ood_subset=true wants {count} images, and {self.sources['ood'].name} has "
                f"{available}: set ood_subset_size=N to fewer, or leave out ood_subset"
            )
        return int(count)

    def fingerprints(self) -> dict[str, str]:
        """What changes with the images, by source and split."""
        sets = {"dataset/test": self.test}
        sets |= {f"{source}/train": images for source, images in self.images.items()}
        return {name: fingerprint(images)[:16] for name, images in sets.items()}

    def epoch_steps(self) -> int | None:
        """Iterations of an epoch: a setting, or one pass over the images. None: no images."""
        train = self.cfg.train
        if train.epoch_steps is not None or not self.images:
            return train.epoch_steps
        (source,) = self.images
        return -(-self.count_of(source) // train.batch_size)

    def choose_subset(self, teacher: nn.Module, *, keep: bool = True) -> None:
        """Of the OOD images, keep those that the teacher is least sure about (its appendix).
        keep: write down which these are, for others."""
        images = self.images["ood"]
        count, source = self.count_of("ood"), self.sources["ood"]
        dataset = self.sources["dataset"]
        chosen_by = hashlib.sha256(f"{dataset.mean} {dataset.std}".encode())
        chosen_by.update(weights_digest(teacher).encode())
        chosen_by.update(fingerprint(images).encode())
        folder = Path(self.cfg.teachers_dir) / dataset.label / "subsets"
        name = f"{source.label}-{count}-by-{self.cfg.teacher.name}-{chosen_by.hexdigest()[:16]}"
        kept = distributed.rank0_first(
            lambda: most_uncertain(
                lambda: self.ask(
                    teacher, images, entropy, "asking the teacher about all OOD images"
                ),
                count=count,
                path=folder / f"{name}.safetensors",
                what=source.name,
                keep=keep,
            )
        )
        distributed.broadcast(kept)  # where it can't be kept in a file, each has chosen
        self.images["ood"] = images.only(kept)

    def ask(
        self,
        teacher: nn.Module,
        images: ImageSet,
        question: Callable[[Tensor], Tensor],
        what: str,
        statistics: SourceName = "dataset",
    ) -> Tensor:
        """`question` (logits [B, C] -> [B]) of the teacher's logits for each image, unaugmented."""
        source = self.sources[statistics]
        normalize = Normalize(source.mean, source.std).to(self.device)
        return predict(
            teacher,
            images.images,
            question,
            prepare=lambda batch: normalize(batch.float() / 255),
            what=what,
            batch_size=self.cfg.train.eval_batch_size,
            device=self.device,
            autocast=self.autocast,
            check=self.check,
        )

    def loaders(
        self,
        streams: Mapping[str, Stream],
        teacher: nn.Module | None,
        seed: Callable[[str], int],
    ) -> dict[str, ResidentLoader]:
        """One loader a stream; streams of the same source share its images on the device.

        teacher: whose classes are balanced, where a stream asks for that; seed: by purpose.
        """
        train = self.cfg.train
        self.images = {name: images.to(self.device) for name, images in self.images.items()}
        loaders = {}
        for name, stream in streams.items():
            statistics = self.sources[stream.statistics]
            data = self.images[stream.source]
            kind = ResidentLoader
            if stream.balanced:
                assert teacher is not None, "who else could balance what has no labels?"
                predicted = self.ask(
                    teacher,
                    data,
                    lambda logits: logits.argmax(dim=1),
                    f"asking the teacher for the classes of {self.sources[stream.source].name}",
                    stream.statistics,
                )
                distributed.broadcast(predicted)
                data = replace(data, labels=predicted.to(self.device), classes=self.test.classes)
                kind = BalancedLoader
            loaders[name] = kind(
                data,
                batch_size=train.batch_size,
                mean=statistics.mean,
                std=statistics.std,
                augment=stream.augment,
                seed=seed(f"stream {name}"),
                device=self.device,
                channels_last=train.channels_last,
                name=self.sources[stream.source].name,
                share=distributed.rank_slice(train.batch_size),
            )
        return loaders
