"""Batch norms of several processes that play one run: what they remember, and what they see."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mosaickd.engine import distributed


def running_statistics(modules: Sequence[nn.Module]) -> list[Tensor]:
    """What the modules' batch norms remember. Its mean over the processes is what a batch norm
    would remember whose statistics were averaged at every step: remembering is linear."""
    found = []
    for module in modules:
        for norm in module.modules():
            if isinstance(norm, _BatchNorm) and norm.running_mean is not None:
                assert norm.running_var is not None
                found += [norm.running_mean, norm.running_var]
    return found


def synchronize_batch_norms(module: nn.Module) -> None:
    """Let all batch norms in `module` normalise by the whole batch, not by this process's part.

    In place, so that hooks, names and whoever holds these modules are not disturbed. A single
    process has the whole batch anyway.
    """
    if distributed.world_size() == 1:
        return
    for norm in module.modules():
        if isinstance(norm, _BatchNorm) and not isinstance(norm, SynchronizedBatchNorm):
            norm.__class__ = SynchronizedBatchNorm


class SynchronizedBatchNorm(_BatchNorm):
    """Batch norm by the statistics of all processes' images. torch's own does this on CUDA only.

    Every process has the same number of images; differentiable, also through the statistics.
    """

    def _check_input_dim(self, input: Tensor) -> None: ...

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or distributed.world_size() == 1:
            return super().forward(input)
        x = input.float()
        others = [dim for dim in range(x.ndim) if dim != 1]
        var, mean = torch.var_mean(x, dim=others, correction=0)
        means, variances = _gather_with_gradient(torch.stack([mean, var])).unbind(1)
        mean = means.mean(0)
        var = variances.mean(0) + (means - mean).square().mean(0)
        self._remember(
            mean.detach(), var.detach(), x.numel() // x.shape[1] * distributed.world_size()
        )
        shape = [-1 if dim == 1 else 1 for dim in range(x.ndim)]
        scale = (var + self.eps).rsqrt()
        shift = -mean * scale
        if self.weight is not None:
            scale, shift = scale * self.weight, shift * self.weight + self.bias
        return (x * scale.view(shape) + shift.view(shape)).to(input.dtype)

    def _remember(self, mean: Tensor, var: Tensor, count: int) -> None:
        if self.running_mean is None or self.running_var is None:
            return
        assert self.num_batches_tracked is not None
        self.num_batches_tracked += 1
        share = self.momentum if self.momentum is not None else 1.0 / self.num_batches_tracked
        with torch.no_grad():
            self.running_mean.lerp_(mean, share)
            self.running_var.lerp_(var * (count / (count - 1)), share)


@torch.compiler.disable  # messages can't be part of compiled code
def _gather_with_gradient(tensor: Tensor) -> Tensor:
    found: Tensor = _Gather.apply(tensor)
    return found


class _Gather(torch.autograd.Function):
    """[...] -> [world, ...], all processes' tensors."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        return distributed.gather(tensor[None])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.contiguous()
        distributed.all_reduce_sum(gradient)  # what every process wants of this one's part
        return gradient[distributed.rank()]
