"""What a wrapped session tells of itself is what the session inside tells."""

import pytest

from mae_export.runtime.delegate import Delegate
from mae_export.runtime.fake import FakeSession


@pytest.mark.parametrize("fact", ["name", "manifest", "digest", "description"])
def test_facts_are_those_of_the_session_inside(make_manifest, fact):
    inside = FakeSession(make_manifest())
    assert getattr(Delegate(inside), fact) == getattr(inside, fact)
