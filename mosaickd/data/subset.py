"""The part of a large out-of-domain set that a run uses: the images that a teacher doubts most."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from mosaickd.data.source import ImageSet
from mosaickd.errors import UserError
from mosaickd.utils.files import remove_temporaries, write_atomically
from mosaickd.utils.locks import build_lock

log = logging.getLogger(__name__)

HASHED_PIXELS = 48 * 2**20  # bytes: 16,384 images of 32x32
HASHED_LABELS = 16 * 2**20  # bytes: two million labels
READ_CHUNK = 1024  # images gathered at once


def most_uncertain(
    scores: Callable[[], Tensor], *, count: int, path: Path, what: str, keep: bool = True
) -> Tensor:
    """Return the indices of the `count` highest scores, int64 [count], ascending.

    scores(): [N], called only where the file `path` (.safetensors) does not hold the answer, by
    one process at a time: others wait, and take over from one that was killed. It must not
    wait for other processes. what: whose images these are, for messages. keep: write that file.
    Raises UserError for more images than there are, and for scores that are not finite.
    """
    if count < 1:
        raise UserError(f"a subset of {what} must have at least 1 image, got {count}")
    indices = _read(path, count)
    if indices is not None:
        return indices
    if not keep:
        return select_highest(scores(), count, what)
    with ExitStack() as stack:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(build_lock(path.with_name(f".{path.stem}.making"), what))
        except OSError as error:
            log.warning("the choice among %s can't be kept in %s: %s", what, path.parent, error)
            return select_highest(scores(), count, what)
        indices = _read(path, count)  # another process may have chosen meanwhile
        if indices is not None:
            return indices
        if path.exists():
            log.warning("%s is not the choice that was meant: choosing again", path)
        remove_temporaries(path.parent, of=path.stem)
        values = scores()
        indices = select_highest(values, count, what)
        # One entry: the format has no order for several, and equal choices are equal files.
        content = save({"indices": indices}, {"images": str(len(values))})
        try:
            write_atomically(path, lambda file: file.write(content))
        except OSError as error:
            log.warning("the choice among %s can't be kept in %s: %s", what, path, error)
        return indices


def select_highest(scores: Tensor, count: int, what: str) -> Tensor:
    """Return the indices of the highest scores; of equal ones, the lower index.

    scores: [N] -> int64 [count], ascending
    """
    scores = scores.detach().cpu()
    assert scores.ndim == 1, scores.shape
    if count > len(scores):
        raise UserError(
            f"a subset of {count} images is asked of {what}, but there are only {len(scores)}; "
            "ask for fewer, or take them all"
        )
    wrong = (~scores.isfinite()).nonzero().flatten()
    if len(wrong):
        first = int(wrong[0])
        raise UserError(
            f"the score of image {first} of {what} is {float(scores[first])} ({len(wrong)} of "
            f"{len(scores)} are not finite): the network that scored it has unusable weights, or "
            "gets images of the wrong normalization"
        )
    return scores.sort(descending=True, stable=True).indices[:count].sort().values


def _read(path: Path, count: int) -> Tensor | None:
    """Return the indices in a file; None where there is none, or a wrong one."""
    try:
        with safe_open(path, "pt") as file:
            indices = file.get_tensor("indices").clone()  # not a view of the file
            images = int((file.metadata() or {})["images"])
    except Exception:  # a damaged header surfaces as nearly anything
        return None
    fits = indices.dtype == torch.int64 and indices.shape == (count,)
    if not fits or indices[0] < 0 or indices[-1] >= images or (indices.diff() <= 0).any():
        return None
    return indices


def fingerprint(data: ImageSet) -> str:
    """Return a sha256, in hex, that changes with the images; read at most 64 MB of them.

    Hashed are the shape, the images and the labels: all of them up to 48 MiB of images and
    16 MiB of labels; beyond, as many as that holds, evenly spaced from the first to the last.
    """
    digest = hashlib.sha256(repr(tuple(data.images.shape)).encode())
    for rows, limit in ((data.images, HASHED_PIXELS), (data.labels, HASHED_LABELS)):
        count = len(rows)
        sampled = min(count, max(1, limit // max(1, rows[:1].nbytes)))
        # k * (count - 1) // (sampled - 1): the first and the last are among them
        spaced = torch.arange(sampled) * (count - 1) // max(1, sampled - 1)
        for index in spaced.split(READ_CHUNK):
            part = rows[index.to(rows.device)].cpu().contiguous()
            digest.update(part.numpy().data)
    return digest.hexdigest()
