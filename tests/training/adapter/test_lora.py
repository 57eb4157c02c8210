"""The adapter, its files and the recipe."""

import json
import math
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from fewstep.training.adapter.lora import Lora, target_layers
from fewstep.training.formats.files import check_folder, free_name, load_lora, save_lora, write
from fewstep.training.formats.recipe import Recipe
from fewstep.training.models.fingerprint import fingerprint
from torch import nn

RECIPE = Recipe(
    method="consistency",
    path="flow",
    sigmas=(1.0, 0.5, 0.0),
    churn=math.inf,
    base="abc",
    trained={"updates": 3},
)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.line = nn.ModuleList([nn.Linear(8, 8)])
        self.last = nn.Conv1d(8, 2, 3, padding=1)
        self.table = nn.Embedding(4, 8)

    def forward(self, x):
        h = self.first(x).flatten(2)
        return self.last((self.line[0](h.mT) + self.table.weight[0]).mT)


def trained(net, **options):
    """An adapter with random weights on both sides."""
    lora = Lora(net, 2, **options)
    g = torch.Generator().manual_seed(1)
    lora.load([0.3 * torch.randn(p.shape, generator=g) for p in lora.parameters()])
    return lora


def test_adapter_starts_as_nothing_can_be_switched_off_and_comes_off():
    net, x = Net(), torch.randn(2, 3, 8, 8)
    base = net(x)
    lora = Lora(net, 2)
    assert torch.equal(net(x), base)
    lora.load([torch.ones_like(p) for p in lora.parameters()])
    changed = net(x)
    assert (changed - base).abs().max() > 0.1
    with lora.off():
        assert torch.equal(net(x), base)
    with lora.using([torch.zeros_like(p) for p in lora.parameters()]):
        assert torch.equal(net(x), base)
    assert torch.equal(net(x), changed)
    lora.remove()
    assert torch.equal(net(x), base)


def test_it_equals_the_merged_weights():
    """As the host merges it: W + alpha / rank up down, convolutions flattened."""
    net, x = Net(), torch.randn(2, 3, 8, 8)
    lora = trained(net, alpha=3.0)
    hooked = net(x)
    tensors = lora.state_dict()
    lora.remove()
    with torch.no_grad():
        for name, layer in net.named_modules():
            key = f"diffusion_model.{name}"
            if f"{key}.alpha" in tensors:
                up, down = tensors[f"{key}.lora_up.weight"], tensors[f"{key}.lora_down.weight"]
                layer.weight += (tensors[f"{key}.alpha"] / 2 * up @ down).view(layer.weight.shape)
    assert len(tensors) == 9  # three layers; the embedding is none of them
    assert (net(x) - hooked).abs().max() < 1e-4


def test_it_lies_where_the_layers_compute():
    """Which is not where their weights are, when those are fetched for each call."""
    net = nn.Sequential(nn.Linear(3, 4), nn.Conv2d(4, 2, 3))
    assert {p.device.type for p in Lora(net, 2).parameters()} == {"cpu"}
    there = Lora(net, 2, device="meta").parameters()
    assert {p.device.type for p in there} == {"meta"} and all(p.requires_grad for p in there)


def test_include_and_exclude():
    assert list(Lora(Net(), 1, include=("line*", "last"), exclude=("last",)).weights) == ["line.0"]
    with pytest.raises(
        ValueError, match=r"layers \(include\) must match at least one .* model, got nothing\*\. "
    ):
        Lora(Net(), 1, include=("nothing*",))
    with pytest.raises(ValueError, match=r"got line\* \(without line\.0, last\)\. "):
        Lora(Net(), 1, include=("line*",), exclude=("line.0", "last"))


def test_state_dict_comes_back_and_a_foreign_one_is_refused():
    lora = trained(Net())
    other = Lora(Net(), 2)
    other.load_state_dict(lora.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(lora.parameters(), other.parameters()))
    with pytest.raises(ValueError, match="does not fit this model: diffusion_model.first.lora_down.weight"):
        Lora(Net(), 3).load_state_dict(lora.state_dict())


def test_fingerprint_tells_models_apart_and_ignores_the_storage():
    a, b = Net(), Net()
    assert fingerprint(a) == fingerprint(b) == fingerprint(a.double())
    with torch.no_grad():
        b.last.weight[0, 0, 0] += 1
    assert fingerprint(a) != fingerprint(b)


def test_fingerprint_looks_into_packed_weights_and_where_a_state_dict_holds_none():
    class Packed(torch.nn.Module):
        """As some layers do, it tells of its weight's size alone."""

        def __init__(self, numbers):
            super().__init__()
            self.weight = torch.nn.Parameter(numbers, False)

        def state_dict(self):
            return {"weight": self.weight.to("meta"), "more": torch.empty(3, device="meta")}

    numbers = torch.arange(200) % 100
    for dtype in (torch.int8, torch.uint8, torch.float8_e5m2, torch.float8_e8m0fnu, torch.complex64):
        one, other = numbers.to(dtype), numbers.flip(0).to(dtype)
        assert fingerprint(Packed(one)) == fingerprint(Packed(one.clone())) != fingerprint(Packed(other))


def test_a_lora_file_holds_its_recipe(tmp_path):
    lora = trained(Net())
    tensors, recipe = load_lora(save_lora(tmp_path / "x.safetensors", lora.state_dict(), RECIPE))
    assert recipe == RECIPE and all(torch.equal(tensors[k], v) for k, v in lora.state_dict().items())
    assert [p.name for p in tmp_path.iterdir()] == ["x.safetensors"]


@pytest.mark.parametrize(
    "change, why",
    [
        ({"version": 99}, "version 1, got 99"),
        ({"sigmas": [1.0, float("nan"), 0.0]}, "finite"),
        ({"sigmas": [0.5, 0.8, 0]}, "descend"),
        ({"sigmas": [1.0, 0.5]}, "end at 0"),
        ({"path": "vp"}, "path must be one of"),
        ({"churn": -1}, "churn"),
        ({"surprise": 1}, "surprise"),
        ({"order": 7}, "order"),
    ],
)
def test_a_bad_recipe_is_refused(change, why):
    value = {**json.loads(RECIPE.to_json()), **change}
    with pytest.raises(ValueError, match=why):
        Recipe.from_json(json.dumps(value))


def test_recipe_needs_json():
    assert Recipe.from_json(RECIPE.to_json()) == RECIPE
    for text in ("{", "[1]", "{}"):
        with pytest.raises(ValueError, match="recipe must be"):
            Recipe.from_json(text)


def test_names_are_never_reused(tmp_path):
    assert free_name(tmp_path, "a", ".x").name == "a_00001.x"
    write(tmp_path / "a_00001.x", b"1")
    assert free_name(tmp_path, "a", ".x").name == "a_00002.x"


def test_a_folder_that_is_a_file_is_refused_by_name(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(OSError, match="output folder must be writable .*file.*choose another folder"):
        check_folder(tmp_path / "file" / "sub")


def test_a_full_disk_leaves_no_half_file_and_keeps_the_old_one(tmp_path):
    """A real failed write: the process may write no file beyond 64 kB (RLIMIT_FSIZE)."""
    resource = pytest.importorskip("resource")
    assert resource
    script = textwrap.dedent("""
        import resource, runpy, sys
        from pathlib import Path
        runpy.run_path(sys.argv[2])         # makes `fewstep` importable
        import torch
        from fewstep.training.formats.files import check_folder, write, write_tensors
        folder = Path(sys.argv[1])
        write(folder / "lora.safetensors", b"old")
        resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))
        file = folder / "lora.safetensors"
        large = {"x": torch.zeros(1 << 20)}
        for job in (
            lambda: check_folder(folder, 1 << 20),
            lambda: write(file, bytes(1 << 20)),
            lambda: write_tensors(file, large, {}),
        ):
            try:
                job()
            except OSError as error:
                print("refused:", error)
        print(sorted(p.name for p in folder.iterdir()), (folder / "lora.safetensors").read_bytes())
    """)
    conftest = Path(__file__).parents[2] / "conftest.py"
    command = [sys.executable, "-c", script, str(tmp_path), str(conftest)]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert out.count("refused:") == 3 and "Free some space" in out
    assert "['lora.safetensors'] b'old'" in out


def test_grouped_convolutions_are_left_alone():
    module = torch.nn.Sequential(torch.nn.Conv2d(8, 8, 3, groups=4), torch.nn.Conv2d(8, 8, 1))
    assert list(target_layers(module)) == ["1"]
