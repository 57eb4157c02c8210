"""In the real ComfyUI: every format of weights that it can load is trained on, with the gradient of what its
weights stand for, and the LoRA is one that the stock loader takes.
"""

import pytest
import safetensors.torch
import torch
import weight_formats as formats
import zoo
from fewstep.training.adapter.backward import Backward
from fewstep.training.adapter.lora import Lora
from graph import pack
from small_runs import trained

pytestmark = pytest.mark.comfy
FAMILY = formats.FAMILY
FLOAT, HALF, BRAIN = torch.float32, torch.float16, torch.bfloat16
# name: dtype in which the model computes -> (tensors of the file, what they stand for, the loader's options)
FILES = {
    "float16": lambda dtype: formats.halved(HALF),
    "bfloat16": lambda dtype: formats.halved(BRAIN),
    "fp8 e4m3fn": lambda dtype: formats.fp8("e4m3fn"),
    "fp8 e5m2": lambda dtype: formats.fp8("e5m2"),
    "fp8 fast": lambda dtype: formats.fp8("e4m3fn", fp8_optimizations=True),
    "fp8 scaled": lambda dtype: formats.scaled("e4m3fn", dtype),
    "fp8 scaled e5m2": lambda dtype: formats.scaled("e5m2", dtype),
    "fp8 scaled, old": lambda dtype: formats.scaled("e4m3fn", dtype, old=True),
    "fp8 scaled, old, full": lambda dtype: formats.scaled("e4m3fn", dtype, old=True, full=True),
}
GGUF = ("Q8_0", "Q4_K")


@pytest.fixture(scope="module")
def table(pytestconfig):
    """Lines that are printed when all formats are done."""
    heads = f"{'computes in':>12}{'1 - cosine':>12}{'norm ratio':>12}{'layers packed':>15}"
    lines = ["", f"{'weights':26}{heads}"]
    yield lines
    with pytestconfig.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print("\n".join(lines))


@pytest.fixture
def computes(monkeypatch):
    """Lets the host compute in that dtype on a CPU, where it would choose float32."""
    import comfy.model_management as management

    def choose(dtype):
        monkeypatch.setattr(management, "should_use_bf16", lambda *args, **kwargs: dtype == BRAIN)
        monkeypatch.setattr(management, "should_use_fp16", lambda *args, **kwargs: dtype == HALF)

    return choose


@pytest.fixture
def fp8_card(monkeypatch):
    """The host believes that the device multiplies fp8 itself."""
    import comfy.model_management as management

    monkeypatch.setattr(management, "supports_fp8_compute", lambda *args, **kwargs: True)


def loaded(tensors, options, file=None):
    """The MODEL as the host's nodes load it, in inference mode: from a file, or else from tensors, which
    leaves no recipe to load it again.
    """
    import comfy.sd

    with torch.inference_mode():
        if file is None:
            return comfy.sd.load_diffusion_model_state_dict(dict(tensors), options)
        safetensors.torch.save_file(tensors, file)
        return comfy.sd.load_diffusion_model(str(file), options)


def asked(host, model):
    """One step of the stock sampler, in inference mode."""
    import comfy.sample

    latent, positive = zoo.latent(FAMILY), zoo.conditioning(FAMILY)
    with torch.inference_mode():
        return comfy.sample.sample(
            model, 0 * latent + 1, 1, 1.0, "euler", "simple", positive, positive, latent, seed=0
        )


class Case:
    """x0-MSE of a LoRA on every layer of a model: its gradient, and whether it answers the teacher alike."""

    def __init__(self, host, patcher):
        kind = pack(host, "nodes.comfy.denoiser").ComfyDenoiser
        prompts = zoo.conditioning(FAMILY), zoo.conditioning(FAMILY, 1)
        self.denoiser = kind(patcher, *prompts, zoo.latent(FAMILY))
        lora = self.lora = Lora(self.denoiser.module, 2)
        g = zoo.generator(FAMILY, 5)
        with torch.no_grad():
            for pair in lora.weights.values():
                pair["up"].copy_(0.1 * torch.randn(pair["up"].shape, generator=g))
        sigma = self.denoiser.sigma_of(torch.tensor([0.5])).float()
        x, goal = zoo.latent(FAMILY) * (1 + sigma), zoo.latent(FAMILY, seed=1)
        self.answer = lambda: self.denoiser(x, sigma, torch.tensor([0]))
        self.loss = lambda: (self.answer().float() - goal).square().mean()

    def gradient(self, checkpointing):
        """float64, all tensors in one."""
        for p in self.lora.parameters():
            p.grad = None
        Backward(self.denoiser.module, self.lora.parameters(), checkpointing)(self.loss)
        return torch.cat([p.grad.flatten() for p in self.lora.parameters()]).double()

    def figures(self):
        with torch.no_grad():
            silent = self.answer()
        same = torch.equal(silent, self.answer().detach())
        return self.gradient(False), self.gradient(True), same


def figures(host, model):
    """(gradient, with recomputation, whether the model answers the same without gradient, fingerprint)"""
    with pack(host, "nodes.comfy.session").training_session(model) as patcher:
        case = Case(host, patcher)
        try:
            return *case.figures(), case.denoiser.base
        finally:
            case.lora.remove()


def line(name, dtype, gradient, exact, model):
    layers = [m for m in model.model.diffusion_model.modules() if hasattr(m, "weight_function")]
    packed = sum(m.weight is not None and pack_of(m.weight) for m in layers)
    cosine = float(torch.cosine_similarity(gradient, exact, dim=0))
    ratio = float(gradient.norm() / exact.norm())
    words = str(dtype).removeprefix("torch.")
    return f"{name:26}{words:>12}{1 - cosine:12.1e}{ratio:12.6f}{packed:>15}"


def pack_of(weight):
    return type(weight).__name__ not in ("Parameter", "Tensor") or weight.dtype.itemsize == 1


def is_exact(gradient, exact, slack):
    """slack: of its norm. Blocks that are recomputed add up in another order, and GGUF's pack rounds at other
    places than its package.
    """
    cosine = torch.cosine_similarity(gradient, exact, dim=0)
    return cosine >= 0.9999 and abs(float(gradient.norm() / exact.norm()) - 1) <= slack


def check(host, name, dtype, model, plain, table):
    """The gradient of `model`, sampled once before, against that of the plain weights."""
    import comfy.model_management as management

    before = pack(host, "nodes.comfy.fingerprints").base_of(model)
    asked(host, model)
    gradient, recomputed, same, base = figures(host, model)
    reference = loaded({k: v.to(dtype) for k, v in plain.items()}, {"dtype": dtype})
    exact = figures(host, reference)[0]
    table.append(line(name, dtype, gradient, exact, model))
    assert gradient.isfinite().all() and gradient.norm() > 0
    slack = max(1e-4, torch.finfo(dtype).eps)
    assert is_exact(gradient, exact, slack) and is_exact(recomputed, exact, slack)
    assert same, "teacher and student must compute alike"
    assert base == before  # wherever its weights have been
    assert not management.in_training
    assert asked(host, model).isfinite().all()  # the graph goes on with it
    return base


@pytest.mark.parametrize("dtype", [FLOAT, BRAIN])
@pytest.mark.parametrize("name", FILES)
def test_gradient_of_a_format_is_that_of_its_weights(host, computes, fp8_card, table, name, dtype):
    computes(dtype)
    tensors, plain, options = FILES[name](dtype)
    check(host, name, dtype, loaded(tensors, options), plain, table)


@pytest.mark.parametrize("dtype", [FLOAT, BRAIN])
def test_gradient_of_the_hosts_own_layouts_is_that_of_their_weights(host, computes, fp8_card, table, dtype):
    computes(dtype)
    bases = set()
    for name in formats.layouts():
        tensors, plain, options = formats.laid_out(name, dtype)
        bases.add(check(host, name, dtype, loaded(tensors, options), plain, table))
    assert len(bases) == len(formats.layouts()) > 3


@pytest.mark.parametrize("dtype", [FLOAT, BRAIN])
@pytest.mark.parametrize("kind", GGUF)
def test_gradient_of_gguf_is_that_of_its_weights(host, computes, table, tmp_path, kind, dtype):
    model, plain = gguf_model(tmp_path, kind, computes, dtype)
    check(host, f"GGUF {kind}", dtype, model, plain, table)


def gguf_model(folder, kind, computes, dtype):
    """(MODEL by the pack's own loader, the plain weights)"""
    found = formats.gguf_loader(folder, kind)
    if found is None:
        pytest.skip(formats.NO_GGUF)
    computes(dtype)
    load, plain = found
    return load(), plain


# ---- whole runs ----------------------------------------------------------------------------------


def weights_of(host, kind, folder, computes):
    """(MODEL, what its weights stand for) of each kind that is trained on."""
    if kind.startswith("GGUF"):
        return gguf_model(folder, kind.split(" ")[1], computes, FLOAT)
    if kind not in FILES and kind not in formats.layouts():
        pytest.skip(f"this ComfyUI has no layout {kind}")
    computes(FLOAT)
    tensors, plain, options = FILES[kind](FLOAT) if kind in FILES else formats.laid_out(kind, FLOAT)
    return loaded(tensors, options, folder / "model.safetensors"), plain


def with_lora(model, file, strength=1.0):
    """The MODEL after the stock loader's node, and how many layers it patches."""
    import folder_paths

    import nodes

    assert file in folder_paths.get_filename_list("loras")
    with torch.inference_mode():
        patched = nodes.LoraLoaderModelOnly().load_lora_model_only(model, file, strength)[0]
    return patched, len(patched.patches) - len(model.patches)


def adapted(host, lora, plain):
    """What the plain model answers with the adapter itself on its layers."""
    model = loaded(plain, {})
    adapter = Lora(model.model.diffusion_model, 2)
    adapter.load_state_dict(lora)
    return asked(host, model)


KINDS = ["bfloat16", "fp8 e4m3fn", "fp8 fast", "fp8 scaled", "nvfp4", "GGUF Q8_0", formats.ROTATED_INT8]


@pytest.mark.parametrize("kind", KINDS)
def test_a_format_is_trained_on_and_its_lora_loads(host, computes, fp8_card, table, tmp_path, kind):
    model, plain = weights_of(host, kind, tmp_path, computes)
    made = trained(host, FAMILY, model, "formats")
    assert len(made.losses["loss"]) == 3 and all(value > 0 for value in made.losses["loss"])
    patched, layers = with_lora(loaded(plain, {}), made.file.name)
    assert layers == len(made.lora) // 3  # the loader takes every key
    answer, base = asked(host, patched), asked(host, loaded(plain, {}))
    off = (adapted(host, made.lora, plain) - answer).norm() / (answer - base).norm()
    assert off < 1e-2
    losses = ", ".join(f"{value:.4f}" for value in made.losses["loss"])
    table.append(f"{kind:26}three updates, saved, loaded: losses {losses}")


# ---- models that are made of others ----------------------------------------------------------------


def lora_file(model, name):
    """A LoRA on the model's layers in models/loras, by its name."""
    import folder_paths

    lora = Lora(model.model.diffusion_model, 2)
    g = zoo.generator(FAMILY, 9)
    lora.load([0.3 * torch.randn(p.shape, generator=g) for p in lora.parameters()])
    lora.remove()
    path = f"{folder_paths.get_folder_paths('loras')[0]}/{name}.safetensors"
    safetensors.torch.save_file(lora.state_dict(), path)
    return f"{name}.safetensors"


def merged(model, folder):
    """By the stock node, with another of its family."""
    from comfy_extras.nodes_model_merging import ModelMergeSimple

    other = {key: value * 0.5 for key, value in formats.state_dict().items()}
    with torch.inference_mode():
        return ModelMergeSimple().merge(model, loaded(other, {}), 0.6)[0]


def stands_for(host, model):
    """A plain model with the weights that the host's own casts give of this one, patches included."""
    import comfy.ops

    reference = loaded(formats.state_dict(), {})
    with pack(host, "nodes.comfy.session").training_session(model) as patcher:
        parts = dict(patcher.model.diffusion_model.named_modules())
        for name, theirs in reference.model.diffusion_model.named_modules():
            if not hasattr(theirs, "weight_function") or theirs.weight is None:
                continue
            layer, cpu = parts[name], torch.device("cpu")
            if hasattr(layer, "cast_bias_weight"):
                weight, bias = layer.cast_bias_weight(torch.zeros(1))
            else:
                weight, bias = comfy.ops.cast_bias_weight(layer, dtype=FLOAT, device=cpu, bias_dtype=FLOAT)
            theirs.weight = torch.nn.Parameter(weight.clone(), False)
            theirs.bias = None if bias is None else torch.nn.Parameter(bias.clone(), False)
    return reference


MADE = [
    ("merged", "bfloat16"),
    ("merged", "fp8 scaled"),
    ("LoRA on", "bfloat16"),
    ("LoRA on", "fp8 fast"),
    ("LoRA on", "fp8 scaled"),
    ("LoRA on", "mxfp8"),
    ("LoRA on", "GGUF Q8_0"),
]


@pytest.mark.parametrize("how, kind", MADE)
def test_a_model_made_of_others_is_trained_on(host, computes, fp8_card, table, tmp_path, how, kind):
    model, _ = weights_of(host, kind, tmp_path, computes)
    own = pack(host, "nodes.comfy.fingerprints").base_of(model)
    made = merged(model, tmp_path) if how == "merged" else with_lora(model, lora_file(model, "style"), 0.8)[0]
    asked(host, made)  # with its patches in place
    exact = figures(host, stands_for(host, made))[0]
    changed = stands_for(host, model)
    gradient, recomputed, same, base = figures(host, made)
    table.append(line(f"{how} {kind}", FLOAT, gradient, exact, made))
    assert base == own and same
    assert is_exact(gradient, exact, 1e-4) and is_exact(recomputed, exact, 1e-4)
    assert torch.cosine_similarity(figures(host, changed)[0], exact, dim=0) < 0.99  # it is not the base's
    assert len(trained(host, FAMILY, made, "made").losses["loss"]) == 3
    assert asked(host, made).isfinite().all()
