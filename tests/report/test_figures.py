from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.decomposition import PCA

from mae_export.errors import InputError
from mae_export.manifest import Manifest, Patches
from mae_export.report.figures import (
    HIDDEN,
    PictureRow,
    SpeedCurve,
    demo_figure,
    pca_map,
    reconstruction_rows,
    save_pictures,
    save_speed_curve,
)
from mae_export.spec import IMAGENET_MEAN, IMAGENET_STD, ImageSpec

CURVE = SpeedCurve(
    title="ViT-B/16 on a CPU",
    kept=(1.0, 0.75, 0.5, 0.25, 0.1),
    images_per_second=(10.0, 13.0, 19.5, 36.0, 70.0),
    ideal=(1.0, 1.33, 2.0, 3.98, 9.1),
)
IDS_KEEP = np.array([[5, 0], [2, 3], [1, 4]])


def manifest_of(target: str) -> Manifest:
    return Manifest(
        family="mae",
        encoder={"decoder": {"target": target}},
        image=ImageSpec(size=(8, 12)),
        patches=Patches(patch=(1, 4, 4), grid=(1, 2, 3), prefix_tokens=1),
        mask_mode="keep",
        ragged=False,
        inputs=(),
        outputs=(),
        precision="fp32",
        made_from=(),
    )


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (3, 8, 12, 3), dtype=np.uint8)


def normalised_cells(images: np.ndarray) -> np.ndarray:
    """Patches one by one, [3, 6, 48], as the encoder sees them."""
    pixels = (images / 255 - IMAGENET_MEAN) / IMAGENET_STD
    cells = [pixels[:, 4 * y : 4 * y + 4, 4 * x : 4 * x + 4].reshape(3, -1) for y in range(2) for x in range(3)]
    return np.stack(cells, axis=1)


def test_visible_patches_are_shown_and_pasted(images: np.ndarray) -> None:
    predicted = np.zeros((3, 6, 48), np.float32)  # the mean colour, once normalisation is undone
    whole, seen, rebuilt = reconstruction_rows(images, IDS_KEEP, predicted, manifest=manifest_of("image-normalised"))
    np.testing.assert_allclose(whole.pictures, images / 255, atol=1e-6)
    assert seen.label == "Visible\n33% of patches"
    for index, kept in enumerate(IDS_KEEP):
        for patch in range(6):
            rows, columns = slice(4 * (patch // 3), 4 * (patch // 3) + 4), slice(4 * (patch % 3), 4 * (patch % 3) + 4)
            cell = images[index, rows, columns] / 255
            visible = patch in kept
            np.testing.assert_allclose(seen.pictures[index, rows, columns], cell if visible else HIDDEN, atol=1e-6)
            expected = cell if visible else np.broadcast_to(IMAGENET_MEAN, (4, 4, 3))
            np.testing.assert_allclose(rebuilt.pictures[index, rows, columns], expected, atol=1e-6)


def test_a_perfect_prediction_gives_the_image_back(images: np.ndarray) -> None:
    cells = normalised_cells(images)
    *_, rebuilt = reconstruction_rows(images, IDS_KEEP, cells, manifest=manifest_of("image-normalised"))
    np.testing.assert_allclose(rebuilt.pictures, images / 255, atol=1e-5)
    assert rebuilt.label == "Reconstruction"
    per_patch = (cells - cells.mean(-1, keepdims=True)) / cells.std(-1, ddof=1, keepdims=True)
    *_, rebuilt = reconstruction_rows(images, IDS_KEEP, per_patch, manifest=manifest_of("patch-normalised"))
    np.testing.assert_allclose(rebuilt.pictures, images / 255, atol=1e-5)
    assert "true mean and\ncontrast" in rebuilt.label


def test_pixels_stay_in_range(images: np.ndarray) -> None:
    wild = np.full((3, 6, 48), 99.0)
    *_, rebuilt = reconstruction_rows(images, IDS_KEEP, wild, manifest=manifest_of("image-normalised"))
    assert rebuilt.pictures.max() == 1


def test_predictions_of_another_size(images: np.ndarray) -> None:
    with pytest.raises(InputError, match=r"has shape \[3, 6, 47\] and ids_keep \[3, 2\]; expected \[3, 6, 48\]"):
        reconstruction_rows(images, IDS_KEEP, np.zeros((3, 6, 47)), manifest=manifest_of("image-normalised"))
    with pytest.raises(InputError, match=r"ids_keep \[2, 2\]; expected \[3, 6, 48\] and \[3, K\]"):
        reconstruction_rows(images, IDS_KEEP[:2], np.zeros((3, 6, 48)), manifest=manifest_of("image-normalised"))


def test_colours_are_principal_components_of_all_images_together() -> None:
    tokens = np.random.default_rng(1).normal(size=(4, 6, 10)) * np.arange(1, 11)
    colours = pca_map(tokens.astype(np.float32), (2, 3))
    assert colours.shape == (4, 2, 3, 3)
    scores = PCA(3).fit_transform(tokens.reshape(24, 10))
    for component in range(3):
        one = colours[..., component].ravel()
        assert (one.min(), one.max()) == (0, 1)
        assert abs(np.corrcoef(one, scores[:, component])[0, 1]) == pytest.approx(1, abs=1e-6)
    np.testing.assert_allclose(pca_map(-tokens, (2, 3)), 1 - colours, atol=1e-5)  # the sign is fixed by the axes


def test_equal_tokens_have_a_finite_colour() -> None:
    assert (pca_map(np.ones((1, 4, 5)), (2, 2)) == 0).all()


def test_tokens_that_do_not_fit() -> None:
    for shape in ((1, 5, 8), (4, 8), (1, 4, 2)):
        with pytest.raises(InputError, match=r"expected \[n, 2 \* 2, D\] with D >= 3"):
            pca_map(np.zeros(shape), (2, 2))


def rows_of(images: np.ndarray) -> list[PictureRow]:
    rows = reconstruction_rows(
        images, IDS_KEEP, np.zeros((3, 6, 48), np.float32), manifest=manifest_of("image-normalised")
    )
    return [*rows, PictureRow(label="Tokens", pictures=np.zeros((3, 2, 3, 3), np.float32))]


def test_figures_are_written_whole(images: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "figure.png"
    path.write_bytes(b"old")
    demo_figure(rows_of(images), CURVE, path, title="Demo")
    with Image.open(path) as picture:
        assert (picture.format, picture.size) == ("PNG", (1600, 750))
        pixels = np.asarray(picture.convert("RGB"))
    # The token row is black and nothing else is: three cells, each of the pictures' width.
    black = (pixels[:, :1000] == 0).all(axis=-1)
    assert black.sum(axis=1).max() > 600
    assert [entry.name for entry in tmp_path.iterdir()] == ["figure.png"]


def test_single_figures(images: np.ndarray, tmp_path: Path) -> None:
    save_pictures(rows_of(images), tmp_path / "rows.png")
    save_speed_curve(CURVE, tmp_path / "speed.png")
    with Image.open(tmp_path / "rows.png") as rows, Image.open(tmp_path / "speed.png") as speed:
        assert rows.width == 1600
        assert speed.size == (800, 800)


def test_rows_of_different_lengths(images: np.ndarray, tmp_path: Path) -> None:
    rows = [*rows_of(images), PictureRow(label="short", pictures=np.zeros((2, 2, 3, 3), np.float32))]
    with pytest.raises(InputError, match=r"rows have \[3, 3, 3, 3, 2\] pictures"):
        save_pictures(rows, tmp_path / "rows.png")
    assert not list(tmp_path.iterdir())


def test_rows_of_another_shape() -> None:
    with pytest.raises(InputError, match=r"the row 'grey' has shape \[3, 8, 8\]; expected \[n, h, w, 3\]"):
        PictureRow(label="grey", pictures=np.zeros((3, 8, 8), np.float32))


def test_speed_up() -> None:
    assert CURVE.speed_up == (1.0, 1.3, 1.95, 3.6, 7.0)


def test_curves_that_mean_nothing() -> None:
    with pytest.raises(InputError, match="as many shares as speeds and ideals, all of them positive"):
        replace(CURVE, ideal=(1.0,))
    with pytest.raises(InputError, match="all of them positive"):
        replace(CURVE, images_per_second=(10.0, 13.0, 0.0, 36.0, 70.0))
    with pytest.raises(InputError, match="expected them to descend from 1"):
        replace(CURVE, kept=(0.1, 0.25, 0.5, 0.75, 1.0))
