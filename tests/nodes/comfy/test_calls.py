"""In the real ComfyUI, in process: model calls are counted where the work is done."""

import pytest
import torch
from graph import core, off, pack, sample_custom, uniform
from torch import nn

pytestmark = pytest.mark.comfy


@pytest.fixture
def counted(host):
    """Count the model calls of a run over a MODEL, after a run of `whole` calls of the plain one."""
    calls = pack(host, "nodes.comfy.calls")

    def count(teacher, model=None, steps=6, cfg=2.0, images=2, sampler="euler"):
        sigmas = uniform(host, teacher, steps)
        with calls.ModelCalls(teacher[0]) as counter:
            sample_custom(host, teacher[0], cfg, teacher, core("euler"), sigmas[-3:], count=1)
            counter.take(1)
            sample_custom(host, model or teacher[0], cfg, teacher, core(sampler), sigmas, count=images)
            found = counter.take(images)
        assert not hooks(teacher[0].model.diffusion_model)
        return found

    return count


def hooks(network):
    return [hook for layer in network.modules() for hook in layer._forward_pre_hooks.values()]


def test_guidance_asks_twice_and_a_batch_costs_what_one_image_does(counted, teacher):
    assert counted(teacher, images=1) == counted(teacher, images=3) == 12
    assert counted(teacher, cfg=1.0) == 6
    assert counted(teacher, cfg=1.0, sampler="heun") == 11


def test_a_cache_that_writes_over_its_input_leaves_the_state_alone(host, flow):
    from comfy_extras.nodes_easycache import EasyCacheNode

    cached = EasyCacheNode.execute(flow[0], 0.05, 0.15, 0.95, False).result[0]
    sigmas = uniform(host, flow, 20)
    plain, near = (
        sample_custom(host, model, 2.0, flow, core("euler"), sigmas) for model in (flow[0], cached)
    )
    assert 0 < off(plain, near) < 0.1 * float(plain.std())


@pytest.mark.parametrize("cache", ["EasyCache", "LazyCache"])
def test_what_a_cache_answers_is_not_counted(counted, host, teacher, cache, caplog):
    from comfy_extras import nodes_easycache

    node = getattr(nodes_easycache, f"{cache}Node")
    cached = node.execute(teacher[0], 1.0, 0.15, 0.95, False).result[0]
    with caplog.at_level("INFO"):
        calls = counted(teacher, cached, steps=20)
    said = next(line for line in caplog.messages if f"{cache} - skipped" in line)
    skipped, of = said.split("skipped ")[1].split(" steps")[0].split("/")
    assert int(of) == 20 and int(skipped) > 2
    assert calls == 2 * (20 - int(skipped))


def test_skipped_blocks_are_left_out_by_their_share(counted, teacher):
    """A first-block cache that keeps every second call: its own way around the other blocks."""
    network = teacher[0].model.diffusion_model
    blocks, run = list(network.blocks), [0]

    class Skipping(nn.ModuleList):
        def __iter__(self):
            run[0] += 1
            return iter(blocks if run[0] % 2 else blocks[:1])

    network.blocks = Skipping(blocks)
    sizes = [sum(p.numel() for p in block.parameters()) for block in blocks]
    whole = sum(p.numel() for p in network.parameters()) - network.position.numel()
    share = 1 - sum(sizes[1:]) / whole
    assert counted(teacher, steps=6) == pytest.approx(2 * (3 + 3 * share))


def test_a_compiled_network_is_counted_in_whole_calls(counted, teacher):
    network = teacher[0].model.diffusion_model
    network.forward = torch.compile(network.forward, backend="eager")
    assert counted(teacher, steps=4) == 8
