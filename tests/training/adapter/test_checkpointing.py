"""Which parts are recomputed, and that the second time is like the first."""

import pytest
import torch
from fewstep.training.adapter.backward import Backward
from fewstep.training.adapter.checkpointing import blocks
from overwriting import WIDTH, Modulation, Net, case, gradient
from torch import nn


def test_forward_is_restored_and_no_graph_means_no_copies():
    net, parameters, compute = case(overwrite=True)
    inner, seen = net.blocks[0].forward, []

    def own(streams, modulation, *, options):  # someone else's patch
        seen.append(streams)
        return inner(streams, modulation, options=options)

    net.blocks[0].forward = own
    x = torch.ones(1, 3, WIDTH)
    streams, modulation = {"image": x}, Modulation(x, [x])

    def watched():
        with torch.no_grad():
            net.blocks[0](streams, modulation, options={"number": 0})
        assert seen[-1] is streams and net.blocks[0].forward is not own
        loss = compute()
        assert seen[-1] is not streams
        return loss

    Backward(net, parameters, checkpointing=True)(watched)
    assert net.blocks[0].__dict__["forward"] is own and "forward" not in net.blocks[1].__dict__


def test_recomputation_draws_the_same_and_casts_the_same():
    """Dropout, and half precision by autocast: with and without checkpointing one gradient, and one random
    stream.
    """
    torch.manual_seed(0)
    net = nn.Sequential(*[nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5), nn.Linear(8, 8)) for _ in range(2)])
    wrapped = nn.Sequential(*[_Wrapped(part) for part in net])
    x = torch.randn(4, 8)
    got = []
    for checkpointing in (False, True):
        for p in net.parameters():
            p.grad = None
        torch.manual_seed(7)
        with torch.autocast("cpu", torch.bfloat16):
            Backward(wrapped, net.parameters(), checkpointing)(lambda: wrapped(x).float().square().mean())
        got.append((torch.cat([p.grad.flatten() for p in net.parameters()]), torch.rand(1)))
    assert torch.equal(got[0][0], got[1][0]) and torch.equal(got[0][1], got[1][1])
    assert len(blocks(wrapped)) == 2 and got[0][0].abs().max() > 0


class _Wrapped(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x)


def test_blocks_of_a_list_of_a_mixture_of_experts_and_of_a_model_without_any():
    assert blocks(net := Net(False)) == list(net.blocks)
    assert blocks(single := nn.Linear(2, 2)) == [single]
    assert blocks(experts := nn.ModuleList([_Experts()])) == [experts[0]]


def test_blocks_of_diffusers_models():
    diffusers = pytest.importorskip("diffusers")
    unet = diffusers.UNet2DConditionModel(
        block_out_channels=(32, 64),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=16,
        attention_head_dim=8,
        norm_num_groups=8,
    )
    kinds = [type(b).__name__ for b in blocks(unet)]
    assert kinds.count("ResnetBlock2D") == 2 + 2 + 2 * 2 and kinds.count("BasicTransformerBlock") == 1 + 1 + 2
    assert set(kinds) == {"ResnetBlock2D", "BasicTransformerBlock"}
    flux = diffusers.FluxTransformer2DModel(
        num_layers=2,
        num_single_layers=3,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=16,
        pooled_projection_dim=16,
        axes_dims_rope=(2, 2, 4),
    )
    assert blocks(flux) == [*flux.transformer_blocks, *flux.single_transformer_blocks]
    x, t, text = torch.randn(1, 4, 8, 8), torch.tensor([10]), torch.randn(1, 3, 16)
    parameters = list(unet.parameters())

    def compute():
        return unet(x, t, encoder_hidden_states=text).sample.square().mean()

    wanted = torch.cat([g.flatten() for g in torch.autograd.grad(compute(), parameters)])
    grad = gradient(unet, parameters, compute, checkpointing=True)[1]
    assert (grad - wanted).norm() / wanted.norm() < 1e-6


class _Experts(nn.Module):
    def __init__(self):
        super().__init__()
        self.experts = nn.ModuleList([nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))])
        self.attention = nn.ModuleDict({k: nn.Linear(4, 4) for k in "qkvo"})
