"""Looking inside a network by hooks at module paths, without its knowing.

Any torch module can be probed: the paths stand in the model's YAML (`features`, `embedding`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mosaickd.errors import UserError

#: At one batch norm, [C] each: the batch's mean and unbiased variance, and the remembered ones.
Statistics = tuple[Tensor, Tensor, Tensor, Tensor]


class FeatureExtractor:
    """A network's logits together with what some of its modules take in or give out.

    Hooks are set once, before the network is compiled, and are idle unless the probe is called.
    `of` says what is taken: a module's "output", or its first "input" as a vector an image.
    Raises UserError for a path that the network doesn't have, or that a forward pass of `example`
    [1, 3, H, W] doesn't reach.
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
        self._taken: dict[str, Tensor] | None = None
        for path, module in modules_at(network, self.paths, setting).items():
            module.register_forward_hook(self._hook(path, of))
        with in_eval_mode(network):
            _, taken = self(example)
        self.shapes = [tuple(t.shape[1:]) for t in taken]
        for path, tensor in zip(self.paths, taken, strict=True):
            if of == "output" and tensor.ndim != 4:
                raise UserError(
                    f"{setting}: {path} gives a tensor of shape {list(tensor.shape)}; features are "
                    "maps [batch, channels, height, width]"
                )

    def __call__(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """images [B, 3, H, W] -> logits [B, classes], and each thing taken [B, ...]."""
        self._taken = {}
        try:
            logits = self.network(images)
            missing = [path for path in self.paths if path not in self._taken]
            if missing:
                raise UserError(
                    f"the modules {', '.join(missing)} take no part in the forward pass, so "
                    "nothing can be taken from them; name others"
                )
            return logits, [self._taken[path] for path in self.paths]
        finally:
            self._taken = None

    def _hook(self, path: str, of: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if self._taken is not None:
                self._taken[path] = inputs[0].flatten(1) if of == "input" else output

        return hook


class BatchNormStatsHook:
    """A network's logits, and the batch's statistics at the input of each of its batch norms.

    Raises UserError for a network without a batch norm that remembers statistics.
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
                f"{what} has no batch norm that remembers statistics, and this method makes images "
                "whose statistics match those; choose another method, or another teacher"
            )
        self._taken: dict[int, tuple[Tensor, Tensor]] | None = None
        for position, norm in enumerate(self.norms):
            norm.register_forward_pre_hook(self._hook(position))

    def __call__(self, images: Tensor) -> tuple[Tensor, list[Statistics]]:
        """images [B, 3, H, W] -> logits [B, classes], and the statistics of every batch norm that
        took part, in the order of definition."""
        self._taken = {}
        try:
            logits = self.network(images)
            statistics: list[Statistics] = []
            for position, norm in enumerate(self.norms):
                if position in self._taken:
                    assert norm.running_mean is not None
                    assert norm.running_var is not None
                    remembered = norm.running_mean, norm.running_var
                    statistics.append((*self._taken[position], *remembered))
            return logits, statistics
        finally:
            self._taken = None

    def _hook(self, position: int) -> Callable[[nn.Module, Any], None]:
        def hook(module: nn.Module, inputs: Any) -> None:
            if self._taken is not None:
                x = inputs[0].float()
                others = [dim for dim in range(x.ndim) if dim != 1]
                var, mean = torch.var_mean(x, dim=others, correction=1)
                self._taken[position] = (mean, var)

        return hook


def modules_at(network: nn.Module, paths: Sequence[str], setting: str) -> dict[str, nn.Module]:
    """The modules at these paths; a UserError lists those that there are."""
    known = {name: module for name, module in network.named_modules() if name}
    for path in paths:
        if path not in known:
            stages = [name for name in known if name.count(".") == 0]
            within = [n for n in known if n.startswith(path.split(".")[0] + ".")][:20]
            raise UserError(
                f"{setting}: there is no module {path!r}; there are {', '.join(stages)}"
                + (f"; and within {path.split('.')[0]}: {', '.join(within)}" if within else "")
            )
    return {path: known[path] for path in paths}


@contextmanager
def in_eval_mode(network: nn.Module) -> Iterator[None]:
    """Nothing inside moves batch-norm statistics or asks for gradients."""
    training = network.training
    network.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        network.train(training)
