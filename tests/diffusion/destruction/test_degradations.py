"""What each destruction does to an image: blur in cosines, squares, masks, fades."""

import math

import pytest
import torch
from fewstep.diffusion.destruction.degradations import (
    Blur,
    DrawnFade,
    DrawnMask,
    Fade,
    Mask,
    Pixelate,
    cosines,
    fall,
)

F64 = torch.float64
SIZES = [(8, 8), (7, 12), (33, 20), (1, 9), (64, 96), (5, 128)]


def half(t):
    return torch.tensor(t, dtype=F64)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("std", [0.3, 1.0, 4.0, 30.0])
@pytest.mark.parametrize("dtype", [F64, torch.float32])
def test_blur_is_its_definition_in_cosines(size, std, dtype, generator):
    """Each mode times its factor, in full; float32 within its rounding, whether few modes are used or all."""
    x = torch.randn(2, 3, *size, generator=generator, dtype=F64)
    rows, columns = (cosines(n) for n in size)
    gain = fall(size[0], half(std))[:, None] * fall(size[1], half(std))
    wanted = rows.T @ (gain * (rows @ x @ columns.T)) @ columns
    ours = Blur(width=std).corrupt(x.to(dtype), None, 1.0)
    assert ours.dtype == dtype and (ours - wanted).abs().max() < 50 * torch.finfo(dtype).eps
    each = Blur(width=std).corrupt(x.to(dtype), None, torch.ones(2))
    assert (each - wanted).abs().max() < 50 * torch.finfo(dtype).eps


@pytest.mark.parametrize("size", [1, 2, 7, 64])
def test_cosines_are_orthonormal_and_those_of_the_discrete_cosine_transform(size):
    basis = cosines(size)
    assert (basis @ basis.T - torch.eye(size, dtype=F64)).abs().max() < 1e-13
    k = torch.arange(size, dtype=F64)
    second = (
        2 * basis - torch.roll(basis, 1, 1) - torch.roll(basis, -1, 1)
    )  # inside, a mode is an eigenvector of differences
    inside = second[:, 1:-1] - (2 - 2 * torch.cos(math.pi * k / size))[:, None] * basis[:, 1:-1]
    assert inside.numel() == 0 or inside.abs().max() < 1e-13


@pytest.mark.parametrize("std", [1.0, 3.0])
def test_blur_has_its_width_in_pixels_keeps_the_mean_and_adds_in_squares(std, generator):
    point = torch.zeros(1, 1, 61, 41, dtype=F64)
    point[..., 30, 20] = 1
    spread = Blur(width=std).corrupt(point, None, 1.0)[0, 0]
    assert (spread.sum(1) @ (torch.arange(61) - 30).double().square()).item() == pytest.approx(
        std**2, rel=1e-4
    )
    assert (spread.sum(0) @ (torch.arange(41) - 20).double().square()).item() == pytest.approx(
        std**2, rel=1e-4
    )
    x = torch.randn(1, 2, 17, 24, generator=generator, dtype=F64)
    blurred = Blur(width=std).corrupt(x, None, 1.0)
    assert torch.allclose(blurred.mean((2, 3)), x.mean((2, 3)), rtol=1e-12)
    twice = Blur(width=2.0).corrupt(blurred, None, 1.0)
    assert torch.allclose(twice, Blur(width=math.hypot(std, 2.0)).corrupt(x, None, 1.0), atol=1e-13)
    assert torch.allclose(
        blurred.flip(-1), Blur(width=std).corrupt(x.flip(-1), None, 1.0), atol=1e-13
    )  # edges reflect


@pytest.mark.parametrize("times", [(0.9, 0.7), (0.7, 0.05), (0.1, 0.05), (0.5, 0.0)], ids=str)
def test_blurs_are_weighed_in_one_transform(times, generator):
    x, blur = torch.randn(2, 3, 24, 31, generator=generator, dtype=F64), Blur(width=15.0)
    ours = blur.weighted(x, [(0.7, half(times[0])), (-1.3, half(times[1]))])
    assert torch.allclose(
        ours, 0.7 * blur.corrupt(x, None, times[0]) - 1.3 * blur.corrupt(x, None, times[1]), atol=1e-14
    )


@pytest.mark.parametrize("size", SIZES[:4], ids=str)
def test_pixelate_is_means_over_squares(size, generator):
    x = torch.randn(2, 3, *size, generator=generator, dtype=F64)
    for power in range(4):
        square, ours = 2**power, Pixelate(largest=8).corrupt(x, None, power / 3)
        for i in range(0, size[0], square):
            for j in range(0, size[1], square):
                cut = (..., slice(i, i + square), slice(j, j + square))
                assert torch.allclose(
                    ours[cut], x[cut].mean((2, 3), keepdim=True).expand_as(x[cut]), atol=1e-14
                )
    between = Pixelate(largest=8).corrupt(x, None, 0.5)
    ends = [Pixelate(largest=8).corrupt(x, None, t) for t in (1 / 3, 2 / 3)]
    assert torch.allclose(between, (ends[0] + ends[1]) / 2, atol=1e-12)
    assert torch.allclose(between.mean((2, 3)), x.mean((2, 3)), rtol=1e-9, atol=1e-14)
    assert torch.allclose(
        Pixelate(largest=256).corrupt(x, None, 1.0), x.mean((2, 3), keepdim=True).expand_as(x), atol=1e-14
    )


def test_mask_follows_its_order_and_spares_what_is_never_masked(generator):
    x = torch.randn(1, 4, 3, 3, generator=generator)
    order = torch.tensor([[0.0, 0.2, 0.4], [0.6, 0.8, 0.9], [math.inf] * 3])
    process = Mask(order=order, fill=7.0)
    for t, count in ((0.0, 0), (0.1, 1), (0.5, 3), (1.0, 6)):
        out = process.corrupt(x, None, t)
        assert torch.equal(out[0, 0] == 7, order < t) and int((out == 7).sum()) == 4 * count
        assert torch.equal(out[out != 7], x[out != 7])
    wrong = torch.zeros_like(x)  # a step keeps what is seen, whatever the model says
    seen = process.transition(process.corrupt(x, None, 0.5), wrong, 0.5, 0.3)
    assert torch.equal(seen[..., order >= 0.5], x[..., order >= 0.5]) and (seen[..., 0, 2] == 0).all()


def test_fade_is_a_line_between_two_images(generator):
    a, b = torch.randn(2, 1, 3, 4, 5, generator=generator)
    assert torch.equal(Fade(other=b).corrupt(a, None, 0.0), a) and torch.equal(
        Fade(other=b).corrupt(a, None, 1.0), b
    )
    assert torch.allclose(Fade(other=b).corrupt(a, None, 0.3), 0.7 * a + 0.3 * b, atol=1e-6)
    assert torch.equal(DrawnFade().corrupt(a, b, 0.3), Fade(other=b).corrupt(a, None, 0.3))
    out = DrawnFade().transition(0.4 * a + 0.6 * b, a, 0.6, 0.2)
    assert torch.allclose(out, 0.8 * a + 0.2 * b, atol=1e-6)


def test_drawn_mask_masks_a_share_t_and_never_masks_again(generator):
    x0 = torch.randn(4, 3, 40, 40, generator=generator) + 9
    draw = lambda x: torch.randn(x.shape, generator=generator)
    process = DrawnMask()
    x = process.corrupt(x0, draw(x0), 0.7)
    hidden = process.masked(x)
    assert abs(float(hidden.float().mean()) - 0.7) < 0.02 and torch.equal(x, torch.where(hidden, 0.0, x0))
    assert torch.equal(process.corrupt(x0, process.solve_noise(x0, x, 0.7, draw), 0.7), x)
    y = process.transition(x, torch.zeros_like(x0) + 5, 0.7, 0.2, 0.0, draw)
    still = process.masked(y)
    assert not (still & ~hidden).any() and abs(float(still.float().mean()) - 0.2) < 0.02
    assert torch.equal(
        y, torch.where(still, 0.0, torch.where(hidden, 5.0, x0))
    )  # what was seen comes from x_t
    assert (
        process.masked(process.transition(x, x0, 0.7, 0.2, 1.0, draw)) & ~hidden
    ).any()  # fresh noise masks anew
    both = process.corrupt(x0[:2], draw(x0[:2]), torch.tensor([0.0, 1.0]))
    assert torch.equal(both[0], x0[0]) and (both[1] == 0).all()
