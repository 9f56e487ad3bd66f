"""A run loaded from its folder: its images, its teacher, and what its generator makes.

For figures, which know no torch: all that goes in or out is numpy's. Nothing is trained, and
nothing is written in the run's folder or beside its teacher.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor
from torch.nn.functional import interpolate

from mosaickd import teachers
from mosaickd.components import build_components, derived_seed, feature_extractor
from mosaickd.config import schema
from mosaickd.config.validation import validate
from mosaickd.engine.checkpoint import load_checkpoint, newest_readable
from mosaickd.engine.device import choose_device
from mosaickd.errors import UserError
from mosaickd.load_data import count_train_images, load_data, predictor, select_ood_subset
from mosaickd.methods.base import Latents, Method
from mosaickd.models.weights import weights_digest
from mosaickd.run_dir import RunDir

BATCH = 200  # images in a forward pass


class LoadedRun:
    """The run in `folder`, on `device`.

    allow_targets: packages that its config may build from, beside this one, torch and torchvision:
    a config can't vouch for itself. Raises UserError where the folder holds no run that was begun,
    and where its images or its teacher are not those that it was trained with.
    """

    def __init__(
        self, folder: Path, *, device: str = "auto", allow_targets: Sequence[str] = ()
    ) -> None:
        self.run = RunDir(folder)
        self.cfg = cfg = load_config(self.run, allow_targets)
        cfg.train.compile = False
        self.result = self.run.read_result()
        if self.result is None:
            raise UserError(f"{folder} has no result.json: the run was not begun")
        self.device = choose_device(device)
        data = load_data(cfg)
        self._check("data_fingerprint", data.fingerprints, "images")
        self.components = build_components(
            cfg,
            device=self.device,
            num_classes=len(data.test.classes),
            instances=count_train_images(cfg, data) if data.train_source == "ood" else 0,
            steps=self.result.total_steps or 1,
        )
        if self.components.teacher is None:
            raise UserError(f"{folder}: method={cfg.method.name} has no teacher to ask")
        self.teacher = self.components.teacher
        teachers.load(self.teacher, self._teacher_path())
        self._check("teacher_fingerprint", weights_digest(self.teacher)[:16], "teacher")
        if cfg.ood_subset and data.train_source == "ood":
            predict = predictor(cfg, data, self.teacher, device=self.device, autocast=nullcontext)
            data = select_ood_subset(cfg, data, self.teacher, predict, cache=False)
        self.data = data

    def _teacher_path(self) -> Path:
        """Return where the run's teacher lies; one that a short run trained is in its folder."""
        if self.cfg.teacher.get("checkpoint") is not None:
            return Path(self.cfg.teacher.checkpoint).expanduser()
        own = self.run.path / "teacher" / f"{self.cfg.teacher.name}.safetensors"
        path = own if own.exists() else teachers.teacher_path(self.cfg)
        if not path.exists():
            raise UserError(
                f"{self.run.path}: its teacher is not at {path}: run this where the run was begun"
            )
        return path

    def _check(self, name: str, now: Any, what: str) -> None:
        before = getattr(self.result, name)
        if before is not None and before != now:
            raise UserError(
                f"{self.run.path} was trained with other {what}: these are not its own ({name} "
                f"{before}, here {now})"
            )

    # ------------------------------------------------------------------------------- images

    def domain(self, count: int) -> np.ndarray:
        """Return test images of the teacher's domain, spread evenly: uint8 [<= count, 3, H, W]."""
        return spread(self.data.test.images, count)

    def ood(self, count: int) -> np.ndarray:
        """Return OOD images that the run was trained on, spread evenly: uint8 [<= count, ...].

        Raises UserError for a method without them.
        """
        if self.data.train is None or self.data.train_source != "ood":
            raise UserError(f"{self.run.path}: method={self.cfg.method.name} has no OOD images")
        return spread(self.data.train.images, count)

    @torch.no_grad()
    def synthetic(self, count: int) -> np.ndarray:
        """Return what the generator of the newest checkpoint makes: uint8 [<= count, 3, H, W].

        Fewer where a method keeps images in place of a generator. Raises UserError where there are
        none. The same noise is used at each call.
        """
        latents = None
        if self.components.latents is not None:
            seed = derived_seed(self.cfg.seed, "figures")
            latents = Latents(self.components.latents.dim, self.device, seed)
        batches: list[Tensor] = []
        while sum(map(len, batches)) < count:
            images = self.method.synthesize(latents(BATCH) if latents else None)
            if images is None:
                raise UserError(
                    f"{self.run.path}: method={self.cfg.method.name} makes no images, or hasn't yet"
                )
            pixels = self.components.normalize.inverse(images).clamp(0, 1)
            batches.append(pixels.mul(255).round().byte().cpu())
            if latents is None:
                break
        return torch.cat(batches)[:count].numpy()

    @cached_property
    def method(self) -> Method:
        """Return the method with its players as the newest checkpoint has them, in eval mode."""
        path = newest_readable(self.run.checkpoint, read_only=True)
        if path is None:
            raise UserError(f"{self.run.path} has no checkpoint, so no generator")
        state = load_checkpoint(path)["trainer"]
        method = self.components.method
        try:
            for name, module in method.players.items():
                module.load_state_dict(state["players"][name]["module"])
                module.eval()
            method.load_state_dict(state["method"])
        except (LookupError, TypeError, ValueError, RuntimeError, AssertionError) as error:
            raise UserError(f"{path} does not fit the run's config ({error})") from error
        return method

    # ------------------------------------------------------------------------------- features

    @torch.no_grad()
    def embed(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the teacher's penultimate features [n, D] and its classes [n].

        images: uint8 [n, 3, h, w], resized to the teacher's size where they have another.
        """
        size = int(self.cfg.dataset.image_size)
        features, classes = [], []
        for batch in torch.from_numpy(images).split(BATCH):
            pixels = batch.to(self.device).float() / 255
            if pixels.shape[-1] != size:
                pixels = interpolate(pixels, (size, size), mode="bilinear", antialias=True)
            logits, (embedding,) = self._extractor(self.components.normalize(pixels))
            features.append(embedding.double().cpu().numpy())
            classes.append(logits.argmax(dim=1).cpu().numpy())
        return np.concatenate(features), np.concatenate(classes)

    @cached_property
    def _extractor(self) -> Any:
        size = int(self.cfg.dataset.image_size)
        example = torch.zeros(1, 3, size, size, device=self.device)
        return feature_extractor(self.cfg, "teacher", "embedding", self.teacher, example)


def load_config(run: RunDir, allow_targets: Sequence[str] = ()) -> DictConfig:
    """Return a run's config, validated. Raises UserError."""
    schema.register()
    if not run.config.is_file():
        raise UserError(f"{run.path} is no run's folder: it has no {run.config.name} in .hydra")
    try:
        cfg = OmegaConf.merge(OmegaConf.structured(schema.Root), OmegaConf.load(run.config))
        assert isinstance(cfg, DictConfig)
        cfg.allow_targets = list(allow_targets)
    except Exception as error:  # of a file that holds anything
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{run.config} is no config of this version's ({reason})") from error
    try:
        validate(cfg)
    except UserError as error:
        reason = str(error).replace("allow_targets=[", "--allow-targets [")
        raise UserError(f"{run.config}: {reason}") from error
    return cfg


def spread(images: Tensor, count: int) -> np.ndarray:
    """Return at most `count` of the images, from the first to the last."""
    places = torch.linspace(0, len(images) - 1, min(count, len(images))).round().long()
    return images.cpu()[places].numpy()
