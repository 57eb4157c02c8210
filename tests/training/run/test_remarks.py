"""What is said of a run that is hardly what was meant, before it takes long."""

import pytest
import torch
from fewstep.training.run.config import DistilConfig
from fewstep.training.run.job import Job
from fewstep.training.run.run import Run
from parts import ABOUT, SMALL
from tiny import Tiny


def said(folder, denoiser, **changes):
    """What the log of such a run holds when its first update is made."""
    trained = Run(denoiser, DistilConfig(**{**SMALL, **changes}))
    try:
        with Job(folder, trained, ABOUT) as job:
            for _ in job.progress():
                if trained.done:
                    break
            return " ".join(str(event["message"]) for event in job.notes.get("log", []))
    finally:
        trained.close()


class One(Tiny):
    """Knows one prompt."""

    def __init__(self):
        super().__init__()
        self.conditions = 1


class Few(Tiny):
    """One step is exact: always the same picture, in which noise is not asked for."""

    def __call__(self, x, sigma, condition):
        picture = torch.randn(4, 2, 4, 4, generator=torch.Generator().manual_seed(1))[condition]
        return picture + 1e-3 * super().__call__(x, sigma, condition)


@pytest.mark.parametrize("method, told", [("matching", True), ("phased", False)])
def test_one_prompt_and_no_guidance_are_said(tmp_path, method, told):
    text = said(tmp_path, One(), method=method, cfg=1.0)
    assert ("There is one prompt" in text, "drawn at CFG 1" in text) == (told, told)
    assert not said(tmp_path / "other", Tiny(), method=method)


def test_a_model_that_is_few_step_already_is_said(tmp_path):
    assert "needs few steps already" in said(tmp_path, Few(), cfg=1.0)
    assert "needs few steps" not in said(tmp_path / "other", Tiny())
