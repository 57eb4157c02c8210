"""Other adapters beside the student on one base: one acts at a time, and a run keeps all of them."""

import dataclasses

import pytest
import torch
import toy_method
from fewstep.training import methods
from fewstep.training.adapter.lora import Lora
from fewstep.training.methods import registry
from fewstep.training.methods.method import STUDENT, Role
from fewstep.training.run.config import DistilConfig
from fewstep.training.run.job import STATE, Job, load_state
from fewstep.training.run.run import Run
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
        rate=lambda settings, made: settings.lr,
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
    trained.learners.descents["shadow"].rate = lambda settings, made: 0.0
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
