"""An INT8 graph by NVIDIA's Model Optimizer, made in an environment of its own: it asks for other packages than we do.

    PYTHON benchmarks/modelopt_graph.py GRAPH FEEDS.npz OUTPUT --method entropy [--leave-out NODE ...]

FEEDS holds every input of the graph, rows stacked. Only products with weights are quantized, the rest stays float32;
the nodes to leave out are named by the caller, and neither this project nor a GPU is needed. An environment for it:

    python -m venv modelopt
    modelopt/bin/pip install onnx==1.23.2 onnxruntime==1.31.1 numpy torch==2.13.0
    modelopt/bin/pip install --no-deps nvidia-modelopt==0.47.0 onnx-graphsurgeon polygraphy onnxslim lief cppimport \
        onnxconverter-common onnxscript onnx-ir omegaconf antlr4-python3-runtime==4.9.3 pulp scipy nvidia-ml-py \
        pydantic pydantic-core annotated-types typing-inspection tqdm rich pyyaml safetensors ninja requests
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import numpy as np
from modelopt.onnx.quantization import quantize

METHODS = ("entropy", "max")


def main() -> None:
    """Write the graph."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path)
    parser.add_argument("feeds", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--method", choices=METHODS, default=METHODS[0])
    parser.add_argument("--leave-out", nargs="*", default=[], help="names of nodes")
    options = parser.parse_args()
    with np.load(options.feeds) as feeds:
        rows = dict(feeds)
    quantize(
        str(options.source),
        quantize_mode="int8",
        calibration_data=rows,
        calibration_method=options.method,
        calibration_eps=["cpu"],
        op_types_to_quantize=["MatMul", "Gemm"],
        nodes_to_exclude=[f"^{re.escape(name)}$" for name in options.leave_out],
        high_precision_dtype="fp32",
        output_path=str(options.output),
        log_level="ERROR",
    )


if __name__ == "__main__":
    main()
