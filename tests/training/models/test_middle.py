"""The middle block of a model, found by what happens in a call; and what it tells of pictures."""

import pytest
import torch
from fewstep.training.models.demo import data
from fewstep.training.models.demo.judge import FIGURES, Judge
from fewstep.training.models.demo.teacher import DemoTeacher
from fewstep.training.models.denoiser import InParts
from fewstep.training.models.middle import MiddleBlock
from torch import nn

tiny = pytest.importorskip("tiny_diffusers", reason="needs diffusers")


@pytest.mark.parametrize(
    "family, block",
    [
        ("flux", "single_transformer_blocks.0"),  # 1 double and 2 single blocks
        ("sd3", "transformer_blocks.1"),
        ("sd15", "mid_block.attentions.0"),
        ("sdxl", "mid_block.attentions.0"),
    ],
)
def test_the_middle_of_every_family_is_found(family, block):
    model = tiny.denoiser(family)
    eye = MiddleBlock(model)
    pictures = torch.randn(3, *model.shape, generator=torch.Generator().manual_seed(1))
    seen = eye(pictures, torch.tensor([1, 0, 1]))
    assert eye.name == block
    assert seen.shape[0] == 3 and seen.shape[1] > 15 and bool(seen.isfinite().all())
    assert seen.std(0).min() >= 0 and (seen[0] - seen[2]).abs().max() > 1e-4


def test_a_picture_is_seen_the_same_in_any_company():
    model = DemoTeacher("flow")
    pictures, condition = data.load("all")[0][:5], torch.tensor([3, 1, 3, 0, 1])
    whole = MiddleBlock(model)(pictures, condition)
    parts = MiddleBlock(InParts(model, 2))(pictures, condition)
    assert whole.shape == (5, 2 * 192) and torch.allclose(whole, parts, atol=1e-4)
    assert MiddleBlock(model)(pictures[:2], condition[:2]).allclose(whole[:2], atol=1e-4)
    assert not model.module.blocks[3]._forward_hooks  # nothing is left on the model


class Short(DemoTeacher):
    """Memory runs out in the last block for more than `room` rows, and once in any case."""

    def __init__(self, room):
        super().__init__("flow")
        self.room, self.ended = room, False
        self.module.blocks[-1].register_forward_pre_hook(self.look)

    def look(self, block, inputs):
        if not self.ended or len(inputs[0]) > self.room:
            self.ended = True
            raise torch.OutOfMemoryError("CUDA out of memory")


@pytest.mark.parametrize("room", [1, 2, 3])
def test_where_memory_runs_out_on_the_way_a_picture_is_seen_the_same(room):
    pictures, condition = data.load("all")[0][:5], torch.tensor([3, 1, 3, 0, 1])
    whole, eye = MiddleBlock(DemoTeacher("flow")), MiddleBlock(InParts(Short(room), 4))
    assert torch.allclose(eye(pictures, condition), whole(pictures, condition), atol=1e-4)
    assert eye.name == whole.name  # also where it ran out while the block was looked for


def test_a_model_that_orders_rows_by_their_prompts_is_asked_by_prompt():
    class Sorts(DemoTeacher):
        def kinds(self, condition):
            return condition

        def __call__(self, x, sigma, condition):
            order = condition.argsort(stable=True)
            return super().__call__(x[order], sigma[order], condition[order])[order.argsort()]

    pictures, condition = data.load("all")[0][:4], torch.tensor([3, 1, 3, 0])
    plain, sorts = (MiddleBlock(kind("flow"))(pictures, condition) for kind in (DemoTeacher, Sorts))
    assert torch.allclose(plain, sorts, atol=1e-4)


def test_a_model_without_blocks_is_told():
    class Plain(DemoTeacher):
        def __call__(self, x, sigma, condition):
            return x

    with pytest.raises(LookupError, match="No block"):
        MiddleBlock(Plain("flow"))(torch.zeros(1, 3, 32, 32), torch.tensor([0]))


def test_the_judge_knows_the_teacher_from_blurred_pictures_and_from_less_varied_ones():
    emoji, labels, _ = data.load("all")
    offered = list(data.label_numbers().values())
    two = [torch.nonzero(labels == offered[n])[:16, 0] for n in (0, 1)]
    pixels = data.to_pixels(emoji[torch.stack(two, 1).flatten()])
    condition = torch.arange(32) % 2
    judge = Judge(pixels, condition)
    same = judge(pixels)
    assert tuple(same) == FIGURES
    assert same["rmse"].value == 0 and abs(same["distance_teacher"].value) < 1e-9
    assert same["diversity"].value == 1 and same["distance_data"].low < 0.02
    blurred = judge(nn.functional.avg_pool2d(pixels, 3, 1, 1, count_include_pad=False))
    assert blurred["distance_teacher"].low > 0.02
    means = torch.stack([pixels[condition == n].mean(0) for n in (0, 1)])[condition]
    poorer = judge(pixels + 0.5 * (means - pixels))
    assert poorer["diversity"].high < 0.95 and poorer["rmse"].low > 0
    again = judge.floor(pixels.flip(3))  # mirrored: other pictures that are much the same
    assert again.value < blurred["distance_teacher"].value
