"""What Fewstep needs of the host: a MODEL's noise levels, and a safe place to train in.

The rest of the pack meets ComfyUI's moving parts only here.
"""

import contextlib
import uuid
from pathlib import Path

import comfy.ldm.modules.attention
import comfy.model_management
import comfy.model_sampling
import comfy.sample
import comfy.sampler_helpers
import comfy.samplers
import folder_paths
import torch

from ...diffusion.faults import BadValue
from ...diffusion.paths import FLOW, VARIANCE_EXPLODING, check_sigmas
from ...diffusion.schedules.grids import discrete_sigma
from ...training.models.fingerprint import fingerprint

SAMPLING = comfy.model_sampling
LEFT_OUT = (
    "control",
    "area",
    "mask",
    "hooks",
    "gligen",
    "start_percent",
    "end_percent",
)  # of a conditioning entry
CFG_PATCHES = (
    "sampler_cfg_function",
    "sampler_pre_cfg_function",
    "sampler_post_cfg_function",
    "model_function_wrapper",
)


def path_of(model_sampling, name="model"):
    """The path of a model's sampling object; raises ValueError naming a type that has none of ours."""
    odd = (SAMPLING.IMG_TO_IMG, SAMPLING.IMG_TO_IMG_FLOW, SAMPLING.StableCascadeSampling)
    if isinstance(model_sampling, SAMPLING.CONST) and not isinstance(model_sampling, odd):
        return FLOW
    if isinstance(model_sampling, SAMPLING.EPS) and not isinstance(model_sampling, odd):
        return VARIANCE_EXPLODING
    kinds = [base.__name__ for base in type(model_sampling).__mro__ if base.__module__ == SAMPLING.__name__]
    raise ValueError(
        f"{name} must be an epsilon, v-prediction, EDM or flow model; this one's type is "
        f"{' + '.join(kinds) or type(model_sampling).__name__}, which Fewstep can't sample or distil."
    )


def prediction_of(model_sampling):
    """What the model's network predicts, one of `diffusion.predictions.KINDS`."""
    if path_of(model_sampling) is FLOW:
        return "velocity"
    for kind, name in (
        (SAMPLING.EDM, "edm"),
        (SAMPLING.V_PREDICTION, "v"),
        (getattr(SAMPLING, "X0", ()), "x0"),
    ):
        if isinstance(model_sampling, kind):
            return name
    return "epsilon"


def check_range(sigmas, model_sampling, name="sigmas"):
    """`sigmas` as a float64 grid that this model can be sampled along.

    Raises ValueError naming the fault: no grid, or a first level beyond the model's largest.
    """
    grid = check_sigmas(sigmas, path_of(model_sampling), name)
    if float(grid[0]) > float(model_sampling.sigma_max) * (1 + 1e-4):
        raise BadValue(
            "{name} must start at this model's largest noise level {sigma_max:g} or below, got {got:g}. "
            "Use a schedule made for this model, or Translate Schedule.",
            name=name,
            sigma_max=float(model_sampling.sigma_max),
            got=float(grid[0]),
        )
    return grid


def sigma_of(model_sampling):
    """Time t in (0, 1] -> sigma of this model, its shift included; 1 is its largest noise level."""
    if path_of(model_sampling) is VARIANCE_EXPLODING:
        return discrete_sigma(model_sampling.sigmas)

    def flow(t):
        values = [
            float(model_sampling.sigma_max) if v >= 1 else float(model_sampling.percent_to_sigma(1 - v))
            for v in t.double().tolist()
        ]
        return torch.tensor(values, dtype=torch.float64)

    return flow


def folder(kind):
    """Where Fewstep keeps things of that kind in the user directory: "trajectories" (for fitting and
    distilling alike), "runs".
    """
    return Path(folder_paths.get_user_directory()) / "fewstep" / kind


def output(kind):
    """A folder of that name in the output directory."""
    return Path(folder_paths.get_output_directory()) / kind


def latent_of(model, latent):
    """The samples of a LATENT as this model takes them: an empty one gets the model's channels and size.

    Raises ValueError for one of several parts.
    """
    samples = latent["samples"]
    if getattr(samples, "is_nested", False):
        raise BadValue(
            "latent must be one picture or video; this one holds several parts (audio and video), which "
            "Fewstep can't take together. Wire the latent of one of them.",
        )
    ratios = {
        key: latent[key]
        for key in ("downscale_ratio_spacial", "downscale_ratio_temporal")
        if latent.get(key) is not None
    }
    return comfy.sample.fix_empty_latent_channels(model, samples, **ratios)


def base_of(patcher):
    """Fingerprint of a model's own weights, whether or not LoRAs are patched into them at the moment."""
    return fingerprint(_Unpatched(patcher))


class _Unpatched:
    """A patcher's diffusion model as far as `fingerprint` looks at it, with the weights that patching has set
    aside.
    """

    def __init__(self, patcher):
        self.module = patcher.object_patches_backup.get("diffusion_model", patcher.model.diffusion_model)
        self.aside = patcher.backup

    def state_dict(self):
        tensors = dict(self.module.state_dict())
        for key, kept in self.aside.items():
            name = key.removeprefix("diffusion_model.")
            if name != key and hasattr(kept.weight, "state_dict"):  # quantised: in parts
                tensors.update(kept.weight.state_dict(name))
            elif name in tensors:
                tensors[name] = kept.weight
        return tensors


def check_supported(model, conditionings):
    """Raise ValueError for parts of the graph that training would leave out without a word, naming them.

    conditionings: {input name: CONDITIONING}
    """
    for name, entries in conditionings.items():
        odd = sorted({key for _, options in entries for key in LEFT_OUT if options.get(key) is not None})
        if odd:
            raise BadValue(
                "{name} must be a plain prompt to distil from; it carries {odd}. Wire the conditioning "
                "from before that node.",
                name=name,
                odd=list(odd),
            )
    odd = sorted(key for key in CFG_PATCHES if model.model_options.get(key))
    if odd:
        raise BadValue(
            "model must be without changes to guidance to distil from; it has {odd}. Wire the model from "
            "before that node.",
            odd=list(odd),
        )


class ComfyDenoiser:
    """A `training.denoiser.Denoiser` over a loaded ModelPatcher. Every call looks for the user's cancel first
    (`check`).

    positives: CONDITIONING, each entry one condition; negative: its first entry is the unconditional one
    (-1).
    """

    def __init__(self, patcher, positives, negative, latent):
        self.model, self.module = patcher.model, patcher.model.diffusion_model
        sampling = patcher.get_model_object("model_sampling")
        self.path, self.sigma_of, self.prediction = (
            path_of(sampling),
            sigma_of(sampling),
            prediction_of(sampling),
        )
        self.noise_scale = float(getattr(sampling, "noise_scale", 1.0))
        self.device = patcher.load_device
        self.shape, self.conditions = tuple(latent.shape[1:]), len(positives)
        self.base = base_of(patcher)
        self.options = {
            **patcher.model_options.get("transformer_options", {}),
            "optimized_attention_override": _differentiable_attention,
        }
        self.check = comfy.model_management.throw_exception_if_processing_interrupted
        self.uuid = uuid.uuid4()
        self._conds = _model_conds(self.model, [*positives, negative[0]], latent, self.device)

    def __call__(self, x, sigma, condition):
        self.check()
        home, x, sigma = x.device, x.to(self.device), sigma.to(self.device)
        out = torch.empty_like(x)
        for number in condition.unique().tolist():  # conditions of one prompt share a call; shapes may differ
            rows = (condition == number).to(self.device)
            kwargs = {
                k: c.process_cond(batch_size=int(rows.sum()), area=None).cond
                for k, c in self._conds[number].items()
            }
            # what patches of attention look at in a sampler's call
            options = {
                **self.options,
                "sigmas": sigma[rows],
                "sample_sigmas": sigma[rows],
                "cond_or_uncond": [int(number == -1)],
                "uuids": [self.uuid],
            }
            x0 = self.model.apply_model(x[rows], sigma[rows], transformer_options=options, **kwargs)
            out = out.index_put((rows.nonzero()[:, 0],), x0.to(out))
        return out.to(home)


def _differentiable_attention(function, *args, **kwargs):
    """PyTorch's attention whatever backend the user chose: sage, flash and int8 have no gradient."""
    return comfy.ldm.modules.attention.attention_pytorch(*args, **kwargs)


def _model_conds(model, entries, latent, device):
    """What `apply_model` takes, one dict a conditioning entry, its tensors cloned out of inference mode."""
    out = []
    for entry in entries:
        cond = comfy.sampler_helpers.convert_cond([_clone(entry)])
        noise = torch.zeros_like(latent).to(device)
        done = comfy.samplers.process_conds(
            model, noise, {"positive": cond}, device, seed=0, latent_shapes=[noise.shape]
        )
        out.append(done["positive"][0]["model_conds"])
    return out


def _clone(value):
    """Conditioning with every tensor cloned: tensors of other nodes are inference tensors, which autograd
    refuses.
    """
    if torch.is_tensor(value):
        return value.clone()
    if isinstance(value, dict):
        return {k: _clone(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_clone(v) for v in value)
    return value


@contextlib.contextmanager
def training_session(model):
    """A patcher with weights of its own, loaded and ready for gradients; everything is put back at the end.

    `model.clone(force_deepcopy=True)` reloads the weights from their file where the loader left a recipe for
    that; otherwise the weights stay where they are and are copied out of inference mode.
    """
    management = comfy.model_management
    with torch.inference_mode(False), torch.no_grad():
        patcher = model.clone(force_deepcopy=True) if model.cached_patcher_init is not None else model.clone()
        patcher.model.requires_grad_(False).eval()
        in_training, management.in_training = management.in_training, True
        quantised = [m for m in patcher.model.modules() if getattr(m, "layout_type", None) is not None]
        forced = [m.__dict__.get("comfy_force_cast_weights") for m in quantised]
        for m in quantised:  # multiply in full precision: a rounded product has no gradient of its own
            m.comfy_force_cast_weights = True
        try:
            management.load_models_gpu([patcher], memory_required=1e20, force_full_load=True)
            if torch.device(patcher.load_device).type == "cuda":
                torch.cuda.reset_peak_memory_stats(patcher.load_device)
            _leave_inference_mode(patcher.model)
            with torch.enable_grad():
                yield patcher
        finally:
            management.in_training = in_training
            for m, value in zip(quantised, forced):
                del m.comfy_force_cast_weights
                if value is not None:
                    m.comfy_force_cast_weights = value
            patcher.detach()
            management.soft_empty_cache()


def _leave_inference_mode(module):
    """Replace inference tensors by clones, in place."""
    for part in module.modules():
        for store in (part._parameters, part._buffers):
            for name, tensor in store.items():
                if tensor is not None and tensor.is_inference():
                    clone = tensor.detach().clone()
                    store[name] = (
                        torch.nn.Parameter(clone, False) if isinstance(tensor, torch.nn.Parameter) else clone
                    )
