"""A place to train in: a MODEL with a patcher of its own, loaded and ready for gradients, and all put back at
the end. Where its weights live meanwhile is decided by `residency`.
"""

import contextlib
from collections.abc import Callable, Iterator

import comfy.model_management
import torch
from comfy.model_patcher import ModelPatcher

from ...diffusion.faults import Message, NoMemory
from ...training.models.memory_errors import is_out_of_memory
from . import residency
from .kernels import with_gradients

management = comfy.model_management


@contextlib.contextmanager
def training_session(
    model: ModelPatcher,
    where: str = residency.AUTO,
    *,
    beside: float = 0,
    budget: float | None = None,
    why: Message | None = None,
) -> Iterator[ModelPatcher]:
    """A patcher with weights of its own, loaded, out of inference mode and with gradients on.

    where: of `residency.CHOICES`; beside: bytes that the run needs beside the weights at least; budget: bytes
    that both may take at most, None for what is free; why: as of `residency.choices`. The host's
    `in_training` is set meanwhile, by which several of its models compute without what has no gradient.
    Everything is put back at the end, after a failure or a cancel too. Raises NoMemory where the weights
    don't fit.
    """
    with torch.inference_mode(False), torch.no_grad(), contextlib.ExitStack() as stack:
        patcher = _first(stack, model, residency.choices(model, where, beside, budget, why), beside)
        with torch.enable_grad():
            yield patcher


def _first(stack, model, choices, beside):
    """The patcher of the first choice whose weights find memory."""
    *others, last = choices
    for choice in others:
        with contextlib.suppress(NoMemory):
            return stack.enter_context(_opened(model, choice, choices[choice], beside))
    return stack.enter_context(_opened(model, last, choices[last], beside))


@contextlib.contextmanager
def _opened(model, choice, why, beside):
    with _told_by_name(model, choice):
        patcher = residency.patcher_for(model, choice)
    residency.keep_why(patcher, why)
    patcher.model.requires_grad_(False).eval()
    try:
        with _host_in_training(), with_gradients(), _exact_products(patcher.model) as make_exact:
            with _told_by_name(model, choice):
                residency.load(patcher, choice, beside)
            if residency.on_card(patcher):
                make_exact()  # loading has put the host's own setting there
            if management.is_device_cuda(patcher.load_device):
                torch.cuda.reset_peak_memory_stats(patcher.load_device)  # of which a run shows what it took
            _leave_inference_mode(patcher.model)
            yield patcher
    finally:
        patcher.detach()
        management.soft_empty_cache()


@contextlib.contextmanager
def _told_by_name(model, choice):
    """Within: whatever says that memory ran out is raised as what would fit."""
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise residency.too_large(model, choice) from error


@contextlib.contextmanager
def _host_in_training() -> Iterator[None]:
    before, management.in_training = management.in_training, True
    try:
        yield
    finally:
        management.in_training = before


@contextlib.contextmanager
def _exact_products(module: torch.nn.Module) -> Iterator[Callable[[], None]]:
    """Quantised layers multiply in full precision: a rounded product has no gradient of its own. Yields what
    sets that once more.
    """
    layers = [m for m in module.modules() if getattr(m, "layout_type", None) is not None]
    before = [m.__dict__.get("comfy_force_cast_weights") for m in layers]

    def make_exact():
        for layer in layers:
            layer.comfy_force_cast_weights = True

    make_exact()
    try:
        yield make_exact
    finally:
        for layer, value in zip(layers, before):
            del layer.comfy_force_cast_weights
            if value is not None:
                layer.comfy_force_cast_weights = value


def _leave_inference_mode(module: torch.nn.Module) -> None:
    """Replace inference tensors by clones, in place: autograd refuses them.

    A layer that fetches its weights (`_v`, its place in dynamic VRAM) never hands out those that it keeps;
    but what it fetched last, in a sampler under inference mode, must be fetched again.
    """
    for part in module.modules():
        fetched = ()
        if hasattr(part, "_v"):
            part._v_signature, fetched = None, ("weight", "bias")
        for store in (part._parameters, part._buffers):
            for name, tensor in store.items():
                if tensor is not None and tensor.is_inference() and name not in fetched:
                    clone = tensor.detach().clone()
                    is_parameter = isinstance(tensor, torch.nn.Parameter)
                    store[name] = torch.nn.Parameter(clone, False) if is_parameter else clone
