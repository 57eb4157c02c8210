"""The optimisers by name, and their states bit for bit."""

import sys

import pytest
import torch
from fewstep.training.run import optimisers
from fewstep.training.run.config import DistilConfig
from fewstep.training.run.descent import Descent
from fewstep.training.run.job import folder_name
from fewstep.training.run.memory import plan
from fewstep.training.run.run import Run
from parts import SMALL, run, same
from tiny import Tiny

CODES = 256


class Coded(torch.optim.Optimizer):
    """AdamW's like as 8-bit libraries keep it: codes and scales, a table that all share, a step that is a
    number, and weights that are written behind the version counters.
    """

    table = torch.linspace(-1, 1, CODES)

    def __init__(self, parameters, lr, weight_decay, betas):
        super().__init__(parameters, {"lr": lr})

    @torch.no_grad()
    def step(self):
        for p in self.param_groups[0]["params"]:
            state = self.state[p]
            if not state:
                codes = torch.full(p.shape, CODES // 2, dtype=torch.uint8)
                state.update(step=0, codes=codes, scale=torch.zeros(()), table=Coded.table)
            state["step"] += 1
            mean = 0.9 * state["table"][state["codes"].long()] * state["scale"] + p.grad
            state["scale"].copy_(mean.abs().max().clamp(min=1e-30))
            state["codes"].copy_(((mean / state["scale"] + 1) / 2 * (CODES - 1)).round())
            p.data.sub_(mean.sign() * self.param_groups[0]["lr"] / state["step"] ** 0.5)


@pytest.fixture(params=["coded", "torchao"])
def in_8_bits(request, monkeypatch):
    if request.param == "torchao":
        pytest.importorskip("torchao", reason="torchao is not installed")
    else:
        monkeypatch.setattr(optimisers, "_torchao", lambda: Coded)


EIGHT = {"optimizer": "adamw8bit", "rank": 128}  # from 4096 numbers on torchao keeps codes


def test_a_run_with_8_bits_learns_and_resumes_bit_for_bit(tmp_path, in_8_bits):
    whole = run(tmp_path / "whole", **EIGHT)
    assert whole.probe.best.fidelity < whole.probe.fidelity[0][1]
    for last in (1, 7, 12):
        run(tmp_path / "parts", last, **EIGHT)
    parts = run(tmp_path / "parts", **EIGHT)
    assert same(whole, parts)


def test_its_state_is_smaller(tmp_path, in_8_bits):
    def state_bytes(**options):
        trained = run(tmp_path / str(options), 2, rank=512, **options)
        return sum(
            t.nbytes for name, t in trained.descent.state()[0].items() if name.startswith("optimiser.")
        )

    assert state_bytes(optimizer="adamw8bit") < 0.4 * state_bytes()


def test_without_a_library_it_is_refused_by_name_before_any_work(monkeypatch):
    for library in ("bitsandbytes", "bitsandbytes.optim", "torchao", "torchao.optim"):
        monkeypatch.setitem(sys.modules, library, None)
    config = DistilConfig(**{**SMALL, **EIGHT})
    for work in (plan, Run):
        with pytest.raises(
            ValueError, match="optimizer must be adamw on this machine, got adamw8bit.*torchao"
        ):
            work(Tiny(), config)
    with pytest.raises(ValueError, match="bitsandbytes.*torchao"):
        optimisers.check("adamw8bit", "cuda")
    with pytest.raises(ValueError, match="optimizer must be one of adamw, adamw8bit, got 'sgd'"):
        DistilConfig(optimizer="sgd")


def test_the_usual_one_is_pytorchs_and_names_a_run_as_before():
    trained = Run(Tiny(), DistilConfig(**SMALL))
    assert type(trained.descent.optimiser) is torch.optim.AdamW
    trained.close()
    names = {folder_name(DistilConfig(**SMALL, **o), {}) for o in ({}, {"lora_precision": "bf16"})}
    assert len(names) == 1 and folder_name(DistilConfig(**SMALL, optimizer="adamw8bit"), {}) not in names


def test_a_state_of_another_optimiser_is_refused(tmp_path, in_8_bits):
    usual, other = (Run(Tiny(), DistilConfig(**{**SMALL, **o})) for o in ({"rank": 128}, EIGHT))
    for _ in usual.progress():
        if usual.done == 2:
            break
    with pytest.raises((LookupError, ValueError)):
        Descent.restore(other.descent, *usual.descent.state())
    usual.close(), other.close()
