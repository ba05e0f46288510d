"""The images on which a candidate agrees least with its reference, as files to look at."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from mae_export.errors import InputError, UsageError
from mae_export.files import put_in_place, staging
from mae_export.runtime.compare import Report


def require_folder(folder: Path, *, force: bool) -> None:
    """Refuse a folder with something in it, whose pictures could be taken for this comparison's; before any work.

    Raises:
        UsageError: when it is a file, or is not empty without `force`.
    """
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file; give a folder for the images")
    if folder.is_dir() and not force and any(folder.iterdir()):
        raise UsageError(f"{folder} is not empty; add --force to write there all the same, or choose another folder")


def save_worst(report: Report, images: npt.NDArray[np.uint8], folder: Path) -> list[Path]:
    """Write one PNG per output, named `OUTPUT_COSINE.png` by its smallest centred cosine.

    Args:
        report: of comparing on these images.
        images: uint8 [n, H, W, C]; with other than 3 channels, the first is shown in grey.
        folder: made when it does not exist.

    Returns:
        The files, worst first.

    Raises:
        InputError: when the folder cannot be made or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot make the folder {folder}: {error.strerror}; choose another place") from error
    written = []
    for output, found in report.worst_scenes().items():
        pixels = images[found.agreement.worst_image]
        path = folder / f"{output}_{found.agreement.centred_cosine.minimum:.6f}.png"
        with staging(path) as private:
            Image.fromarray(pixels if pixels.shape[-1] == 3 else pixels[..., 0]).save(private / path.name)
            put_in_place(private / path.name, path)
        written.append(path)
    return written
