"""What a run will take of memory: the figure counted by hand, the choice that follows, and a run that then
meets a full memory.
"""

import dataclasses
import gc
import math
import weakref

import pytest
import torch
from fewstep.training import methods
from fewstep.training.models.denoiser import InParts
from fewstep.training.run import memory
from fewstep.training.run.config import DistilConfig
from fewstep.training.run.descent import Descent
from fewstep.training.run.machine import CGROUPS, available
from fewstep.training.run.memory import CARD, CPU, Memory, beside_of, copies_of, plan, staying, weights_of
from fewstep.training.run.run import Run
from fewstep.training.run.source import PROBES
from fewstep.training.run.weighing import Pass
from tiny import Tiny

SMALL = dict(updates=6, images=6, batch=4, chunk=8, image_steps=4, steps=2, phases=2, rank=2)
GB, GIB = 10**9, 2**30


def cut(denoiser, config):
    """(micro, checkpointing) of the plan without a limit."""
    found = plan(denoiser, config, math.inf)
    return found.micro, found.checkpointing


def passes(**bytes_of_one):
    """Passes that take so much for each sample."""
    return {name: Pass(size, 2 * size) for name, size in bytes_of_one.items()}


LARGE = Memory(
    weights=2 * GB,
    adapter=GB // 10,
    copies=4.5,
    place=CARD,
    **passes(whole=3 * GB, recomputed=GB, answer=GB // 10),
)


def test_a_trial_counts_what_the_model_and_the_adapter_take():
    found = plan(Tiny(), DistilConfig(**SMALL), math.inf)
    memory = found.memory
    assert (found.micro, found.checkpointing, found.chunk, found.rank) == (4, False, 8, 2)
    assert memory.weights == 4 * (36 * 24 + 24 + 24 * 32 + 32)
    assert memory.adapter == 4 * (2 * (36 + 24) + 2 * (24 + 32))
    assert memory.confirmed and memory.place == CPU
    # the input, both sides of the activation, both inner sides of the LoRA and their like: some hundred
    # numbers, no thousand; nothing of them grows faster than the samples
    for found in (memory.whole, memory.recomputed, memory.answer):
        assert 4 * (36 + 2 * 24 + 32) < found.one < 4 * 600 and found.one < found.two <= 2 * found.one


def test_whole_samples_are_preferred_and_as_many_as_fit():
    fixed, margin = LARGE.fixed, CARD.margin
    assert fixed == LARGE.weights + 4.5 * LARGE.adapter + CARD.extra
    assert LARGE.choose(100 * GB, 8) == (8, False)
    assert LARGE.choose(fixed + 2.5 * margin * LARGE.whole.one, 8) == (2, False)
    assert LARGE.choose(fixed + 0.9 * margin * LARGE.whole.one, 8) == (2, True)
    assert LARGE.choose(100 * GB, 8, True) == (8, True)
    for budget in (6.9 * GB, 12 * GB, 24 * GB):
        assert LARGE.peak(*LARGE.choose(budget, 64)) <= budget


@pytest.mark.parametrize("way", [False, True])
def test_a_budget_is_honoured_to_the_byte(way):
    for micro in (1, 2, 7):
        need = LARGE.peak(micro, way)
        assert LARGE.choose(need, micro, way) == (micro, way)
        if micro > 1:
            assert LARGE.choose(need - 1, micro, way) != (micro, way)
    with pytest.raises(MemoryError):
        LARGE.choose(LARGE.peak(1, True) - 1, 4)


def test_the_teachers_calls_fit_the_budget_too():
    large = dataclasses.replace(LARGE, **passes(answer=GB))
    for budget in (12 * GB, 24 * GB):
        chunk = large.chunk(budget, 64)
        drawn = large.fixed - 3 * large.adapter + CARD.margin * (chunk * GB)  # no gradient, no moments yet
        held_out = large.fixed - large.adapter + CARD.margin * (min(chunk, PROBES) * GB)
        assert large.asking(chunk) == math.ceil(max(drawn, held_out)) <= budget
        assert large.asking(chunk + 1) > budget
    assert large.chunk(100 * GB, 4) == 4 and large.chunk(GB, 4) == 1
    assert large.peak(1, True) == large.fixed + CARD.margin * 2 * GB  # more than its own pass


def test_a_rank_that_may_be_lowered_is_halved_until_it_fits(monkeypatch):
    wide = Tiny(width=4096)
    config = DistilConfig(**{**SMALL, "rank": 64})
    plenty = plan(wide, config, math.inf, lower_rank=True)
    assert plenty.rank == 64
    tight = plenty.memory.weights + 6 * plenty.memory.adapter // 2
    lower = plan(wide, config, tight, lower_rank=True)
    assert lower.rank == 8 and lower.peak <= tight and lower.applied(config).rank == 8
    with pytest.raises(MemoryError, match="Choose a lower rank"):
        plan(wide, config, tight)
    monkeypatch.setattr(memory, "ranks", lambda *args: [64, 8])
    assert plan(wide, config, tight, lower_rank=True).rank == 8
    with pytest.raises(MemoryError, match="Choose a lower rank"):
        plan(wide, config, tight, lower_rank=True, first_rank=True)


def test_what_a_run_holds_of_its_adapter():
    config = DistilConfig(**SMALL)
    eight = dataclasses.replace(config, optimizer="adamw8bit")
    average = dataclasses.replace(config, target="ema")
    half, full = torch.bfloat16, torch.float32
    assert [copies_of(c, CARD, half) for c in (config, eight, average)] == [4.5, 3, 5]
    assert (copies_of(config, CARD, full), copies_of(config, CPU, full)) == (4, 6)


class Streamed(Tiny):
    """A model whose second layer is fetched for each call."""

    def streamed(self):
        return [self.module[2]]


@pytest.mark.parametrize("dtype, cast", [(torch.float32, 0), (torch.float8_e4m3fn, 2)])
def test_of_streamed_layers_the_largest_counts_twice_as_it_comes_and_as_it_is_cast(dtype, cast):
    tiny = Streamed()
    tiny.module[2].weight = torch.nn.Parameter(tiny.module[2].weight.to(dtype), False)
    here = 4 * (36 * 24 + 24)
    assert staying(tiny) == here
    assert weights_of(tiny) == here  # on the CPU an operation casts them, which is seen
    tiny.device = torch.device("cuda")
    assert weights_of(tiny) == here + 2 * (24 * 32 * (dtype.itemsize + cast) + 4 * 32)


class Packed(torch.Tensor):
    """Four bits a number and a scale for each row, and says that it is bfloat16, as the host's layouts do."""

    @staticmethod
    def __new__(cls, data, scale, shape):
        return torch.Tensor._make_wrapper_subclass(cls, shape, dtype=torch.bfloat16)

    def __init__(self, data, scale, shape):
        self.packed, self.scale = data, scale

    def __tensor_flatten__(self):
        return ["packed", "scale"], self.shape

    @classmethod
    def __tensor_unflatten__(cls, parts, shape, size, stride):
        return cls(parts["packed"], parts["scale"], shape)

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        assert func is torch.ops.aten.detach.default
        return cls(args[0].packed, args[0].scale, args[0].shape)


def test_packed_weights_count_as_they_are_kept():
    """Resident, and streamed: as they come, and as they are cast."""
    tiny, rows, columns = Streamed(), 32, 24
    weight = Packed(torch.zeros(rows, columns // 2, dtype=torch.uint8), torch.ones(rows), (rows, columns))
    tiny.module[2].weight = torch.nn.Parameter(weight, False)
    kept, rest = rows * (columns // 2 + 4), 4 * (36 * 24 + 24)
    tiny.device = torch.device("cuda")
    assert staying(tiny) == rest
    assert weights_of(tiny) == rest + 2 * (kept + 2 * rows * columns + 4 * rows)
    tiny.streamed = list
    layers = [layer for layer in tiny.module if isinstance(layer, torch.nn.Linear)]
    others = sum(p.nbytes for layer in layers for p in layer.parameters() if p is not layer.weight)
    others += sum(layer.weight.nbytes for layer in layers if layer is not tiny.module[2])
    assert staying(tiny) == weights_of(tiny) == kept + others


@pytest.mark.parametrize("method", methods.names())
def test_every_step_count_and_phase_count_can_begin(method):
    """The trial's noise level is one at which the network is asked, whatever the grid; then two updates."""
    for steps in range(methods.get(method).least_steps, 9):
        bounded = methods.get(method).on_the_grid  # phases by steps
        for phases in {1, steps, *((p for p in (2, 4) if p < steps) if bounded else (8,))}:
            changes = {
                "method": method,
                "steps": steps,
                "phases": phases,
                "image_steps": None,
                "images": 2,
                "updates": 2,
            }
            config = DistilConfig(**{**SMALL, **changes})
            assert cut(Tiny(), config) == (4, False)
            run = Run(Tiny(), config)
            assert len([p for p in run.progress() if p.loss is not None]) == 2
            sampled = run.task.sigmas_for(steps).float()
            if method == "phased":
                assert all(float((run.phases.levels - s).abs().min()) < 1e-6 for s in sampled), (
                    steps,
                    phases,
                )
            renews = method in ("consistency", "consistency-training", "phased") and phases == 1 < steps
            assert run.recipe().churn == (math.inf if renews else 0)
            run.close()


def test_what_is_proved_is_what_will_run(monkeypatch):
    """Where only recomputed blocks fit, their gradient is proved; where a whole sample runs out, they are
    taken, and so where it was reckoned too small.
    """
    proved, seen = [], []
    original, real = memory.check_gradient, memory.taken

    def watch(compute, parameters, dtype, backward, in_float32):
        proved.append(bool(backward.blocks))
        return original(compute, parameters, dtype, backward, in_float32)

    def full(compute, backward):
        seen.append(bool(backward.blocks))
        raise torch.OutOfMemoryError("Allocation on device ")

    def more(compute, backward):
        live = real(compute, backward)
        live.moments = [moment + 1000 for moment in live.moments]
        return live

    monkeypatch.setattr(memory, "check_gradient", watch)
    tiny, config = Tiny(), DistilConfig(**SMALL)
    whole = plan(tiny, config, math.inf)
    assert (whole.micro, whole.checkpointing) == (4, False)
    limit = whole.memory.fixed + whole.memory.adapter + 100
    monkeypatch.setattr(memory, "weigh", lambda *args: passes(whole=2, recomputed=2, answer=1))
    for found in (full, more):
        monkeypatch.setattr(memory, "taken", found)
        cut = plan(tiny, config, limit)
        assert (cut.micro, cut.checkpointing) == (4, True)
    assert proved == [False, True, True] and seen == [False]
    assert not any(m._forward_hooks for m in tiny.module.modules())


REFUSED = [
    (LARGE, 3 * GB, "smaller latent"),
    (LARGE, 2 * GB, "smaller or quantised model"),
    (dataclasses.replace(LARGE, rank=64), 3.5 * GB, "smaller latent or a lower rank"),
    (dataclasses.replace(LARGE, adapter=4 * GB, rank=64), 6 * GB, "Choose a lower rank, or more"),
    (dataclasses.replace(LARGE, adapter=4 * GB, rank=64), 5 * GB, "smaller or quantised model, or more"),
]


@pytest.mark.parametrize("memory, budget, remedy", REFUSED)
def test_too_little_is_refused_with_what_to_lower(memory, budget, remedy):
    with pytest.raises(MemoryError, match=f"Training one sample must fit into .* it takes .*{remedy}"):
        memory.choose(budget, 4)


def test_of_a_method_with_several_adapters_all_that_helps_is_told():
    """As found: weights of 6.9 GiB, copies of 9.5 adapters, a budget of 10 GiB. At rank 64 they take more
    than is left, and at rank 8 there is room for 8 samples.
    """
    config = DistilConfig(method="matching", rank=64)
    measured = Memory(
        weights=int(6.9 * GIB),
        adapter=int(0.35 * GIB),
        copies=copies_of(config, CARD),
        rank=64,
        adapters=3,
        beside=beside_of(config),
        place=CARD,
        **passes(whole=GIB, recomputed=GIB // 5, answer=GIB // 20),
    )
    assert measured.copies == 9.5 and measured.copies - measured.beside == 4.5
    with pytest.raises(MemoryError) as refused:
        measured.choose(10 * GIB, 8)
    assert "the 3 LoRAs of the method 3.3 GiB, the sample" in str(refused.value)
    assert "Choose a lower rank, or the method phased, which trains one LoRA" in str(refused.value)
    lower = dataclasses.replace(measured, adapter=measured.adapter // 8, rank=8)
    assert lower.peak(8, True) <= 10 * GIB
    alone = dataclasses.replace(measured, copies=4.5, beside=0, adapters=1)
    assert alone.choose(10 * GIB, 8)[0] >= 1
    with pytest.raises(MemoryError) as refused:  # where phased is too large as well it is not told
        measured.choose(8 * GIB, 8)
    assert "Choose a lower rank, or more memory" in str(refused.value)


@pytest.mark.parametrize("method, adapters", [("phased", 1), ("matching", 3)])
def test_a_plan_knows_rank_and_number_of_its_adapters(method, adapters):
    found = plan(Tiny(), DistilConfig(**{**SMALL, "rank": 3, "method": method}), math.inf).memory
    assert (found.rank, found.adapters, found.beside > 0) == (3, adapters, adapters > 1)


def test_the_trial_names_a_latent_or_prompt_that_does_not_fit():
    class Narrow(Tiny):
        def __call__(self, x, sigma, condition):
            return super().__call__(x[..., :3], sigma, condition)

    with pytest.raises(ValueError, match="The model must answer for this latent and these prompts, and gave"):
        plan(Narrow(), DistilConfig(**SMALL), math.inf)


def test_a_run_leaves_nothing_behind(tmp_path):
    """No hook after a failure to begin, no memory after the end without the cycle collector."""
    tiny = Tiny()
    good = {
        f"diffusion_model.{n}.lora_{part}.weight": torch.zeros(shape)
        for n, size in (("0", (24, 36)), ("2", (32, 24)))
        for part, shape in (("up", (size[0], 2)), ("down", (2, size[1])))
    }
    for bad in (
        {"diffusion_model.2.lora_up.weight": torch.zeros(5, 2)},
        {"diffusion_model.9.lora_up.weight": torch.zeros(5, 2)},
        {"diffusion_model.2.lora_down.weight": torch.full((2, 24), math.nan)},
    ):
        with pytest.raises(
            ValueError, match="The LoRA to start from must|The LoRA to start from does not fit"
        ):
            Run(tiny, DistilConfig(**SMALL), warm={**good, **bad})
        assert not any(m._forward_hooks for m in tiny.module.modules())
    gc.collect()
    gc.disable()
    try:
        run = Run(tiny, DistilConfig(**SMALL), cache=(tmp_path, {"patches": "", "conditioning": ""}))
        list(run.progress())
        run.close()
        seen = weakref.ref(run)
        del run
        assert seen() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("rank", [1, 2, 5, 30])
def test_a_warm_start_begins_with_the_files_function(rank):
    """Of a lower rank exactly; of a higher one the best approximation, also where a layer is smaller than the
    rank.
    """
    g, tensors = torch.Generator().manual_seed(0), {}
    for name, (out, into) in (("0", (24, 36)), ("2", (32, 24))):
        tensors[f"diffusion_model.{name}.lora_up.weight"] = torch.randn(out, rank, generator=g)
        tensors[f"diffusion_model.{name}.lora_down.weight"] = torch.randn(rank, into, generator=g)
        tensors[f"diffusion_model.{name}.alpha"] = torch.tensor(3.0)
    for own in (4, 28):
        run = Run(Tiny(), DistilConfig(**{**SMALL, "rank": own, "alpha": 2.0}), warm=tensors)
        for name, pair in run.student.lora.weights.items():
            up, down = (tensors[f"diffusion_model.{name}.lora_{part}.weight"] for part in ("up", "down"))
            u, s, v = torch.linalg.svd(3.0 / rank * up @ down)
            wanted = (
                (u[:, :own] * s[:own][: len(v)]) @ v[:own]
                if own < len(s)
                else (u[:, : len(s)] * s) @ v[: len(s)]
            )
            assert torch.allclose(2.0 / own * pair["up"] @ pair["down"], wanted, atol=1e-4)
        run.close()


def test_sampling_asks_for_fewer_where_memory_is_out():
    class Small(Tiny):
        def __call__(self, x, sigma, condition):
            if len(x) > 3:
                raise MemoryError
            return super().__call__(x, sigma, condition)

    x, sigma, which, parts = (
        torch.randn(10, 2, 4, 4),
        torch.full((10,), 0.5),
        torch.arange(10) % 3,
        InParts(Small(), 8),
    )
    assert torch.allclose(parts(x, sigma, which), Tiny()(x, sigma, which), atol=1e-6) and parts.most == 2


def test_the_cpu_says_what_is_free():
    assert available("cpu") > 2**24


class Full:
    """A model that has room for so many samples and says that memory is out above that."""

    def __init__(self, room, error):
        self.room, self.error, self.tiny, self.refused = room, error, Tiny(), 0

    def __getattr__(self, name):
        return getattr(self.tiny, name)

    def __call__(self, x, sigma, condition):
        if torch.is_grad_enabled() and len(x) > self.room:
            self.refused += 1
            raise self.error
        return self.tiny(x, sigma, condition)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: not enough memory"),
    ],
)
def test_out_of_memory_halves_the_micro_batch_and_keeps_the_batch(error):
    def train(denoiser):
        run = Run(denoiser, DistilConfig(**SMALL))
        list(run.progress())
        run.close()
        return run

    whole, cut = train(Tiny()), train(Full(1, error))
    assert cut.descent.micro == 1 and cut.denoiser.refused == 2  # 4, then 2, then never again
    assert whole.done == cut.done == 6
    for a, b in zip(whole.lora_tensors().values(), cut.lora_tensors().values()):
        assert torch.allclose(a, b, atol=1e-4)


def test_one_sample_too_much_ends_the_run_with_what_to_lower():
    run = Run(Full(0, MemoryError()), DistilConfig(**SMALL))
    with pytest.raises(
        MemoryError, match="One sample .* must fit .* Switch checkpointing on, or choose a smaller latent"
    ):
        list(run.progress())
    run.close()


def test_other_errors_are_no_lack_of_memory():
    run = Run(Full(3, RuntimeError("shapes differ")), DistilConfig(**SMALL))
    with pytest.raises(RuntimeError, match="shapes differ"):
        list(run.progress())
    assert run.descent.micro == 4
    run.close()


def test_a_batch_in_parts_has_the_gradient_of_the_whole():
    gradients = []
    for micro in (4, 3, 1):
        run = Run(Tiny(), DistilConfig(**{**SMALL, "micro": micro}))
        for _ in run.source.gather():
            pass
        descent = run.descent
        descent._descend = lambda loss, rate, run=run: gradients.append(
            [p.grad.clone() for p in run.student.lora.parameters()]
        )
        run.update()
        run.close()
    assert isinstance(descent, Descent) and len(gradients) == 3
    for other in gradients[1:]:
        assert all(
            torch.allclose(a, b, rtol=1e-4, atol=1e-5 * float(a.abs().max()))
            for a, b in zip(gradients[0], other)
        )


@pytest.mark.parametrize("folder, limit, taken, cache", CGROUPS)
def test_a_containers_limit_counts(folder, limit, taken, cache, tmp_path, monkeypatch):
    """What it leaves, with the caches that the system gives back; none of it where there is no limit."""
    monkeypatch.setattr("fewstep.training.run.machine.ROOT", tmp_path)
    group = tmp_path / folder
    group.mkdir(parents=True)
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc" / "meminfo").write_text("MemTotal: 9000 kB\nMemAvailable: 8000 kB\n")
    assert available("cpu") == 8000 << 10
    for name, text in (
        (limit, "5000000\n"),
        (taken, "3000000\n"),
        ("memory.stat", f"anon 5\n{cache} 1000000\n"),
    ):
        (group / name).write_text(text)
    assert available("cpu") == 3_000_000
    (group / taken).write_text("7000000\n")
    assert available("cpu") == 0
    for free in ("max", str(2**63 - 4096)):
        (group / limit).write_text(free)
        assert available("cpu") == 8000 << 10
