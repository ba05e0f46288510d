"""Numbers of visible patches made to fit an engine: what is run is valid, near, and the same for both models."""

import numpy as np
import pytest

from mae_export.runtime.fake import FakeSession
from mae_export.runtime.feeds import check_feeds
from mae_export.runtime.fitted import FittedSession
from tests.runtime.tensorrt_double import feeds, profile

PROFILES = (profile("1:4:8", "4:4:6"), profile("1:4:8", "12"))


class Recording(FakeSession):
    def run(self, fed, outputs=None):
        self.fed = fed
        return super().run(fed, outputs)


@pytest.mark.parametrize(("keep", "expected"), [(4, 4), (6, 6), (7, 6), (10, 12), (16, 12), (1, 4)])
@pytest.mark.parametrize(("mode", "ragged"), [("keep", False), ("keep", True), ("patches", True)])
def test_the_nearest_number_is_run(make_manifest, mode, ragged, keep, expected):
    inner = Recording(make_manifest(mode, ragged=ragged))
    fed = feeds(3, keep)
    if mode == "patches":
        fed["patches"] = np.random.default_rng(0).integers(0, 256, (3, keep, 192), dtype=np.uint8)
        del fed["images"]
    if ragged:
        fed["num_keep"] = np.array([1, keep, max(1, keep - 1)], np.int32)
    found = FittedSession(inner, PROFILES).run(fed)
    check_feeds(inner.manifest, inner.fed)
    assert inner.fed["ids_keep"].shape == found["patch_tokens"].shape[:2] == (3, expected)
    common = min(keep, expected)
    np.testing.assert_array_equal(inner.fed["ids_keep"][:, :common], fed["ids_keep"][:, :common])
    there = FittedSession(inner, PROFILES).run_on_device(fed, ["patch_tokens"])
    np.testing.assert_array_equal(there["patch_tokens"].numpy(), found["patch_tokens"])
    if ragged:
        np.testing.assert_array_equal(inner.fed["num_keep"], np.minimum(fed["num_keep"], expected))


def test_feeds_without_a_choice_of_patches_pass_through(make_manifest):
    inner = Recording(make_manifest("none"))
    fed = {"images": feeds()["images"]}
    with FittedSession(inner, (profile("1"),)) as session:
        session.run(fed, ["pooled"])
        assert inner.fed is fed
        assert (session.name, session.digest, session.manifest) == (inner.name, inner.digest, inner.manifest)
        assert session.description == "fake session"
    inner.run(fed)  # it stays open
