"""What a run will take of memory: the figure counted by hand, the choice that follows, and a run that then meets a full memory."""

import pytest
import torch
from fewstep.training.config import DistilConfig
from fewstep.training.descent import Descent
from fewstep.training.distil import Distillation
from fewstep.training.memory import COPIES, EXTRA, MARGIN, Memory, available
from tiny import Tiny

SMALL = dict(updates=6, images=6, batch=4, chunk=8, image_steps=4, steps=2, phases=2, rank=2)
GB = 10**9
LARGE = Memory(weights=2 * GB, adapter=GB // 2, whole=3 * GB, recomputed=GB)


def test_a_trial_counts_what_the_model_and_the_adapter_take():
    run = Distillation(Tiny(), DistilConfig(**SMALL))
    memory = run.prove()
    run.close()
    assert memory.weights == 4 * (36 * 24 + 24 + 24 * 32 + 32)
    assert memory.adapter == COPIES * 4 * (2 * (36 + 24) + 2 * (24 + 32))
    # the input, both sides of the activation, both inner sides of the LoRA and their like: some hundred numbers, no thousand
    assert 4 * (36 + 2 * 24 + 32 + 4) < memory.whole < 4 * 600


def test_whole_samples_are_preferred_and_as_many_as_fit():
    fixed = LARGE.peak(0, False)
    assert fixed == LARGE.weights + LARGE.adapter + EXTRA
    assert LARGE.choose(100 * GB, 8) == (8, False)
    assert LARGE.choose(fixed + 2.5 * MARGIN * LARGE.whole, 8) == (2, False)
    assert LARGE.choose(fixed + 0.9 * MARGIN * LARGE.whole, 8) == (2, True)
    for budget in (6.9 * GB, 12 * GB, 24 * GB):
        assert LARGE.peak(*LARGE.choose(budget, 64)) <= budget


@pytest.mark.parametrize("memory, budget, remedy", [
    (LARGE, 3 * GB, "smaller latent"), (LARGE, 2 * GB, "smaller or quantised model"),
    (Memory(weights=GB, adapter=4 * GB, whole=1, recomputed=1), 2 * GB, "lower rank")])
def test_too_little_is_refused_with_what_to_lower(memory, budget, remedy):
    with pytest.raises(MemoryError, match=f"Training one sample must fit into .* it takes .*{remedy}"):
        memory.choose(budget, 4)


def test_the_cpu_says_what_is_free():
    assert available("cpu") > 2**24


class Full:
    """A model that holds `most` samples and says that memory is out above that."""

    def __init__(self, most, error):
        self.most, self.error, self.tiny, self.refused = most, error, Tiny(), 0

    def __getattr__(self, name):
        return getattr(self.tiny, name)

    def __call__(self, x, sigma, condition):
        if torch.is_grad_enabled() and len(x) > self.most:
            self.refused += 1
            raise self.error
        return self.tiny(x, sigma, condition)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), MemoryError(),
                                   RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: not enough memory")])
def test_out_of_memory_halves_the_micro_batch_and_keeps_the_batch(error):
    def train(denoiser):
        run = Distillation(denoiser, DistilConfig(**SMALL))
        list(run.progress())
        run.close()
        return run

    whole, cut = train(Tiny()), train(Full(1, error))
    assert cut.descent.micro == 1 and cut.denoiser.refused == 2       # 4, then 2, then never again
    assert whole.done == cut.done == 6
    for a, b in zip(whole.lora_tensors().values(), cut.lora_tensors().values()):
        assert torch.allclose(a, b, atol=1e-4)


def test_one_sample_too_much_ends_the_run_with_what_to_lower():
    run = Distillation(Full(0, MemoryError()), DistilConfig(**SMALL))
    with pytest.raises(MemoryError, match="One sample .* must fit .* Switch checkpointing on, or choose a smaller latent"):
        list(run.progress())
    run.close()


def test_other_errors_are_no_lack_of_memory():
    run = Distillation(Full(3, RuntimeError("shapes differ")), DistilConfig(**SMALL))
    with pytest.raises(RuntimeError, match="shapes differ"):
        list(run.progress())
    assert run.descent.micro == 4
    run.close()


def test_a_batch_in_parts_has_the_gradient_of_the_whole():
    gradients = []
    for micro in (4, 3, 1):
        run = Distillation(Tiny(), DistilConfig(**{**SMALL, "micro": micro}))
        for _ in run._sample_data():
            pass
        descent = run.descent
        descent._descend = lambda loss, run=run: gradients.append([p.grad.clone() for p in run.lora.parameters()])
        run.update()
        run.close()
    assert isinstance(descent, Descent) and len(gradients) == 3
    for other in gradients[1:]:
        assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-5 * float(a.abs().max())) for a, b in zip(gradients[0], other))
