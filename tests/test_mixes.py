import numpy as np
import pytest
import torch

from b2ma_core import params
from b2ma_core.mixes import MIXES, half_of_the_classes, mix, rectangles
from b2ma_core.spatial_mix import draw_cuts, spatial_mix
from b2ma_core.study.stages import self_distillation_of


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_spatial_is_spatial_mix_with_the_generator_s_first_draw():
    images, labels = torch.rand(4, 3, 8, 12), torch.randint(5, (4, 8, 12))
    cuts = draw_cuts(4, 8, 12, 0.25, generator())
    mixed = mix((images, labels), labels, "spatial", 0.25, generator())
    assert torch.equal(mixed[0], spatial_mix(images, cuts)) and torch.equal(mixed[1], spatial_mix(labels, cuts))


@pytest.mark.parametrize("kind", ["none", "spatial", "cutmix", "classmix"])
def test_images_and_labels_stay_aligned(kind):
    labels = torch.randint(5, (4, 8, 12), generator=generator(1))
    images = labels[:, None].expand(-1, 3, -1, -1) / 4
    mixed_images, mixed_labels = mix((images, labels), labels, kind, 0.25, generator())
    assert torch.equal(mixed_images[:, 0], mixed_labels / 4)
    assert torch.equal(mixed_labels, labels) == (kind == "none")
    again = mix((images, labels), labels, kind, 0.25, generator())
    assert torch.equal(again[0], mixed_images)


def test_cutmix_covers_half_of_the_area_with_one_rectangle_at_any_place():
    masks = rectangles(200, 40, 60, generator()).numpy()
    for mask in masks:
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        assert mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
        assert mask.sum() == len(rows) * len(columns)
        assert 0.45 < mask.mean() < 0.55 and len(rows) >= 20 and len(columns) >= 30
    assert masks.any((0, 1)).all() and masks.any((0, 2)).all() and masks.all((1, 2)).sum() == 0


def test_classmix_takes_whole_classes_half_of_them_and_never_the_ignored():
    labels = torch.tensor([[[0, 1, 2, 255], [0, 3, 2, 255]], [[7, 7, 7, 7], [255] * 4], [[255] * 4] * 2])
    masks = half_of_the_classes(labels, generator())
    assert [len(labels[i][masks[i]].unique()) for i in range(3)] == [2, 1, 0]
    for i in range(3):
        for c in labels[i][masks[i]].unique():
            assert masks[i][labels[i] == c].all() and c != 255
    mixed = mix((labels.float(),), labels, "classmix", 0.0, generator())[0]
    given = [
        set(m.unique().tolist()) - set(own.float().unique().tolist()) for m, own in zip(mixed, labels, strict=True)
    ]
    assert any(given)


def test_an_unknown_mix_is_named():
    with pytest.raises(ValueError, match="'mosaic'.*none, spatial, cutmix, classmix"):
        mix((), torch.zeros(2, 4, 4, dtype=torch.long), "mosaic", 0.25, generator())


def test_the_parameters_know_the_same_mixes():
    assert params.MIXES == MIXES  # params imports no torch, so it lists them again


def test_a_mix_takes_the_place_of_patches_where_none_are_mined(smoke_params):
    assert smoke_params.stage2_mix == "auto"
    assert [self_distillation_of(smoke_params, mined).mix for mined in (True, False)] == ["none", "cutmix"]
    told = smoke_params.model_copy(update={"stage2_mix": "spatial"})
    assert [self_distillation_of(told, mined).mix for mined in (True, False)] == ["spatial", "spatial"]
