"""Step grids on every kind of model: exact length, ends, descent; and the published formulas."""

import math

import pytest
import torch
from fewstep.diffusion.paths import FLOW, VARIANCE_EXPLODING, VARIANCE_PRESERVING
from fewstep.diffusion.schedules import edits, grids

F64 = torch.float64


def stable_diffusion():
    """sigma/alpha of Stable Diffusion's 1000 steps (scaled linear betas)."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=F64) ** 2
    bar = (1 - betas).cumprod(0)
    return ((1 - bar) / bar).sqrt()


MODELS = {
    "flow": (grids.flow_sigma(), FLOW),
    "flow shift 3": (grids.flow_sigma(3.0), FLOW),
    "stable diffusion": (grids.discrete_sigma(stable_diffusion()), VARIANCE_EXPLODING),
    "edm": (
        grids.discrete_sigma(torch.linspace(math.log(0.002), math.log(80), 1000, dtype=F64).exp()),
        VARIANCE_EXPLODING,
    ),
    "variance preserving": (lambda t: (t * math.pi / 2).sin(), VARIANCE_PRESERVING),
}


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("name", grids.NAMES)
def test_every_grid_has_its_steps_its_ends_and_descends(model, name):
    sigma_of, path = MODELS[model]
    for steps in (1, 2, 3, 4, 7, 20, 100):
        for denoise in (1.0, 0.5, 0.03):
            sigmas = grids.grid(name, steps, sigma_of, path, denoise)
            assert (
                sigmas.shape == (steps + 1,) and sigmas.isfinite().all() and (sigmas.float().diff() < 0).all()
            ), (steps, denoise)
            assert sigmas[-1] == 0
            assert math.isclose(
                float(sigmas[0]), float(sigma_of(torch.tensor(denoise, dtype=F64))), rel_tol=1e-12
            )


def test_uniform_on_a_shifted_flow_is_the_shift_of_a_uniform_one():
    plain = grids.grid("uniform", 4, grids.flow_sigma(), FLOW, shift=3.0)
    assert torch.allclose(plain, grids.grid("uniform", 4, grids.flow_sigma(3.0), FLOW), atol=1e-14)
    assert torch.allclose(plain, torch.tensor([1, 0.9, 0.75, 0.5, 0], dtype=F64))
    half = grids.grid("uniform", 4, grids.flow_sigma(), FLOW, denoise=0.5, shift=3.0)
    assert torch.allclose(half, plain / 2)


def test_karras_equals_diffusers():
    from diffusers import EulerDiscreteScheduler

    sigmas = grids.grid("karras", 8, *MODELS["stable diffusion"])
    theirs = EulerDiscreteScheduler()._convert_to_karras(
        in_sigmas=torch.tensor([sigmas[0], sigmas[-2]]), num_inference_steps=8
    )
    assert torch.allclose(sigmas[:-1], torch.as_tensor(theirs).double(), rtol=1e-5)


def test_karras_is_its_formula():
    sigma_of, path = MODELS["stable diffusion"]
    sigmas = grids.grid("karras", 6, sigma_of, path)
    low, high = float(sigma_of(torch.tensor(grids.NEARLY_DATA, dtype=F64))), float(sigmas[0])
    wanted = [(high ** (1 / 7) + i / 5 * (low ** (1 / 7) - high ** (1 / 7))) ** 7 for i in range(6)]
    assert torch.allclose(sigmas[:6], torch.tensor(wanted, dtype=F64), rtol=1e-10)
    with_rho = grids.grid("karras", 6, sigma_of, path, rho=3.0)
    assert (with_rho[1:6] < with_rho[:5]).all() and with_rho[3] > sigmas[3]


def test_log_snr_and_cosine_are_equal_steps():
    sigma_of, path = MODELS["stable diffusion"]
    rises = path.log_snr(grids.grid("log-SNR", 8, sigma_of, path)[:8]).diff()
    assert (rises - rises[0]).abs().max() < 1e-6
    for sigma_of, path in MODELS.values():
        sigmas = grids.grid("cosine", 8, sigma_of, path)
        turns = torch.atan2(sigmas, path.alpha(sigmas)).diff()
        assert (turns - turns[0]).abs().max() < 1e-6


def test_polyexponential_1_is_log_snr():
    sigma_of, path = MODELS["edm"]
    assert torch.allclose(
        grids.grid("polyexponential", 7, sigma_of, path), grids.grid("log-SNR", 7, sigma_of, path)
    )


@pytest.mark.parametrize("a, b", [(2.0, 1.0), (1.0, 3.0), (1.0, 1.0), (2.0, 2.0)])
def test_beta_quantiles_where_they_have_a_closed_form(a, b):
    x = torch.linspace(0.01, 0.99, 23, dtype=F64)
    below = {(2.0, 1.0): x**2, (1.0, 3.0): 1 - (1 - x) ** 3, (1.0, 1.0): x, (2.0, 2.0): 3 * x**2 - 2 * x**3}[
        a, b
    ]
    assert (grids.beta_quantile(below, a, b) - x).abs().max() < 1e-6


def test_beta_quantile_of_one_half_is_the_arcsine_law_and_beta_is_symmetric():
    q = torch.linspace(0.02, 0.98, 31, dtype=F64)
    assert (grids.beta_quantile(q, 0.5, 0.5) - (q * math.pi / 2).sin().square()).abs().max() < 1e-6
    assert (grids.beta_quantile(q, 0.6, 0.6) + grids.beta_quantile(1 - q, 0.6, 0.6) - 1).abs().max() < 1e-6


def test_anchors_are_lcms_and_phases_are_divided():
    times = (
        grids.time_of(grids.flow_sigma(), grids.grid("trailing anchors", 4, grids.flow_sigma(), FLOW)) * 50
    )
    assert (times - torch.tensor([50.0, 38, 25, 13, 0], dtype=F64)).abs().max() < 1e-9
    assert torch.equal(
        grids.grid("trailing anchors", 50, grids.flow_sigma(), FLOW),
        grids.grid("uniform", 50, grids.flow_sigma(), FLOW),
    )
    six = grids.grid("phase edges", 6, grids.flow_sigma(), FLOW, phases=4)
    assert torch.allclose(six, torch.tensor([1, 0.875, 0.75, 0.625, 0.5, 0.25, 0], dtype=F64))
    two = grids.grid("phase edges", 2, grids.flow_sigma(), FLOW, phases=4)
    assert torch.allclose(two, torch.tensor([1, 0.5, 0], dtype=F64))


def test_karras_ends_at_its_lowest_level_with_a_small_rho():
    sigma_of, path = MODELS["edm"]
    lowest = float(sigma_of(torch.tensor(grids.NEARLY_DATA, dtype=F64)))
    assert float(grids.grid("karras", 6, sigma_of, path, rho=0.1)[5]) == pytest.approx(lowest, rel=1e-6)


def test_ays_is_its_table_on_its_model_and_has_equal_lambda_on_another():
    sigma_of, path = MODELS["stable diffusion"]
    ten = grids.grid("AYS SD1", 10, sigma_of, path)
    assert torch.allclose(
        ten[1:10], torch.tensor([6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152], dtype=F64)
    )
    flow = grids.grid("AYS SD1", 10, *MODELS["flow"])
    assert torch.allclose(FLOW.log_snr(flow[1:10]), path.log_snr(ten[1:10])) and flow[0] == 1


@pytest.mark.parametrize(
    "arguments, why",
    [
        (("unheard of", 4), "schedule must be one of uniform, .*got 'unheard of'"),
        (("uniform", 0), "steps must be a whole number"),
        (("uniform", 2.5), "steps must be a whole number"),
        (("uniform", -1), "steps must be a whole number"),
        (("uniform", 4, 0.0), "denoise must be above 0"),
        (("uniform", 4, 1.5), "denoise must be above 0"),
        (("uniform", 4, 1.0, 0.0), "shift must be above 0"),
    ],
)
def test_bad_arguments_are_named(arguments, why):
    name, steps, *rest = arguments
    with pytest.raises(ValueError, match=why):
        grids.grid(name, steps, grids.flow_sigma(), FLOW, *rest)


@pytest.mark.parametrize(
    "name, options, why",
    [
        ("karras", {"rho": 0.0}, "rho of schedule karras must be above 0"),
        ("uniform", {"rho": 7.0}, "schedule uniform has no option rho"),
        ("uniform", {"dimension": 8}, "schedule uniform has no option dimension; it has none"),
        ("beta", {"rho": 7.0}, "schedule beta has no option rho; it has alpha, beta"),
        ("phase edges", {"phases": 2.5}, "phases .* must be above 0 and whole, got 2.5"),
    ],
)
def test_bad_options_are_named(name, options, why):
    with pytest.raises(ValueError, match=why):
        grids.grid(name, 4, grids.flow_sigma(), FLOW, **options)


# ---- edits -----------------------------------------------------------------------------------------


@pytest.fixture(params=MODELS)
def model(request):
    return MODELS[request.param]


def test_shift_and_its_inverse(model):
    sigma_of, path = model
    sigmas = grids.grid("uniform", 6, sigma_of, path)
    moved = edits.shift(sigmas, sigma_of, 3.0)
    assert torch.allclose(moved, grids.grid("uniform", 6, sigma_of, path, shift=3.0), rtol=1e-9)
    assert torch.allclose(edits.shift(moved, sigma_of, 1 / 3), sigmas, rtol=1e-6)
    assert edits.shift(sigmas, sigma_of, 1.0) is sigmas


def test_scale_moves_lambda_and_stays_in_range(model):
    sigma_of, path = model
    sigmas = grids.grid("uniform", 6, sigma_of, path)
    half = edits.scale(sigmas, path, 0.5, float(sigmas[0]))
    assert torch.allclose(
        path.log_snr(half[1:6]) - path.log_snr(sigmas[1:6]), torch.tensor(math.log(2), dtype=F64)
    )
    more = edits.scale(sigmas, path, 50.0, float(sigmas[0]))
    assert more[0] == sigmas[0] and (more.diff() < 0).all() and more[-1] == 0


def test_levels_beyond_the_largest_are_spread_not_stacked():
    sigma_of, path = MODELS["stable diffusion"]
    top = float(sigma_of(torch.tensor(1.0, dtype=F64)))
    wide = torch.tensor([700.0, 200, 60, 20, 5, 1, 0], dtype=F64)
    for moved in (edits.translate(wide, path, 700.0, path, top), edits.scale(wide / 40, path, 40.0, top)):
        assert (
            moved[0] == pytest.approx(top)
            and (moved[:5] / moved[1:6]).min() > 1.2
            and (moved.diff() < 0).all()
        )


def test_shift_of_a_part_keeps_its_ends(model):
    sigma_of, path = model
    part = grids.grid("uniform", 8, sigma_of, path)[2:6]
    moved = edits.shift(part, sigma_of, 3.0)
    assert moved[0] == part[0] and moved[-1] == part[-1] and (moved[1:-1] > part[1:-1]).all()


def test_blend_ends_are_the_schedules_and_lengths_may_differ(model):
    sigma_of, path = model
    a, b = grids.grid("uniform", 6, sigma_of, path), grids.grid("karras", 6, sigma_of, path)
    assert torch.allclose(edits.blend(a, b, sigma_of, 0.0), a, rtol=1e-9)
    assert torch.allclose(edits.blend(a, b, sigma_of, 1.0), b, rtol=1e-6)
    middle = edits.blend(a, grids.grid("karras", 11, sigma_of, path), sigma_of, 0.5)
    assert len(middle) == 7 and (middle.diff() < 0).all()


def test_snap_takes_each_anchor_once():
    sigma_of = grids.flow_sigma()
    close = torch.tensor([1.0, 0.99, 0.98, 0.5, 0.0], dtype=F64)
    assert torch.allclose(
        edits.snap(close, sigma_of, 4), torch.tensor([1.0, 0.75, 0.5, 0.25, 0.0], dtype=F64)
    )
    low = torch.tensor([0.3, 0.02, 0.01], dtype=F64)
    assert torch.allclose(edits.snap(low, sigma_of, 10), torch.tensor([0.3, 0.2, 0.1], dtype=F64))
    with pytest.raises(ValueError, match="anchors must be at least 4, .* got 3"):
        edits.snap(close, sigma_of, 3)


def test_split_shares_its_entry():
    sigmas = grids.grid("uniform", 4, grids.flow_sigma(), FLOW)
    high, low = edits.split(sigmas, 3)
    assert len(high) == 4 and len(low) == 2 and high[-1] == low[0]
    for bad in (0, 4):
        with pytest.raises(ValueError, match="split must be between 1 and 3"):
            edits.split(sigmas, bad)


def test_translation_keeps_lambda_and_there_and_back_is_the_same():
    sigma_of, path = MODELS["stable diffusion"]
    sigmas = grids.grid("karras", 6, sigma_of, path)
    top = float(sigmas[0])
    flow = edits.translate(sigmas, path, top, FLOW, 1.0)
    assert flow[0] == 1 and torch.allclose(FLOW.log_snr(flow[1:6]), path.log_snr(sigmas[1:6]))
    assert torch.allclose(edits.translate(flow, FLOW, 1.0, path, top), sigmas, rtol=1e-9)


def test_a_part_of_a_grid_keeps_what_lies_between_the_ends_of_another():
    grid, path = torch.tensor([1.0, 0.9, 0.75, 0.5, 0.0], dtype=torch.float64), FLOW
    for of, wanted in (
        ([1.0, 0.6, 0.0], grid.tolist()),  # a whole way changes nothing
        ([1.0, 0.95, 0.875], [1.0, 0.9, 0.875]),
        ([0.875, 0.3, 0.0], [0.875, 0.75, 0.5, 0.0]),
        ([0.7499, 0.0], [0.7499, 0.5, 0.0]),  # a level next to the end is the end
        ([0.45, 0.0], [0.45, 0.0]),
    ):
        cut = edits.part(grid, torch.tensor(of, dtype=torch.float64), path)
        assert cut.tolist() == wanted
