"""One convention, (x, sigma (B,), condition (B,)) -> x0: guidance, levels, and what becomes of a call."""

import pytest
import torch
from fewstep.training.adapter import sharding
from fewstep.training.models.denoiser import Guided, InParts, for_sampler, guided
from fewstep.training.models.memory_errors import is_out_of_memory
from fewstep.training.ranks.ranks import Ranks
from tiny import Tiny


class Seen(Tiny):
    """Remembers what it was asked."""

    def __init__(self):
        super().__init__()
        self.asked = []

    def __call__(self, x, sigma, condition):
        self.asked.append((x, sigma, condition))
        return super().__call__(x, sigma.float(), condition)


@pytest.fixture
def x(generator):
    return torch.randn(3, 2, 4, 4, generator=generator)


CONDITION = torch.tensor([0, 2, 1])


def test_guidance_extrapolates_from_the_unconditional_in_one_call(x):
    model, sigma = Seen(), torch.full((3,), 0.5)
    found = guided(model, x, sigma, CONDITION, 3.0)
    assert len(model.asked) == 1 and model.asked[0][2].tolist() == [-1, -1, -1, 0, 2, 1]
    u, c = Tiny()(x, sigma, torch.full((3,), -1)), Tiny()(x, sigma, CONDITION)
    assert torch.allclose(found, u + 3 * (c - u), atol=1e-5)
    assert torch.equal(guided(model, x, sigma, CONDITION, 1.0), c) and len(model.asked[1][0]) == 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_sampler_asks_with_numbers_or_levels_and_the_denoiser_gets_levels(x, dtype):
    model = Seen()
    call = for_sampler(model, CONDITION, dtype=dtype)
    one, same = call(x, 0.3), call(x, torch.full((3,), 0.3, dtype=torch.float64))
    for _, sigma, condition in model.asked:
        assert sigma.shape == (3,) and sigma.dtype == dtype and condition is CONDITION
        assert torch.equal(sigma, torch.full((3,), 0.3, dtype=dtype))
    assert torch.equal(one, same)
    levels = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    call(x, levels)
    assert torch.equal(model.asked[-1][1], levels.to(dtype))
    wanted = guided(Tiny(), x, torch.full((3,), 0.3), CONDITION, 2.0)
    assert torch.equal(for_sampler(Tiny(), CONDITION, 2.0)(x, 0.3), wanted)


def test_a_guided_denoiser_is_a_teacher(x):
    """Its levels come in float64 and reach the network in float32."""
    model = Seen()
    teacher = Guided(model, 2, "some prompts")
    found = for_sampler(teacher, CONDITION, dtype=torch.float64)(x, 0.3)
    assert model.asked[0][1].dtype == torch.float32 and model.asked[0][1].shape == (6,)
    assert torch.equal(found, guided(Tiny(), x, torch.full((3,), 0.3), CONDITION, 2.0))
    assert teacher.identity == {
        "model": model.base,
        "patches": "",
        "conditioning": "some prompts",
        "guidance": "CFG 2",
    }
    assert (teacher.cfg, teacher.shape, teacher.conditions) == (2.0, (2, 4, 4), 3)


def test_in_parts_of_any_size_the_answer_is_the_same(x):
    sigma, whole = torch.full((3,), 0.5), Tiny()(x, torch.full((3,), 0.5), CONDITION)
    for most in (1, 2, 3, 8):
        model = Seen()
        assert torch.allclose(InParts(model, most)(x, sigma, CONDITION), whole, atol=1e-6)
        assert max(len(asked[0]) for asked in model.asked) == min(most, 3)


def test_a_model_in_pieces_is_not_asked_again_in_one_process_alone(x, monkeypatch):
    class Full(Seen):
        def __call__(self, *asked):
            super().__call__(*asked)
            raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(sharding, "_shard", lambda module, device, world: None)
    model = Full()
    parts = InParts(sharding.Sharded(model, Ranks(), "cpu"), 2)
    with torch.no_grad(), pytest.raises(RuntimeError, match="must find room in every process"):
        parts(x, torch.full((3,), 0.5), CONDITION)
    assert len(model.asked) == 1 and parts.most == 2


def accelerator_error(text, number):
    """As newer PyTorch raises it for what the driver says."""
    error = getattr(torch, "AcceleratorError", RuntimeError)(text)
    error.error_code = number
    return error


@pytest.mark.parametrize(
    "error, answer",
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA"), True),
        (torch.OutOfMemoryError("Allocation on device "), True),  # all that cudaMallocAsync says
        (RuntimeError("Allocation on device 0 would exceed allowed memory."), True),
        (accelerator_error("CUDA error: memory allocation", 2), True),
        (accelerator_error("CUDA error: out of memory", 46), True),
        (accelerator_error("CUDA error: an illegal memory access was encountered", 700), False),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("HIP out of memory"), True),
        (OSError("Not enough memory resources"), True),
        (RuntimeError("shapes differ"), False),
        (ValueError(""), False),
    ],
)
def test_what_says_that_memory_ran_out(error, answer):
    assert is_out_of_memory(error) is answer
