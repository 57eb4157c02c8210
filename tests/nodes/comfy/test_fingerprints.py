"""In the real ComfyUI: hashes are the same for the same graph, and others for another."""

import pytest
import torch
from graph import cfg_guider, load, pack

pytestmark = pytest.mark.comfy


def test_changes_to_guidance_and_conditioning_have_a_cache_of_their_own(host, flow):
    from comfy_extras.nodes_custom_sampler import DualCFGGuider
    from comfy_extras.nodes_model_advanced import RescaleCFG

    guiding, other = pack(host, "nodes.comfy.guider_teacher"), load(host, "flow", "heart")[2]

    def keys(guider):
        return tuple(sorted(guiding.Teacher(guider, (3, 32, 32)).identity.items()))

    def rescaled(multiplier):
        return (
            RescaleCFG().patch(flow[0], multiplier)[0]
            if hasattr(RescaleCFG, "patch")
            else RescaleCFG.execute(flow[0], multiplier).result[0]
        )

    half = torch.zeros(1, 32, 32)
    half[..., :16] = 1
    masked = [host.ConditioningSetMask().append(flow[2], m, "default", 1.0)[0] for m in (half, 1 - half)]
    with torch.inference_mode():
        made = [
            lambda: cfg_guider(flow[0], *flow[2:4]),
            lambda: cfg_guider(flow[0], *flow[2:4], cfg=3.0),
            lambda: cfg_guider(flow[0], other, flow[3]),
            *[lambda m=m: cfg_guider(flow[0], m, flow[3]) for m in masked],
            *[lambda s=s: cfg_guider(rescaled(s), *flow[2:4]) for s in (0.7, 0.5)],
            *[
                lambda c=c: DualCFGGuider.execute(flow[0], flow[2], other, flow[3], 2.0, c, "regular").result[
                    0
                ]
                for c in (1.5, 2)
            ],
        ]
        assert [keys(make()) for make in made] == [keys(make()) for make in made]
        assert len({keys(make()) for make in made}) == len(made)


def test_packed_tensors_are_told_apart_by_their_parts_and_absent_ones_by_their_shapes(host):
    from comfy.quant_ops import QuantizedTensor

    digest = pack(host, "nodes.comfy.fingerprints").digest
    packed = [QuantizedTensor.from_float(w, "TensorCoreNVFP4Layout") for w in torch.rand(3, 32, 32)]
    assert len({digest(p, 16) for p in packed}) == 3
    assert digest(packed[0], 16) == digest(packed[0].clone(), 16)
    absent = [torch.empty(n, device="meta") for n in (2, 3)]
    assert digest(absent[0]) == digest(absent[0].clone()) != digest(absent[1])
