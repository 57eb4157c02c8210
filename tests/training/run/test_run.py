"""A whole run on the packaged teachers, small; what it promises of the model, of its seed, and of what it
leaves behind.
"""

import json

import pytest
import torch
from fewstep.training.cli import demo as demos
from fewstep.training.cli.demo import COLUMNS, demo
from fewstep.training.formats.files import load_lora
from fewstep.training.models.demo import data
from fewstep.training.models.demo.teacher import DemoTeacher, label_vector
from fewstep.training.reports import pictures
from fewstep.training.run import source
from fewstep.training.run.config import DistilConfig
from fewstep.training.run.run import Run
from fewstep.training.run.student import Student
from fewstep.training.trajectories import sampling
from fewstep.training.trajectories.cache import TrajectoryCache
from fewstep.training.trajectories.sampling import trajectories
from PIL import Image

KINDS = ("flow", "epsilon")
SMALL = dict(updates=30, images=24, batch=16, image_steps=8)


@pytest.fixture(scope="module", params=["flow", pytest.param("epsilon", marks=pytest.mark.slow)])
def finished(request):
    """A finished small run and the progress it reported."""
    config = DistilConfig(**{**SMALL, "updates": 60, "images": 96}, lora_precision="fp32")
    run = Run(DemoTeacher(request.param), config)
    reports = list(run.progress())
    yield run, reports
    run.close()


def test_a_short_run_already_brings_the_student_nearer_to_its_teacher(finished):
    run, reports = finished
    assert (
        run.probe.best.fidelity == min(v for _, v in run.probe.fidelity[1:]) < 0.9 * run.probe.fidelity[0][1]
    )
    assert [p.step for p in reports] == list(range(1, reports[0].total + 1))
    assert {p.stage for p in reports} == {"sampling the teacher", "training"}
    assert reports[-1].seconds_left == 0 and all(p.seconds_left is None for p in reports[:5])
    assert len(run.loss) == 60


def test_the_base_weights_are_untouched_and_come_back(finished):
    run, _ = finished
    fresh = DemoTeacher(run.denoiser.kind)
    for (name, a), (_, b) in zip(run.denoiser.module.state_dict().items(), fresh.module.state_dict().items()):
        assert torch.equal(a, b), name
    x, sigma, condition = torch.randn(2, 3, 32, 32), torch.tensor([0.5, 0.9]), torch.tensor([0, 3])
    with torch.no_grad(), run.student.lora.off():
        assert torch.equal(run.denoiser(x, sigma, condition), fresh(x, sigma, condition))


def test_the_file_holds_the_run(finished, tmp_path):
    run, _ = finished
    tensors, recipe = load_lora(run.save(tmp_path / "x.safetensors"))
    assert recipe.path == run.denoiser.path.name and recipe.base == run.denoiser.base and recipe.cfg == 1
    assert recipe.sigmas == tuple(run.task.sigmas_for(4).tolist()) and len(recipe.sigmas) == 5
    assert recipe.trained["updates"] == 60
    other = Run(DemoTeacher(run.denoiser.kind), DistilConfig(**SMALL))
    other.student.lora.load_state_dict(tensors)
    assert all(torch.equal(a, b) for a, b in zip(other.student.lora.parameters(), run.adapter))
    other.close()


OPTIONS = [
    {"target": "ema", "between": 1, "one_step": 0.2},
    {"phases": 1, "between": 7},
    {"metric": "pseudo-huber"},
    {"cfg": 1.0},
    {"steps": 3, "image_steps": 6},
]


@pytest.mark.parametrize("options", [{}, *(pytest.param(one, marks=pytest.mark.slow) for one in OPTIONS)])
def test_every_option_learns_and_a_seed_decides_all(options):
    def train(seed):
        run = Run(
            DemoTeacher("flow"), DistilConfig(**{**SMALL, "updates": 3, "images": 8, **options}, seed=seed)
        )
        list(run.progress())
        run.close()
        return run.lora_tensors(), run.loss

    (first, losses), (again, same), (other, _) = train(1), train(1), train(2)
    assert losses == same and all(torch.equal(first[k], again[k]) for k in first)
    assert any(not torch.equal(first[k], other[k]) for k in first)
    assert all(torch.isfinite(v).all() for v in first.values())


def test_the_global_generator_is_left_alone():
    teacher = DemoTeacher("flow")
    torch.manual_seed(3)
    wanted = torch.randn(4)
    torch.manual_seed(3)
    run = Run(teacher, DistilConfig(**{**SMALL, "updates": 1, "images": 8}))
    list(run.progress())
    run.close()
    assert torch.equal(torch.randn(4), wanted)


class Counting(DemoTeacher):
    """The teacher, which counts its calls, and is cancelled at one of them."""

    calls, last = 0, None

    def __call__(self, x, sigma, condition):
        if self.calls == self.last:
            raise KeyboardInterrupt
        self.calls += 1
        return super().__call__(x, sigma, condition)


CACHED = {**SMALL, "updates": 2, "images": 8, "chunk": 8}


@pytest.fixture
def four(monkeypatch):
    """Trajectories in shards of four."""
    for module in (source, sampling):
        monkeypatch.setattr(module, "SHARD", 4)


def cached(folder, last=None, kind="flow", patches="", **changes):
    """(run, model calls while the teacher was sampled) with trajectories in `folder`; cancelled at call
    `last`.
    """
    teacher = Counting(kind)
    teacher.last = last
    run = Run(
        teacher,
        DistilConfig(**{**CACHED, **changes}),
        cache=(folder, {"patches": patches, "conditioning": "all"}),
    )
    try:
        shares = list(run.source.gather())
        assert shares == sorted(shares) and shares[-1] == 1
    except KeyboardInterrupt:
        pass
    run.close()
    return run, teacher.calls


@pytest.mark.parametrize("kind", KINDS)
def test_trajectories_on_disk_are_the_teachers_own_and_are_sampled_once(tmp_path, kind, four):
    first, calls = cached(tmp_path, kind=kind)
    assert calls == 4 * 9  # 8 samples and 8 probes in chunks of 4, 8 steps of which the first is halved
    second, calls = cached(tmp_path, kind=kind)
    assert calls == 0 and torch.equal(first.source.data.anchors, second.source.data.anchors)
    for part in ("noise", "condition", "reference"):
        assert torch.equal(getattr(first.source.held, part), getattr(second.source.held, part))
    teacher, noise = DemoTeacher(kind), first.source.cache.noise(16)
    assert torch.equal(first.source.held.noise, noise[8:])
    phases, condition = first.phases, torch.arange(16) % teacher.conditions
    plain = torch.cat(
        list(
            trajectories(
                teacher, noise, condition, 2.0, phases.fine, phases.kept, order=2, corrector=True, chunk=4
            )
        )
    )
    assert torch.equal(first.source.data.anchors, plain[:8]) and torch.equal(
        first.source.held.reference, plain[8:, -1]
    )
    sizes = [f.stat().st_size for f in first.source.cache.folder.glob("*.safetensors")]
    assert sum(sizes) < 1.01 * first.source.cache.bytes(16) + 4000  # no predictions


def test_a_run_that_was_cancelled_while_sampling_goes_on(tmp_path, four):
    assert cached(tmp_path, last=21)[1] == 21
    assert cached(tmp_path)[1] == 2 * 9  # two of four chunks were whole
    for changes in ({"cfg": 3.0}, {"seed": 1}, {"patches": "lora"}, {"steps": 2}):
        assert cached(tmp_path, **changes)[1] > 0, changes
    assert cached(tmp_path, updates=9, rank=4, images=4, batch=2)[1] == 0  # what the teacher has no part in


def test_a_cached_run_learns_and_reports_as_another(tmp_path, four):
    def train():
        run = Run(
            DemoTeacher("flow"),
            DistilConfig(**CACHED),
            cache=(tmp_path, {"patches": "", "conditioning": "all"}),
        )
        reports = list(run.progress())
        run.close()
        return run, reports

    (first, reports), (second, again) = train(), train()
    assert first.loss == second.loss and first.probe.fidelity == second.probe.fidelity
    steps = [p.step for p in reports]
    assert steps == sorted(steps) and set(steps) >= set(range(1, 7)) and steps[-1] == reports[0].total == 6
    assert [p.step for p in again] == [1, 2, 3, 4, 5, 6]


def test_trajectories_too_large_for_the_disk_stay_in_memory(tmp_path, four, monkeypatch, caplog):
    monkeypatch.setattr(TrajectoryCache.__init__, "__defaults__", (1000, None))
    run, calls = cached(tmp_path)
    assert calls == 36 and run.source.cache is None and not list(tmp_path.iterdir())
    assert "kept in memory alone" in caplog.text


def test_a_model_that_overwrites_its_activations_gets_the_exact_gradient():
    """The residual stream of Flux and others grows in place; the gradient must equal the one of the copying
    twin.
    """

    class Overwriting(torch.nn.Module):
        def __init__(self, in_place):
            super().__init__()
            self.in_place = in_place
            self.lines = torch.nn.ModuleList(torch.nn.Linear(48, 48) for _ in range(3))

        def forward(self, h):
            for line in self.lines:
                update = line(torch.nn.functional.layer_norm(h, (48,)))
                h = h.add_(update) if self.in_place else h + update
            return h

    class Model(DemoTeacher):
        def __init__(self, in_place):
            super().__init__("flow")
            torch.manual_seed(0)
            self.module = Overwriting(in_place).requires_grad_(False)

        def __call__(self, x, sigma, condition):
            return self.module((x * 1).reshape(*x.shape[:1], -1, 48)).reshape(x.shape)

    gradients = []
    for in_place in (True, False):
        run = Run(Model(in_place), DistilConfig(**{**SMALL, "updates": 2, "images": 8}))
        list(run.progress())
        assert run.descent.backward.overwrites == in_place
        gradients.append(run.lora_tensors())
        run.close()
    for key, value in gradients[1].items():
        assert torch.allclose(gradients[0][key], value, atol=1e-6), key


def test_overflowing_gradients_are_left_out_and_counted_until_it_is_hopeless():
    """The loss's scale falls while the gradient overflows, the adapter stays as it was, and in the end the
    run says why.
    """
    run = Run(DemoTeacher("flow"), DistilConfig(**{**SMALL, "images": 8}))
    for _ in run.source.gather():
        pass
    before = [p.detach().clone() for p in run.student.lora.parameters()]
    assert run.descent.scale == 2**15
    backward = run.descent.backward
    run.descent.backward = lambda compute: _overflow(run, backward, compute)
    for number, scale in enumerate((2**11, 2**7, 2**3, 1, 1, 1, 1, 1, 1), 1):
        run.update()
        assert (run.descent.scale, run.descent.skipped) == (scale, number)
        assert all(torch.equal(a, b) for a, b in zip(before, run.student.lora.parameters()))
    with pytest.raises(
        ArithmeticError, match="10 updates in a row were not, because the gradient overflowed. Lower lr"
    ):
        run.update()
    run.close()


def _overflow(run, backward, compute):
    loss = backward(compute)
    run.student.lora.parameters()[1].grad.fill_(float("inf"))
    return loss


@pytest.mark.parametrize(
    "bad, why",
    [
        ({"steps": 0}, "steps must be a whole number from 1 to"),
        ({"rank": -1}, "rank must be a whole number"),
        ({"phases": 3, "image_steps": 8}, "image_steps must be a multiple of phases"),
        ({"metric": "l7"}, "metric must be one of"),
        ({"lr": float("nan")}, "lr must be a finite"),
        ({"between": -1}, "between must be a whole number"),
        ({"method": "magic"}, "method must be one of"),
    ],
)
def test_bad_settings_are_refused_by_name(bad, why):
    with pytest.raises(ValueError, match=why):
        DistilConfig(**bad)


def test_an_unknown_label_or_teacher_is_refused_by_name():
    with pytest.raises(ValueError, match="label must be one of: smiling face, .*; got 'unicorn'"):
        label_vector("unicorn")
    with pytest.raises(ValueError, match="teacher must be one of flow, epsilon, got 'v'"):
        DemoTeacher("v")


def test_the_demo_writes_all_it_promises(tmp_path, monkeypatch):
    monkeypatch.setattr(demos, "EVALUATED", 16)
    result = demo(tmp_path / "out", kind="epsilon", seed=5, **{**SMALL, "updates": 4})
    names = {p.name for p in (tmp_path / "out").iterdir()}
    assert names == {"demo.png", "curves.png", "lora.safetensors", "metrics.json"}
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics == json.loads(json.dumps(result))
    assert set(COLUMNS) <= set(metrics["columns"]) and metrics["columns"]["teacher-50"]["rmse"] == 0
    assert (metrics["teacher"], metrics["seed"], metrics["device"]) == ("epsilon", 5, "cpu") and metrics[
        "peak_memory_mib"
    ] > 50
    near, far = (metrics["columns"][name]["distance_teacher"] for name in ("teacher-50", "base-4"))
    assert abs(near) < 1e-6 < far < metrics["columns"]["base-4"]["intervals"]["distance_teacher"][1]
    with Image.open(tmp_path / "out" / "demo.png") as picture:
        assert picture.width > 500 and picture.height > 500


@pytest.mark.parametrize(
    "asked, wanted",
    [
        ({}, ("phased", 720, 1400, 0.1)),
        ({"quality": "quick"}, ("phased", 100, 64, 0.1)),
        ({"quality": "standard"}, ("phased-matching", 600, 480, 0.0)),
        ({"quality": "best"}, ("phased-matching", 1600, 960, 0.0)),
        ({"quality": "best", "method": "phased"}, ("phased", 1600, 960, 0.1)),
        ({"method": "phased-matching"}, ("phased-matching", 720, 1400, 0.0)),
        ({"quality": "standard", "updates": 7}, ("phased-matching", 7, 480, 0.0)),
    ],
)
def test_what_a_quality_of_the_demo_stands_for(tmp_path, monkeypatch, asked, wanted):
    """The lengths of `fewstep distil --quality`; without one all is as in the stored results."""
    found = []

    def begun(teacher, config):
        found.append((config.method, config.updates, config.images, config.one_step))
        raise KeyboardInterrupt

    monkeypatch.setattr(demos, "Run", begun)
    with pytest.raises(KeyboardInterrupt):
        demo(tmp_path, **asked)
    assert found == [wanted]


def test_a_matched_demo_draws_the_same_columns_and_says_what_it_was(tmp_path, monkeypatch):
    """The untrained model's pictures, which take long, are another test's."""
    monkeypatch.setattr(demos, "EVALUATED", 16)
    monkeypatch.setattr(Student, "sample_base", lambda self, noise, *_, **__: noise)
    settings = {**SMALL, "steps": 4, "image_steps": 4, "images": 4, "updates": 2}
    result = demo(tmp_path, quality="standard", **settings)
    assert (result["quality"], result["method"], result["updates"]) == ("standard", "phased-matching", 2)
    for name in COLUMNS:
        row = result["columns"][name]
        assert {"rmse", "distance_teacher", "distance_data", "diversity"} <= row.keys()
        assert {"distance_teacher", "diversity"} <= row["intervals"].keys()
    assert {p.name for p in tmp_path.iterdir()} == {
        "demo.png",
        "curves.png",
        "lora.safetensors",
        "metrics.json",
    }
    assert load_lora(tmp_path / "lora.safetensors")[1].method == "phased-matching"


def test_the_demo_refuses_a_bad_folder_before_any_work(tmp_path, monkeypatch):
    monkeypatch.setattr(Run, "progress", lambda self: pytest.fail("work began"))
    (tmp_path / "file").write_text("x")
    with pytest.raises(OSError, match="output folder must be writable"):
        demo(tmp_path / "file")


def test_data_splits_share_nothing_and_every_label_has_its_core():
    train, held_out = data.load("train"), data.load("held-out")
    assert not set(train[2]) & set(held_out[2]) and len(held_out[2]) >= 15
    core = set(data.load("all")[1].tolist())
    assert set(data.label_numbers().values()) < core and len(core) - len(data.label_numbers()) == len(
        data.WEAK
    )
    assert abs(float(data.load("all")[0].mean())) < 0.3


def test_curves_survive_empty_and_non_finite_data():
    pictures.run_curves([], [])
    assert pictures.run_curves([(1, float("nan")), (2, 0.5), (3, 0.25)], [(0, 1.0)]).size == (860, 300)
