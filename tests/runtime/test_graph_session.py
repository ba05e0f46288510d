import numpy as np
import pytest

from mae_export.errors import InputError, UsageError
from mae_export.files import sha256_files
from mae_export.runtime.graph_session import GraphSession


class Counting(GraphSession):
    def run(self, feeds, outputs=None):
        return self._open(), self._checked(feeds, outputs)


@pytest.fixture
def session(tmp_path, make_manifest):
    path = tmp_path / "model.onnx"
    path.write_bytes(b"graph")
    return Counting(path, make_manifest("none"), "the runtime's")


FEEDS = {"images": np.zeros((1, 32, 32, 3), np.uint8)}


def test_it_is_known_by_its_file(session, tmp_path):
    assert session.name == "model.onnx"
    assert session.manifest.mask_mode == "none"
    (tmp_path / "model.onnx.data").write_bytes(b"weights")
    assert session.digest == sha256_files(tmp_path / "model.onnx", tmp_path / "model.onnx.data")


def test_wanted_outputs_are_named_and_all_are_wanted_by_default(session):
    assert session.run(FEEDS) == ("the runtime's", ("pooled", "patch_tokens"))
    assert session.run(FEEDS, ["patch_tokens"])[1] == ("patch_tokens",)


def test_a_wrong_batch_never_reaches_the_runtime(session):
    with pytest.raises(InputError, match="the input 'images' is missing"):
        session.run({})
    with pytest.raises(UsageError, match="there is no output 'dense'; this file has: pooled, patch_tokens"):
        session.run(FEEDS, ["dense"])


def test_the_end_of_with_closes_and_twice_is_harmless(session):
    with session as opened:
        assert opened is session
    session.close()
    with pytest.raises(UsageError, match=r"model\.onnx is closed; open it again"):
        session.run(FEEDS)
