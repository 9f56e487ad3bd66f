"""Capture a network's features and batch-norm statistics with hooks at module paths.

The paths stand in the model's YAML (`features`, `embedding`), so that any torch module will do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mosaickd.errors import UserError

#: At one batch norm, [C] each: mean and unbiased variance of the batch, then the running ones.
BatchNormStats = tuple[Tensor, Tensor, Tensor, Tensor]


class FeatureExtractor:
    """Compute a network's logits and the features at some module paths, in one forward pass.

    of: "output", each module's map [B, C, H, W]; or "input", what it gets, flattened to [B, D].
    Hooks are registered once, before the network is compiled, and are idle unless the extractor is
    called. `shapes`: of each feature, without the batch, measured with `example` [1, 3, H, W].
    Raise UserError, which begins with `setting`, for a path that the network doesn't have or a
    forward pass doesn't reach.
    """

    def __init__(
        self,
        network: nn.Module,
        paths: Sequence[str],
        *,
        example: Tensor,
        setting: str,
        of: Literal["output", "input"] = "output",
    ) -> None:
        self.network = network
        self.paths = list(paths)
        self._captured: dict[str, Tensor] | None = None  # None: the hooks are idle
        for path, module in modules_at(network, self.paths, setting).items():
            module.register_forward_hook(self._hook(path, of))
        with in_eval_mode(network):
            _, features = self(example)
        self.shapes = [tuple(feature.shape[1:]) for feature in features]
        for path, feature in zip(self.paths, features, strict=True):
            if of == "output" and feature.ndim != 4:
                raise UserError(
                    f"{setting}: {path} gives a tensor of shape {list(feature.shape)}; features "
                    "are maps [batch, channels, height, width]"
                )

    def __call__(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return the logits [B, classes] of images [B, 3, H, W], and the feature at each path."""
        self._captured = {}
        try:
            logits = self.network(images)
            missing = [path for path in self.paths if path not in self._captured]
            if missing:
                raise UserError(
                    f"the modules {', '.join(missing)} take no part in the forward pass, so they "
                    "have no features; name others"
                )
            return logits, [self._captured[path] for path in self.paths]
        finally:
            self._captured = None

    def _hook(self, path: str, of: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if self._captured is not None:
                self._captured[path] = inputs[0].flatten(1) if of == "input" else output

        return hook


class BatchNormStatsHook:
    """Compute a network's logits and the statistics of what each of its batch norms gets.

    what: the network's name in error messages. Raise UserError for a network without a batch norm
    that tracks running statistics.
    """

    def __init__(self, network: nn.Module, *, what: str) -> None:
        self.network = network
        self.norms = [
            module
            for module in network.modules()
            if isinstance(module, _BatchNorm) and module.running_mean is not None
        ]
        if not self.norms:
            raise UserError(
                f"{what} has no batch norm that tracks running statistics, and this method makes "
                "images whose statistics match those; choose another method, or another teacher"
            )
        self._captured: dict[int, tuple[Tensor, Tensor]] | None = None  # None: the hooks are idle
        for position, norm in enumerate(self.norms):
            norm.register_forward_pre_hook(self._hook(position))

    def __call__(self, images: Tensor) -> tuple[Tensor, list[BatchNormStats]]:
        """Return the logits [B, classes] of images [B, 3, H, W], and the statistics at each batch
        norm that took part, in the order of definition."""
        self._captured = {}
        try:
            logits = self.network(images)
            stats: list[BatchNormStats] = []
            for position, norm in enumerate(self.norms):
                if position in self._captured:
                    assert norm.running_mean is not None
                    assert norm.running_var is not None
                    stats.append((*self._captured[position], norm.running_mean, norm.running_var))
            return logits, stats
        finally:
            self._captured = None

    def _hook(self, position: int) -> Callable[[nn.Module, Any], None]:
        def hook(module: nn.Module, inputs: Any) -> None:
            if self._captured is not None:
                x = inputs[0].float()
                dims = [dim for dim in range(x.ndim) if dim != 1]
                var, mean = torch.var_mean(x, dim=dims, correction=1)
                self._captured[position] = (mean, var)

        return hook


def modules_at(network: nn.Module, paths: Sequence[str], setting: str) -> dict[str, nn.Module]:
    """Return the modules at these paths. Raise UserError, with the paths that exist, for others."""
    modules = {name: module for name, module in network.named_modules() if name}
    for path in paths:
        if path not in modules:
            top = path.split(".")[0]
            children = [name for name in modules if "." not in name]
            below = [name for name in modules if name.startswith(f"{top}.")][:20]
            raise UserError(
                f"{setting}: there is no module {path!r}; there are {', '.join(children)}"
                + (f"; and within {top}: {', '.join(below)}" if below else "")
            )
    return {path: modules[path] for path in paths}


@contextmanager
def in_eval_mode(network: nn.Module) -> Iterator[None]:
    """Put a network in eval mode, without gradients, and back in the mode that it was in."""
    training = network.training
    network.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        network.train(training)
