"""What the authors of MFM computed beyond the common cases: feature maps and reconstructions."""

from __future__ import annotations

import numpy as np

from mae_export.export.options import TraceOptions
from mae_export.runtime.metrics import relative_error
from mae_export.runtime.session import open_session


def as_image(patches):
    """[B, 16, 16 * 16 * 3] in (y, x, c) order -> [B, 3, 64, 64]."""
    return patches.reshape(-1, 4, 4, 16, 16, 3).transpose(0, 5, 1, 3, 2, 4).reshape(-1, 3, 64, 64)


def test_reconstruction_is_in_the_order_of_patches(exported, fixture_dir):
    with np.load(fixture_dir / "mfm/input.npz") as given, np.load(fixture_dir / "mfm/expected.npz") as expected:
        with open_session(
            exported("mfm/checkpoint.pth", TraceOptions(features=("reconstruction", "dense")))
        ) as session:
            found = session.run({"images": given["images"]})
            (output, _) = session.manifest.outputs
        assert relative_error(found["dense"], expected["featmap"]) <= 1e-4
        assert relative_error(as_image(found["reconstruction"]), expected["reconstruction"]) <= 1e-4
        # The order of the checkpoint's convolution, (c, y, x), is another one.
        other = found["reconstruction"].reshape(2, 16, 3, 256).transpose(0, 1, 3, 2).reshape(2, 16, 768)
        assert relative_error(as_image(other), expected["reconstruction"]) > 0.1
    assert output.note.endswith("target: image-normalised")


def test_all_patches_in_another_order_are_the_same_tokens(exported, fixture_dir):
    """Training hid no patches, but the maths allows it."""
    order = np.random.default_rng(0).permuted(np.arange(16)[None].repeat(2, axis=0), axis=1)
    options = TraceOptions(mask="keep", features=("patch_tokens", "pooled"))
    with np.load(fixture_dir / "mfm/input.npz") as given, np.load(fixture_dir / "mfm/expected.npz") as expected:
        with open_session(exported("mfm/checkpoint.pth", options)) as session:
            found = session.run({"images": given["images"], "ids_keep": order})
        full = expected["tokens_full"][:, 1:]
        assert relative_error(found["patch_tokens"], np.take_along_axis(full, order[:, :, None], axis=1)) <= 1e-4
        assert relative_error(found["pooled"], expected["feature"]) <= 1e-4
