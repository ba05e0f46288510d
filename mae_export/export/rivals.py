"""PyTorch on a graph's own work, to be timed beside it: eager, compiled, and in bf16.

The rival computes the same outputs from the same feeds with the encoder's shortest formulation (folded normalisation,
hidden patches never embedded, fused attention), so that a difference is the runtime's and nothing else. Its weights are
random: time does not depend on them.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
from torch import nn

from mae_export.encoders.encoder import Encoder
from mae_export.encoders.families.installed import families
from mae_export.errors import InputError, MachineError, UsageError
from mae_export.export.options import Rival
from mae_export.export.view import ExportView
from mae_export.manifest import Manifest, read_json
from mae_export.runtime.bench import Contender, Feeds, Maker, Run
from mae_export.runtime.gemm import SIZE
from mae_export.spec import EncoderSpec

RIVALS: tuple[Rival, ...] = get_args(Rival)
Device = Literal["cpu", "cuda"]
WEIGHT_STD = 0.02
GPU_GEMM_SIZE = 8192
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}  # every other precision is judged against fp16 on GPUs


def rival_maker(
    manifest: Manifest, rival: Rival, *, device: Device = "cpu", threads: int = 0, resident: bool = False
) -> Maker:
    """What prepares runs of a rival.

    Args:
        manifest: of the graph to compete with.
        rival: `torch` is eager and `compile` is compiled, both in float32 on a CPU, on a GPU in the graph's precision
            (float16 for 8 bits); `torch-bf16` is eager under bf16 autocast.
        device: to run on.
        threads: of the CPU; 0 leaves PyTorch's.
        resident: whether feeds lie on the device before, and outputs stay there, so that no run copies anything.

    Raises:
        UsageError: when there is no such rival.
        InputError: when the manifest does not describe an encoder that this version builds.
        MachineError: when the device is not there.
    """
    if rival not in RIVALS:
        raise UsageError(f"there is no rival {rival!r}; expected some of {', '.join(RIVALS)}")
    if device == "cuda" and not torch.cuda.is_available():
        raise MachineError("this PyTorch sees no GPU; install one that was built for CUDA, or leave PyTorch out")
    if threads:
        torch.set_num_threads(threads)
    names = tuple(output.name for output in manifest.outputs)
    view: nn.Module = ExportView(random_encoder(manifest), manifest.mask_mode, ragged=manifest.ragged, features=names)
    dtype = torch.float32 if device == "cpu" else DTYPES.get(manifest.precision, torch.float16)
    view = view.eval().to(device=device, dtype=dtype)

    def make(feeds: Feeds) -> Run:
        inputs = [torch.from_numpy(feeds[spec.name]).to(device if resident else "cpu") for spec in manifest.inputs]
        called: Callable[..., Any] = _compiled(view, device) if rival == "compile" else view

        def run() -> object:
            moved = [value.to(device) for value in inputs]
            with torch.inference_mode(), torch.autocast(device, dtype=torch.bfloat16, enabled=rival == "torch-bf16"):
                found = called(*moved)
            if not resident:
                return [value.cpu() for value in found]
            if device == "cuda":
                torch.cuda.synchronize()
            return found

        return run

    return make


def _compiled(view: nn.Module, device: Device) -> Callable[..., Any]:
    """A module compiled for the shapes that it meets first; on a GPU with CUDA graphs, as sessions have them.

    PyTorch goes back to eager without an error after eight shapes, or at what it cannot compile; so what was compiled
    before is forgotten, and the whole module must compile.
    """
    torch.compiler.reset()
    mode = "default" if device == "cpu" else "reduce-overhead"
    return torch.compile(view, dynamic=False, fullgraph=True, mode=mode)


def random_encoder(manifest: Manifest) -> Encoder:
    """The encoder that a manifest describes, with random weights.

    Raises:
        InputError: when this version knows no such encoder.
    """
    spec = read_json(json.dumps(manifest.encoder), EncoderSpec, "encoder of the manifest")
    if spec.family not in families():
        raise InputError(f"the graph's family is {spec.family!r}; known here: {', '.join(families())}")
    if not {output.name for output in manifest.outputs} & {"reconstruction", "prediction"}:
        spec = dataclasses.replace(spec, decoder=None)
    torch.manual_seed(0)
    with torch.device("meta"):
        encoder = families()[spec.family].encoder(spec)(spec)
    encoder.to_empty(device="cpu")
    for parameter in (*encoder.parameters(), *encoder.buffers()):
        if parameter.is_floating_point():
            nn.init.normal_(parameter, std=WEIGHT_STD)
    return encoder.eval()


def gemm_on_gpu(precision: str, size: int = GPU_GEMM_SIZE) -> Contender:
    """PyTorch's product of two matrices on the GPU, in the type of a graph's products there (float16 for 8 bits).

    Raises:
        MachineError: when PyTorch sees no GPU.
    """
    if not torch.cuda.is_available():
        raise MachineError("this PyTorch sees no GPU to measure matrix products on")
    product = _gemm("cuda", DTYPES.get(precision, torch.float16), size)

    def run() -> None:
        product.run()
        torch.cuda.synchronize()

    return dataclasses.replace(product, run=run)


def gemm_of_torch(size: int = SIZE) -> Contender:
    """PyTorch's product of two float32 matrices on the CPU, beside those of `mae_export.runtime.gemm`."""
    return _gemm("cpu", torch.float32, size)


def _gemm(device: Device, dtype: torch.dtype, size: int) -> Contender:
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    out = torch.empty_like(left)
    what = f"{str(dtype).removeprefix('torch.')} with PyTorch {torch.__version__}"
    return Contender(run=lambda: torch.mm(left, right, out=out), flops=2.0 * size**3, what=what)
