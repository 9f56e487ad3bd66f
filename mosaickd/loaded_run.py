"""A run brought back from its folder: its images, its teacher, and what its generator makes.

For whoever looks at a run from outside (`mosaickd.figures`), who needs no torch: all that goes in
or out is numpy's. Nothing is trained, and nothing is written in the run's folder or its teachers'.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from mosaickd import teachers
from mosaickd.build import derived_seed, teacher_path
from mosaickd.components import Parts
from mosaickd.config import schema as config
from mosaickd.config.validation import validate
from mosaickd.engine.checkpoint import load_checkpoint, newest_readable
from mosaickd.engine.device import autocast_for, choose_device
from mosaickd.errors import UserError
from mosaickd.files import read_json
from mosaickd.load_data import Gallery
from mosaickd.methods.base import Latents
from mosaickd.models.weights import weights_digest
from mosaickd.run_setup import HYDRA

BATCH = 200  # images that are looked at together

#: uint8 [n, 3, H, W]
Pixels = np.ndarray


class LoadedRun:
    """The run in `folder`, on `device`.

    allow_targets: packages that its config may build from, beside this one, torch and torchvision:
    a config can't vouch for itself. Raises UserError where the folder holds no run that was begun,
    or where its images or its teacher are not those it was played with.
    """

    def __init__(
        self, folder: Path, *, device: str = "auto", allow_targets: Sequence[str] = ()
    ) -> None:
        self.folder = folder
        self.cfg = read_config(folder, allow_targets)
        self.result: dict[str, Any] = read_json(folder / "result.json") or {}
        self.cfg.train.compile = False
        self.device = choose_device(device)
        _, self.autocast = autocast_for(self.device, "fp32")
        self.gallery = Gallery(
            self.cfg, device=self.device, autocast=self.autocast, check=lambda: None
        )
        self.check("data_fingerprint", self.gallery.fingerprints(), "images")
        self.parts = Parts(
            self.cfg,
            device=self.device,
            num_classes=len(self.gallery.test.classes),
            instances=self.gallery.count_of("ood"),
            steps=self.result.get("total_steps") or self.cfg.train.steps or 1,
        )
        if self.parts.teacher is None:
            raise UserError(f"{folder}: method={self.cfg.method.name} has no teacher to ask")
        teachers.load(self.parts.teacher, self.teacher_path())
        self.check("teacher_fingerprint", weights_digest(self.parts.teacher)[:16], "teacher")

    def teacher_path(self) -> Path:
        """Where the run's teacher lies; what a run was cut short with is in its own folder."""
        if self.cfg.teacher.get("checkpoint") is not None:
            return Path(self.cfg.teacher.checkpoint).expanduser()
        own = self.folder / "teacher" / f"{self.cfg.teacher.name}.safetensors"
        path = own if own.exists() else teacher_path(self.cfg)
        if not path.exists():
            raise UserError(
                f"{self.folder}: its teacher is not at {path}: run this where the run was begun"
            )
        return path

    def check(self, key: str, now: Any, what: str) -> None:
        before = self.result.get(key)
        if before is not None and before != now:
            raise UserError(
                f"{self.folder} was played with another {key.removesuffix('_fingerprint')}: these "
                f"are not its {what} ({key} {before}, here {now})"
            )

    # ------------------------------------------------------------------------------- images

    def domain(self, count: int) -> Pixels:
        """Test images of the teacher's domain, evenly chosen. -> uint8 [<= count, 3, H, W]."""
        return evenly(self.gallery.test.images, count)

    def ood(self, count: int) -> Pixels:
        """The OOD images that the run was trained on, evenly chosen. -> uint8 [<= count, ...]."""
        if "ood" not in self.gallery.images:
            raise UserError(f"{self.folder}: method={self.cfg.method.name} has no OOD images")
        return evenly(self.ood_images, count)

    @cached_property
    def ood_images(self) -> Tensor:
        if self.cfg.ood_subset and self.parts.teacher is not None:
            self.gallery.choose_subset(self.parts.teacher, keep=False)
        return self.gallery.images["ood"].images

    @torch.no_grad()
    def synthetic(self, count: int) -> Pixels:
        """What the generator makes of noise, as the newest checkpoint left it.

        -> uint8 [<= count, 3, H, W]; fewer where a method keeps images in place of a generator.
        """
        method = self.played
        latents = None
        if "latents" in self.parts.wanted:
            seed = derived_seed(self.cfg.seed, "figures")
            latents = Latents(self.parts.latents.dim, self.device, seed)
        made: list[Tensor] = []
        while sum(map(len, made)) < count:
            with self.autocast():
                images = method.synthesize(latents(BATCH) if latents else None)
            if images is None:
                raise UserError(
                    f"{self.folder}: method={self.cfg.method.name} makes no images, or hasn't yet"
                )
            pixels = self.parts.in_domain.inverse(images.float()).clamp(0, 1)
            made.append(pixels.mul(255).round().byte().cpu())
            if latents is None:
                break
        return torch.cat(made)[:count].numpy()

    @cached_property
    def played(self) -> Any:
        """The method with its players as they were at the newest checkpoint, in eval mode."""
        path = newest_readable(self.folder / "checkpoints" / "last.pt", read_only=True)
        if path is None:
            raise UserError(f"{self.folder} has no checkpoint, so no generator")
        game = load_checkpoint(path)["trainer"]
        method = self.parts.method
        try:
            for name, module in method.players.items():
                module.load_state_dict(game["players"][name]["module"])
                module.eval()
            method.load_state_dict(game["method"])
        except Exception as error:  # of a file that holds anything
            raise UserError(f"{path} does not fit the run's config ({error})") from error
        return method

    # ------------------------------------------------------------------------------- features

    @cached_property
    def probe(self) -> Callable[[Tensor], tuple[Tensor, list[Tensor]]]:
        return self.parts.probe("teacher", "embedding")

    @torch.no_grad()
    def embed(self, images: Pixels) -> tuple[np.ndarray, np.ndarray]:
        """The teacher's penultimate features [n, D] and its classes [n] of images [n, 3, h, w].

        Images of another size than the teacher's are enlarged or shrunk to it.
        """
        size = self.parts.image_size
        features, classes = [], []
        for batch in torch.from_numpy(images).split(BATCH):
            pixels = batch.to(self.device).float() / 255
            if pixels.shape[-1] != size:
                pixels = torch.nn.functional.interpolate(
                    pixels, (size, size), mode="bilinear", antialias=True
                )
            with self.autocast():
                logits, (embedding,) = self.probe(self.parts.in_domain(pixels))
            features.append(embedding.flatten(1).double().cpu().numpy())
            classes.append(logits.argmax(dim=1).cpu().numpy())
        return np.concatenate(features), np.concatenate(classes)


def read_config(folder: Path, allow_targets: Sequence[str] = ()) -> DictConfig:
    """The config of the run in `folder`, validated. Raises UserError."""
    config.register()
    path = folder / HYDRA / "config.yaml"
    if not path.is_file():
        raise UserError(f"{folder} is no run's folder: it has no {path.relative_to(folder)}")
    try:
        loaded = OmegaConf.load(path)
        cfg = OmegaConf.merge(OmegaConf.structured(config.Root), loaded)
        assert isinstance(cfg, DictConfig)
        cfg.allow_targets = list(allow_targets)
    except Exception as error:  # of a file that holds anything
        said = " ".join(str(error).split())[:300]
        raise UserError(f"{path} is no config of this version's ({said})") from error
    try:
        validate(cfg)
    except UserError as error:
        said = str(error).replace("allow_targets=[", "--allow-targets [")
        raise UserError(f"{path}: {said}") from error
    return cfg


def evenly(images: Tensor, count: int) -> Pixels:
    """At most `count` of them, from the first to the last."""
    chosen = torch.linspace(0, len(images) - 1, min(count, len(images))).round().long()
    return images.cpu()[chosen].numpy()
