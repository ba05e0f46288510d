"""Features of pictures, from the best model of the bundle beside this file that runs here.

python app.py PICTURES... [-o FOLDER] [--visible random:0.25]
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from mae_export.errors import MaeExportError
from mae_export.runtime.bundle import open_bundle
from mae_export.runtime.extract import ExtractOptions, extract
from mae_export.runtime.features import read_features


def main(bundle: Path) -> None:
    """Check the bundle, extract into a folder, and show how each row begins."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("pictures", nargs="*", help="folders, files, .txt lists or .tar files; none: names on stdin")
    parser.add_argument("-o", "--output", type=Path, default=Path("features"), help="folder for the features")
    parser.add_argument("--visible", default="all", help="all, random:R[:seed] with R the fraction kept, or file:X.npy")
    parser.add_argument("--force", action="store_true", help="replace features that are already there")
    arguments = parser.parse_args()
    pictures = arguments.pictures or list(filter(None, sys.stdin.read().split("\n")))
    options = ExtractOptions(visible=arguments.visible, force=arguments.force)
    with open_bundle(bundle) as session:
        sys.stdout.write(f"{session.name}: {session.description}\n")
        extract(session, pictures, arguments.output, options=options)
    features = read_features(arguments.output)
    for name, array in features.arrays.items():
        for item, row in zip(features.ids, array, strict=True):
            sys.stdout.write(f"{item} {name} {' '.join(f'{value:.4f}' for value in row.ravel()[:6])} ...\n")


if __name__ == "__main__":
    try:
        main(Path(__file__).parent)
    except MaeExportError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(error.exit_code)
    except BrokenPipeError:  # the reader of our output has gone, as with `| head`
        os._exit(141)
