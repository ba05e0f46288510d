import numpy as np
import pytest

from mae_export.export.ranges import measure


def test_largest_magnitudes_and_norms_are_exact(model_of, tmp_path):
    weights = np.array([[1, 0], [2, -9]], np.float32)
    model = model_of(
        [
            ("double", "Add", ["x", "x"], ["d"], {}),
            ("product", "MatMul", ["d", "w"], ["p"], {}),
            ("swap", "Transpose", ["p"], ["t"], {}),
            ("square", "MatMul", ["p", "t"], ["y"], {}),
        ],
        weights={"w": weights},
        inputs={"x": ["n", 2]},
    )
    first, second = np.array([[3, -4], [0, 1]], np.float32), np.array([[-0.5, 0.25]], np.float32)
    ranges, outputs = measure(model, tmp_path / "m.onnx", [{"x": first}, {"x": second}])
    product = 2 * first @ weights
    assert ranges.found == pytest.approx(
        {
            ("d", -1): 10.0,
            ("d", None): 8.0,
            ("p", None): 72.0,
            ("p", -1): np.linalg.norm(product, axis=1).max(),
            ("t", -2): np.linalg.norm(product, axis=1).max(),
            ("t", None): 72.0,
            ("y", None): (product**2).sum(axis=1).max(),
        },
        abs=1e-3,
    )
    assert [list(scene) for scene in outputs] == [["y"], ["y"]]
    rows = [row[None] * 2 @ weights for row in first]  # each image runs by itself
    np.testing.assert_allclose(outputs[0]["y"], np.concatenate([row @ row.T for row in rows]))
    assert ranges.first_infinite() is None


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_infinite_and_named(model_of, tmp_path, value):
    """NaN too, although ONNX Runtime's ReduceMax passes over it."""
    model = model_of([("a", "Neg", ["x"], ["n"], {}), ("b", "Add", ["n", "x"], ["y"], {})], inputs={"x": ["n", 3]})
    ranges, _ = measure(model, tmp_path / "m.onnx", [{"x": np.array([[1, value, 2], [1, 1, 1]], np.float32)}])
    assert ranges.found["n", None] == np.inf
    assert ranges.first_infinite() == "n"
