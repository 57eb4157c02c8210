"""The packaged teacher as a MODEL, VAE and conditioning that stock nodes take."""

from typing import Any

import comfy.latent_formats
import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.sd
import comfy.supported_models_base
import torch
from comfy import patcher_extension
from comfy_api.latest import io

from ..training.models.demo import data, net
from ..training.models.demo.teacher import label_vector, weights
from .comfy import spoken
from .server import messages

TYPES = {"flow": comfy.model_base.ModelType.FLOW, "epsilon": comfy.model_base.ModelType.EPS}


class EmojiFormat(comfy.latent_formats.LatentFormat):
    """RGB at full size, brought to zero mean and unit variance."""

    latent_channels = net.CHANNELS
    spacial_downscale_ratio = 1
    latent_rgb_factors = [[data.STD, 0, 0], [0, data.STD, 0], [0, 0, data.STD]]
    latent_rgb_factors_bias = [data.MEAN] * 3

    def process_in(self, latent: torch.Tensor) -> torch.Tensor:
        return data.from_pixels(latent)

    def process_out(self, latent: torch.Tensor) -> torch.Tensor:
        return data.to_pixels(latent)


class EmojiConfig(comfy.supported_models_base.BASE):
    """ComfyUI's description of the network."""

    unet_extra_config = {}
    latent_format = EmojiFormat
    memory_usage_factor = 0.1


class _Net(net.EmojiNet):
    """The network with the host's wrappers around it, as its own have them, for caches and the like."""

    inner = messages.in_words(net.EmojiNet.forward)  # it runs inside the host's nodes

    def forward(
        self,
        x: torch.Tensor,
        timesteps: torch.Tensor,
        context: torch.Tensor | None = None,
        control: Any = None,
        transformer_options: dict | None = None,
        **others: Any,
    ) -> torch.Tensor:
        options, kind = transformer_options or {}, patcher_extension.WrappersMP.DIFFUSION_MODEL
        wrappers = patcher_extension.get_all_wrappers(kind, options)
        executor = patcher_extension.WrapperExecutor.new_class_executor(self.inner, self, wrappers)
        # EasyCache writes over its input; in half precision that is a copy, here the sampler's own state
        x = x.clone() if wrappers else x
        return executor.execute(x, timesteps, context, control, options, **others)


def build(kind: str, disable_dynamic: bool = False) -> comfy.model_patcher.ModelPatcher:
    """A ModelPatcher over the packaged weights; also how ComfyUI reloads them for a deep copy."""
    config = EmojiConfig({"kind": kind, "labels": data.label_width()})
    config.set_inference_dtype(torch.float32, None)
    model = comfy.model_base.BaseModel(config, model_type=TYPES[kind], unet_model=_Net)
    if kind == "epsilon":
        model.model_sampling.set_sigmas(net.discrete_sigmas().float())
    management = comfy.model_management
    patchers = comfy.model_patcher
    patcher_class = patchers.ModelPatcher if disable_dynamic else patchers.CoreModelPatcher
    patcher = patcher_class(
        model, load_device=management.get_torch_device(), offload_device=management.unet_offload_device()
    )
    state = {k: v.float() for k, v in weights(kind).items()}
    model.load_model_weights(state, "", assign=patcher.is_dynamic())
    patcher.cached_patcher_init = (build, (kind,))
    return patcher


class LoadDemoTeacher(io.ComfyNode):
    """FewstepLoadDemoTeacher."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FewstepLoadDemoTeacher",
            display_name="Load Demo Teacher (Fewstep)",
            category="Fewstep/training",
            description="A small emoji model that comes with Fewstep, so that every workflow here runs "
            "without a download. It makes 32x32 pictures: use an empty latent of that size, about 20 steps "
            "and CFG 2.",
            search_aliases=["emoji", "tiny model", "fewstep"],
            inputs=[
                io.Combo.Input(
                    "teacher",
                    options=list(net.KINDS),
                    default="flow",
                    tooltip="flow: predicts velocity, like SD3 or Flux. epsilon: predicts noise, like "
                    "SD1.5 or SDXL.",
                ),
                io.Combo.Input(
                    "label",
                    options=list(data.label_numbers()),
                    default="smiling face",
                    tooltip="What to draw; it takes the place of the prompt.",
                ),
            ],
            outputs=[
                io.Model.Output(display_name="MODEL"),
                io.Vae.Output(display_name="VAE"),
                io.Conditioning.Output(display_name="positive"),
                io.Conditioning.Output(display_name="negative"),
                io.Conditioning.Output(
                    display_name="all_labels", tooltip="All labels, one entry each, to distil on."
                ),
            ],
        )

    @classmethod
    def execute(cls, teacher: str, label: str) -> io.NodeOutput:
        positive, negative = [entry(label)], [entry()]
        everything = [entry(name) for name in data.label_numbers()]
        vae = comfy.sd.VAE(sd={"pixel_space_vae": torch.tensor(1.0)})
        return io.NodeOutput(build(teacher), vae, positive, negative, everything)


def entry(label: str | None = None) -> list:
    """The conditioning entry of a label; of none without one."""
    return spoken.remember([label_vector(label)[None, None], {}], label or "")


NODES = [LoadDemoTeacher]
