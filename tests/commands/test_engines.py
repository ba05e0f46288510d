"""Commands that write engines, as their users meet them."""

import pytest


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["build", "g.onnx"], 2, "Missing option '--output'"),
        (["build", "g.onnx", "-o", "g.plan"], 2, ".engine"),
        (["build", "g.onnx", "-o", "g.engine", "--batch", "8:1"], 3, "is not min:typical:max"),
        (["build", "g.onnx", "-o", "g.engine", "--workspace", "lots"], 3, "size 'lots' is not a number of bytes"),
        (["build", "g.onnx", "-o", "g.engine"], 3, "g.onnx"),
    ],
)
def test_wrong_builds_write_nothing(run, tmp_path, monkeypatch, arguments, code, text):
    monkeypatch.chdir(tmp_path)
    found, _, err = run(*arguments)
    assert (found, text in " ".join(err.split())) == (code, True), err
    assert not list(tmp_path.iterdir())
