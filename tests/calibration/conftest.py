"""A graph of the small checkpoint, and a folder of pictures that differ."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnx.parser
import onnx_ir as ir
import pytest
from PIL import Image

from mae_export.export.options import TraceOptions
from mae_export.graph import read_manifest
from mae_export.runtime.images import prepare
from mae_export.runtime.probes import probe_photos
from mae_export.spec import ImageSpec


@pytest.fixture(scope="session")
def graph_of(exported: Callable[[str, TraceOptions], Path]) -> Callable[[TraceOptions], Path]:
    """Export the small MAE with some options: 2 blocks of width 48, 64 patches."""

    def export(options: TraceOptions) -> Path:
        return exported("mae/checkpoint.pth", options)

    return export


@pytest.fixture(scope="session")
def graph(graph_of: Callable[[TraceOptions], Path]) -> Path:
    return graph_of(TraceOptions(mask="keep"))


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 pictures as files: the photographs whole, upside down and dark."""
    folder = tmp_path_factory.mktemp("pictures")
    photos = probe_photos(ImageSpec(size=(72, 72)))
    for index, pixels in enumerate(np.concatenate([photos, photos[:, ::-1], photos // 3])):
        Image.fromarray(pixels).save(folder / f"{index}.png")
    return folder


@pytest.fixture(scope="session")
def shown(graph: Path, images: Path) -> npt.NDArray[np.uint8]:
    """Those pictures as the graph takes them, uint8 [24, 64, 64, 3]."""
    spec = read_manifest(graph).image
    return np.stack([prepare(path.read_bytes(), spec) for path in images.iterdir()])


@pytest.fixture(scope="session")
def written() -> Callable[[str, dict[str, npt.NDArray[np.float32]]], ir.Model]:
    """A model of opset 20 from the text of its graph and its weights, with the shapes of all tensors noted."""

    def build(text: str, weights: dict[str, npt.NDArray[np.float32]]) -> ir.Model:
        model = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 20]> {text}')
        arrays = (onnx.numpy_helper.from_array(np.asarray(array), name) for name, array in weights.items())
        model.graph.initializer.extend(arrays)
        return ir.from_proto(onnx.shape_inference.infer_shapes(model))

    return build
