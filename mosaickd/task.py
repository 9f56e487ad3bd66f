"""What Hydra runs for each job. Launcher plugins hand it to other processes by its module's name,
so that the import registers there what a config needs."""

from __future__ import annotations

import sys

from omegaconf import DictConfig

from mosaickd.cells import told
from mosaickd.config.schema import register
from mosaickd.engine.interruption import Interrupted

register()


def task(cfg: DictConfig) -> None:
    from mosaickd.launch import launch  # late: --help and --cfg answer without torch

    try:
        with told() as result:
            result |= launch(cfg)
    except Interrupted as stop:
        sys.exit(stop.exit_code)
