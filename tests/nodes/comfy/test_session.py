"""In the real ComfyUI: a session that can't begin says why, and leaves the host as it was."""

import pytest
import torch
import zoo
from graph import pack

pytestmark = pytest.mark.comfy


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("Allocation on device "), MemoryError()])
def test_weights_that_find_no_memory_are_refused_by_name(host, monkeypatch, error):
    import comfy.model_management as management

    def full(*args, **kwargs):
        raise error

    model, session = zoo.load("sd15"), pack(host, "nodes.comfy.session")
    monkeypatch.setattr(management, "load_models_gpu", full)
    with pytest.raises(MemoryError, match=r"its weights take \d+ MiB, and .* Choose a smaller or quantised"):
        with session.training_session(model):
            pass
    assert not management.in_training


def test_another_failure_while_loading_is_told_as_it_is(host, monkeypatch):
    import comfy.model_management as management

    def broken(*args, **kwargs):
        raise RuntimeError("shapes differ")

    model, session = zoo.load("sd15"), pack(host, "nodes.comfy.session")
    monkeypatch.setattr(management, "load_models_gpu", broken)
    with pytest.raises(RuntimeError, match="shapes differ"):
        with session.training_session(model):
            pass


def test_on_the_cpu_every_model_is_resident(host):
    residency, session = pack(host, "nodes.comfy.residency"), pack(host, "nodes.comfy.session")
    model = zoo.load("sd15")
    assert list(residency.choices(model, residency.AUTO, 1e20, 1)) == [residency.RESIDENT]
    with session.training_session(model, residency.STREAMED) as patcher:
        assert residency.streamed_layers(patcher) == []
    with pytest.raises(ValueError, match="residency must be one of auto, resident, streamed, got 'lent'"):
        residency.choices(model, "lent", 0, None)
