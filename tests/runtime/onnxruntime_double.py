"""ONNX Runtime as it is with NVIDIA's providers and a GPU: graphs really run, on the CPU, and misuse is noticed.

What the real one does with devices is checked here: values must lie on the device, a captured CUDA graph may only be
replayed on the addresses and shapes that it was captured with, and sessions on a GPU are not run without bindings.
"""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import onnxruntime
import pytest

CUDA, TENSORRT, RTX = "CUDAExecutionProvider", "TensorrtExecutionProvider", "NvTensorRTRTXExecutionProvider"
Fail = onnxruntime.capi.onnxruntime_pybind11_state.Fail


class Misuse(AssertionError):  # noqa: N818 - it is the tests that are wrong
    """A call that the real library would get wrong results from."""


class Value:
    def __init__(self, real) -> None:
        self.real = real

    def update_inplace(self, array) -> None:
        if not array.flags.c_contiguous:
            raise Misuse("only contiguous arrays can be copied to a device")
        self.real.update_inplace(array)


class Output(Value):
    """A value on the GPU, whose address the CUDA double knows."""

    def __init__(self, real, gpu) -> None:
        super().__init__(real)
        if gpu is not None:
            gpu.adopt(real.data_ptr(), real.tensor_size_in_bytes())

    def data_ptr(self):
        return self.real.data_ptr()


class Values:
    """`OrtValue`."""

    @staticmethod
    def ortvalue_from_shape_and_type(shape, kind, device, number):
        _require_device(device, number)
        return Value(onnxruntime.OrtValue.ortvalue_from_shape_and_type(shape, kind))

    @staticmethod
    def ortvalue_from_numpy(array, device, number):
        _require_device(device, number)
        return Value(onnxruntime.OrtValue.ortvalue_from_numpy(array.copy()))


def _require_device(device, number) -> None:
    if (device, number) != ("cuda", 0):
        raise Misuse(f"a buffer on {device}:{number}, where the session is on cuda:0")


class Binding:
    def __init__(self, session, double) -> None:
        self.real = session.io_binding()
        self.double = double
        self.addresses: dict[str, tuple] = {}

    def bind_ortvalue_input(self, name, value) -> None:
        self.real.bind_ortvalue_input(name, value.real)
        self.addresses[name] = (value.real.data_ptr(), tuple(value.real.shape()))

    def bind_ortvalue_output(self, name, value) -> None:
        self.real.bind_ortvalue_output(name, value.real)
        self.addresses[name] = (value.real.data_ptr(), tuple(value.real.shape()))

    def bind_output(self, name, device, number) -> None:
        _require_device(device, number)
        self.real.bind_output(name, "cpu")
        self.addresses[name] = ("chosen by the runtime",)

    def synchronize_outputs(self) -> None:
        self.double.synchronized += 1

    def get_outputs(self):
        return [Output(value, self.double.gpu) for value in self.real.get_outputs()]

    def copy_outputs_to_cpu(self):
        return [np.array(value.numpy()) for value in self.real.get_outputs()]


class Session:
    def __init__(self, double: RuntimeDouble, path, settings, providers) -> None:
        recorded = onnxruntime.SessionOptions()
        recorded.add_session_config_entry(
            "session.record_ep_graph_assignment_info",
            settings.entries.get("session.record_ep_graph_assignment_info", "0"),
        )
        recorded.log_severity_level = 3
        if settings.optimized_model_filepath:
            recorded.optimized_model_filepath = settings.optimized_model_filepath
        self._real = onnxruntime.InferenceSession(path, recorded, providers=["CPUExecutionProvider"])
        self._double = double
        self._wanted = providers[0]
        self._graphs = dict(providers[1]).get("enable_cuda_graph") == "1"
        self.captured: dict[int, dict] = {}
        self.runs: list[int] = []

    def get_providers(self):
        return ["CPUExecutionProvider"] if self._double.drops else [self._wanted, "CPUExecutionProvider"]

    def get_provider_graph_assignment_info(self):
        if not hasattr(self._real, "get_provider_graph_assignment_info"):
            pytest.skip("ONNX Runtime before 1.24, the last for Python 3.10, keeps no record of what runs where")
        nodes = [node for part in self._real.get_provider_graph_assignment_info() for node in part.get_nodes()]
        here = [node for node in nodes if node.op_type not in self._double.left_to_the_cpu]
        left = [node for node in nodes if node.op_type in self._double.left_to_the_cpu]
        parts = ((self._wanted, here), ("CPUExecutionProvider", left))
        return [SimpleNamespace(ep_name=name, get_nodes=lambda some=some: some) for name, some in parts if some]

    def get_modelmeta(self):
        return self._real.get_modelmeta()

    def io_binding(self):
        return Binding(self._real, self._double)

    def run(self, names, feeds):
        raise Misuse("a run without bindings copies through the host")

    def run_with_iobinding(self, binding, options) -> None:
        if self._double.runs_out_of_memory:
            raise onnxruntime.capi.onnxruntime_pybind11_state.RuntimeException("Failed to allocate memory for 1 GB")
        number = int(options.get_run_config_entry("gpu_graph_id"))
        self.runs.append(number)
        if number >= 0:
            if not self._graphs:
                raise Misuse("a graph number without enable_cuda_graph")
            if self.captured.setdefault(number, binding.addresses) != binding.addresses:
                raise Misuse(f"graph {number} was captured with other buffers: {self.captured[number]}")
        self._real.run_with_iobinding(binding.real)


class RuntimeDouble:
    """The module; set its attributes to what shall go wrong.

    Attributes:
        providers: that it was built with.
        drops: whether providers are dropped without a word.
        left_to_the_cpu: operators that the provider does not take.
        captures: whether sessions with CUDA graphs can be made.
        runs_out_of_memory: in every run.
        devices: names of the plugin providers whose devices it lists, after registration.
        made: sessions, with the settings and options they were made with.
        registered: plugin libraries.
        gpu: double of CUDA that knows where outputs lie.
        synchronized: how often outputs were waited for.
    """

    OrtValue = Values

    def __init__(self, *providers: str) -> None:
        self.providers = [*providers, "CPUExecutionProvider"]
        self.drops = self.runs_out_of_memory = False
        self.captures = True
        self.gpu, self.synchronized = None, 0
        self.left_to_the_cpu: set[str] = {"Shape", "Concat"}
        self.devices: list[str] = []
        self.made: list[SimpleNamespace] = []
        self.registered: list[tuple[str, str]] = []

    def __getattr__(self, name):
        return getattr(onnxruntime, name)

    def get_available_providers(self):
        return self.providers

    def preload_dlls(self) -> None:
        self.preloaded = True

    def SessionOptions(self):  # noqa: N802 - the name of the real class
        return Settings()

    def register_execution_provider_library(self, name, path) -> None:
        if (name, path) in self.registered:
            raise Fail(f"{name} is already registered")
        if path == "broken.so":
            raise Fail("libcuda.so.1: cannot open shared object file")
        self.registered.append((name, path))

    def get_ep_devices(self):
        names = {name for name, _ in self.registered}
        return [SimpleNamespace(ep_name=name) for name in ("CPUExecutionProvider", *self.devices) if name in names]

    def InferenceSession(self, path, settings, providers=None, enable_fallback=None):  # noqa: N802
        if providers == ["CPUExecutionProvider"]:
            return onnxruntime.InferenceSession(path, settings.real(), providers=providers)
        if providers is not None and enable_fallback != 0:
            raise Misuse("without enable_fallback=0 a failing provider is replaced by the CPU")
        provider = providers[0] if providers is not None else settings.plugin
        provider = (provider, {}) if isinstance(provider, str) else provider
        if not self.captures and provider[1].get("enable_cuda_graph") == "1":
            raise Fail("This session cannot use the graph capture feature as requested by the user as all compute ...")
        session = Session(self, path, settings, provider)
        self.made.append(SimpleNamespace(session=session, settings=settings, provider=provider))
        return session


class Settings:
    """`SessionOptions`."""

    def __init__(self) -> None:
        self.entries: dict[str, str] = {}
        self.optimized_model_filepath = ""

    def add_session_config_entry(self, key, value) -> None:
        self.entries[key] = value

    def get_session_config_entry(self, key):
        return self.entries[key]

    def real(self):
        settings = onnxruntime.SessionOptions()
        for key, value in self.entries.items():
            settings.add_session_config_entry(key, value)
        return settings

    def add_provider_for_devices(self, devices, options) -> None:
        self.plugin = (devices[0].ep_name, options)
