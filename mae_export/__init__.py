"""Deployment pipeline for masked-image-modelling encoders: checkpoints to masking-aware graphs, engines and features.

Importing this package loads the standard library only; the heavy parts live in `mae_export.encoders` (torch),
`mae_export.export` (torch, onnx) and `mae_export.runtime` (numpy, Pillow and one runtime).
"""

from mae_export.errors import MaeExportError
from mae_export.manifest import Manifest, TensorSpec
from mae_export.spec import EncoderSpec, ImageSpec

__version__ = "0.1.0"

__all__ = ["EncoderSpec", "ImageSpec", "MaeExportError", "Manifest", "TensorSpec", "__version__"]
