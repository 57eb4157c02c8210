"""The other faces of quality, measured as a run goes: distance of distributions and diversity."""

import dataclasses
import json
import re

import pytest
import torch
from fewstep.training.models.demo.teacher import DemoTeacher
from fewstep.training.reports.distances import UNKNOWN, Estimate
from fewstep.training.run.config import DistilConfig
from fewstep.training.run.events import Events, advice
from fewstep.training.run.job import load_state, save_state
from fewstep.training.run.probe import ALIKE, GAIN, NONE
from fewstep.training.run.run import Run
from fewstep.training.run.sight import BLOCK, ENCODER, LATENT, Faces, Sight, moved
from fewstep.training.run.source import held_numbers, held_out
from fewstep.training.run.status import Status
from tiny import Tiny

SMALL = {
    "method": "reflow",
    "images": 24,
    "image_steps": 4,
    "phases": 1,
    "steps": 1,
    "updates": 3,
    "batch": 2,
}


def trained(denoiser=None, updates=3, **options):
    run = Run(denoiser or Tiny(), DistilConfig(**{**SMALL, "updates": updates}), **options)
    for _ in run.progress():
        pass
    return run


def test_every_measurement_has_all_faces_and_the_untrained_model_is_among_them(tmp_path):
    run = trained()
    updates = [update for update, _ in run.probe.fidelity]
    assert sorted(run.probe.faces) == updates == [0, 1, 2, 3]
    assert [point[0] for point in run.probe.points("distance")] == updates
    assert all(low <= value <= high for _, value, low, high in run.probe.points("distance"))
    status = Status.of(run, tmp_path, "running", 0.0, {}).to_dict()
    assert [point[0] for point in status["distance"]] == updates and status["seen_in"] in (BLOCK, LATENT)
    assert json.loads(json.dumps(status, allow_nan=False)) == status
    kept = run.recipe().trained
    assert kept["distance"] == list(dataclasses.astuple(run.probe.faces[run.probe.best.update].distance))


def test_measuring_changes_nothing_that_is_learnt(monkeypatch):
    ours = trained().lora_tensors()
    monkeypatch.setattr("fewstep.training.run.probe.Eye.compare", lambda self, drawn, held: Faces())
    bare = trained().lora_tensors()
    assert all(torch.equal(ours[name], bare[name]) for name in bare)


def test_a_resumed_run_measures_the_same_to_the_bit(tmp_path):
    whole = trained(updates=6)
    run = Run(Tiny(), DistilConfig(**{**SMALL, "updates": 6}))
    for _ in run.progress():
        if run.done == 3:
            break
    save_state(tmp_path / "state.safetensors", *run.state())
    again = Run(Tiny(), DistilConfig(**{**SMALL, "updates": 6}))
    again.restore(*load_state(tmp_path / "state.safetensors"))
    assert again.probe.faces == run.probe.faces
    for _ in again.progress():
        pass
    assert again.probe.points("distance") == whole.probe.points("distance")
    assert again.probe.fidelity == whole.probe.fidelity


def test_states_of_before_there_were_faces_go_on():
    run = trained()
    tensors, numbers = run.state()
    old = {
        name: v for name, v in tensors.items() if name not in ("probe.seen", "probe.mean", "probe.deviation")
    }
    numbers = {name: v for name, v in numbers.items() if name not in ("faces", "seen_in")}
    again = Run(Tiny(), DistilConfig(**SMALL))
    again.restore(old, json.loads(json.dumps(numbers)))
    assert again.probe.faces == {} and again.probe.best.fidelity == run.probe.best.fidelity
    again.measure()
    assert again.probe.faces[again.done].distance.known


def test_an_encoder_sees_in_place_of_the_model_and_is_told():
    run = trained(encoder=lambda pictures: pictures.flatten(1).abs())
    assert run.probe.eye.sight.seen_in == ENCODER and run.recipe().trained["seen_in"] == ENCODER
    other = Run(Tiny(), DistilConfig(**SMALL))
    other.restore(*run.state())
    assert other.probe.faces == {}  # what an encoder saw is not compared with what a block sees


def test_the_demo_teacher_sees_by_its_middle_block_and_untrained_pictures_are_far():
    teacher = DemoTeacher("flow")
    config = DistilConfig(images=16, updates=1, batch=1, image_steps=4, steps=1, phases=1)
    run = Run(teacher, config)
    for _ in run.progress():
        pass
    assert run.probe.eye.sight.seen_in == BLOCK
    first = run.probe.faces[0].distance
    assert first.known and first.value > 0.05


def test_held_out_pictures_come_in_pairs_of_one_prompt_where_prompts_are_many():
    conditions, count, held = 50, 200, 12
    numbers = held_numbers(count, held, conditions)
    assert len(set(numbers.tolist())) == held
    _, times = (numbers % conditions).unique(return_counts=True)
    assert (times == 2).all()
    assert (held_numbers(20, 8, 50) == torch.arange(12, 20)).all()  # too few for a round of prompts
    assert (held_numbers(200, 8, 3) == torch.arange(192, 200)).all()  # pairs anyway


def test_more_is_held_out_only_where_it_is_not_felt():
    assert held_out(DistilConfig(images=24, updates=3)) == 8
    usual = DistilConfig()
    assert 8 < held_out(usual) <= 32 and held_out(usual) % 2 == 0
    calls_a_picture = usual.steps + 1  # of a measurement, without guidance
    measuring = 14 * held_out(usual) * calls_a_picture
    training = 4 * usual.updates * usual.batch + usual.images * 2 * 2 * usual.image_steps
    assert measuring / training < 0.04


def test_a_model_without_blocks_is_seen_in_its_latents():
    sight = Sight(Tiny())
    sight.block = lambda pictures, condition: (_ for _ in ()).throw(LookupError("no block"))
    seen = sight.features(torch.randn(5, 2, 16, 16), torch.zeros(5, dtype=torch.long))
    assert sight.seen_in == LATENT and seen.shape == (5, 2 * 64)
    assert sight.features(torch.randn(5, 3), torch.zeros(5, dtype=torch.long)).shape == (5, 3)


def known(value, reach=0.05):
    return Estimate(value, value - reach, value + reach)


@pytest.mark.parametrize(
    "faces, told",
    [
        (Faces(diversity=known(0.6), drift=0.1, spread=1.0), "become alike: their diversity is 60% .* 65%"),
        (Faces(diversity=known(0.6, 0.3), drift=0.1, spread=1.0), None),  # the interval does not hold it
        (Faces(diversity=known(0.94), drift=0.1, spread=1.0), None),
        (Faces(diversity=UNKNOWN, drift=0.1, spread=1.0), None),
        (Faces(diversity=known(0.95), drift=0.9, spread=0.9), "moved by 0.90 deviations"),
        (Faces(diversity=known(0.95), drift=0.1, spread=0.3), "spread is 30%"),
    ],
)
def test_collapse_and_drift_are_told_with_what_to_do(faces, told):
    first = Faces(diversity=known(0.95), drift=0.05, spread=0.95)
    message = advice({0: first, 10: faces})
    assert (message is None) == (told is None)
    if told:
        assert re.search(told, str(message)) and "learning_rate" in str(message)


def test_an_event_is_told_once_and_again_when_it_comes_back():
    run = trained()
    events = Events(run)
    run.probe.faces = {0: Faces(diversity=known(0.95), drift=0.0, spread=1.0)}
    alike = Faces(diversity=known(0.5), drift=0.0, spread=1.0)
    found = []
    for update, faces in ((4, alike), (5, alike), (6, run.probe.faces[0]), (7, alike)):
        run.probe.faces[update] = faces
        found.append(len(events.new()))
    assert found == [1, 0, 0, 1]


def test_pictures_that_turn_white_have_moved():
    pictures = torch.randn(8, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    drift, spread = moved(0.2 * pictures + 1.0, pictures)
    assert 0.8 < drift < 1.3 and abs(spread - 0.2) < 0.02
    assert moved(pictures, pictures) == (0.0, 1.0)


def test_what_matches_distributions_is_kept_and_judged_by_their_distance():
    run = trained()
    run.probe.by, run.probe.best = "distance", None
    probe, adapter = run.probe, run.student.averaged
    probe.faces = {0: Faces(distance=known(0.3))}
    for update, distance in ((1, 0.2), (2, 0.1), (3, 0.25)):
        probe.eye.compare = lambda drawn, held, distance=distance: Faces(distance=known(distance))
        probe.take(probe.drawn + update, update, adapter)  # ever farther from the same noise
    assert probe.best.update == 2 and probe.outcome == GAIN
    assert run.recipe().trained["distance"][0] == 0.1
    again = Run(Tiny(), DistilConfig(**SMALL))
    again.probe.by = "distance"
    again.restore(*run.state())
    assert (again.probe.best.update, again.probe.best.judged) == (2, 0.1)
    probe.eye.compare = lambda drawn, held: Faces(distance=Estimate(0.12, 0.09, 0.15))
    probe.take(probe.drawn, 4, adapter)  # worse by chance alone: what was learnt since the least is kept
    assert (probe.best.update, probe.best.judged) == (4, 0.12)
    for first, outcome in ((0.05, NONE), (0.11, ALIKE), (0.3, GAIN)):
        probe.faces[0] = Faces(distance=known(first, 0.01))
        assert probe.outcome == outcome


def test_what_is_no_nearer_beyond_chance_is_kept_only_if_it_is_as_varied():
    run = trained()
    run.probe.by, run.probe.best = "distance", None
    probe, adapter = run.probe, run.student.averaged

    def kept_after(update, distance, diversity, **moved):
        found = Faces(distance=known(distance), diversity=known(diversity), **moved)
        probe.eye.compare = lambda drawn, held: found
        probe.take(probe.drawn, update, adapter)
        return probe.best.update

    probe.faces = {0: Faces(distance=known(0.6), diversity=known(1.0), drift=0.1, spread=1.0)}
    assert kept_after(1, 0.20, 0.90) == 1
    assert kept_after(2, 0.19, 0.85) == 2  # as varied, as far as that can be told
    assert kept_after(3, 0.18, 0.70) == 2  # alike, and no nearer beyond chance
    assert kept_after(4, 0.18, 0.86, drift=0.9, spread=1.0) == 2  # has left the teacher's
    assert kept_after(5, 0.05, 0.70) == 5  # nearer beyond chance
    assert probe.outcome == GAIN


@pytest.mark.parametrize(
    "measured",
    [
        [dict(distance=known(d), diversity=known(v)) for d, v in ((0.3, 0.5), (0.27, 0.6), (0.25, 0.68))],
        [dict(distance=known(0.3 - 0.02 * n), drift=drift) for n, drift in enumerate((1.5, 0.7, 0.55))],
    ],
    ids=["alike", "drifted"],
)
def test_what_is_spoiled_is_left_for_what_is_less_so(measured):
    run = trained()
    run.probe.by, run.probe.best = "distance", None
    probe, adapter = run.probe, run.student.averaged
    probe.faces = {0: Faces(distance=known(0.6), diversity=known(1.0), drift=0.1, spread=1.0)}
    for update, found in enumerate(measured, start=1):
        probe.eye.compare = lambda drawn, held, found=found: Faces(**{"spread": 1.0, **found})
        probe.take(probe.drawn, update, adapter)
        assert probe.best.update == update


def test_a_best_of_which_nothing_is_known_any_more_makes_room():
    """As where a run goes on with another encoder than it began with."""
    run = trained()
    run.probe.by, run.probe.faces = "distance", {0: Faces(distance=known(0.6))}
    run.probe.best = dataclasses.replace(run.probe.best, judged=float("nan"), update=1)
    run.probe.eye.compare = lambda drawn, held: Faces(distance=known(0.3))
    run.probe.take(run.probe.drawn, 2, run.student.averaged)
    assert run.probe.best.update == 2
