"""python run.py method=mosaic teacher=wrn40_2 student=wrn16_1   (python run.py --help)"""

import hydra
from omegaconf import DictConfig

from mosaickd.command_line import run_command
from mosaickd.config import register

register()


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(cfg: DictConfig) -> None:
    from mosaickd.launch import launch  # late: --help and --cfg answer without torch

    launch(cfg)


if __name__ == "__main__":
    run_command(main)
