"""In the real ComfyUI: whatever the machine refuses, a run ends as is promised and nothing learnt is lost."""

from pathlib import Path

import pytest
import torch
import zoo
from graph import pack
from small_runs import trained

pytestmark = pytest.mark.comfy
FAMILY = "sd15"


@pytest.fixture(scope="module")
def model(host):
    return zoo.load(FAMILY)


@pytest.fixture
def said(host, monkeypatch):
    """What the node tells its user."""
    lines = []
    monkeypatch.setattr(pack(host, "nodes.show"), "say", lambda node, text: lines.append(str(text)))
    return lines


def loras(name):
    import folder_paths

    return sorted(Path(folder_paths.get_folder_paths("loras")[0]).glob(f"{name}_*"))


def test_a_lora_that_the_stock_loader_holds_is_left_and_another_name_is_told(host, model, windows, said):
    """Windows replaces no file that is mapped: queueing the same again writes beside it, then over that."""
    trained(host, FAMILY, model, "in use")
    (first,) = loras("in use")
    before = first.read_bytes()
    loader = host.NODE_CLASS_MAPPINGS["LoraLoaderModelOnly"]()
    with torch.inference_mode():
        loader.load_lora_model_only(model, first.name, 1.0)
    assert windows.is_held(first)
    for _ in range(2):
        trained(host, FAMILY, model, "in use")
    assert [file.name for file in loras("in use")] == [f"in use_0000{n}.safetensors" for n in (1, 2)]
    assert first.read_bytes() == before and set(windows.refused) == {first.name}
    told = (
        f"{first.name} is held by another program or a LoRA loader, and stays as it was. Saved in use_00002"
    )
    assert [line.startswith(told) for line in said if "is held" in line] == [True]
