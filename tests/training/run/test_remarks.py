"""What is said of a run that is hardly what was meant, before it takes long."""

import pytest
import torch
from fewstep.training.run.config import DistilConfig
from fewstep.training.run.job import Job
from fewstep.training.run.run import Run
from parts import ABOUT, SMALL
from tiny import Tiny


def said(folder, denoiser, until=lambda run: run.done, warm=None, cache=None, **changes):
    """What the log of such a run holds when its first update is made, or earlier."""
    trained = Run(denoiser, DistilConfig(**{**SMALL, **changes}), warm=warm, cache=cache)
    try:
        with Job(folder, trained, ABOUT) as job:
            for _ in job.progress():
                if until(trained):
                    break
            log = [str(event["message"]) for event in job.notes.get("log", [])]
            assert log == [str(message.to_dict()) for message in job.remarks.said]
            return " ".join(log)
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
    assert "needs few steps already" in said(tmp_path / "few", Few(), cfg=1.0)
    assert "needs few steps" not in said(tmp_path / "other", Tiny())


def test_of_a_run_that_begins_with_a_lora_that_is_said_of_the_lora(tmp_path):
    trained = Run(Few(), DistilConfig(**SMALL))
    warm = trained.lora_tensors()
    trained.close()
    text = said(tmp_path, Few(), cfg=1.0, warm=warm)
    assert "LoRA that the run begins with comes within" in text and "needs few steps" not in text


def test_it_is_said_while_the_teachers_pictures_are_still_drawn(tmp_path):
    """By the first of them, once: not again when the held-out ones are measured, or the run goes on."""
    drawn = []

    def begun(run):
        there = list((tmp_path / "cache").rglob("*.safetensors"))
        drawn.append((len(there), run.source.data is None))
        return len(there) == 2

    config = dict(cfg=1.0, images=100, cache=(tmp_path / "cache", {"patches": "", "conditioning": ""}))
    assert "needs few steps already" in said(tmp_path / "run", Few(), begun, **config)
    assert drawn[-1] == (2, True)
    whole = said(tmp_path / "whole", Few(), **config)
    assert whole.count("needs few steps") == 1


def test_it_is_said_once_of_a_run_that_begins_again_before_an_update(tmp_path):
    for _ in range(3):
        trained = Run(One(), DistilConfig(**{**SMALL, "method": "matching", "cfg": 1.0}))
        with Job(tmp_path, trained, ABOUT) as job:
            next(iter(job.progress()))
        assert trained.done == 0
        trained.close()
    told = [event["message"] for event in job.notes["log"]]
    assert told == [message.to_dict() for message in job.remarks.said] and len(told) == 2


def test_it_is_not_said_again_of_a_run_that_goes_on(tmp_path):
    for last in (2, 4):
        trained = Run(Few(), DistilConfig(**{**SMALL, "cfg": 1.0}))
        with Job(tmp_path, trained, ABOUT) as job:
            for _ in job.progress():
                if trained.done == last:
                    break
        trained.close()
        log = " ".join(str(event["message"]) for event in job.notes["log"])
        assert log.count("needs few steps") == len(job.remarks.said) == 1
