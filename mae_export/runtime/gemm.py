"""How fast this processor multiplies matrices in float32: the peak that `bench` measures everything against.

A graph may run with better kernels than numpy has: which library is quickest depends on the processor, and an
environment can slow one down alone (`OPENBLAS_CORETYPE` does it to numpy). So each library that is here multiplies the
same two matrices in every round of a bench, and the quickest run is the peak. The right matrix is a constant, as the
weights of a graph are: runtimes rearrange such a matrix once, before anything is timed.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from mae_export.runtime.bench import Contender

SIZE = 1536  # large enough for a library's full speed, small enough for the caches of every machine
VARINT, BYTES = 0, 2  # wire types of protobuf
FLOAT, IR_VERSION, OPSET = 1, 8, 13  # as ONNX numbers them; every ONNX Runtime and OpenVINO that we take reads these

Matrix = npt.NDArray[np.float32]
Maker = Callable[[Matrix, Matrix, int], Contender]


def gemms_on_cpu(*, threads: int = 0, size: int = SIZE) -> list[Contender]:
    """The product of two float32 matrices with each library that is installed.

    numpy takes part when the number of threads is free, because it cannot be told one, or when nothing else is here.

    Args:
        threads: of the CPU; 0 lets each library choose.
        size: rows and columns of both matrices.
    """
    draws = np.random.default_rng(0)
    left, right = (draws.standard_normal((size, size), dtype=np.float32) for _ in range(2))
    makers = (_onnxruntime, _openvino) if threads else (_onnxruntime, _openvino, _numpy)
    made = (_made(make, left, right, threads) for make in makers)
    return [product for product in made if product] or [_numpy(left, right, threads)]


def matmul_model(right: Matrix) -> bytes:
    """An ONNX model that computes `y = a @ right`, written by hand, because the deployed half does without onnx.

    Args:
        right: float32 [k, n], stored in the model.

    Returns:
        A serialised `ModelProto` with the input `a`, float32 [m, k], and the output `y`, float32 [m, n], m free. Field
        numbers are those of onnx/onnx.proto.
    """
    rows, columns = right.shape
    node = _text(1, "a") + _text(1, "b") + _text(2, "y") + _text(4, "MatMul")
    stored = _number(1, rows) + _number(1, columns) + _number(2, FLOAT) + _text(8, "b")
    stored += _field(9, right.astype("<f4").tobytes())
    graph = _field(1, node) + _text(2, "gemm") + _field(5, stored)
    graph += _field(11, _value("a", rows)) + _field(12, _value("y", columns))
    return _number(1, IR_VERSION) + _field(7, graph) + _field(8, _number(2, OPSET))


def _value(name: str, columns: int) -> bytes:
    """A `ValueInfoProto` of float32 [m, columns]."""
    shape = _field(1, _text(2, "m")) + _field(1, _number(1, columns))
    return _text(1, name) + _field(2, _field(1, _number(1, FLOAT) + _field(2, shape)))


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3 | VARINT) + _varint(value)


def _text(field: int, text: str) -> bytes:
    return _field(field, text.encode())


def _field(field: int, data: bytes) -> bytes:
    return _varint(field << 3 | BYTES) + _varint(len(data)) + data


def _varint(value: int) -> bytes:
    """Seven bits a byte, the lowest first; the highest bit says that more follow."""
    data = bytearray()
    while value > 0x7F:
        data.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*data, value])


def _made(make: Maker, left: Matrix, right: Matrix, threads: int) -> Contender | None:
    try:
        return make(left, right, threads)
    except (ImportError, AttributeError, RuntimeError):  # missing, half overwritten, or without this processor
        return None


def _flops(left: Matrix, right: Matrix) -> float:
    return 2.0 * float(left.size * right.shape[1])


def _numpy(left: Matrix, right: Matrix, threads: int) -> Contender:  # noqa: ARG001 - numpy takes as many as it likes
    out = np.empty((left.shape[0], right.shape[1]), np.float32)
    what = f"float32 with numpy {np.__version__}"
    return Contender(run=lambda: np.matmul(left, right, out=out), flops=_flops(left, right), what=what)


def _onnxruntime(left: Matrix, right: Matrix, threads: int) -> Contender:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    session = ort.InferenceSession(matmul_model(right), options, providers=["CPUExecutionProvider"])
    out = np.empty((left.shape[0], right.shape[1]), np.float32)
    binding = session.io_binding()
    binding.bind_cpu_input("a", left)
    binding.bind_ortvalue_output("y", ort.OrtValue.ortvalue_from_numpy(out))  # which writes into it

    def run() -> Matrix:
        session.run_with_iobinding(binding)
        return out

    return Contender(run=run, flops=_flops(left, right), what=f"float32 with ONNX Runtime {ort.__version__}")


def _openvino(left: Matrix, right: Matrix, threads: int) -> Contender:
    import openvino

    core = openvino.Core()
    settings = {"INFERENCE_PRECISION_HINT": "f32", "NUM_STREAMS": "1"}
    if threads:
        settings["INFERENCE_NUM_THREADS"] = str(threads)
    request = core.compile_model(core.read_model(matmul_model(right)), "CPU", settings).create_infer_request()
    version = str(openvino.__version__).partition("-")[0]

    def run() -> object:
        return request.infer({"a": left}, share_inputs=True, share_outputs=True)["y"]

    return Contender(run=run, flops=_flops(left, right), what=f"float32 with OpenVINO {version}")
