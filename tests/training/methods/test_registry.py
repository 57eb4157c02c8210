"""Adding a method is one file and one line: config, command line and a run know it without another edit."""

import pytest
import toy_method
from fewstep.training import methods
from fewstep.training.cli.arguments import parser
from fewstep.training.methods import registry
from fewstep.training.run.config import DistilConfig
from fewstep.training.run.run import Run
from tiny import Tiny

SMALL = dict(updates=6, images=6, batch=4, chunk=8, image_steps=4, steps=2, phases=2, rank=2)


@pytest.fixture
def registered():
    yield methods.register(toy_method.METHOD)
    del registry.METHODS["toy"]


def test_a_registered_method_is_in_config_command_line_and_runs(registered, capsys):
    assert methods.names()[-1] == "toy" and methods.get("toy") is registered
    for command in (["demo"], ["distil"], ["reflow"]):
        assert parser().parse_args([*command, "--method", "toy"]).method == "toy"
    with pytest.raises(SystemExit):
        parser().parse_args(["distil", "--help"])
    assert "toy" in capsys.readouterr().out
    config = DistilConfig.from_dict({**SMALL, "method": "toy"})
    run = Run(Tiny(), config)
    assert len([p for p in run.progress() if p.loss is not None]) == 6
    run.close()
    assert run.recipe().method == "toy" and run.loss[0][1] >= 0


def test_one_that_is_not_registered_is_nowhere(capsys):
    with pytest.raises(ValueError, match="method must be one of phased, .*, got 'toy'"):
        DistilConfig(**SMALL, method="toy")
    with pytest.raises(SystemExit):
        parser().parse_args(["demo", "--method", "toy"])
    assert "invalid choice: 'toy'" in capsys.readouterr().err


def test_a_name_is_given_once(registered):
    with pytest.raises(ValueError, match="method toy is registered already"):
        methods.register(toy_method.METHOD)


@pytest.mark.parametrize("name", methods.names(task=None))
def test_a_method_is_one_frozen_value(name):
    method = methods.get(name)
    assert method.name == name and method.title and method.needs in ("trajectories", "pairs", "images")
    with pytest.raises(AttributeError):
        method.name = "other"
