from collections.abc import Callable
from dataclasses import replace

import pytest

from mae_export.decoder_spec import DecoderSpec, Target
from mae_export.spec import EncoderSpec, ImageSpec, StoredTable


@pytest.fixture(scope="session")
def spec_of() -> Callable[[Target], EncoderSpec]:
    """A small MAE whose head counts the layout's readers can tell: 64 values per head, 16 decoder heads."""
    spec = EncoderSpec(
        family="mae",
        image=ImageSpec(size=(32, 32)),
        patch=(1, 8, 8),
        dim=64,
        depth=2,
        heads=1,
        mlp_hidden=256,
        eps=1e-6,
        position=StoredTable(grid=(4, 4)),
    )

    def with_target(target: Target) -> EncoderSpec:
        return replace(spec, decoder=DecoderSpec(dim=32, depth=1, heads=16, mlp_hidden=128, target=target))

    return with_target


@pytest.fixture(scope="session")
def spec(spec_of: Callable[[Target], EncoderSpec]) -> EncoderSpec:
    return spec_of("image-normalised")
