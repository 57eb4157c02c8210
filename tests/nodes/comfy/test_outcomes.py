"""In the real ComfyUI: whatever the machine refuses, a run ends as is promised and nothing learnt is lost."""

import json
import math
from pathlib import Path

import pytest
import safetensors.torch
import torch
import zoo
from fewstep.training.run.job import load_state
from graph import load, pack, run
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
    monkeypatch.setattr(pack(host, "nodes.show"), "say", lambda node, text, *_: lines.append(str(text)))
    return lines


@pytest.fixture(autouse=True)
def forget(host, tmp_path):
    """Runs and caches of other tests are not gone on with; called, neither are this one's."""
    import folder_paths

    before = folder_paths.get_user_directory()
    folder_paths.set_user_directory(str(tmp_path / "user"))
    yield lambda: folder_paths.set_user_directory(str(tmp_path / "another user"))
    folder_paths.set_user_directory(before)


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


# ---- memory runs out -----------------------------------------------------------------------------

ERRORS = {
    "asynchronous": lambda: torch.OutOfMemoryError("Allocation on device "),
    "driver": lambda: driver(2),
    "text": lambda: RuntimeError("HIP out of memory. Tried to allocate 2.00 GiB"),
    "library": lambda: RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"),
}


def driver(number):
    """What PyTorch raises for a failure that the accelerator's driver numbers."""
    error = getattr(torch, "AcceleratorError", RuntimeError)("CUDA error: out of memory")
    error.error_code = number
    return error


class Full:
    """A denoiser's calls, which run out of memory for more than `most` samples where `when()` holds."""

    def __init__(self, host, monkeypatch, most, when, error):
        kind, self.with_gradient, self.without = pack(host, "nodes.comfy.denoiser").ComfyDenoiser, 0, 0
        real = kind.__call__

        def call(denoiser, x, sigma, condition):
            if len(x) > most and when():
                self.with_gradient += torch.is_grad_enabled()
                self.without += not torch.is_grad_enabled()
                raise error()
            return real(denoiser, x, sigma, condition)

        monkeypatch.setattr(kind, "__call__", call)


def state_of(host, name):
    """What is on disk of the newest run of that name."""
    folder = pack(host, "nodes.comfy.folders").of_user("runs")
    found = [f for f in folder.iterdir() if json.loads((f / "status.json").read_text())["name"] == name]
    return load_state(found[-1] / "state.safetensors"), json.loads((found[-1] / "status.json").read_text())


def test_memory_for_one_sample_at_once_is_enough_everywhere(host, model, monkeypatch, forget):
    usual = trained(host, FAMILY, model, "one by one")
    forget()
    Full(host, monkeypatch, 1, lambda: True, ERRORS["asynchronous"])
    made = trained(host, FAMILY, model, "one by one")
    assert made.losses["loss"] == pytest.approx(usual.losses["loss"], rel=1e-4)
    (_, numbers), status = state_of(host, "one by one")
    assert (numbers["micro"], numbers["done"], status["state"]) == (1, 3, "finished")


def test_no_memory_for_the_teacher_is_told_by_name(host, model, monkeypatch):
    Full(host, monkeypatch, 0, lambda: not torch.is_grad_enabled(), ERRORS["driver"])
    with pytest.raises(MemoryError, match="Choose|choose"):
        trained(host, FAMILY, model, "no teacher")
    assert loras("no teacher") == []


@pytest.mark.parametrize("where", ["in the model", "in the optimiser"])
def test_memory_that_runs_out_for_good_leaves_state_and_lora(host, model, monkeypatch, where):
    """After two of three updates. Queueing the same again goes on there."""
    run, name = pack(host, "training.run.run").Run, f"lost {where}"
    with monkeypatch.context() as patch:
        update, done = run.update, []

        def counted(self, *who):
            loss = update(self, *who)
            done.append(loss)
            return loss

        patch.setattr(run, "update", counted)
        told = "fit into memory with its gradient"
        if where == "in the model":
            is_over = lambda: len(done) == 2 and torch.is_grad_enabled()
            Full(host, patch, 0, is_over, ERRORS["asynchronous"])
        else:
            step, told = torch.optim.AdamW.step, "Memory ran out after 2 of 3 updates, and what was learnt"
            patch.setattr(torch.optim.AdamW, "step", lambda self: step(self) if len(done) < 2 else full())
        with pytest.raises(MemoryError, match=told):
            trained(host, FAMILY, model, name)
    (tensors, numbers), status = state_of(host, name)
    assert numbers["done"] == 2 and status["state"] == "failed" and "best.0" in tensors
    assert len(loras(name)) == 1
    made = trained(host, FAMILY, model, name)
    assert made.losses["loss"][:2] == [loss for _, loss in numbers["loss"]] and len(made.losses["loss"]) == 3
    assert len(loras(name)) == 1


def full(*args, **kwargs):
    raise torch.OutOfMemoryError("Allocation on device ")


def test_no_memory_for_pictures_or_for_saving_on_the_way_ends_no_run(host, model, monkeypatch, said):
    live, jobs = pack(host, "nodes.server.live"), pack(host, "training.run.job")
    results, save = pack(host, "nodes.run_results"), jobs.save_state
    refused = []

    def at_the_end(path, tensors, numbers):
        if numbers["done"] < 3:
            refused.append(numbers["done"])
            raise MemoryError
        return save(path, tensors, numbers)

    monkeypatch.setattr(live, "rough", full)
    monkeypatch.setattr(results, "decode", full)
    monkeypatch.setattr(jobs, "save_state", at_the_end)
    kind = jobs.Job.__init__
    monkeypatch.setattr(jobs.Job, "__init__", lambda self, *a, **k: kind(self, *a, **{**k, "every": 0}))
    made = trained(host, FAMILY, model, "no pictures", vae=object(), seed=4)
    assert len(made.losses["loss"]) == 3 and made.preview.ndim == 4 and refused[0] == 1
    assert state_of(host, "no pictures")[0][1]["done"] == 3


def no_space(tensors, path, metadata=None):
    if "no file" in Path(path).name:  # the LoRA's; the state finds room
        raise safetensors.SafetensorError("I/O error: No space left on device (os error 28)")
    return SAVE_FILE(tensors, path, metadata)


SAVE_FILE = safetensors.torch.save_file
LOST = {
    "memory": "Memory ran out while the LoRA was saved. Close what else",
    "disk": "no file disk_00001.safetensors must be written, .*No space left on device.*Free some space",
}


@pytest.mark.parametrize("what", LOST)
def test_no_room_for_the_lora_is_told_by_name_and_the_state_has_what_was_learnt(
    host, model, monkeypatch, what
):
    """Queueing the same again saves it."""
    name = f"no file {what}"
    with monkeypatch.context() as patch:
        if what == "memory":
            patch.setattr(pack(host, "training.run.run").Run, "save", full)
        else:
            patch.setattr(safetensors.torch, "save_file", no_space)
        with pytest.raises((MemoryError, OSError), match=LOST[what]):
            trained(host, FAMILY, model, name)
    assert loras(name) == [] and state_of(host, name)[0][1]["done"] == 3
    made = trained(host, FAMILY, model, name)
    assert loras(name) == [made.file] and len(made.losses["loss"]) == 3


def test_no_memory_for_a_prompt_is_told_by_name(host):
    class Clip:
        tokenize = staticmethod(lambda text: text)
        encode_from_tokens_scheduled = staticmethod(full)

    with pytest.raises(MemoryError, match="Memory ran out while a prompt was encoded. Close what else"):
        pack(host, "nodes.prompts").encode(Clip(), "a cat")


@pytest.mark.parametrize("error", ERRORS)
def test_no_memory_for_the_adapter_is_told_by_name(host, model, monkeypatch, error):
    def begun(*args, **kwargs):
        raise made

    made = ERRORS[error]()
    monkeypatch.setattr(pack(host, "training.run.memory"), "adapter_for", begun)
    with pytest.raises(MemoryError, match="Memory ran out while the run was made ready"):
        trained(host, FAMILY, model, "no adapter")


def test_a_guider_is_asked_for_fewer_once_memory_ran_out(host, model):
    from graph import cfg_guider

    kind = pack(host, "nodes.comfy.guider_teacher")
    teacher = kind.Teacher(
        cfg_guider(model, zoo.conditioning(FAMILY), zoo.conditioning(FAMILY, 1)), (4, 8, 8)
    )
    x, sigma, condition = zoo.latent(FAMILY, 4), torch.ones(4), torch.zeros(4, dtype=torch.long)
    asked = []

    def ask(rows, levels):
        asked.append(len(rows))
        return full() if len(rows) > 1 else 2 * rows

    teacher._ask = ask
    assert (
        torch.equal(teacher(x, sigma, condition), 2 * x) and asked == [4, 4, 4, 2, 1, 1, 1, 1][-len(asked) :]
    )
    teacher._ask = full
    with pytest.raises(MemoryError, match="One sample of the model must fit"):
        teacher(x, sigma, condition)


# ---- a model that fits in no way -----------------------------------------------------------------


def demanded(host, teacher, node, **more):
    """What a node of the graph is asked for."""
    model, vae, positive, negative, labels = teacher
    inputs = dict(model=model, positive=labels, negative=negative, latent=EMPTY, steps=2, cfg=2.0, seed=0)
    return run(host, node, **{**inputs, "name": "nowhere", **more})


EMPTY = {"samples": torch.zeros(1, 3, 32, 32)}
TRAINED = {"updates": 2, "batch": 2}
PROCESS = [{"kind": "pixelate", "largest": 8}]
PICTURES = {"samples": torch.rand(4, 3, 32, 32)}
NODES = {
    "distil": ("FewstepDistil", {"quality": "quick", **TRAINED}),
    "distil, streamed": ("FewstepDistil", {"quality": "quick", "residency": "streamed", **TRAINED}),
    "second of two": ("FewstepDistil", {"quality": "quick", "from_percent": 0.4, **TRAINED}),
    "restorer": (
        "FewstepDistil",
        {"quality": "quick", "process": PROCESS, "pictures": PICTURES, "cfg": 1.0, **TRAINED},
    ),
    "pairs": ("FewstepTrainOnPairs", {"method": "reflow", "memory": "auto", "steps": 1, **TRAINED}),
}


@pytest.mark.parametrize("name", NODES)
def test_a_model_that_fits_in_no_way_is_refused_before_anything_long(host, monkeypatch, name):
    """By the nodes, on a machine that has 1 MiB to spare: with what it would take, and a remedy."""
    teacher, (node, more) = load(host, "flow"), NODES[name]
    if name == "pairs":
        more = {**more, "pairs": demanded(host, teacher, "FewstepReflowPairs", count=2)[0]}
    if name == "second of two":
        more = {**more, "first_stage": teacher[0]}
    drawn = sorted(pack(host, "nodes.comfy.folders").of_user("trajectories").rglob("*.safetensors"))
    monkeypatch.setattr(pack(host, "nodes.comfy.residency"), "room", lambda *args: 1 << 20)
    sizes = r"1 MiB, it takes \d+ MiB: the model \d+ MiB, the LoRA \d+ MiB, the sample \d+ MiB"
    told = rf"Training one sample must fit into {sizes}. Choose a smaller"
    with pytest.raises(MemoryError, match=told):
        demanded(host, teacher, node, **more)
    folders = pack(host, "nodes.comfy.folders")
    assert sorted(folders.of_user("trajectories").rglob("*.safetensors")) == drawn
    assert not list(folders.of_user("runs").glob("*")) and loras("nowhere") == []
    assert not pack(host, "nodes.comfy.session").management.in_training


def test_a_model_that_can_draw_no_picture_is_refused_by_name(host, monkeypatch):
    """Where pairs are drawn, and where a picture is restored."""
    teacher = load(host, "flow")
    *_, restorer = demanded(host, teacher, *NODES["restorer"][:1], **{**NODES["restorer"][1], "name": "used"})
    folder = pack(host, "nodes.comfy.folders").of_output(pack(host, "nodes.pairs").FOLDER)
    before = sorted(folder.iterdir()) if folder.exists() else []
    monkeypatch.setattr(type(teacher[0].model), "apply_model", full)
    with pytest.raises(MemoryError, match="Memory ran out while pairs were drawn. Close what else uses it"):
        demanded(host, teacher, "FewstepReflowPairs", count=2)
    assert (sorted(folder.iterdir()) if folder.exists() else []) == before
    with pytest.raises(MemoryError, match="Memory ran out while the picture was restored. Close what else"):
        options = {"amount": 1.0, "steps": 1, "renew": 0.0, "seed": 0}
        run(
            host,
            "FewstepRestore",
            model=teacher[0],
            lora_name=restorer,
            positive=teacher[3],
            latent=EMPTY,
            **options,
        )


# ---- devices -------------------------------------------------------------------------------------


def test_a_device_that_does_not_tell_its_memory_is_refused_by_name(host, model, monkeypatch):
    monkeypatch.setattr(model, "load_device", torch.device("privateuseone:0"))
    with pytest.raises(RuntimeError, match="got privateuseone:0, which does not. Start ComfyUI"):
        trained(host, FAMILY, model, "directml")


# ---- what is hardly meant so ---------------------------------------------------------------------


def test_what_a_run_should_not_begin_with_stays_on_its_node(host, model, said, monkeypatch):
    """Beside every line of its progress, to the end, and in the panel's log. What the first pictures show is
    said at once, while more are drawn.
    """
    monkeypatch.setattr(pack(host, "training.run.remarks"), "NEAR", math.inf)
    settings = {"method": "matching", "cfg": 1.0, "real_updates": 1, "fake_updates": 1, "images": 20}
    trained(host, FAMILY, model, "remarked", **settings)
    told = [line for line in said if "drawn at CFG 1" in line]
    assert len(told) > 2 and said[-1] == told[-1] and said[-1].startswith("Saved remarked_00001")
    assert told == said[-len(told) :]
    near = [line.partition("\n")[0] for line in said if "needs few steps" in line]
    assert near[0] == "sampling the teacher" and len(told) == len(near) + 1
    _, status = state_of(host, "remarked")
    shown = pack(host, "nodes.server.messages").of_run(status)["log"]
    assert any("drawn at CFG 1" in entry["message"] for entry in shown)
