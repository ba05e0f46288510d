"""Every error a user can meet, and the exit code of each.

    MaeExportError                 1  (never raised itself)
    ├── UsageError                 2  the command or the call cannot mean anything
    ├── InputError                 3  a file, an array or an option is not what it must be
    │   ├── CheckpointError        3  a checkpoint cannot be read
    │   ├── LayoutError            3  no family, or several, recognise a checkpoint's tensors
    │   ├── GraphError             3  an ONNX file is not a graph of ours, or does not run
    │   ├── ImageError             3  an image cannot be decoded; carries a reason code
    │   └── MaskError              3  what is to be visible does not fit the graph or the images
    ├── SecurityError              4  a file asks for something that no data file should
    ├── VerificationError          5  an artefact disagrees with the one before it
    ├── MachineError               6  a package, provider, device or version is missing
    ├── QuarantineError            7  the job finished, but too many inputs failed
    └── ResourceError              8  disk or memory ran out

Each message says what was found, what was expected and what to do.
"""


class MaeExportError(Exception):
    """Base of all errors that are not bugs; `exit_code` is what the command line returns."""

    exit_code = 1


class UsageError(MaeExportError):
    """The call cannot mean anything: options that exclude each other, an unknown name."""

    exit_code = 2


class InputError(MaeExportError):
    """Something given to us is not what it must be."""

    exit_code = 3


class CheckpointError(InputError):
    """A checkpoint is missing, damaged, or holds tensors that cannot be used."""


class LayoutError(InputError):
    """No family recognises the tensors of a checkpoint, or more than one does."""


class GraphError(InputError):
    """An ONNX file is damaged, carries no manifest, or cannot be loaded."""


class ImageError(InputError):
    """An image cannot be used.

    Args:
        reason: a short stable code for `failures.jsonl`, such as `truncated` or `not-an-image`.
        message: what was found, what was expected, what to do.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class MaskError(InputError):
    """A choice of visible patches does not fit the graph or the images."""


class SecurityError(MaeExportError):
    """A file asks for something that no data file should: code, a path outside its folder, absurd sizes."""

    exit_code = 4


class VerificationError(MaeExportError):
    """An artefact disagrees with the one it was made from; it was not put at its final path."""

    exit_code = 5


class MachineError(MaeExportError):
    """This machine lacks a package, a provider, a device or a version."""

    exit_code = 6


class QuarantineError(MaeExportError):
    """The job finished and its results are written, but more inputs failed than the error budget allows.

    Args:
        message: how many failed, why, and what to do.
        report: what the job would have returned.
    """

    exit_code = 7

    def __init__(self, message: str, report: object = None) -> None:
        super().__init__(message)
        self.report = report


class ResourceError(MaeExportError):
    """Disk or memory ran out."""

    exit_code = 8
