"""A place to train in: a MODEL with a patcher of its own, loaded and ready for gradients, and all put back at
the end.

Where the weights live while gradients run through them is decided here and nowhere else: today all of them
stay on the compute device.
"""

import contextlib
from collections.abc import Iterator

import comfy.model_management
import torch
from comfy.model_patcher import ModelPatcher

management = comfy.model_management
ALL = 1e20  # bytes to be made free, so that other models leave


@contextlib.contextmanager
def training_session(model: ModelPatcher) -> Iterator[ModelPatcher]:
    """A patcher with weights of its own, loaded, out of inference mode and with gradients on.

    The host's `in_training` is set meanwhile, by which several of its models compute without what has no
    gradient. Everything is put back at the end, after a failure or a cancel too.
    """
    with torch.inference_mode(False), torch.no_grad():
        patcher = _own(model)
        patcher.model.requires_grad_(False).eval()
        try:
            with _host_in_training(), _exact_products(patcher.model):
                _load(patcher)
                with torch.enable_grad():
                    yield patcher
        finally:
            patcher.detach()
            management.soft_empty_cache()


def _own(model: ModelPatcher) -> ModelPatcher:
    """A clone that reloads its weights from their file where the loader left a recipe for that; elsewhere the
    weights are shared with the graph, and copied where they belong to inference mode.
    """
    return model.clone(force_deepcopy=True) if model.cached_patcher_init is not None else model.clone()


def _load(patcher: ModelPatcher) -> None:
    management.load_models_gpu([patcher], memory_required=ALL, force_full_load=True)
    if torch.device(patcher.load_device).type == "cuda":
        torch.cuda.reset_peak_memory_stats(patcher.load_device)  # of which a run shows what it took
    _leave_inference_mode(patcher.model)


@contextlib.contextmanager
def _host_in_training() -> Iterator[None]:
    before, management.in_training = management.in_training, True
    try:
        yield
    finally:
        management.in_training = before


@contextlib.contextmanager
def _exact_products(module: torch.nn.Module) -> Iterator[None]:
    """Quantised layers multiply in full precision: a rounded product has no gradient of its own."""
    layers = [m for m in module.modules() if getattr(m, "layout_type", None) is not None]
    before = [m.__dict__.get("comfy_force_cast_weights") for m in layers]
    for layer in layers:
        layer.comfy_force_cast_weights = True
    try:
        yield
    finally:
        for layer, value in zip(layers, before):
            del layer.comfy_force_cast_weights
            if value is not None:
                layer.comfy_force_cast_weights = value


def _leave_inference_mode(module: torch.nn.Module) -> None:
    """Replace inference tensors by clones, in place: autograd refuses them."""
    for part in module.modules():
        for store in (part._parameters, part._buffers):
            for name, tensor in store.items():
                if tensor is not None and tensor.is_inference():
                    clone = tensor.detach().clone()
                    is_parameter = isinstance(tensor, torch.nn.Parameter)
                    store[name] = torch.nn.Parameter(clone, False) if is_parameter else clone
