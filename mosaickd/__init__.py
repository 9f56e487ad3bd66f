"""MosaicKD: knowledge distillation from out-of-domain images (Fang et al., NeurIPS 2021)."""

import sys
from pathlib import Path

__version__ = "0.1.0"

# `python -m mosaickd.report`: Python would take every package from the working folder first, also
# from a folder of results that somebody has sent. (While it looks a module up, argv says "-m".)
started = sys.argv[:1] == ["-m"] and not sys.flags.safe_path
if started and sys.path[0] != str(Path(__file__).parent.parent):
    del sys.path[0]
