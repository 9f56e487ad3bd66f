"""python run.py method=mosaic teacher=wrn40_2 student=wrn16_1   (python run.py --help)"""

import hydra

from mosaickd.cli.overrides import hydra_guard
from mosaickd.cli.task import task
from mosaickd.config.schema import CONF

main = hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")(task)

if __name__ == "__main__":
    with hydra_guard():
        main()
