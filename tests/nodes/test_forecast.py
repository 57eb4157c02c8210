"""In the real ComfyUI: what is told before a run is queued is what the run has then. Nothing is loaded."""

import json

import pytest
import small_runs
import zoo
from graph import pack

pytestmark = pytest.mark.comfy
ASKED = {"node": "FewstepDistil", "quality": "quick", "steps": "4", "batch": "8", "layers": "*"}


@pytest.fixture
def forecast(host):
    return pack(host, "nodes.forecast").forecast


@pytest.fixture
def sd15(host, tmp_path, monkeypatch):
    """A tiny SD1.5 among the diffusion models, by its name there, and no runs of other tests."""
    import folder_paths
    import safetensors.torch

    user = folder_paths.get_user_directory()
    folder_paths.set_user_directory(str(tmp_path / "user"))
    name = "diffusion_models"
    monkeypatch.setitem(
        folder_paths.folder_names_and_paths, name, ([str(tmp_path / "models")], {".safetensors"})
    )
    (tmp_path / "models").mkdir()
    tensors = {key: tensor.contiguous() for key, tensor in zoo.state_dict("sd15").items()}
    safetensors.torch.save_file(tensors, tmp_path / "models" / "tiny.safetensors")
    folder_paths.filename_list_cache.pop(name, None)
    yield "tiny.safetensors"
    folder_paths.filename_list_cache.pop(name, None)
    folder_paths.set_user_directory(user)


def test_automatic_settings_are_those_that_the_run_would_have(host, forecast):
    """An input that is set stands for itself; the demo teacher's family is known without a file."""
    found = forecast({**ASKED, "demo": "flow"})["values"]
    assert found == {"cfg": 2.0, "rank": 16, "learning_rate": 2e-3, "updates": 100, "phases": 4}
    found = forecast({**ASKED, "demo": "flow", "rank": "8", "updates": "7", "cfg": "3", "phases": "1"})
    assert found["values"] == {"cfg": 3, "rank": 8, "learning_rate": 2e-3, "updates": 7, "phases": 1}
    assert forecast({"node": "FewstepReflowPairs", "demo": "flow"})["values"] == {"cfg": 2.0}


def test_memory_is_that_of_the_loaded_model_though_none_is_loaded(host, forecast, sd15, monkeypatch):
    import comfy.model_management as management
    import comfy.sd

    memory = pack(host, "training.run.memory")
    machine = pack(host, "training.run.machine")
    loaded = comfy.sd.load_diffusion_model_state_dict(zoo.state_dict("sd15"))
    weights = pack(host, "nodes.comfy.residency").weight_bytes(loaded.model)
    config = pack(host, "training.run.config").DistilConfig(rank=64)
    beside = memory.beside_weights(loaded.model.diffusion_model, config, True, memory.CPU)
    beside += loaded.model.memory_required([1, 4, 64, 64])
    monkeypatch.setattr(management, "load_models_gpu", None)
    settings, told, time = forecast({**ASKED, "unet": sd15, "width": "512", "height": "512"})["lines"]
    assert settings.fields["rank"] == 64 and settings.fields["cfg"] == 6
    assert told.fields["weights"] == machine.gib(weights) and told.fields["beside"] == machine.gib(beside)
    assert "no run of this family" in str(time)


def test_a_run_of_the_family_tells_time_and_plan(host, forecast, sd15):
    folders, runs = pack(host, "nodes.comfy.folders"), pack(host, "training.run.runs")
    trained = small_runs.trained(host, "sd15", zoo.load("sd15"), "pace")
    assert trained.file.exists()
    (known,) = runs.like(folders.of_user("runs"), "SD15")
    assert known["shape"] == list(zoo.latent("sd15").shape[1:]) and known["family"] == "SD15"
    status = folders.of_user("runs") / known["id"] / "status.json"
    status.write_text(json.dumps({**json.loads(status.read_text()), "samples_per_second": 2.0}))
    height, width = (8 * side for side in known["shape"][1:])
    asked = {**ASKED, "unet": sd15, "width": str(width), "height": str(height), "updates": "30"}
    *_, plan, time = forecast(asked)["lines"]
    assert str(plan) == f"pace, of the same family and size, took {pack_message(host, known['plan'])}"
    assert str(time) == "Time: training takes about 2.0 min, at the pace of pace"  # 30 x 8 / 2 seconds
    *_, time = forecast({**asked, "width": str(2 * width)})["lines"]
    assert "4.0 min" in str(time)
    assert "no run of this family" in str(forecast({**asked, "unet": "", "demo": "flow"})["lines"][-1])


def test_the_time_of_matching_has_the_first_updates_of_its_scores_in_it(host, forecast, sd15):
    """Of 30 updates, 15 and 4: of half the student's time each or, once a run of phased is known, of its."""
    folders, runs = pack(host, "nodes.comfy.folders"), pack(host, "training.run.runs")

    def paced(name, method, rate, **settings):
        small_runs.trained(host, "sd15", zoo.load("sd15"), name, **settings)
        (known,) = (run for run in runs.like(folders.of_user("runs"), "SD15") if run["name"] == name)
        status = folders.of_user("runs") / known["id"] / "status.json"
        told = {**json.loads(status.read_text()), "method": method, "samples_per_second": rate}
        status.write_text(json.dumps(told))
        return known["shape"]

    height, width = (8 * side for side in paced("matched", "matching", 2.0)[1:])
    sizes = {"width": str(width), "height": str(height)}
    asked = {**ASKED, "unet": sd15, **sizes, "updates": "30", "method": "matching"}
    told = "Time: training takes about {} min, at the pace of matched"
    assert str(forecast(asked)["lines"][-1]) == told.format("2.6")  # 8 x (30 / 2 + 19 / 4) seconds
    paced("plain", "phased", 8.0, updates=2)
    assert str(forecast(asked)["lines"][-1]) == told.format("2.3")  # 8 x (30 / 2 + 19 / 8)


def pack_message(host, told):
    return pack(host, "diffusion.faults").Message.from_dict(told)


def test_restore_takes_the_steps_that_its_lora_was_made_for(host, forecast):
    small_runs.trained(host, "sd15", zoo.load("sd15"), "undo", steps=2)
    import folder_paths

    folder_paths.filename_list_cache.pop("loras", None)
    (name,) = (one for one in folder_paths.get_filename_list("loras") if one.startswith("undo_"))
    assert forecast({"node": "FewstepRestore", "lora_name": name}) == {"values": {"steps": 2}, "lines": []}


@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"node": "FewstepDistil"},
        {"node": "FewstepDistil", "unet": "../x.safetensors"},
        {"node": "FewstepDistil", "demo": "none"},
        {"node": "FewstepRestore", "lora_name": "none"},
        {"node": "KSampler", "demo": "flow"},
    ],
)
def test_of_what_is_not_known_nothing_is_told(forecast, asked):
    assert forecast(asked) == {"values": {}, "lines": []}


def test_numbers_that_are_none_count_as_automatic(forecast):
    for odd in ("nan", "-1", "1e99", "x", ""):
        found = forecast({**ASKED, "demo": "flow", "rank": odd, "updates": odd, "width": odd, "memory": odd})
        assert found["values"]["rank"] == 16 and len(found["lines"]) == 3


def test_a_new_lora_and_a_new_recipe_go_to_the_default_folder(host, tmp_path, monkeypatch):
    """`is_default` of extra_model_paths.yaml, wherever it stands among several."""
    import folder_paths
    from utils.extra_config import load_extra_path_config

    folders = pack(host, "nodes.comfy.folders")
    before = {
        kind: (list(paths), set(ends)) for kind, (paths, ends) in folder_paths.folder_names_and_paths.items()
    }
    monkeypatch.setattr(folder_paths, "folder_names_and_paths", before)
    text = "\n".join(
        f"{name}:\n  base_path: {tmp_path}\n  {default}\n  loras: {name}-loras"
        for name, default in (("one", ""), ("two", "is_default: true"), ("three", ""))
    )
    (tmp_path / "paths.yaml").write_text(text)
    load_extra_path_config(str(tmp_path / "paths.yaml"))
    assert len(folder_paths.get_folder_paths("loras")) == 4
    assert folders.of_models("loras") == tmp_path / "two-loras"
    recipes = pack(host, "nodes.recipes")
    before.pop(recipes.FOLDER)
    folder_paths.add_model_folder_path(recipes.FOLDER, str(tmp_path / "mine"))
    recipes.register_folder()
    assert folders.of_models(recipes.FOLDER) == tmp_path / "mine"


@pytest.mark.parametrize("method, share", [("auto", 1), ("phased", 1), ("matching", 0.05), ("none", 1)])
def test_the_learning_rate_is_that_of_the_method(forecast, method, share):
    found = forecast({**ASKED, "demo": "flow", "method": method})["values"]
    assert found["learning_rate"] == pytest.approx(2e-3 * share)


@pytest.mark.parametrize("typed", [{"layers": "*atn*"}, {"optimizer": "foo"}])
def test_a_setting_that_is_half_typed_is_named(forecast, typed):
    (line,) = forecast({**ASKED, "demo": "flow", **typed})["lines"]
    assert next(iter(typed)) in str(line) and "must" in str(line)
