"""What a run asks a device, of modules that stand for PyTorch's own of each kind."""

import errno
import math
import types

import pytest
import torch
from fewstep.training.models import devices
from fewstep.training.models.memory_errors import is_out_of_memory
from fewstep.training.run import machine

GIB = 1 << 30


def with_state(*place):
    """A module's random state, which takes the device or none."""
    kept = {"state": torch.zeros(16, dtype=torch.uint8)}

    def get_rng_state(*asked):
        assert len(asked) == len(place)
        return kept["state"].clone()

    def set_rng_state(state, *asked):
        assert len(asked) == len(place)
        kept["state"] = state.clone()

    return {"get_rng_state": get_rng_state, "set_rng_state": set_rng_state}


# kind: (its module, bytes that are free there, bytes that its tensors took)
MODULES = {
    "xpu": (
        {
            "mem_get_info": lambda device: (3 * GIB, 8 * GIB),
            "memory_reserved": lambda device: 2 * GIB,
            "memory_allocated": lambda device: GIB,
            "max_memory_allocated": lambda device: 5 * GIB,
            **with_state("device"),
        },
        4 * GIB,
        5 * GIB,
    ),
    "mps": (
        {
            "recommended_max_memory": lambda: 10 * GIB,
            "current_allocated_memory": lambda: 4 * GIB,
            **with_state(),
        },
        6 * GIB,
        4 * GIB,
    ),
    "npu": (
        {
            "get_device_properties": lambda device: types.SimpleNamespace(total_memory=9 * GIB),
            "memory_allocated": lambda device: GIB,
            **with_state("device"),
        },
        8 * GIB,
        None,
    ),
}


@pytest.fixture(params=MODULES)
def kind(request, monkeypatch):
    """A kind of device, with its module in PyTorch's place."""
    if request.param == "npu":  # PyTorch knows it by name once its package is there
        monkeypatch.setattr(torch, "device", lambda name: types.SimpleNamespace(type=str(name).split(":")[0]))
    module = types.SimpleNamespace(**MODULES[request.param][0])
    monkeypatch.setattr(torch, request.param, module, raising=False)
    return request.param


def test_memory_is_what_the_devices_own_module_says(kind):
    _, free, taken = MODULES[kind]
    assert machine.available(kind) == free and machine.used(kind) == taken
    assert devices.can_train(kind)
    devices.reset_most(kind)  # where there is nothing to reset, nothing happens


def test_random_numbers_go_on_where_they_were_and_are_left_where_they_are(kind):
    module = getattr(torch, kind)
    place = () if kind == "mps" else (kind,)

    def state():
        return torch.get_rng_state(), module.get_rng_state(*place)

    def draw():
        module.set_rng_state(module.get_rng_state(*place) + 1, *place)
        return torch.rand(3), module.get_rng_state(*place)

    again = devices.dice(kind)
    first = draw()
    later = state()
    for _ in range(2):
        with again():
            assert all(map(torch.equal, draw(), first))
    assert all(map(torch.equal, state(), later))


def test_a_device_without_a_module_is_not_trained_on():
    assert devices.module_of("privateuseone:0") is None and devices.free_bytes("privateuseone:0") == math.inf
    assert not devices.can_train("privateuseone:0") and devices.can_train("cpu")
    devices.reset_most("privateuseone:0")
    assert devices.most_bytes("privateuseone:0") is None


def test_what_is_cached_is_given_back_whatever_the_device_still_has_to_tell(monkeypatch):
    called = []

    def broken():
        called.append("synchronize")
        raise RuntimeError("out of memory, told late")

    module = types.SimpleNamespace(synchronize=broken, empty_cache=lambda: called.append("empty"))
    monkeypatch.setattr(devices, "accelerator", lambda: torch.device("cpu"))
    monkeypatch.setattr(devices, "module_of", lambda device: module)
    devices.give_back()
    assert called == ["synchronize", "empty"]


def _of_windows(number, text):
    """An OSError as Windows tells it, in its own language."""
    error = OSError(errno.EINVAL, text)
    error.winerror = number
    return error


@pytest.mark.parametrize(
    "error, is_it",
    [
        (torch.OutOfMemoryError("Allocation on device "), True),
        (MemoryError(), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 8 GB)"), True),
        (RuntimeError("Could not allocate tensor. There is not enough GPU video memory available!"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("XPU out of memory. Tried to allocate 2 GiB"), True),
        (RuntimeError("UR backend failed with error: 39 (UR_RESULT_ERROR_OUT_OF_DEVICE_MEMORY)"), True),
        (RuntimeError("Native API returns: -5 (PI_ERROR_OUT_OF_RESOURCES)"), True),
        (RuntimeError("Invalid buffer size: 9.75 GB"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"), True),
        (RuntimeError("HIP error: hipErrorOutOfMemory"), True),
        (RuntimeError('NVML_SUCCESS == r INTERNAL ASSERT FAILED at "CUDACachingAllocator.cpp":1131'), True),
        (RuntimeError("std::bad_alloc"), True),
        (RuntimeError("unable to mmap 4294967296 bytes: Cannot allocate memory (12)"), True),
        (OSError(errno.ENOMEM, "Nicht genügend Hauptspeicher verfügbar"), True),
        (_of_windows(1455, "页面文件太小，无法完成操作。"), True),
        (Exception("Error while deserializing header: 页面文件太小 (os error 1455)"), True),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
        (RuntimeError("out of resource: shared memory, Required: 106496, Hardware limit: 101376"), False),
        (OSError(errno.ENOSPC, "No space left on device"), False),
        (_of_windows(1224, "user-mapped section open"), False),
        (FileNotFoundError("No such file or directory (os error 2)"), False),
        (ValueError("shape mismatch"), False),
    ],
)
def test_memory_that_ran_out_is_known_in_every_wording(error, is_it):
    assert is_out_of_memory(error) == is_it


def test_memory_that_ran_out_is_known_where_another_exception_was_raised_for_it():
    error = RuntimeError("the node failed")
    error.__cause__ = torch.OutOfMemoryError("Allocation on device ")
    assert is_out_of_memory(error)
    error.__cause__ = None
    error.__context__ = torch.OutOfMemoryError("Allocation on device ")  # one that was handled before
    assert not is_out_of_memory(error)
