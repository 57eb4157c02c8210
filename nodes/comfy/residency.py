"""Where a model's weights live while gradients run through them, on a card.

    resident   all of them stay on the card for the whole run
    streamed   they stay in the computer's memory, and a layer fetches its own for each call

What is fetched lies in memory that is used again: in the pages of dynamic VRAM, which the host may take away
as soon as the layer has answered, or in the one buffer of its offload stream. So a resident model must not be
a `ModelPatcherDynamic`, whose pages are only ever lent, and a streamed one needs its layers called again in
the backward pass (`training.adapter.streaming`). On the CPU every model is resident.

A layer's weights arrive while another computes, in both passes: the host takes its two offload streams in
turn, a stream waits only for the layer that used its buffer before, and nothing in a call makes the computer
wait for the card. So the weights of two layers are there at most.
"""

import gc

import comfy.model_management
import torch
from comfy.model_patcher import ModelPatcher
from comfy.quant_ops import QuantizedTensor

from ...diffusion.faults import BadValue, Failed, Message, NoMemory
from ...training.adapter.kinds import stored_bytes
from ...training.run.machine import available, gib

management = comfy.model_management
ALL = 1e20  # bytes to be made free, so that other models leave

RESIDENT, STREAMED, AUTO = "resident", "streamed", "auto"
CHOICES = (AUTO, RESIDENT, STREAMED)
WHY = "fewstep.residency"  # of the host's attachments of a patcher
# where the host was started so that it moves no weights, or keeps none: what that leaves, and its option
FORCED = {
    management.VRAMState.HIGH_VRAM: (RESIDENT, "--highvram or --gpu-only"),
    management.VRAMState.NO_VRAM: (STREAMED, "--novram"),
}
SMALL = 16 << 10  # bytes of a layer that is never streamed; the host's dynamic VRAM has the same limit


def on_card(model: ModelPatcher) -> bool:
    """Whether a model computes on a device that has memory of its own, and so on any but the CPU."""
    return not management.is_device_cpu(model.load_device)


def choices(
    model: ModelPatcher, wanted: str, beside: float, budget: float | None, why: Message | None = None
) -> dict[str, Message]:
    """What to try, in that order, of `RESIDENT` and `STREAMED`, and why; nothing is loaded for it.

    wanted: of `CHOICES`. But for `STREAMED`, other models are asked to leave, and it is looked whether the
    weights fit into what is free then, with `beside` bytes for all else; budget: bytes that both may take at
    most, None for no limit. why: of what is wanted, where it isn't the user's choice. Raises MemoryError
    where they do not fit and `RESIDENT` is wanted, or the only way by the host's start, RuntimeError where
    the other is the only one.
    """
    if wanted not in CHOICES:
        raise BadValue("residency must be one of {choices}, got {got!r}.", choices=list(CHOICES), got=wanted)
    if not on_card(model):
        return {RESIDENT: Message("weights resident")}
    only, option = _by_start(wanted, why)
    if only == STREAMED:
        return {STREAMED: Message("weights streamed: ComfyUI was started with {option}", option=option)}
    if not _can_be_resident(model):
        if wanted == RESIDENT:
            raise Failed(
                "The model's weights can't stay on the card: its loader left no recipe to load them from a "
                "file again. Let them be streamed, load the model with a stock loader, or start ComfyUI with "
                "--disable-dynamic-vram."
            )
        return {STREAMED: Message("weights streamed: their loader left no recipe to load them again")}
    if wanted == STREAMED:
        return {STREAMED: why or Message("weights streamed, as chosen")}
    free_all(model.load_device)
    free = management.get_free_memory(model.load_device)
    most = (free if budget is None else min(free, budget)) - management.extra_reserved_memory()
    size = weight_bytes(model.model)
    sizes = {"weights": gib(size), "beside": gib(beside), "room": gib(max(0, most))}
    if size + beside <= most:
        if wanted == RESIDENT:
            return {RESIDENT: Message("weights resident, as chosen")}
        streamed = Message("weights streamed: memory ran out while all of them were loaded")
        resident = {RESIDENT: Message("weights resident: they fit beside the run")}
        return resident if only else {**resident, STREAMED: streamed}
    if only:
        raise NoMemory(
            "The model's weights must fit beside the run where ComfyUI was started with {option}: they take "
            "{weights} and the run {beside} at least, and {room} may be taken. Start it without that option, "
            "and they are streamed.",
            option=option,
            **sizes,
        )
    if wanted == RESIDENT:
        raise NoMemory(
            "residency must be auto or streamed for this model on this card, got resident: its weights take "
            "{weights} and the run {beside} at least, and {room} may be taken. Choose another, lower rank, "
            "or use a smaller or quantised model.",
            **sizes,
        )
    told = Message("weights streamed: they take {weights} and the run {beside} at least, of {room}", **sizes)
    return {STREAMED: told}


def _by_start(wanted, why):
    """(the only way that the host's start leaves, its option) or (None, ""); raises where it isn't wanted."""
    only, option = FORCED.get(management.vram_state, (None, ""))
    if only is None or wanted in (AUTO, only):
        return only, option
    if why is None:
        raise Failed(
            "residency must be auto or {only} where ComfyUI was started with {option}, got {got}. Start it "
            "without that option.",
            only=only,
            option=option,
            got=wanted,
        )
    if only == RESIDENT:
        raise NoMemory(
            "One sample must fit beside all of the model's weights where ComfyUI was started with {option}, "
            "and does not. Start it without that option, and they are streamed.",
            option=option,
        )
    return only, option


def free_all(device: torch.device) -> None:
    """Let the models of a device leave it. The host made them in inference mode, and so they move in it.

    What nobody holds any more is collected first: dying while the host goes through its list, a model would
    take itself off it, and the host would look past the end.
    """
    gc.collect()
    with torch.inference_mode():
        management.free_memory(ALL, device)


def patcher_for(model: ModelPatcher, residency: str) -> ModelPatcher:
    """A patcher to train with. It has weights of its own where the loader left a recipe to load them again;
    elsewhere they are shared with the graph.
    """
    if model.is_dynamic() and residency == RESIDENT:
        patcher = model.clone(disable_dynamic=True)
        _cast(patcher.model)
        return patcher
    return model.clone(force_deepcopy=True) if model.cached_patcher_init is not None else model.clone()


def load(patcher: ModelPatcher, residency: str, beside: float) -> None:
    """Put the weights where they are to live; other models leave. Raises NoMemory where they don't fit."""
    if residency == RESIDENT:
        management.load_models_gpu([patcher], memory_required=ALL, force_full_load=True)
        return
    free_all(patcher.load_device)
    management.load_models_gpu([patcher], memory_required=beside)
    for layer in streamed_layers(patcher):
        if not hasattr(layer, "_v") and management.module_size(layer) <= SMALL:
            layer.to(patcher.load_device)  # some models read the weight of a small norm without calling it


def streamed_layers(patcher: ModelPatcher) -> list[torch.nn.Module]:
    """Modules of the diffusion model with weights of their own that are not where they compute, at this
    moment: the host may move them when it needs room.
    """
    kind = torch.device(patcher.load_device).type
    return [
        module
        for module in patcher.model.diffusion_model.modules()
        if any(p is not None and p.device.type != kind for p in module._parameters.values())
    ]


def declared_dtype(part: torch.nn.Module, name: str, tensor: torch.Tensor | None) -> torch.dtype | None:
    """In which a model takes one of its tensors, which dynamic VRAM may store as the file has it; None where
    there is no tensor, or one in a layout of its own.
    """
    if tensor is None or isinstance(tensor, QuantizedTensor):
        return None
    return getattr(part, f"{name}_comfy_model_dtype", None)


def weight_bytes(module: torch.nn.Module) -> int:
    """Bytes of a model's weights as they are kept on the card."""
    total = 0
    for part in module.modules():
        for name, tensor in (*part._parameters.items(), *part._buffers.items()):
            dtype = declared_dtype(part, name, tensor)
            if tensor is not None:
                total += stored_bytes(tensor) if dtype is None else tensor.numel() * dtype.itemsize
    return total


def room(patcher: ModelPatcher, stay: int, budget: float | None) -> float | None:
    """Bytes that a run may take where the model computes, its weights included; None on the CPU without a
    budget, for the caller to judge.

    stay: bytes of the weights that stay there; budget: what the user allows, None for what is free. Of either
    the host's own reserve is left to others; the pages that dynamic VRAM takes back count as free.
    """
    device = patcher.load_device
    if not on_card(patcher):
        return budget
    ask = (
        available
        if management.is_device_cuda(device) and not patcher.is_dynamic()
        else patcher.get_free_memory
    )
    free = ask(device)
    if budget is not None:  # what lies there beside the weights, conditionings above all, is part of the run
        held = torch.cuda.memory_allocated(device) if management.is_device_cuda(device) else 0
        free = min(free, budget - max(stay, held))
    return free + stay - management.extra_reserved_memory()


def keep_why(patcher: ModelPatcher, why: Message) -> None:
    """Let `told` say that."""
    patcher.set_attachments(WHY, why)


def told(patcher: ModelPatcher) -> Message | None:
    """Where the weights live and why, in words; None where they have no choice."""
    return patcher.get_attachment(WHY) if on_card(patcher) else None


def too_large(model: ModelPatcher, residency: str) -> NoMemory:
    """What to say where memory ran out while the weights were loaded."""
    if residency == RESIDENT and on_card(model):
        remedy = Message("Let its weights be streamed")
    else:
        remedy = Message("Choose a smaller or quantised model")
    return NoMemory(
        "The model must fit into memory to be trained: its weights take {weights}, and {free} are free. "
        "{remedy}, or more memory.",
        weights=gib(weight_bytes(model.model)),
        free=gib(management.get_free_memory(model.load_device)),
        remedy=remedy,
    )


def _cast(module):
    """Cast weights to the dtype that the model declares. While dynamic VRAM is on, the host loads them as the
    file has them, and casts when a layer fetches them, which those of a resident model never do.
    """
    for part in module.modules():
        for name, tensor in part._parameters.items():
            dtype = declared_dtype(part, name, tensor)
            if dtype is not None and dtype != tensor.dtype:
                part._parameters[name] = torch.nn.Parameter(tensor.to(dtype), requires_grad=False)


def _can_be_resident(model):
    return not model.is_dynamic() or model.cached_patcher_init is not None
