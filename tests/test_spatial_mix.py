import numpy as np
import pytest
import torch

from b2ma_core.spatial_mix import Cuts, draw_cuts, spatial_mix


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def plain_loop(tensor, cuts):
    out = tensor.clone()
    for i in range(len(tensor)):
        for r in range(tensor.shape[-2]):
            for c in range(tensor.shape[-1]):
                part = 2 * int(r >= cuts.y[i]) + int(c >= cuts.x[i])
                out[i, ..., r, c] = tensor[cuts.donors[i, part], ..., r, c]
    return out


@pytest.mark.parametrize("shape, dtype", [((5, 3, 12, 16), torch.float32), ((4, 10, 14), torch.uint8),
                                          ((3, 9, 7), torch.int64), ((2, 2, 8, 8), torch.bfloat16)])  # fmt: skip
def test_the_mix_equals_a_plain_loop(shape, dtype):
    tensor = (torch.rand(shape, generator=generator()) * 200).to(dtype)
    cuts = draw_cuts(shape[0], *shape[-2:], 0.25, generator(1))
    mixed = spatial_mix(tensor, cuts)
    assert mixed.dtype == dtype and mixed.shape == tensor.shape
    assert torch.equal(mixed, plain_loop(tensor, cuts))


def test_channels_last_gives_the_same():
    tensor = torch.rand(4, 3, 8, 8, generator=generator())
    cuts = draw_cuts(4, 8, 8, 0.25, generator())
    assert torch.equal(spatial_mix(tensor.to(memory_format=torch.channels_last), cuts), spatial_mix(tensor, cuts))


def test_a_batch_of_one_mixes_with_itself():
    tensor = torch.rand(1, 3, 8, 8)
    assert torch.equal(spatial_mix(tensor, draw_cuts(1, 8, 8, 0.25, generator())), tensor)


def test_donors_are_the_image_itself_and_others_only():
    cuts = draw_cuts(4, 32, 64, 0.25, generator())
    many = [draw_cuts(4, 32, 64, 0.25, generator(s)).donors for s in range(200)]
    assert cuts.donors.shape == (4, 4) and cuts.donors[:, 0].tolist() == [0, 1, 2, 3]
    for donors in many:
        assert (donors[:, 1:] != torch.arange(4)[:, None]).all()
    seen = torch.stack(many)[:, 0, 1:].flatten().bincount(minlength=4)
    assert seen[0] == 0 and (seen[1:] > 150).all()  # 200 of each expected


def test_cuts_follow_the_published_law():
    cuts = draw_cuts(4000, 100, 200, 0.25, generator())
    assert cuts.x.dtype == torch.int64 and cuts.x.min() >= 40 and cuts.x.max() <= 160
    assert cuts.y.min() >= 20 and cuts.y.max() <= 80
    share = (cuts.x.double() / 200 - 0.2) / 0.6
    assert abs(share.mean() - 0.5) < 0.03
    assert abs(share.var() - 1 / 6) < 0.02  # Beta(1/4, 1/4): 1 / (4 (2 b + 1)) = 1/6
    assert abs(np.corrcoef(cuts.x, cuts.y)[0, 1]) < 0.06


def test_no_beta_cuts_at_the_centre():
    for beta in (0, -1):
        cuts = draw_cuts(3, 128, 256, beta, generator())
        assert cuts.x.tolist() == [128] * 3 and cuts.y.tolist() == [64] * 3


def test_the_generator_decides_alone():
    torch.manual_seed(1)
    first = draw_cuts(4, 32, 64, 0.25, generator(7))
    torch.manual_seed(2)
    second = draw_cuts(4, 32, 64, 0.25, generator(7))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_misfits_are_refused():
    cuts = draw_cuts(4, 8, 8, 0.25, generator())
    with pytest.raises(ValueError, match="batch"):
        spatial_mix(torch.zeros(3, 8, 8), cuts)
    with pytest.raises(ValueError, match="cuts.x"):
        spatial_mix(torch.zeros(4, 8, 8), cuts._replace(x=torch.full((4,), 9)))
    with pytest.raises(ValueError, match="donors"):
        spatial_mix(torch.zeros(4, 8, 8), cuts._replace(donors=torch.full((4, 4), 4)))
    with pytest.raises(ValueError, match=r"\(N, H, W\)"):
        spatial_mix(torch.zeros(4, 8), cuts)
    with pytest.raises(ValueError, match="positive"):
        draw_cuts(0, 8, 8, 0.25, generator())


def test_the_docstring_example():
    labels = torch.arange(4).view(4, 1, 1).expand(4, 2, 2)
    one = torch.ones(4, dtype=torch.int64)
    mixed = spatial_mix(labels, Cuts(x=one, y=one, donors=torch.arange(4).expand(4, 4)))
    assert mixed[0].tolist() == [[0, 1], [2, 3]]
