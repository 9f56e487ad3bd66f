"""Read files of torch.save without running code that they name."""

from __future__ import annotations

import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import torch

from mosaickd.errors import printable


def load_torch_file(path: Path) -> Any:
    """Return what torch.save wrote to `path`, with its tensors on the CPU.

    Raise ValueError, with the reason as a phrase, for a damaged or foreign file, and for one that
    needs code.
    """
    try:
        with open(path, "rb") as file:  # not the path: torch.load goes by its suffix
            if zipfile.is_zipfile(file):  # torch.load compares no checksums
                with zipfile.ZipFile(file) as archive:
                    if (entry := archive.testzip()) is not None:
                        raise ValueError(f"the checksum of {entry} is wrong")
            file.seek(0)
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:  # its text advises to run the code all the same
        name = re.search(r"GLOBAL (\S+)", str(error))
        raise ValueError(
            f"it can only be read by running code that it names: {printable(name[1], 100)}"
            if name
            else "it is not a file of torch.save"
        ) from error
    except Exception as error:  # damaged bytes surface as nearly any exception
        raise ValueError(printable(str(error), 120) or type(error).__name__) from error
