"""Fitting through the backend: any Python denoiser, guided teachers, time and effort, and what is handed
on.
"""

import dataclasses
import math
import time

import pytest
import torch
from fewstep.diffusion.paths import path as path_of
from fewstep.diffusion.schedules import grids
from fewstep.diffusion.solvers.linear import classical, solve
from fewstep.training.formats.recipe import Recipe
from fewstep.training.models.demo.teacher import DemoTeacher
from fewstep.training.models.denoiser import Guided
from fewstep.training.run.fit_denoiser import PlainTeacher, fit_denoiser, sample_recipe
from fewstep.training.run.fitting import FitConfig, SolverFit
from fewstep.training.trajectories import folders
from fewstep.training.trajectories.noises import noises, start
from oracles.mixture import line_mixture

RANGES = {"flow": None, "variance exploding": (0.01, 20.0), "variance preserving": (0.01, 0.9999)}


def denoiser(path):
    mixture, path = line_mixture(4), path_of(path)
    return mixture, lambda x, sigma: mixture.denoise(x.double(), path, sigma).to(x.dtype)


def automatic(path, steps):
    """The recipe of the automatic solver."""
    teacher = PlainTeacher(lambda x, sigma: x, (4,), path, RANGES[path], "")
    sigmas = grids.grid("auto", steps, teacher.sigma_of, teacher.path, dimension=4)
    solver = classical(sigmas, teacher.path)
    return Recipe(method="classical", path=path, sigmas=solver.sigmas, coefficients=solver.rows)


@pytest.mark.parametrize("path", RANGES)
def test_five_lines_fit_any_python_denoiser(path, generator):
    """From noise that the fit has not seen, against the exact solution of the ODE."""
    mixture, denoise = denoiser(path)
    recipe = fit_denoiser(denoise, (4,), path, 4, sigma_range=RANGES[path], effort=0.1)
    noise = torch.randn(256, 4, generator=generator)
    x = start(noise, recipe.sigmas, path_of(path)).double()
    exact = mixture.consistency(x, path_of(path), recipe.sigmas[0])
    spread = float(exact.std())
    error = float((sample_recipe(recipe, denoise, noise) - exact).square().mean().sqrt()) / spread
    auto = sample_recipe(automatic(path, 4), denoise, noise)
    assert recipe.method == "fitted" and error < 0.5 * float((auto - exact).square().mean().sqrt()) / spread
    mean = float((sample_recipe(recipe, denoise, noise) - exact).square().mean(1).sqrt().mean()) / spread
    told = recipe.errors  # what the recipe promises is met on other noise
    assert told["low"] < mean < told["high"] and told["median"] < told["auto"]
    assert Recipe.from_json(recipe.to_json()) == recipe


def test_the_range_of_a_plain_denoiser_must_be_told():
    with pytest.raises(ValueError, match="sigma_range must be"):
        fit_denoiser(lambda x, sigma: x, (4,), "variance exploding", 4)


def test_denoisers_that_share_a_folder_must_be_told_apart(tmp_path):
    with pytest.raises(ValueError, match="base must name"):
        fit_denoiser(lambda x, sigma: x, (4,), "flow", 4, folder=tmp_path)


@pytest.mark.parametrize(
    "change, why",
    [
        (
            {"denoise": lambda x, sigma: None},
            r"denoise must answer x of shape 8 × 4 with x0 of that shape, got NoneType",
        ),
        ({"denoise": lambda x, sigma: x[:, :1]}, r"x0 of that shape, got 8 × 1"),
        ({"foo": 1}, "those of FitConfig, got foo"),
        ({"calls": (6,)}, r"calls must be left out for a Python denoiser.*got \(6,\). Give steps"),
        ({"shape": 4}, "shape must be that of one sample, such as .*got 4"),
        ({"shape": ()}, "shape must be"),
        ({"path": "variance exploding", "sigma_range": (1,)}, r"sigma_range must be .*got \(1,\)"),
    ],
)
def test_denoisers_that_do_not_do_are_refused(change, why):
    given = {
        "denoise": lambda x, sigma: x,
        "shape": (4,),
        "path": "flow",
        "steps": 2,
        "trajectories": 4,
        "reference_steps": 24,
    }
    with pytest.raises(ValueError, match=why):
        given |= change
        fit_denoiser(given.pop("denoise"), **given)


def test_a_recipe_without_a_solver_is_refused():
    with pytest.raises(
        ValueError, match="recipe must have coefficients of a solver, .* got none in one of phased"
    ):
        sample_recipe(
            Recipe(method="phased", path="flow", sigmas=(1.0, 0.0)), lambda x, sigma: x, torch.zeros(1, 4)
        )


@pytest.mark.parametrize(
    "change, word",
    [
        ({"steps": ()}, "steps"),
        ({"steps": (0,)}, "steps"),
        ({"steps": (13,)}, "steps"),
        ({"trajectories": 3}, "trajectories"),
        ({"reference_steps": 8}, "reference_steps"),
        ({"effort": 0.0}, "effort"),
        ({"denoise": 0.0}, "denoise"),
        ({"denoise": 1.5}, "denoise"),
        ({"starts": 0}, "starts"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**64}, "seed"),
        ({"reference_steps": 10**9}, "reference_steps"),
        ({"trajectories": 10**12}, "trajectories"),
        ({"steps": ("a", 1)}, "steps"),
        ({"effort": "a"}, "effort must be one of quick, standard, thorough, or a number above 0"),
        ({"dtype": "int8"}, "dtype"),
    ],
)
def test_settings_out_of_range_are_refused(change, word):
    with pytest.raises(ValueError, match=word):
        FitConfig(**change)


def test_a_guided_teacher_is_fitted_with_its_guidance(tmp_path):
    """The recipe says the CFG; whole prompts are held out; the same run again reads its trajectories and
    comes out the same.
    """
    config = FitConfig(steps=(2, 3), trajectories=16, reference_steps=24)
    runs = [SolverFit(Guided(DemoTeacher("flow"), 2.0), config, tmp_path) for _ in range(2)]
    stages = [[progress.stage for progress in run.progress()] for run in runs]
    assert set(stages[0]) == {"sampling the teacher", "fitting 2 steps", "fitting 3 steps"}
    assert stages[1].count("sampling the teacher") < stages[0].count("sampling the teacher")
    train, held_out = runs[0].data.split()
    assert not set(runs[0].data.prompts[train].tolist()) & set(runs[0].data.prompts[held_out].tolist())
    recipes = [[run.recipe(n) for n in (2, 3)] for run in runs]
    assert recipes[0] == recipes[1] and all(recipe.cfg == 2.0 for recipe in recipes[0])
    assert torch.equal(runs[0].data.states[3, 0], noises(0, [3], (3, 32, 32))[0])
    assert "16 trajectories of 24 steps" in runs[0].report() and len(runs[0].report().splitlines()) == 4


def test_effort_bounds_the_model_calls(tmp_path):
    teacher = PlainTeacher(denoiser("flow")[1], (4,), "flow", None, "")
    config = FitConfig(steps=(4,), trajectories=32, effort=0.1)
    run = SolverFit(teacher, config, tmp_path)
    for _ in run.progress():
        pass
    assert run.found[4].evaluations <= run.evaluations() == 0.1 * 8 * 32 * 60  # 8: of samples so small


def test_time_that_is_over_ends_with_what_was_found(tmp_path):
    mixture, denoise = denoiser("flow")

    def slow(x, sigma):
        time.sleep(0.002)
        return denoise(x, sigma)

    teacher = PlainTeacher(slow, (4,), "flow", None, "")
    run = SolverFit(
        teacher, FitConfig(steps=(2, 4), trajectories=32, effort=math.inf), tmp_path, seconds=0.01
    )
    for _ in run.progress():
        pass
    assert set(run.found) == {2, 4} and {run.recipe(n).method for n in (2, 4)} == {"classical"}
    assert run.report().count("time was up before anything was tried: auto is returned") == 2
    assert all(row["cut_short"] for row in run.rows)


def test_what_is_no_nearer_than_auto_is_not_handed_on(tmp_path):
    """A denoiser that every solver follows exactly leaves nothing to gain, and the report says so."""
    teacher = PlainTeacher(lambda x, sigma: torch.ones_like(x), (4,), "flow", None, "")
    run = SolverFit(teacher, FitConfig(steps=(2,), trajectories=16, effort=0.1), tmp_path)
    for _ in run.progress():
        pass
    assert not folders.in_use(run.cache.folder)
    recipe = run.recipe(2)
    assert recipe.method == "classical" and recipe.coefficients == run.found[2].auto.rows
    assert "no gain: auto is returned" in run.report() and not run.gained(2)


def test_more_steps_are_never_farther(tmp_path):
    """On the held-out noise, beside auto and beside fewer steps, whatever the effort."""
    run = SolverFit(
        PlainTeacher(denoiser("flow")[1], (4,), "flow", None, ""),
        FitConfig(steps=(1, 2, 3, 4), trajectories=16, effort=0.05),
        tmp_path,
    )
    for _ in run.progress():
        pass
    which = run.data.split()[1]
    off = []
    for steps in range(1, 5):
        end = solve(
            run.found[steps].solver, lambda x, s: run.data.denoise(x, s, which), run.data.states[which, 0]
        )
        off.append((end - run.data.states[which, -1]).square().mean(1).sqrt() / run.data.deviation)
        assert off[-1].mean() <= run.found[steps].base.mean() + 1e-6
    means = [float(d.mean()) for d in off]
    assert means == sorted(means, reverse=True)


def test_a_solver_is_fitted_from_a_noised_picture(tmp_path, generator):
    """From pictures noised to its first level, as the host noises them, against the exact solution."""
    mixture, denoise = denoiser("flow")
    settings = {"steps": (3,), "trajectories": 32, "effort": 0.1, "denoise": 0.6}
    run = SolverFit(PlainTeacher(denoise, (4,), "flow", None, ""), FitConfig(**settings), tmp_path)
    for _ in run.progress():
        pass
    recipe, path = run.recipe(3), path_of("flow")
    first = recipe.sigmas[0]
    assert first == float(run.data.sigmas[0]) == 0.6 and recipe.method == "fitted"
    assert "starts from a noised picture at sigma 0.6, where a stage before" in run.report()
    pictures = mixture.consistency(torch.randn(128, 4, generator=generator).double(), path, 1.0)
    x = (1 - first) * pictures + first * torch.randn(128, 4, generator=generator).double()
    exact = mixture.consistency(x, path, first)
    fitted, auto = (solve(s, denoise, x) for s in (recipe.solver, run.found[3].auto))
    assert auto.shape == exact.shape and (fitted - exact).norm() < 0.7 * (auto - exact).norm()


def test_a_start_too_near_to_the_picture_is_refused(tmp_path):
    config = FitConfig(steps=(8,), trajectories=4, reference_steps=24, denoise=0.02)
    teacher = PlainTeacher(denoiser("flow")[1], (4,), "flow", None, "")
    why = (
        "denoise must leave 16 or more of the 24 reference_steps, twice the 8 steps .*; 0.02 leaves 2. Raise"
    )
    with pytest.raises(ValueError, match=why):
        SolverFit(teacher, config, tmp_path)


@pytest.mark.parametrize(
    "asked, cfg, least, steps",
    [
        ({"steps": (2, 12)}, 1.0, None, 12),
        ({"calls": (6, 13)}, 1.0, 26, 13),
        ({"calls": 24}, 0.0, 48, 24),
        ({"calls": 13}, 4.0, None, 12),  # one step at least asks for both
        ({"calls": 24}, 4.0, 46, 23),
    ],
    ids=str,
)
def test_trajectories_of_too_few_steps_to_be_converged_are_refused(tmp_path, asked, cfg, least, steps):
    """The longest solver could be the one that they were drawn by."""
    teacher, short = Guided(DemoTeacher("flow"), cfg), {**asked, "trajectories": 4, "reference_steps": 24}
    if least is None:
        assert SolverFit(teacher, FitConfig(**short), tmp_path).counts
        return
    why = f"reference_steps must be {least} or more, twice the {steps} steps .* got 24. Raise it, or ask for"
    with pytest.raises(ValueError, match=why):
        SolverFit(teacher, FitConfig(**short), tmp_path)
    with pytest.raises(ValueError, match=f"got {least - 1}"):
        SolverFit(teacher, FitConfig(**short | {"reference_steps": least - 1}), tmp_path)
    assert SolverFit(teacher, FitConfig(**short | {"reference_steps": least}), tmp_path).counts


def test_too_few_kept_levels_are_blamed_on_kept(tmp_path):
    config = FitConfig(calls=(20,), trajectories=4, kept=12)
    teacher = PlainTeacher(denoiser("flow")[1], (4,), "flow", None, "")
    with pytest.raises(ValueError, match="kept must leave a level .* for each of 20 steps, 12 leaves 12"):
        SolverFit(teacher, config, tmp_path)


def test_a_python_denoiser_is_fitted_from_a_noised_picture():
    _, denoise = denoiser("flow")[:2]
    settings = {"trajectories": 8, "reference_steps": 24, "effort": 0.1}
    recipe = fit_denoiser(denoise, (4,), "flow", 2, denoise=0.6, **settings)
    assert recipe.trained["denoise"] == recipe.sigmas[0] == 0.6
    picture, noise = torch.zeros(2, 4), torch.randn(2, 4)
    assert sample_recipe(recipe, denoise, noise, picture).shape == (2, 4)
    with pytest.raises(ValueError, match="denoise must be above 0 and at most 1, got 1.5"):
        fit_denoiser(denoise, (4,), "flow", 2, denoise=1.5)


@pytest.mark.parametrize("part", ["0.5", None, 0, 2.0, True])
def test_a_recipe_whose_denoise_is_none_is_refused(part):
    recipe = dataclasses.replace(automatic("flow", 2), trained={"denoise": part})
    with pytest.raises(ValueError, match="recipe trained must have no denoise, or one above 0 .*, got"):
        sample_recipe(recipe, lambda x, sigma: x, torch.zeros(1, 4))


@pytest.mark.parametrize("path", RANGES)
@pytest.mark.parametrize("denoise, kept", [(0.99, 60), (0.5, 60), (0.5, 12), (0.25, 30)])
def test_solver_and_trajectories_begin_at_the_level_that_was_asked_for(tmp_path, path, denoise, kept):
    """To the bit; the other levels of the trajectories stay."""
    teacher = PlainTeacher(denoiser(path)[1], (4,), path, RANGES[path], "")
    settings = {"steps": (2,), "trajectories": 4, "kept": kept}
    run = SolverFit(teacher, FitConfig(**settings, denoise=denoise), tmp_path, seconds=0)
    for _ in run.progress():
        pass
    asked = float(teacher.sigma_of(torch.tensor([denoise], dtype=torch.float64)))
    assert run.recipe(2).sigmas[0] == float(run.data.sigmas[0]) == asked
    assert run.found[2].auto.sigmas == tuple(run.grid("auto", 2, denoise).tolist())
    spec, usual = run.cache.spec, SolverFit(teacher, FitConfig(**settings), tmp_path).cache.spec
    others = [i for i, (one, other) in enumerate(zip(spec.sigmas, usual.sigmas)) if one != other]
    assert others in ([], [run.first]) and len(spec.kept) == len(usual.kept) == kept + 1


def test_the_trajectories_are_solved_to_the_level_that_was_asked_for(tmp_path):
    """Their states there are the exact solution's."""
    mixture, denoise = denoiser("flow")
    config = FitConfig(steps=(2,), trajectories=8, denoise=0.5)
    run = SolverFit(PlainTeacher(denoise, (4,), "flow", None, ""), config, tmp_path, seconds=0)
    for _ in run.progress():
        pass
    noise = run.cache.noise(8).double()
    picture = mixture.consistency(noise, path_of("flow"), 1.0)
    there = mixture.consistency(run.data.states[:, 0].double(), path_of("flow"), 0.5)
    assert torch.allclose(there, picture, atol=0.02)


def test_a_recipe_for_a_noised_picture_wants_one():
    recipe = automatic("flow", 2)
    part = dataclasses.replace(recipe, sigmas=(0.6, 0.3, 0.0), trained={"denoise": 0.6})
    noise, picture = torch.randn(2, 4), torch.full((2, 4), 3.0)
    seen = []

    def denoise(x, sigma):
        seen.append(x)
        return x

    sample_recipe(part, denoise, noise, picture)
    assert torch.allclose(seen[0], 0.4 * picture + 0.6 * noise)
    for one, given in ((part, None), (recipe, picture)):
        with pytest.raises(ValueError, match="picture must be given for a recipe"):
            sample_recipe(one, denoise, noise, given)


@pytest.mark.parametrize("trajectories, prompts", [(4, 4), (5, 8), (12, 12)])
def test_few_trajectories_of_many_prompts_leave_two_to_judge_by(tmp_path, trajectories, prompts):
    teacher = Guided(DemoTeacher("flow"), 2.0)
    teacher.conditions = prompts
    config = FitConfig(steps=(1,), trajectories=trajectories, reference_steps=24, effort=0.1)
    run = SolverFit(teacher, config, tmp_path)
    for _ in run.progress():
        pass
    assert len(run.data.split()[1]) >= 2 and run.recipe(1).errors["high"] < math.inf


def test_a_gain_is_claimed_only_where_the_interval_holds_it(tmp_path):
    run = SolverFit(
        PlainTeacher(denoiser("flow")[1], (4,), "flow", None, ""),
        FitConfig(steps=(4,), trajectories=48, effort=0.1),
        tmp_path,
    )
    for _ in run.progress():
        pass
    assert run.recipe(4).method == "fitted" and run.gained(4) and run.rows[0]["nearer"][1] > 1
    found = run.found[4]
    mixed = found.base * torch.tensor([0.9, 1.2] * len(found.base), dtype=found.base.dtype)[: len(found.base)]
    run.found[4] = dataclasses.replace(found, own=mixed)
    assert not run.gained(4) and "no gain beyond chance" in run.report()


def test_where_more_bring_nothing_the_solver_of_fewer_is_returned_as_it_is(tmp_path):
    """Where six steps came to no nearer solver than four did, four calls are made, and the report says so."""
    run = SolverFit(
        PlainTeacher(denoiser("flow")[1], (4,), "flow", None, ""),
        FitConfig(steps=(4, 6), trajectories=48, effort=0.1),
        tmp_path,
    )
    for _ in run.progress():
        pass
    four, six = run.found[4], run.found[6]
    run.found[6] = dataclasses.replace(six, solver=four.solver, own=four.own, stage="shorter")
    assert run.rows[1]["calls"] == len(run.recipe(6).coefficients) == 4 and run.rows[1]["count"] == 6
    assert run.report().count("for 6 the solver of fewer is returned") == 1
