"""The real ComfyUI in this process, with a pretended card, and of the pack what lies in `nodes/comfy`."""

import importlib
import os
import sys
import types
from pathlib import Path

import torch
from device import CARD, MAIN, Event, Stream, on_stream, waited

ROOT = Path(__file__).parents[3]
sys.path[:0] = [os.environ["COMFYUI_PATH"], str(Path(__file__).parent.parent)]

importlib.import_module("comfy.cli_args").args.cpu = True  # before anything looks for a real card
management = importlib.import_module("comfy.model_management")
sd = importlib.import_module("comfy.sd")

VRAM = 24 << 30
free = [VRAM]  # bytes that the host says are free on the card
left = [VRAM]  # that PyTorch says are free, beside what was loaded


def pack(name):
    """A module of this checkout's pack."""
    if "fewstep" not in sys.modules:
        spec = importlib.util.spec_from_file_location(
            "fewstep", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
        )
        sys.modules["fewstep"] = importlib.util.module_from_spec(spec)
        nodes = types.ModuleType("fewstep.nodes")  # without the nodes themselves, which need a server
        nodes.__path__ = [str(ROOT / "nodes")]
        sys.modules["fewstep.nodes"] = nodes
    return importlib.import_module(f"fewstep.{name}")


def folders_in(base):
    """Let the host keep its files in that folder."""
    folder_paths = importlib.import_module("folder_paths")
    loras = base / "loras"
    loras.mkdir()
    folder_paths.set_user_directory(str(base / "user"))
    folder_paths.folder_names_and_paths["loras"] = ([str(loras)], {".safetensors"})


def answer_as_a_card(bfloat16, float16=False):
    """The host's and PyTorch's questions about the card; bfloat16, float16: whether it computes in these."""
    free_of, total_of = management.get_free_memory, management.get_total_memory

    def free_memory(device=None, torch_free_too=False):
        if not (device is None or management.is_device_cuda(device)):
            return free_of(device, torch_free_too)
        return (free[0], 0) if torch_free_too else free[0]

    def total_memory(device=None, torch_total_too=False):
        on_card = device is None or management.is_device_cuda(device)
        return VRAM if on_card else total_of(device, torch_total_too)

    management.get_free_memory, management.get_total_memory = free_memory, total_memory
    management.get_torch_device = lambda: CARD
    management.cpu_state, management.vram_state = management.CPUState.GPU, management.VRAMState.NORMAL_VRAM
    management.lowvram_available, management.NUM_STREAMS = True, 2
    management.is_nvidia = lambda: True
    management.current_stream = lambda device: MAIN if management.is_device_cuda(device) else None
    torch.cuda.Stream, torch.cuda.stream, torch.cuda.Event = Stream, on_stream, Event
    torch.cuda.current_stream = lambda device=None: MAIN
    management.soft_empty_cache = lambda force=False: None
    management.should_use_fp16 = lambda *args, **kwargs: float16
    management.should_use_bf16 = lambda *args, **kwargs: bfloat16
    for name in ("supports_fp8_compute", "supports_nvfp4_compute", "supports_mxfp8_compute"):
        setattr(management, name, lambda device=None: False)
    torch.cuda.synchronize = lambda device=None: waited("synchronize")
    torch.cuda.reset_peak_memory_stats = lambda device=None: None
    torch.cuda.current_device, torch.cuda.set_device = lambda: CARD.index, lambda device: None
    torch.cuda.get_rng_state = lambda device=None: torch.zeros(16, dtype=torch.uint8)
    torch.cuda.set_rng_state = lambda state, device=None: None
    torch.cuda.mem_get_info = lambda device=None: (left[0], VRAM)
    for name in ("memory_reserved", "memory_allocated", "max_memory_allocated"):
        setattr(torch.cuda, name, lambda device=None: 0)
    fork = torch.random.fork_rng
    torch.random.fork_rng = lambda devices=(), *args, **kwargs: fork([], *args, **kwargs)
