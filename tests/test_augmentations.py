import pytest
import torch
import torchvision.transforms.v2.functional as T

from b2ma_core.augmentations import adjust_colors, draw_changes, jitter_and_blur, sensor_noise


@pytest.fixture
def images():
    """Far enough from black and white that nothing is clipped."""
    return 0.35 + 0.2 * torch.rand(5, 3, 16, 24, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_colours_change_as_torchvision_changes_them(images, layout):
    brightness, contrast, saturation = 0.8 + 0.4 * torch.rand(3, 5, generator=torch.Generator().manual_seed(1))
    ours = adjust_colors(images.to(memory_format=layout), brightness, contrast, saturation, torch.zeros(5))
    for i, image in enumerate(images):
        image = T.adjust_brightness(image, float(brightness[i]))
        image = T.adjust_contrast(image, float(contrast[i]))
        image = T.adjust_saturation(image, float(saturation[i]))
        torch.testing.assert_close(ours[i], image, atol=1e-4, rtol=0)


def test_a_third_of_a_turn_of_the_hue_permutes_the_channels(images):
    one = torch.ones(5)
    ours = adjust_colors(images, one, one, one, torch.full((5,), 1 / 3))
    torch.testing.assert_close(ours, torch.stack([T.adjust_hue(image, 1 / 3) for image in images]))
    torch.testing.assert_close(ours, images[:, [2, 0, 1]])


def test_greys_have_no_hue_and_no_saturation():
    grey = torch.linspace(0, 1, 12).view(1, 1, 3, 4).expand(2, 3, 3, 4)
    turned = adjust_colors(grey, torch.ones(2), torch.ones(2), torch.tensor([0.5, 2.0]), torch.tensor([0.1, -0.4]))
    torch.testing.assert_close(turned, grey, atol=2e-4, rtol=0)  # torchvision's grey weights sum to 0.9999


def test_draws_are_of_each_image_and_stay_in_range():
    images = torch.rand(1, 3, 16, 24).expand(16, 3, 16, 24)
    changes = draw_changes(16, 0.25, 0.5, 0.5, torch.Generator().manual_seed(0))
    changed = jitter_and_blur(images, changes)
    assert changed.min() >= 0 and changed.max() <= 1
    same = (changed - images).abs().amax((1, 2, 3)) < 1e-5
    assert 0 < same.sum() < 16 and len({float(c.sum()) for c in changed[~same]}) == int((~same).sum())
    again = jitter_and_blur(images, draw_changes(16, 0.25, 0.5, 0.5, torch.Generator().manual_seed(0)))
    assert torch.equal(changed, again)
    in_parts = [jitter_and_blur(images[part], changes.of(part)) for part in (slice(0, 5), slice(5, 6), slice(6, 16))]
    torch.testing.assert_close(torch.cat(in_parts), changed)


def test_nothing_drawn_changes_nothing(images):
    torch.testing.assert_close(jitter_and_blur(images, draw_changes(5, 0.25, 0.0, 0.0, torch.Generator())), images)


def test_noise_has_a_strength_of_its_own_for_each_image():
    grey = torch.full((64, 3, 32, 32), 0.5)
    spread = (sensor_noise(grey, 0.1, torch.Generator().manual_seed(0)) - 0.5).std((1, 2, 3))
    assert 0 < spread.min() < 0.01 < 0.09 < spread.max() < 0.105
    assert spread.mean() == pytest.approx(0.05, abs=0.01)
