import numpy as np
import pytest
import torch

from mae_export.errors import MaskError
from mae_export.training.masking import kept_patches, random_masking


def test_kept_patches_as_len_keep() -> None:
    assert kept_patches(196, 0.75) == 49
    assert kept_patches(10, 0.75) == 2  # int() rounds down


@pytest.mark.parametrize(("patches", "ratio", "kept"), [(10, 0.9, 0), (4, 0.8, 0), (4, 0.0, 4)])
def test_nothing_visible_or_nothing_hidden(patches: int, ratio: float, kept: int) -> None:
    with pytest.raises(MaskError, match=f"keeps {kept} of {patches} patches; expected at least one visible and one"):
        kept_patches(patches, ratio)


def test_rows_are_the_start_of_a_permutation_in_the_order_of_the_noise() -> None:
    ids = random_masking(5, 16, 4, torch.Generator().manual_seed(3))
    noise = torch.rand(5, 16, generator=torch.Generator().manual_seed(3)).numpy()
    assert ids.dtype == torch.int64
    np.testing.assert_array_equal(ids.numpy(), np.argsort(noise, axis=1)[:, :4])


def test_every_patch_is_equally_likely() -> None:
    ids = random_masking(4000, 16, 4, torch.Generator().manual_seed(0))
    counts = torch.bincount(ids.flatten(), minlength=16).numpy()
    # Binomial(4000, 1/4): mean 1000, standard deviation 27.4
    assert np.abs(counts - 1000).max() < 4 * 27.4


def test_one_generator_gives_new_masks_each_time() -> None:
    generator = torch.Generator().manual_seed(0)
    assert not torch.equal(random_masking(2, 64, 16, generator), random_masking(2, 64, 16, generator))
