"""A place to train in: a MODEL with a patcher of its own, loaded and ready for gradients, and all put back at
the end. Where its weights live meanwhile is decided by `residency`.
"""

import contextlib
from collections.abc import Callable, Iterator

import comfy.model_management
import torch
from comfy.model_patcher import ModelPatcher
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from ...diffusion.faults import Message, NoMemory
from ...training.adapter.lora import is_linear
from ...training.models.devices import reset_most
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
        with _host_in_training(), with_gradients(), _exact_products(patcher) as make_exact:
            residency.free_all(patcher.load_device)
            _leave_inference_mode(patcher.model)
            with _told_by_name(model, choice):
                residency.load(patcher, choice, beside)
            make_exact()
            reset_most(patcher.load_device)  # of which a run shows what it took
            _leave_inference_mode(patcher.model)
            yield patcher
    finally:
        patcher.detach()
        _enter_inference_mode(patcher.model)
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
def _exact_products(patcher: ModelPatcher) -> Iterator[Callable[[], None]]:
    """Layers whose weights are packed multiply by what these stand for, in the precision of their input: a
    product of packed numbers is rounded, which has no gradient of its own, and may write over its input.

    The host does that for every layer with a function of its weight, so one that changes nothing is put
    there. It does so itself wherever it loads a layer; but for the smallest ones of dynamic VRAM, for which
    what is yielded sees to it after loading.
    """
    modules = patcher.model.diffusion_model.named_modules()
    layers = {name: m for name, m in modules if is_linear(m) and hasattr(m, "weight_function") and _packed(m)}
    for name in layers:
        patcher.add_weight_wrapper(f"diffusion_model.{name}.weight", _as_it_is)

    def make_exact():
        for layer in layers.values():
            if _as_it_is not in layer.weight_function:
                layer.weight_function = [*layer.weight_function, _as_it_is]

    try:
        yield make_exact
    finally:
        for layer in layers.values():
            layer.weight_function = [f for f in layer.weight_function if f is not _as_it_is]


def _packed(layer):
    """Whether a layer's weight is stored in less than the numbers that PyTorch multiplies."""
    return is_traceable_wrapper_subclass(layer.weight) or layer.weight.dtype.itemsize == 1


def _as_it_is(weight):
    return weight


def _leave_inference_mode(module: torch.nn.Module) -> None:
    """Replace inference tensors by copies, in place: autograd refuses them.

    A layer that fetches its weights (`_v`, its place in dynamic VRAM) never hands out those that it keeps;
    but what it fetched last, in a sampler under inference mode, must be fetched again.
    """
    for part in module.modules():
        fetched = ()
        if hasattr(part, "_v"):
            part._v_signature, fetched = None, ("weight", "bias")
        _copy_where(part, lambda name, tensor: name not in fetched and _of_inference(tensor))  # noqa: B023


def _enter_inference_mode(module: torch.nn.Module) -> None:
    """Replace what is made of other tensors by copies of inference mode: within it, where the host moves
    models, PyTorch refuses to detach any other.
    """
    with torch.inference_mode():
        for part in module.modules():
            _copy_where(part, lambda _, t: is_traceable_wrapper_subclass(t) and not t.is_inference())


def _copy_where(part, wanted):
    """Replace a module's own tensors by copies made here and now, where wanted(name, tensor)."""
    for store in (part._parameters, part._buffers):
        for name, tensor in store.items():
            if tensor is not None and wanted(name, tensor):
                copy = _copied(tensor)
                is_parameter = isinstance(tensor, torch.nn.Parameter)
                store[name] = torch.nn.Parameter(copy, False) if is_parameter else copy


def _of_inference(tensor):
    """Whether a tensor, or one that it is made of, was made in inference mode."""
    if is_traceable_wrapper_subclass(tensor):
        names, _ = tensor.__tensor_flatten__()
        return any(_of_inference(getattr(tensor, name)) for name in names)
    return tensor.is_inference()


def _copied(tensor):
    """A copy made here and now, also of a kind of tensor that gives itself as its clone."""
    copy = tensor.clone()
    return tensor.to(tensor.device, copy=True) if copy is tensor else copy
