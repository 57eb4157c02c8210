"""In the real ComfyUI: the peak that a plan predicts from one sample, two and three, beside the one that
PyTorch's profiler counts at the CPU's allocator while the run goes on.
"""

import functools

import pytest
import torch
import zoo
from graph import pack
from torch.profiler import ProfilerActivity, profile

pytestmark = pytest.mark.comfy
WITHIN = 0.15
SETTINGS = {
    "updates": 2,
    "image_steps": 2,
    "steps": 2,
    "phases": 2,
    "rank": 4,
}
FAMILIES = ("sd15", "sdxl", "sd3", "flux_dev", "ltxv", "wan21")
QUICK = [*((family, 2, 2) for family in FAMILIES), ("flux_dev", 4, 2), ("sd3", 3, 2), ("wan21", 1, 32)]
SLOW = [(family, micro, 2) for family in FAMILIES for micro in (1, 3, 4)]
SLOW += [(family, 2, 32) for family in FAMILIES]
CASES = [*QUICK, *(pytest.param(*case, marks=pytest.mark.slow) for case in SLOW if case not in QUICK)]


@pytest.fixture(scope="module")
def table(pytestconfig):
    """Lines that are printed when all cases are done."""
    lines = [
        "",
        f"{'family':10}{'weights':>10}{'samples':>9}{'asked':>7}{'recomputed':>12}{'predicted':>12}"
        f"{'measured':>12}{'ratio':>8}",
    ]
    yield lines
    with pytestconfig.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print("\n".join(lines))


def most_allocated(work):
    """Bytes at the worst moment of `work`, beyond those of its beginning."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        work()
    now = most = 0
    for event in profiled.profiler.kineto_results.events():
        if event.name() == "[memory]" and event.device_type() == torch.autograd.DeviceType.CPU:
            now += event.nbytes()
            most = max(most, now)
    return most


def layers_cast(module):
    """The layers whose weights are stored in another format than the one in which they compute."""
    return [
        m
        for m in module.modules()
        if any(p.dtype == torch.bfloat16 for p in m._parameters.values() if p is not None)
    ]


@pytest.mark.parametrize("streamed", [False, True], ids=["resident", "streamed"])
@pytest.mark.parametrize("family, micro, chunk", CASES)
def test_the_predicted_peak_is_the_measured_one(host, monkeypatch, table, family, micro, chunk, streamed):
    """Streamed weights are bfloat16 ones here, which each call of a layer casts anew. chunk: samples that may
    be asked for where nothing is trained, of which the teacher draws 9 trajectories, guided.
    """
    memory, run = pack(host, "training.run.memory"), pack(host, "training.run.run")
    config_of, kind = (
        pack(host, "training.run.config").DistilConfig,
        pack(host, "nodes.comfy.denoiser").ComfyDenoiser,
    )
    for where in (memory, pack(host, "training.run.source")):
        monkeypatch.setattr(where, "PROBES", 1)
    model = zoo.load(family, **({"dtype": torch.bfloat16} if streamed else {}))
    with pack(host, "nodes.comfy.session").training_session(model) as patcher:
        denoiser = kind(patcher, zoo.conditioning(family), zoo.conditioning(family, 1), zoo.latent(family))
        if streamed:
            denoiser.streamed = lambda: layers_cast(denoiser.module)
            assert len(denoiser.streamed()) > 10

        def train(config):
            begun = run.Run(denoiser, config)
            list(begun.progress())
            begun.close()

        for checkpointing in (False, True):
            cut = {"batch": max(micro, 2), "micro": micro, "chunk": chunk, "images": 1 if chunk == 2 else 8}
            config = config_of(**SETTINGS, **cut, checkpointing=checkpointing)
            planned = memory.plan(denoiser, config)
            assert (planned.micro, planned.checkpointing) == (micro, checkpointing)
            assert planned.chunk == min(chunk, 18)

            measured = most_allocated(functools.partial(train, planned.applied(config)))
            predicted = planned.peak - memory.staying(denoiser)
            ratio, how = predicted / measured, "blocks" if checkpointing else ""
            weights = "streamed" if streamed else "resident"
            figures = f"{predicted / 2**20:8.2f} MiB{measured / 2**20:8.2f} MiB{ratio:8.3f}"
            table.append(f"{family:10}{weights:>10}{micro:9}{planned.chunk:7}{how:>12}{figures}")
            assert abs(ratio - 1) <= WITHIN, table[-1]
