"""Which names a file written by torch.save may mention: tensors, and what training scripts leave beside them.

The second kind is what published masked-image-modelling checkpoints are known to hold in their arguments,
configuration, optimiser and logging state. None of it is ever imported: a name in this table is only not a reason to
refuse the file.
"""

from __future__ import annotations

import torch

_STORAGES = {
    "Double": torch.float64,
    "Float": torch.float32,
    "Half": torch.float16,
    "BFloat16": torch.bfloat16,
    "Long": torch.int64,
    "Int": torch.int32,
    "Short": torch.int16,
    "Char": torch.int8,
    "Byte": torch.uint8,
    "Bool": torch.bool,
    "ComplexFloat": torch.complex64,
    "ComplexDouble": torch.complex128,
    "QInt8": torch.qint8,
    "QUInt8": torch.quint8,
    "QInt32": torch.qint32,
    "QUInt4x2": torch.quint4x2,
    "QUInt2x4": torch.quint2x4,
}
STORAGE_DTYPES: dict[str, torch.dtype] = {
    **{f"torch.{kind}Storage": dtype for kind, dtype in _STORAGES.items()},
    **{f"torch.cuda.{kind}Storage": dtype for kind, dtype in _STORAGES.items()},
    "torch.storage.UntypedStorage": torch.uint8,
}
DTYPES: dict[str, torch.dtype] = {
    f"torch.{name}": value for name, value in vars(torch).items() if isinstance(value, torch.dtype)
}

REBUILD_DENSE = ("torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor_v3")
REBUILD_WRAPPED = (  # around a tensor, which is the first argument
    "torch._utils._rebuild_parameter",
    "torch._utils._rebuild_parameter_with_state",
    "torch._utils._rebuild_device_tensor_from_cpu_tensor",
    "torch.nn.parameter.Parameter",
    "torch.nn.parameter.Buffer",
)
REBUILD_TYPED = "torch._tensor._rebuild_from_type_v2"  # (rebuild function, tensor class, its arguments, attributes)
TENSOR_CLASSES = ("torch.Tensor", "torch.nn.parameter.Parameter", "torch.nn.parameter.Buffer")
REBUILD_UNREADABLE = {
    "torch._utils._rebuild_qtensor": "quantised",
    "torch._utils._rebuild_sparse_tensor": "sparse",
    "torch._utils._rebuild_sparse_csr_tensor": "sparse",
    "torch._utils._rebuild_nested_tensor": "nested",
    "torch._utils._rebuild_meta_tensor_no_storage": "a meta tensor without values",
    "torch._utils._rebuild_wrapper_subclass": "a tensor subclass",
    "torch._utils._rebuild_device_tensor_from_numpy": "a device tensor kept as a NumPy array",
}

_TENSOR_NAMES = (
    *STORAGE_DTYPES,
    *DTYPES,
    *REBUILD_DENSE,
    *REBUILD_WRAPPED,
    *REBUILD_UNREADABLE,
    REBUILD_TYPED,
    *TENSOR_CLASSES,
    "torch.Size",
    "torch.device",
    "torch.serialization._get_layout",
    *(f"torch.per_{scheme}" for scheme in ("tensor_affine", "tensor_symmetric", "channel_affine", "channel_symmetric")),
    "torch.per_channel_affine_float_qparams",
)

_PYTHON_NAMES = (  # getattr: mmengine's HistoryBuffer names its methods with it
    *(
        f"builtins.{name}"
        for name in ("bool", "bytearray", "bytes", "complex", "dict", "float", "frozenset", "getattr")
    ),
    *(f"builtins.{name}" for name in ("int", "list", "long", "object", "set", "str", "tuple", "unicode")),
    *(f"collections.{name}" for name in ("Counter", "OrderedDict", "defaultdict", "deque")),
    *(
        f"pathlib.{name}"
        for name in ("Path", "PosixPath", "PurePath", "PurePosixPath", "PureWindowsPath", "WindowsPath")
    ),
    *(f"pathlib._local.{name}" for name in ("Path", "PosixPath", "PurePosixPath", "PureWindowsPath", "WindowsPath")),
    "_codecs.encode",  # bytes, as protocol 2 writes them
    "argparse.Namespace",
    "typing.Any",
)

_NUMPY_NAMES = (
    *(  # NumPy 2 moved its core
        f"numpy.{core}.{name}"
        for core in ("core", "_core")
        for name in ("multiarray._reconstruct", "multiarray.scalar", "numeric._frombuffer")
    ),
    "numpy.dtype",
    "numpy.ndarray",
)

_TRAINING_NAMES = (
    "yacs.config.CfgNode",
    # mmengine's message hub
    "mmengine.logging.history_buffer.HistoryBuffer",
    # omegaconf, in fairseq and Lightning configurations
    *(f"omegaconf.base.{name}" for name in ("ContainerMetadata", "Metadata")),
    "omegaconf.dictconfig.DictConfig",
    "omegaconf.listconfig.ListConfig",
    *(
        f"omegaconf.nodes.{kind}Node"
        for kind in ("Any", "Boolean", "Bytes", "Enum", "Float", "Integer", "Path", "String")
    ),
    # fairseq
    *(
        f"fairseq.dataclass.configs.{name}Config"
        for name in (
            *("Checkpoint", "Common", "CommonEval", "Dataset", "DistributedTraining", "EMA", "EvalLM"),
            *("Fairseq", "FairseqBMUF", "Generation", "Interactive", "Optimization"),
        )
    ),
    "fairseq.data.dictionary.Dictionary",
    *(f"fairseq.meters.{name}" for name in ("AverageMeter", "MetersDict", "StopwatchMeter", "TimeMeter")),
    "examples.data2vec.data.modality.Modality",
    # DeepSpeed
    *(f"deepspeed.runtime.fp16.loss_scaler.{name}" for name in ("DynamicLossScaler", "LossScaler")),
    "deepspeed.runtime.zero.config.ZeroStageEnum",
    "deepspeed.utils.tensor_fragment.fragment_address",
    # Lightning
    "lightning.fabric.utilities.data.AttributeDict",
    "lightning_fabric.utilities.data.AttributeDict",
    "pytorch_lightning.utilities.parsing.AttributeDict",
    *(
        f"{package}.callbacks.{name}"
        for package in ("lightning.pytorch", "pytorch_lightning")
        for name in ("early_stopping.EarlyStopping", "model_checkpoint.ModelCheckpoint")
    ),
)

ALLOWED = frozenset((*_TENSOR_NAMES, *_PYTHON_NAMES, *_NUMPY_NAMES, *_TRAINING_NAMES))
