"""A stand-in for TensorRT without a GPU that insists on the documented order of calls, on top of `cuda_double`.

A plan is a JSON text that names a manifest and, perhaps, a graph; the engine computes with ONNX Runtime or with the
closed form of `FakeSession`. `install` puts it and the GPU where the package imports them from.
"""

import dataclasses
import enum
import hashlib
import importlib.machinery
import json
import sys
import threading
import time
import types
import weakref

import numpy as np

from mae_export.manifest import Manifest, Range
from mae_export.runtime import tensorrt_api
from mae_export.runtime.engine_file import Achieved, EngineSidecar, Profile, sidecar_path
from mae_export.runtime.fake import FakeSession
from mae_export.runtime.golden import golden_of
from mae_export.runtime.ort import OrtSession
from mae_export.runtime.probes import golden_feeds
from tests.runtime.cuda_double import CudaDouble, Misuse

VERSION = {"tensorrt": "10.13.3.9", "rtx": "1.7.1.116"}
ACTIVATIONS = 4096  # bytes that every engine needs


class Severity(enum.IntEnum):
    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)


class TensorIOMode(enum.Enum):
    NONE, INPUT, OUTPUT = range(3)


class ExecutionContextAllocationStrategy(enum.Enum):
    STATIC, ON_PROFILE_CHANGE, USER_MANAGED = range(3)


class CudaGraphStrategy(enum.Enum):
    DISABLED, WHOLE_GRAPH_CAPTURE = range(2)


class DataType:
    """Types by the names that TensorRT gives them."""

    def __init__(self, name):
        self.name = name


class ILogger:
    Severity = Severity
    made = False

    def __init__(self):
        self.made = True


def profile_text(profile):
    return {"batch": str(profile.batch), "keep": str(profile.keep) if profile.keep else None}


def plan_bytes(manifest, profiles, graph=None):
    """A plan that the double can load; it computes what a graph does, or the closed form."""
    content = {
        "manifest": json.loads(manifest.to_json()),
        "profiles": [profile_text(profile) for profile in profiles],
        "graph": None if graph is None else str(graph),
    }
    return json.dumps(content).encode()


def write_engine(path, manifest, profiles, *, backend="tensorrt", targets=("sm89",), graph=None, version=None):
    """An engine of the double, with its sidecar."""
    plan = plan_bytes(manifest, profiles, graph)
    path.write_bytes(plan)
    sidecar = EngineSidecar(
        sha256=hashlib.sha256(plan).hexdigest(),
        size=len(plan),
        backend=backend,
        version=version or VERSION[backend],
        targets=targets,
        device="",
        profiles=tuple(profiles),
        workspace=None,
        level=None,
        low_memory=False,
        warnings=(),
        achieved=Achieved(
            attention=0, fused=0, gemms={}, fallbacks=(), activation_bytes=(), weights_bytes=0, layers=()
        ),
        manifest=manifest,
    )
    sidecar_path(path).write_text(sidecar.to_json())
    return sidecar


@dataclasses.dataclass
class Behaviour:
    """What the double does otherwise than well, and what it counts.

    Attributes:
        gpu: the CUDA double.
        disturb: changes the outputs of every run.
        refuse: name of a method of contexts that returns False, with an error in the log.
        capturable: whether running may be captured.
        slow: seconds that every run holds its context.
        contexts: made so far.
        compiled: shapes for which TensorRT-RTX had no kernel in its cache.
    """

    gpu: CudaDouble
    disturb: object = None
    refuse: str = ""
    capturable: bool = True
    slow: float = 0.0
    contexts: int = 0
    compiled: int = 0


def make_module(name, backend, behaviour, *, absent=()):
    """A module as `import tensorrt` would give it, without the names in `absent`."""
    module = types.ModuleType(name)
    module.__spec__ = importlib.machinery.ModuleSpec(name, None, origin="double")
    module.__version__ = VERSION[backend]
    module.ILogger, module.TensorIOMode = ILogger, TensorIOMode
    module.ExecutionContextAllocationStrategy = ExecutionContextAllocationStrategy
    if backend == "rtx":
        module.CudaGraphStrategy = CudaGraphStrategy

    def nptype(dtype):
        return np.dtype(dtype.name.lower()).type  # TypeError for BF16, as in TensorRT

    class Runtime:
        def __init__(self, logger):
            assert isinstance(logger, ILogger)
            assert logger.made, "ILogger.__init__ was not called"
            self.logger = logger

        def deserialize_cuda_engine(self, plan):
            try:
                content = json.loads(plan)
            except ValueError:
                self.logger.log(Severity.ERROR, "Serialization assertion failed: magic tag does not match")
                return None
            return Engine(content, self, backend, behaviour, absent)

    module.nptype, module.Runtime = nptype, Runtime
    return module


class Engine:
    """Tensors and profiles of a plan."""

    def __init__(self, content, runtime, backend, behaviour, absent):
        self.runtime, self.backend, self.behaviour = runtime, backend, behaviour
        self.manifest = Manifest.from_json(json.dumps(content["manifest"]))
        self.session = FakeSession(self.manifest) if content["graph"] is None else OrtSession(content["graph"])
        self.profiles = [
            Profile(batch=Range.parse(p["batch"]), keep=Range.parse(p["keep"]) if p["keep"] else None)
            for p in content["profiles"]
        ]
        self.specs = {spec.name: spec for spec in (*self.manifest.inputs, *self.manifest.outputs)}
        self.inputs = [spec.name for spec in self.manifest.inputs]
        if "device_memory_size_v2" not in absent:
            self.device_memory_size_v2 = ACTIVATIONS
        if "device_memory_size" not in absent:
            self.device_memory_size = ACTIVATIONS
        self.absent = absent
        self.device = behaviour.gpu.current

    num_io_tensors = property(lambda self: len(self.specs))
    num_optimization_profiles = property(lambda self: len(self.profiles))

    def get_tensor_name(self, index):
        return list(self.specs)[index]

    def get_tensor_mode(self, name):
        return TensorIOMode.INPUT if name in self.inputs else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name):
        return DataType(self.specs[name].dtype.upper())

    def extents(self, profile):
        """What free dimensions mean: the batch comes first, everything else is the number of visible patches."""
        known = self.profiles[profile]
        return known.batch, known.keep

    def get_tensor_profile_shape(self, name, profile):
        batch, keep = self.extents(profile)
        bounds = []
        for bound in ("minimum", "typical", "maximum"):
            free = [getattr(batch, bound), *([getattr(keep, bound)] if keep else [])]
            bounds.append(tuple(d if isinstance(d, int) else free[i > 0] for i, d in enumerate(self.specs[name].shape)))
        return bounds

    def create_execution_context(self, how):
        if self.backend == "rtx":
            assert isinstance(how, RuntimeConfig)
        else:
            assert how is ExecutionContextAllocationStrategy.USER_MANAGED
        if self.behaviour.refuse == "create_execution_context":
            self.runtime.logger.log(Severity.ERROR, "out of memory")
            return None
        self.behaviour.contexts += 1
        kind = Context if "set_device_memory" not in self.absent else OldContext
        return kind(self, how if self.backend == "rtx" else None, first=self.behaviour.contexts == 1)

    def create_runtime_config(self):
        assert self.backend == "rtx"
        return RuntimeConfig()


class RuntimeConfig:
    """TensorRT-RTX's."""

    __slots__ = ("cache", "cuda_graph_strategy")

    def create_runtime_cache(self):
        return RuntimeCache()

    def set_runtime_cache(self, cache):
        self.cache = cache


class RuntimeCache:
    def __init__(self):
        self.shapes = set()

    def deserialize(self, content):
        self.shapes = {tuple(shape) for shape in json.loads(content)}
        return True

    def serialize(self):
        return memoryview(json.dumps(sorted(self.shapes)).encode())


def guarded(method):
    """Only one thread at a time may be inside a context."""

    def call(self, *arguments):
        if not self.inside.acquire(blocking=False):
            raise Misuse("two threads are in one execution context")
        try:
            if self.engine.behaviour.refuse == method.__name__:
                self.engine.runtime.logger.log(Severity.ERROR, f"IExecutionContext::{method.__name__}: refused")
                return False
            return method(self, *arguments)
        finally:
            self.inside.release()

    return call


class OldContext:
    """An execution context; the first releases of 10 take its memory as a property."""

    def __init__(self, engine, config, *, first):
        self.engine, self.config, self.device = engine, config, engine.device
        self.active_optimization_profile = 0 if first else -1
        self.shapes, self.addresses, self.memory = {}, {}, None
        self.inside = threading.Lock()
        self.state = 0  # counts changes of shapes and addresses
        self.ran = None  # the state that ran last

    def take_memory(self, address):
        block = self.gpu.block_at(address)
        if block.host or block.size < ACTIVATIONS:
            raise Misuse("activations need enough memory of the GPU")
        self.memory = block

    device_memory = property(None, take_memory)
    gpu = property(lambda self: self.engine.behaviour.gpu)

    @guarded
    def set_optimization_profile_async(self, profile, stream):
        self.gpu.issue("profile", stream, lambda: None, writes=[self])
        self.active_optimization_profile = profile
        self.shapes.clear()
        self.state += 1
        return True

    @guarded
    def set_input_shape(self, name, shape):
        if self.active_optimization_profile < 0:
            raise Misuse("a shape is set before a profile was chosen")
        low, _, high = self.engine.get_tensor_profile_shape(name, self.active_optimization_profile)
        if not (isinstance(shape, tuple) and all(a <= b <= c for a, b, c in zip(low, shape, high, strict=True))):
            raise Misuse(f"shape {shape} of {name} is outside {low}..{high} of the active profile")
        self.state += self.shapes.get(name) != shape
        self.shapes[name] = shape
        return True

    @guarded
    def set_tensor_address(self, name, address):
        if not self.gpu.block_at(address).gpu:
            raise Misuse(f"{name} is in memory that the GPU cannot reach")
        self.state += self.addresses.get(name) != address
        self.addresses[name] = address
        return True

    @guarded
    def get_tensor_shape(self, name):
        if name in self.shapes:
            return self.shapes[name]
        if set(self.shapes) != set(self.engine.inputs):
            return (-1,) * len(self.engine.specs[name].shape)
        batch = next(iter(self.shapes.values()))[0]
        keep = self.shapes.get("ids_keep", (0, self.engine.manifest.patches.count))[1]
        dims = self.engine.specs[name].shape
        return tuple(d if isinstance(d, int) else (keep if i else batch) for i, d in enumerate(dims))

    @guarded
    def execute_async_v3(self, stream):
        time.sleep(self.engine.behaviour.slow)
        shapes = {name: self.shapes.get(name) for name in self.engine.inputs}
        missing = [name for name in self.engine.specs if name not in self.addresses]
        if None in shapes.values() or missing:
            raise Misuse(f"run with the shapes {shapes}, without addresses of {missing}")
        if self.config is None and self.memory is None:
            raise Misuse("run without memory for activations")
        if self.gpu.stream_of(stream).captured is not None:
            self.require_capturable()
            self.gpu.stream_of(stream).broken = not self.engine.behaviour.capturable
        self.ran = self.state
        self.compile(shapes)
        state, me = self.state, weakref.ref(self)
        blocks = {name: self.gpu.block_at(address) for name, address in self.addresses.items()}

        def compute():
            context = me()
            if context is None or context.state != state:
                raise Misuse("a captured run is repeated after its context changed or went away")
            context.compute(shapes, blocks)

        reads = [blocks[name] for name in self.engine.inputs]
        written = [block for name, block in blocks.items() if name not in self.engine.inputs]
        self.gpu.issue("run", stream, compute, reads=reads, writes=[*written, self.memory or self, self])
        return True

    def require_capturable(self):
        if self.config is not None:
            raise Misuse("TensorRT-RTX captures by itself")
        if self.ran != self.state:
            raise Misuse("captured before a plain run with these shapes")

    def compile(self, shapes):
        if self.config is not None:
            key = tuple(str(shape) for shape in shapes.values())
            self.engine.behaviour.compiled += key not in self.config.cache.shapes
            self.config.cache.shapes.add(key)

    def compute(self, shapes, blocks):
        specs = self.engine.specs
        feeds = {
            name: np.frombuffer(blocks[name].read(nbytes(specs[name], shape)), specs[name].dtype).reshape(shape)
            for name, shape in shapes.items()
        }
        outputs = self.engine.session.run(feeds)
        if self.engine.behaviour.disturb is not None:
            outputs = self.engine.behaviour.disturb(outputs)
        for name, values in outputs.items():
            if values.nbytes > blocks[name].size:
                raise Misuse(f"output {name} needs {values.nbytes} bytes and has {blocks[name].size}")
            blocks[name].write(values.tobytes())


class Context(OldContext):
    """An execution context; its memory comes with a size."""

    def set_device_memory(self, address, size):
        self.take_memory(address)
        if size > self.memory.size:
            raise Misuse("activations get less memory than they are told")


def nbytes(spec, shape):
    return int(np.prod(shape)) * np.dtype(spec.dtype).itemsize


def install(monkeypatch, backend="tensorrt", *, gpu=None, absent=()):
    """Make a GPU and a backend importable; returns how they behave."""
    behaviour = Behaviour(gpu=gpu or CudaDouble())
    name = tensorrt_api.MODULES[backend][0]
    monkeypatch.setitem(sys.modules, name, make_module(name, backend, behaviour, absent=absent))
    packages = {"cuda": types.ModuleType("cuda"), "cuda.bindings": types.ModuleType("cuda.bindings")}
    packages["cuda"].bindings = packages["cuda.bindings"]
    packages["cuda.bindings"].runtime = behaviour.gpu
    for package, module in packages.items():
        monkeypatch.setitem(sys.modules, package, module)
    monkeypatch.setattr(tensorrt_api, "_loggers", {})
    return behaviour


# What tests share


def profile(batch, keep=None):
    return Profile(batch=Range.parse(batch), keep=Range.parse(keep) if keep else None)


WIDE = (profile("1:4:8", "1:4:16"),)


def golden(manifest):
    """The manifest with the values of the closed form."""
    return dataclasses.replace(manifest, golden=golden_of(FakeSession(manifest).run(golden_feeds(manifest))))


def feeds(batch=4, keep=4, seed=0):
    """A batch for the manifests of these tests: 32x32 images of 16 patches."""
    draws = np.random.default_rng(seed)
    ids = np.stack([draws.permutation(16)[:keep] for _ in range(batch)])
    return {"images": draws.integers(0, 256, (batch, 32, 32, 3), dtype=np.uint8), "ids_keep": ids}


def require_right(session, fed, outputs=None):
    """Run, and compare with the closed form bit by bit."""
    found, wanted = session.run(fed, outputs), FakeSession(session.manifest).run(fed, outputs)
    assert list(found) == list(wanted)
    for name, values in wanted.items():
        assert found[name].dtype == values.dtype
        np.testing.assert_array_equal(found[name], values)


def names(trace):
    return [name for name, _ in trace]
