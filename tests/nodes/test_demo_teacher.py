"""In the real ComfyUI, in process: the packaged teacher in stock nodes."""

import pytest
import torch
from graph import run

pytestmark = pytest.mark.comfy


@pytest.mark.parametrize(
    "sampler, scheduler", [("euler", "normal"), ("dpmpp_2m", "karras"), ("uni_pc", "simple")]
)
def test_stock_ksampler_draws_with_the_teacher(host, teacher, sampler, scheduler):
    latent = host.EmptyLatentImage().generate(32, 32, 2)[0]
    with torch.inference_mode():
        out = host.KSampler().sample(
            teacher[0], 7, 12, 2.0, sampler, scheduler, teacher[2], teacher[3], latent
        )[0]
        image = host.VAEDecode().decode(teacher[1], out)[0]
    assert image.shape == (2, 32, 32, 3) and torch.isfinite(image).all()
    # white paper, and something on it
    assert image.mean() > 0.5 and (image - image[:1].mean()).abs().max() > 0.3


def test_unknown_label_and_steps_below_1_are_refused(host, teacher):
    with pytest.raises(ValueError, match="label must be one of: smiling face, .*; got 'unicorn'"):
        run(host, "FewstepLoadDemoTeacher", teacher="flow", label="unicorn")
    with pytest.raises(ValueError, match="steps must be a whole number of 1 or more, got 0"):
        run(
            host,
            "FewstepSchedule",
            model=teacher[0],
            schedule={"schedule": "uniform"},
            steps=0,
            shift=1.0,
            denoise=1.0,
        )
