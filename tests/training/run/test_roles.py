"""Other adapters beside the student on one base: one acts at a time, and a run keeps all of them."""

import dataclasses
import gc
import math
import random

import pytest
import torch
import toy_method
from fewstep.training import methods
from fewstep.training.adapter import backward
from fewstep.training.adapter.live_bytes import LiveBytes
from fewstep.training.adapter.lora import Lora
from fewstep.training.adapter.proof import slope
from fewstep.training.methods import phased_matching, registry
from fewstep.training.methods.method import STUDENT, Role
from fewstep.training.models.demo.teacher import DemoTeacher
from fewstep.training.run import run as loop
from fewstep.training.run.config import DistilConfig
from fewstep.training.run.events import SETTLED, Events
from fewstep.training.run.interrupts import held_back
from fewstep.training.run.job import STATE, Job, load_state
from fewstep.training.run.memory import CARD, CPU, copies_of, plan
from fewstep.training.run.run import Run, last
from parts import ABOUT, SMALL, run, same
from tiny import Tiny


def pictures_loss(context, batch):
    """Who learns answers a picture with itself."""
    image = context.data.images[batch["pick"]]
    return context.metric(context.student(image, batch["sigma"], batch["condition"]), image)


def shadow_loss(context, batch):
    """The student learns from the role `shadow`."""
    image = context.data.images[batch["pick"]]
    asked = image, batch["sigma"], batch["condition"]
    return context.metric(context.student(*asked), context.asked["shadow"](*asked))


def draw(context):
    batch = toy_method.draw(context)
    return {**batch, "depth": batch["sigma"] * 2}


def role(name, **changes):
    settings = dict(
        stage="toying",
        draw=toy_method.draw,
        loss=pictures_loss,
        first=lambda settings: 3,
        each=lambda context: 2,
        rate=lambda settings, made, share: settings.lr,
    )
    return Role(name=name, **{**settings, **changes})


ROLES = role("first", each=None), role("shadow", begins_as="first")


@pytest.fixture
def shadowed():
    method = dataclasses.replace(
        toy_method.METHOD,
        name="shadowed",
        draw=draw,
        loss=shadow_loss,
        roles=lambda s: ROLES,
        tells=("depth",),
    )
    yield methods.register(method)
    del registry.METHODS["shadowed"]


def test_adapters_of_one_turn_never_act_together(generator):
    tiny = Tiny()
    one = Lora(tiny.module, 2)
    two = Lora(tiny.module, 3, seed=1, turn=one.turn)
    for p in (*one.parameters(), *two.parameters()):
        p.data = torch.randn(p.shape, generator=generator)
    x, sigma, condition = torch.randn(2, 2, 4, 4, generator=generator), torch.full((2,), 0.5), torch.arange(2)

    def answer():
        return tiny(x, sigma, condition)

    with one.off():
        base = answer()
    first = answer()
    with two.on():
        second = answer()
        with one.off():
            assert torch.equal(answer(), base)
        with one.using(one.parameters()):
            assert torch.equal(answer(), first)
        assert torch.equal(answer(), second)
        second.sum().backward()
    assert all(p.grad is None for p in one.parameters()) and all(p.grad is not None for p in two.parameters())
    two.remove()
    with one.on():
        assert torch.equal(answer(), first)
    one.remove()
    alone = Lora(tiny.module, 3, seed=1)
    alone.load(two.parameters())
    assert (
        torch.equal(answer(), second) and len({float(v.detach().sum()) for v in (base, first, second)}) == 3
    )
    alone.remove()


@pytest.mark.parametrize("checkpointing", [False, True])
def test_who_learns_is_who_acts(shadowed, checkpointing):
    """Each update changes one adapter, in the order that the method's schedule says."""
    trained = Run(Tiny(), DistilConfig(**SMALL, method="shadowed", checkpointing=checkpointing))
    for _ in trained.source.gather():
        pass

    def weights():
        return {n: [p.clone() for p in a.parameters()] for n, a in trained.student.adapters.items()}

    learnt, before = [], weights()
    for _ in range(14):
        name = trained.learners.due(trained.context())
        trained.update(name)
        after = weights()
        learnt.append(name)
        changed = {n for n in after if not all(map(torch.equal, before[n], after[n]))}
        assert changed == {name}
        before = after
    ahead = ["first"] * 3 + ["shadow"] * 3
    assert learnt == [*ahead, *[STUDENT, "shadow", "shadow"] * 2, STUDENT, "shadow"]
    assert (
        not trained.learners.descents["first"].optimiser.state
        and trained.learners.descents["shadow"].optimiser.state
    )
    assert trained.learners.told["depth"] > 0
    trained.close()
    assert not any(module._forward_hooks for module in trained.denoiser.module.modules())


def test_a_role_begins_as_another(shadowed):
    trained = Run(Tiny(), DistilConfig(**SMALL, method="shadowed"))
    for _ in trained.source.gather():
        pass
    while trained.learners.due(trained.context()) == "first":
        trained.update("first")
    first = [p.clone() for p in trained.student.adapters["first"].parameters()]
    trained.learners.rate = lambda name, turned: 0.0
    trained.update("shadow")
    assert all(map(torch.equal, first, trained.student.adapters["shadow"].parameters()))
    trained.close()


def test_a_run_with_roles_in_parts_equals_one_at_once(shadowed, tmp_path):
    whole = run(tmp_path / "whole", method="shadowed")
    for made in (2, 5, 7, 8, 20, 31):
        cut = Run(Tiny(), DistilConfig(**SMALL, method="shadowed"))
        stopped_at(tmp_path / "parts", cut, made)
        assert cut.learners.made() == made
    last = run(tmp_path / "parts", method="shadowed")
    assert same(whole, last) and last.learners.told == whole.learners.told
    for name, lora in whole.student.adapters.items():
        assert all(map(torch.equal, lora.parameters(), last.student.adapters[name].parameters()))
    kept = load_state(tmp_path / "whole" / STATE)[0]
    assert not any("optimiser" in name or name.startswith("shadow") for name in kept)


def stopped_at(folder, trained, made):
    """Train on in that folder until so many updates were made in all, then cancel."""
    try:
        with Job(folder, trained, ABOUT, 3, clock=lambda: trained.learners.made()) as job:
            for _ in job.progress():
                if trained.learners.made() == made:
                    raise KeyboardInterrupt
    except KeyboardInterrupt:
        pass
    finally:
        trained.close()


# ---- what may go wrong, with two and three adapters ------------------------------------------------

METHODS = ("matching", "anchored", "phased-matching")


@pytest.mark.parametrize("method", METHODS)
def test_cancelled_at_any_call_of_the_model_it_goes_on_exactly(method, tmp_path):
    whole, short = (
        run(tmp_path / "whole", method=method, updates=6),
        {**SMALL, "method": method, "updates": 6},
    )

    class Cancelled(Tiny):
        left = 0

        def __call__(self, *args):
            self.left -= 1
            if self.left < 0:
                raise KeyboardInterrupt
            return super().__call__(*args)

    dice, teacher, cuts = random.Random(0), Cancelled(), 0
    for _ in range(60):
        parts, teacher.left = Run(teacher, DistilConfig(**short)), dice.randint(26, 48)
        try:
            with Job(tmp_path / "parts", parts, ABOUT, 0) as job:
                for _ in job.progress():
                    pass
            break
        except KeyboardInterrupt:
            cuts += 1
        finally:
            parts.close()
    assert cuts >= 4 and same(whole, parts)


@pytest.mark.parametrize("method", ["phased", "matching"])
def test_cancelled_between_a_gradient_and_its_step_it_goes_on_exactly(method, tmp_path, monkeypatch):
    whole = run(tmp_path / "whole", method=method, updates=6)
    parts, cuts = Run(Tiny(), DistilConfig(**{**SMALL, "updates": 6}, method=method)), []

    def on_the_way():
        if len(cuts) < 2 * parts.learners.made():
            cuts.append(parts.learners.made())
            raise KeyboardInterrupt
        return held_back()

    monkeypatch.setattr(loop, "held_back", on_the_way)
    while True:  # in one process, so that a gradient that was left would be added to the next
        try:
            for _ in parts.progress():
                pass
            break
        except KeyboardInterrupt:
            pass
    parts.close()
    assert len(cuts) >= 10 and same(whole, parts)


FISHER = {"method": "matching", "divergence": "fisher", "real": "blended"}


@pytest.mark.parametrize("changes", [*({"method": name} for name in METHODS), FISHER])
def test_out_of_memory_halves_the_passes_of_every_adapter(changes):
    class Full(Tiny):
        most = 4

        def __call__(self, x, *args):
            if torch.is_grad_enabled() and len(x) > self.most:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
            return super().__call__(x, *args)

    found = []
    for most in (4, 1):
        Full.most = most
        trained = Run(Full(), DistilConfig(**{**SMALL, **changes, "updates": 6}))
        list(trained.progress())
        found.append(trained.lora_tensors())
        assert {d.micro for d in trained.learners.descents.values()} == {most} and trained.done == 6
        trained.close()
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(*(f.values() for f in found)))


def test_what_is_not_finite_of_one_adapter_leaves_the_others_alone():
    trained = Run(Tiny(), DistilConfig(**SMALL, method="matching"))
    for _ in trained.source.gather():
        pass
    fake = trained.learners.descents["fake"]
    backward, fake.backward = fake.backward, lambda compute: broken(backward, compute)

    def broken(backward, compute):
        loss = backward(compute)
        fake.lora.parameters()[1].grad.fill_(float("nan"))
        return loss

    while trained.learners.due(trained.context()) == "real":
        trained.update("real")
    before = [p.clone() for p in fake.lora.parameters()]
    trained.update("fake")
    began = [p.clone() for p in fake.lora.parameters()]  # as the real score's
    trained.update("fake")
    assert fake.skipped == 2 and all(map(torch.equal, began, fake.lora.parameters()))
    assert not all(map(torch.equal, before, began)) and trained.descent.skipped == 0
    with pytest.raises(
        ArithmeticError,
        match=r"because the gradient overflowed. Lower role_lr \(10 times lr\) or lr \(0.0001\)",
    ):
        for _ in range(9):
            trained.update("fake")
    trained.close()


@pytest.mark.parametrize("changes", [{"seed": 2**64 - 1}, {"phases": 5, "between": 1, "one_step": 0.5}])
def test_what_is_legal_and_does_nothing_does_not_end_a_run(changes):
    trained = Run(Tiny(), DistilConfig(**{**SMALL, "method": "matching", "image_steps": None, **changes}))
    list(trained.progress())
    assert trained.done == SMALL["updates"] and trained.descent.skipped == 0
    trained.close()


@pytest.mark.parametrize("name", ["real", "fake"])
def test_the_gradient_of_a_role_is_its_losss_own(name):
    """By finite differences, while the student's weights differ from the role's."""
    trained = Run(Tiny(), DistilConfig(**SMALL, method="matching"))
    for _ in trained.source.gather():
        pass
    generator = torch.Generator().manual_seed(3)
    for lora in trained.student.adapters.values():
        lora.load([0.1 * torch.randn(p.shape, generator=generator) for p in lora.parameters()])
    role, descent, context = (
        trained.learners.roles[name],
        trained.learners.descents[name],
        trained.context(name),
    )
    batch = role.draw(context)

    def compute():
        return role.loss(context, batch).double().mean()

    with descent.lora.on():
        found = slope(compute, descent.lora.parameters(), backward=descent.backward)
    assert found == pytest.approx(1, abs=5e-3)
    trained.close()


def test_a_plan_of_memory_counts_every_adapter():
    config = DistilConfig(**SMALL, method="matching")
    half, full = torch.bfloat16, torch.float32
    usual = DistilConfig(**SMALL)
    for place in (CARD, CPU):
        assert copies_of(config, place, full) == copies_of(usual, place, full) + (1 + 2) + 1
        assert copies_of(config, place, half) == copies_of(usual, place, half) + (1 + 2) + 1 + 2 * 0.5
        guided = dataclasses.replace(config, real="guided")
        assert copies_of(guided, place, full) == copies_of(usual, place, full) + 1 + 2
    with pytest.raises(MemoryError, match="Choose a lower rank"):
        plan(Tiny(), dataclasses.replace(config, rank=4000), budget=6 << 20)


def test_how_x_moves_an_answer_is_exact_and_leaves_the_adapters_alone(generator):
    """Of every adapter and the guided teacher, against differences; recomputed blocks or not."""
    for checkpointing in (False, True):
        trained = Run(Tiny(), DistilConfig(**SMALL, method="matching", micro=3, checkpointing=checkpointing))
        for lora in trained.student.adapters.values():
            lora.load([0.1 * torch.randn(p.shape, generator=generator) for p in lora.parameters()])
        context = trained.context()
        x, v, step = (torch.randn(4, 2, 4, 4, generator=generator) for _ in range(3))
        asked = torch.full((4,), 0.5), torch.arange(4) % 3
        for name, answer in context.asked.items():
            found = context.pulled[name](x, *asked, v)
            wanted = (answer(x + 1e-2 * step, *asked) - answer(x - 1e-2 * step, *asked)) / 2e-2
            assert float((found * step).sum()) == pytest.approx(float((wanted * v).sum()), rel=2e-2, abs=1e-2)
        assert all(p.grad is None for lora in trained.student.adapters.values() for p in lora.parameters())
        trained.close()


def test_one_sample_that_is_too_much_for_a_pull_is_told():
    class Full(Tiny):
        def __call__(self, x, *args):
            if x.requires_grad:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return super().__call__(x, *args)

    trained = Run(Full(), DistilConfig(**{**SMALL, **FISHER}))
    with pytest.raises(MemoryError, match="with its gradient, and does not. Switch checkpointing on"):
        list(trained.progress())
    trained.close()


def test_only_the_first_pulls_are_looked_at(monkeypatch):
    """What a model writes over is found in a first call, which is slow."""
    looked, log = [], backward.Log
    monkeypatch.setattr(backward, "Log", lambda: looked.append(1) or log())
    trained = Run(Tiny(), DistilConfig(**{**SMALL, **FISHER, "updates": 5}))
    list(trained.progress())
    assert len(looked) == 3 + 2  # of three adapters that learn; plain and guided pulls
    trained.close()


@pytest.mark.parametrize("real", ["pictures", "guided", "blended"])
def test_a_run_down_the_divergence_of_fisher(real):
    trained = Run(
        Tiny(), DistilConfig(**{**SMALL, "updates": 2}, method="matching", divergence="fisher", real=real)
    )
    list(trained.progress())
    assert trained.done == 2 and trained.descent.skipped == 0
    trained.close()


@pytest.mark.parametrize("updates", [26, 40])
def test_phased_training_is_over_after_half_of_the_updates_whatever_their_number(updates, monkeypatch):
    """Its rate falls until then and never rises, also where no regular measurement lies there."""
    monkeypatch.setattr(phased_matching, "STALE", math.inf)
    settings = {**SMALL, "updates": updates, "batch": 1, "real_updates": 1, "fake_updates": 1}
    trained, rates = Run(Tiny(), DistilConfig(**settings, method="phased-matching")), []
    for _ in trained.progress():
        turned = trained.context().turned
        if turned is not None:
            break
        rates.append(trained.learners.rate(STUDENT, turned))
    trained.close()
    assert turned == trained.done == math.ceil(updates / 2)
    assert rates[2:] == sorted(rates[2:], reverse=True) and rates[-1] < 0.1 * max(rates)


def test_a_fake_that_falls_behind_is_told_once():
    trained = Run(Tiny(), DistilConfig(**SMALL, method="matching"))
    events = Events(trained)
    trained.descent.done = SETTLED
    for truth, told in ((0.5, 0), (0.05, 1), (-0.2, 0)):
        trained.learners.told = {"truth": truth, "claim": 1.0}
        found = events.new()
        assert len(found) == told and all("falls behind" in str(message) for message in found)
    assert ": 0% of what it says is true" in told_of(trained, -0.2) and " lr" not in told_of(trained, 0.05)
    trained.learners.descents["fake"].micro, trained.learners.descents["real"].skipped = 1, 3
    assert [str(m)[:14] for m in events.new()] == ["Memory ran out", "Updates left o"]
    trained.close()


def told_of(trained, truth):
    """What is said of a run whose fake says that share of the truth."""
    trained.learners.told = {"truth": truth, "claim": 1.0}
    return " ".join(map(str, Events(trained).new()))


def test_a_fake_is_judged_by_its_own_updates():
    """Of a run that is phased first: what is told begins where it goes over."""
    settings = {**SMALL, "updates": 200, "batch": 1}
    trained = Run(Tiny(), DistilConfig(**settings, method="phased-matching"))
    trained.probe.fidelity = [(0, 1.0), (60, 1.0), (80, 1.0)]
    said = {}
    for trained.descent.done in (83, 80 + SETTLED - 1, 80 + SETTLED):
        assert trained.context().turned == 80
        said[trained.descent.done] = "falls behind" in told_of(trained, -7.36)
    trained.close()
    assert list(said.values()) == [False, False, True]


@pytest.mark.parametrize("updates", [12, 5])
def test_a_run_of_another_length_is_that_long(updates):
    """Its rate falls to 0 by that end, the last measurement is there, and so is the one that decides."""
    job = Run(Tiny(), DistilConfig(**{**SMALL, "method": "phased-matching", "updates": 8}))
    rates = {}
    for _ in job.progress():
        if job.done == 2 and job.config.updates == 8:
            last(job, updates)
        rates[job.done] = job.learners.rate(STUDENT, None)
    job.close()
    assert job.done == updates and job.probe.fidelity[-1][0] == updates
    assert phased_matching.last_turn(job.config) in [update for update, _ in job.probe.fidelity]
    assert rates[2] == phased_matching.rate(job.config, 2, None) > 0
    assert {descent.config.updates for descent in job.learners.descents.values()} == {updates}


def test_a_run_that_is_made_longer_does_not_turn_back(monkeypatch):
    """It has gone over from phased to matching, and goes on with that from a saved state too."""
    monkeypatch.setattr(phased_matching, "STALE", math.inf)  # it goes over at the last moment
    settings = {**SMALL, "method": "phased-matching", "updates": 24}
    longer = Run(Tiny(), DistilConfig(**settings))
    steps = longer.progress()
    while longer.context().turned is None or longer.done < longer.context().turned + 2:
        next(steps)
    turned = longer.context().turned
    last(longer, 96)
    assert phased_matching.turns(longer.config, longer.probe.fidelity) is None
    assert longer.context().turned == turned
    again = Run(Tiny(), longer.config)
    again.restore(*longer.state())
    assert again.context().turned == turned
    longer.learners.told = {"truth": 0.0, "claim": 1.0}
    events = Events(longer)
    for done, told in ((turned + SETTLED - 1, 0), (turned + SETTLED, 1)):  # judged by its matched updates
        longer.descent.done = done
        assert len(events.new()) == told
    longer.close(), again.close()


def at_most(**settings):
    """Bytes in the worst moment of an update on the demo's flow teacher, with all that is held meanwhile."""
    config = DistilConfig(cfg=2.0, batch=16, updates=4, images=16, fake_updates=1, real_updates=1, **settings)
    distilling = Run(DemoTeacher("flow"), config)
    next(progress for progress in distilling.progress() if progress.stage == "training")
    gc.collect()
    tensors = [held for held in gc.get_objects() if type(held) in (torch.Tensor, torch.nn.Parameter)]
    held = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    del tensors
    made = []
    for who in (STUDENT, *distilling.learners.roles):
        with LiveBytes() as live:
            distilling.update(who)
        made.append(live.most)
    return sum(held.values()) + max(made)


@pytest.mark.slow
def test_matching_takes_little_more_memory_than_phased():
    """Three adapters in turn on one base; aim: at most a quarter more. Most of it is what passes hold."""
    phased = at_most(method="phased")
    for settings in ({}, {"divergence": "fisher"}):
        matching = at_most(method="matching", **settings)
        print(f"{settings}: {matching / phased:.3f} times phased's {phased / 2**20:.0f} MiB")
        assert phased < matching < 1.25 * phased
