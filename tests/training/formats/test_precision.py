"""A LoRA file at half its size: what it loses, and who takes it."""

import pytest
import torch
from fewstep.training.adapter.lora import Lora
from fewstep.training.adapter.warm_start import warm_start
from fewstep.training.formats.files import load_lora, save_lora
from fewstep.training.formats.lora_keys import read
from fewstep.training.formats.precision import in_precision
from fewstep.training.run.config import DistilConfig
from fewstep.training.run.run import Run
from parts import SMALL
from tiny import Tiny
from torch import nn

KEY = "diffusion_model.0"
UP, DOWN, ALPHA = f"{KEY}.lora_up.weight", f"{KEY}.lora_down.weight", f"{KEY}.alpha"


def pair(up=1.0, down=1.0, rank=4):
    g = torch.Generator().manual_seed(0)
    factors = {UP: up * torch.randn(9, rank, generator=g), DOWN: down * torch.randn(rank, 7, generator=g)}
    return {**factors, ALPHA: torch.tensor(float(rank))}


def product(tensors):
    return tensors[UP].double() @ tensors[DOWN].double()


def off(tensors, others):
    return float((product(others) - product(tensors)).norm() / product(tensors).norm())


def size(tensors):
    return sum(t.nbytes for t in tensors.values())


@pytest.mark.parametrize(
    "up, down", [(1, 1), (1e-5, 0.05), (3e-6, 1e-2), (1e6, 1e-3), (1e9, 1e-9), (1e4, 1e4), (1e-3, 1e-3)]
)
def test_half_the_bytes_and_fp16_loses_least(up, down):
    tensors = pair(up, down)
    halves = {name: in_precision(tensors, name) for name in ("fp16", "bf16")}
    for half in halves.values():
        assert size(half) - 4 == (size(tensors) - 4) / 2 and half[ALPHA] == tensors[ALPHA]
    assert off(tensors, halves["fp16"]) < 6e-4 < off(tensors, halves["bf16"]) < 5e-3
    assert in_precision(tensors, "fp32") == tensors


@pytest.mark.parametrize("up, down", [(1e6, 1e6), (1e-9, 1e-2), (1e30, 1e-2), (float("nan"), 1)])
def test_what_half_precision_cannot_hold_stays_as_it_is(up, down):
    """No number of it becomes 0 or infinity; other layers are halved."""
    tensors = pair(up, down) | {k.replace(".0.", ".1."): v for k, v in pair().items()}
    half = in_precision(tensors, "fp16")
    assert all(torch.equal(half[k], tensors[k]) or up != up for k in (UP, DOWN))
    assert {half[k].dtype for k in (UP, DOWN)} == {torch.float32}
    assert half[UP.replace(".0.", ".1.")].dtype == torch.float16


def test_one_number_out_of_range_is_enough():
    tensors = pair()
    tensors[UP][0, 0], tensors[DOWN][0, 0] = 1e8, 1e8
    assert in_precision(tensors, "fp16")[UP].dtype == torch.float32
    assert in_precision(tensors, "bf16")[UP].dtype == torch.bfloat16


def test_layers_of_nothing_and_peft_keys():
    empty = {UP: torch.zeros(9, 4), DOWN: torch.randn(4, 7), ALPHA: torch.tensor(4.0)}
    assert in_precision(empty, "fp16")[UP].dtype == torch.float16
    peft = {"unet.a.lora_A.weight": torch.full((4, 7), 1e-6), "unet.a.lora_B.weight": torch.full((9, 4), 1e4)}
    half = in_precision(peft, "fp16")
    assert {t.dtype for t in half.values()} == {torch.float16}
    assert torch.allclose(
        half["unet.a.lora_B.weight"].float() @ half["unet.a.lora_A.weight"].float(),
        torch.full((9, 7), 4e-2),
        rtol=1e-3,
    )


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_adapters_and_other_programs_take_it(precision):
    net = nn.Sequential(nn.Linear(7, 9))
    lora = Lora(net, 4, alpha=2.0)
    lora.load([torch.randn_like(p) * scale for p, scale in zip(lora.parameters(), (1, 1e-5))])
    half = in_precision(lora.state_dict(), precision)
    wanted = lora.weights["0"]["up"] @ lora.weights["0"]["down"]
    for take in (Lora.load_state_dict, warm_start):
        other = Lora(net, 4, alpha=8.0)
        take(other, half)
        found = other.weights["0"]["up"] @ other.weights["0"]["down"] * 4
        assert (found - wanted).norm() < 6e-3 * wanted.norm()
    up, down = read(half)["0"]
    assert up.isfinite().all() and (up.float() @ down.float() * 2 - wanted).norm() < 6e-3 * wanted.norm()


def test_a_scale_that_the_dtype_cannot_hold_is_folded_in_float32():
    tensors = pair(3e3, 1e-3) | {ALPHA: torch.tensor(400.0)}
    half = {UP: tensors[UP].half() / 2, DOWN: tensors[DOWN].half(), ALPHA: tensors[ALPHA]}
    up, _ = read(half)["0"]
    assert up.isfinite().all() and torch.allclose(up, half[UP].float() * 100)


def test_a_run_saves_what_it_measured(tmp_path):
    """Its own state stays float32; sampled with the file it is as far from the teacher as it measured."""
    run = Run(Tiny(), DistilConfig(**SMALL))
    list(run.progress())
    sizes = {}
    for name in ("fp32", "fp16", "bf16"):
        object.__setattr__(run.config, "lora_precision", name)
        file = run.save(tmp_path / f"{name}.safetensors")
        tensors, recipe = load_lora(file)
        sizes[name] = size(tensors)
        run.student.lora.load_state_dict(tensors)
        drawn = run.task.draw(run.probe.held, [p.detach() for p in run.student.lora.parameters()])
        found = float((drawn - run.probe.held.reference).square().mean().sqrt())
        assert found == pytest.approx(run.probe.best.fidelity, rel={"fp32": 1e-6}.get(name, 1e-3))
    assert sizes["fp16"] == sizes["bf16"] < 0.52 * sizes["fp32"]
    assert {t.dtype for t in run.lora_tensors().values()} == {torch.float32}
    assert DistilConfig(**SMALL).lora_precision == "fp16"
    run.close()
    assert save_lora(tmp_path / "again.safetensors", tensors, recipe).stat().st_size < 5000
