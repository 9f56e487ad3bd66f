"""What a process forked by `forked` finds imported: all that takes time, and nothing of a run.

(Not mosaickd.cli.task, which looks at the command line as it is imported.)
"""

from __future__ import annotations

import gc

import matplotlib.font_manager  # noqa: F401
import pyarrow.parquet  # noqa: F401
import safetensors.torch  # noqa: F401
import torch
import torch._dynamo  # by optimizers
import torchvision  # noqa: F401
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins

torch.set_num_threads(1)
Plugins.instance()
OverridesParser.create()
gc.collect()
gc.freeze()  # what is imported stays: no collection walks over it, nor copies its pages
