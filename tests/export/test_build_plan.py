"""How the builder's words become errors; real builds are in test_engine.py."""

import pytest

from mae_export.errors import GraphError, MachineError, ResourceError
from mae_export.export.build_plan import BuildJob, build_error, refusal

JOB = BuildJob(
    backend="tensorrt",
    graph="folder/vit.onnx",
    plan="p",
    log="l",
    operators={"blocks.0/NonZero_1": "NonZero", "blocks.1/Unique_4": "Unique", "blocks.1/Relu_5": "Relu"},
    precision="bf16",
    targets=("sm75",),
    shapes=(),
    workspace=None,
    level=None,
    aux_streams=True,
    timing_cache=None,
)


@pytest.mark.parametrize(
    ("words", "kind", "text"),
    [
        ("Error Code 2: OutOfMemory (Requested size was 13958643712 bytes.)", ResourceError, "or with --low-memory"),
        ("no tactics to implement the operation within workspace limit.", ResourceError, "leave out --workspace"),
        ("CUDA initialization failure with error: 35", MachineError, "found no GPU that it can use"),
        (
            "Cannot compile for target(s) sm75 ... HW-specific datatypes: b16",
            GraphError,
            r"vit\.onnx \(bf16\) for sm75",
        ),
    ],
)
def test_errors_by_what_they_say(words, kind, text):
    error = build_error([("INFO", "out of memory? no"), ("ERROR", words)], JOB)
    assert type(error) is kind
    assert words in str(error)
    with pytest.raises(kind, match=text):
        raise error


def test_repeated_and_missing_reasons():
    records = [("ERROR", "first"), ("INTERNAL_ERROR", "second"), ("ERROR", "first"), ("ERROR", "fourth")]
    assert str(build_error(records, JOB)).endswith(": first; second")
    assert "the builder gave no reason" in str(build_error([], JOB))


class Parser:
    """A parser that stumbled over one node and knows every operator but one."""

    num_errors = 1

    def get_error(self, index):
        assert index == 0
        return self

    def node_name(self):
        return "blocks.0/NonZero_1"

    def node_operator(self):
        return "NonZero"

    def desc(self):
        return "plugin not found"

    def supports_operator(self, name):
        return name != "Unique"


def test_every_refused_node_is_named():
    assert refusal(Parser(), JOB) == (
        "TensorRT cannot read 2 nodes of vit.onnx:"
        "\n  blocks.0/NonZero_1 (NonZero): plugin not found"
        "\n  blocks.1/Unique_4 (Unique): no such operator"
    )
