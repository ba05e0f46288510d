import numpy as np
import pytest
from PIL import Image

from mae_export.errors import ImageError, InputError
from mae_export.runtime.frames import frames_of, prepare_frame
from mae_export.spec import ImageSpec

RGB = ImageSpec(size=(32, 48), crop_fraction=0.875)
GREY = ImageSpec(size=(32, 48), channels=1, mean=(0.5,), std=(0.2,))
TWO = ImageSpec(size=(32, 48), channels=2, mean=(0.5, 0.5), std=(0.2, 0.2))
CLIP = ImageSpec(size=(32, 48), frames=3)


def noise(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def test_a_frame_is_treated_as_the_picture_of_a_file_would_be(tmp_path):
    from mae_export.runtime.images import prepare

    frame = noise(90, 70, 3)
    Image.fromarray(frame).save(tmp_path / "frame.png")
    expected = prepare((tmp_path / "frame.png").read_bytes(), RGB)
    np.testing.assert_array_equal(prepare_frame(frame, RGB, prepared=False), expected)


def test_the_rule_holds_for_frames_of_the_right_size_too_unless_they_are_prepared():
    frame = noise(32, 48, 3)
    assert prepare_frame(frame, RGB, prepared=True) is frame
    assert not np.array_equal(prepare_frame(frame, RGB, prepared=False), frame)


def test_channels_are_resized_one_by_one():
    frame = noise(64, 96, 2)
    found = prepare_frame(frame, TWO, prepared=False)
    assert found.shape == (32, 48, 2)
    for channel in range(2):
        alone = prepare_frame(frame[..., channel : channel + 1], GREY, prepared=False)
        np.testing.assert_array_equal(found[..., channel : channel + 1], alone)


def test_every_picture_of_a_clip_is_resized():
    clip = noise(3, 80, 60, 3)
    found = prepare_frame(clip, CLIP, prepared=False)
    still = ImageSpec(size=(32, 48))
    np.testing.assert_array_equal(found[2], prepare_frame(clip[2], still, prepared=False))


@pytest.mark.parametrize(
    ("frame", "spec", "text"),
    [
        (noise(40, 40, 3).astype(np.float32), RGB, "a frame is float32; expected a numpy array of uint8"),
        ([[1, 2], [3, 4]], RGB, "a frame is list; expected a numpy array of uint8"),
        (noise(40, 40), RGB, r"a frame has shape \[40, 40\]; expected \[H, W, 3\], channels last"),
        (noise(3, 40, 40), RGB, r"shape \[3, 40, 40\]; expected \[H, W, 3\]"),
        (noise(40, 0, 3), RGB, r"shape \[40, 0, 3\]"),
        (noise(2, 40, 40, 3), CLIP, r"shape \[2, 40, 40, 3\]; expected \[3, H, W, 3\]"),
    ],
)
def test_what_is_no_frame_is_refused(frame, spec, text):
    with pytest.raises(InputError, match=text):
        prepare_frame(frame, spec, prepared=False)


def test_a_prepared_frame_must_have_the_size():
    with pytest.raises(
        InputError, match=r"a prepared frame has shape \[48, 32, 3\]; expected height and width \(32, 48\)"
    ):
        prepare_frame(noise(48, 32, 3), RGB, prepared=True)


def test_an_absurd_aspect_is_an_image_error():
    with pytest.raises(ImageError, match="Crop it first"):
        prepare_frame(np.zeros((1, 80_000, 3), np.uint8), RGB, prepared=False)


def test_one_frame_is_not_taken_for_a_batch():
    with pytest.raises(
        InputError, match=r"frames has shape \[40, 40, 3\]; expected a batch \[B, H, W, 3\]. Give one as"
    ):
        frames_of(noise(40, 40, 3), RGB)
    assert len(list(frames_of(noise(2, 3, 40, 40, 3), CLIP))) == 2
    camera = iter([noise(40, 40, 3)])
    assert frames_of(camera, RGB) is camera
