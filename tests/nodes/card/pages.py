"""Dynamic VRAM without a card: `comfy_aimdo` in the computer's memory, with the room that a test gives it.

The host's own `ModelPatcherDynamic` and its casts of weights run on it unchanged. A weight's page is pinned
while its layer computes, and may be taken away afterwards; what lies there then is not a number. A weight
that finds no room goes through its stream's one buffer, which the next weight is written over.
"""

import numpy as np
import torch
from device import put

BUFFER = 64 << 20  # bytes of a stream's buffer


class Room:
    """Bytes for pages on the card, and every page that was ever handed out.

    fleeting: a page is taken away as soon as nobody pins it; every: of so many pages one finds no room, 0
    for all that fit
    """

    def __init__(self):
        self.pages, self.room, self.fleeting, self.every = [], 1 << 62, False, 0

    @property
    def taken(self):
        return sum(page.size for page in self.pages if page.resident)

    def empty(self):
        """Take away all pages that nobody pins, as an allocation does that needs their room."""
        for page in self.pages:
            page.take_away()


ROOM = Room()


class Page:
    """The place of one layer's weights."""

    def __init__(self, size):
        self.number = len(ROOM.pages)
        self.size, self.memory = size, np.zeros(size, np.uint8)
        self.resident, self.times, self.pinned = False, 0, False

    def fault(self):
        """Pin it; the number of times that it has come into being, None where there is no room."""
        if not self.resident:
            left_out = ROOM.every and self.number % ROOM.every == 0
            if left_out or ROOM.taken + self.size > ROOM.room:
                return None
            self.resident, self.times = True, self.times + 1
        self.pinned = True
        return self.times

    def unpin(self):
        self.pinned = False
        if ROOM.fleeting:
            self.take_away()

    def take_away(self):
        if self.resident and not self.pinned:
            self.memory[:] = 0xFF  # not a number, in every floating-point format
            self.resident = False
            return self.size
        return 0


class Pages:
    """What the host calls a `ModelVBAR`: places for a model's weights, (self, number, bytes) each."""

    def __init__(self, size, device):
        self.own = []

    def alloc(self, size):
        self.own.append(Page(size))
        ROOM.pages.append(self.own[-1])
        return self, len(self.own) - 1, size

    def prioritize(self):
        pass

    def loaded_size(self):
        return sum(page.size for page in self.own if page.resident)

    def free_memory(self, size):
        freed = 0
        for page in self.own:
            if freed < size:
                freed += page.take_away()
        return freed

    def bytes_at(self, number, size):
        return self.own[number].memory


class Buffer:
    """A stream's buffer, the same memory for each weight."""

    def __init__(self, size, device):
        self.memory, self.used = np.zeros(BUFFER, np.uint8), 0

    def size(self):
        return self.used

    def get(self, size, offset=0):
        self.used = max(self.used, offset + size)
        return self, offset, size

    def bytes_at(self, offset, size):
        return self.memory[offset : offset + size]


class HostBuffer:
    """Pinned memory of the computer, of which there is none."""

    size = 0

    def __init__(self, *sizes):
        pass

    def truncate(self, size, do_unregister=True):
        pass


def fault(place):
    return place[0].own[place[1]].fault()


def unpin(place):
    if place is not None:
        place[0].own[place[1]].unpin()


def same(signature, other):
    return signature is not None and signature == other


def tensor_at(place, device):
    """The bytes of a place as a tensor with a storage and a version counter of its own, as on a card."""
    owner, where, size = place
    return put(torch.from_numpy(owner.bytes_at(where, size)))


def install():
    """Put this in the place of `comfy_aimdo`, and switch dynamic VRAM on."""
    import comfy.cli_args
    import comfy.memory_management
    import comfy.model_management
    import comfy.model_patcher
    import comfy.utils
    import comfy_aimdo.host_buffer
    import comfy_aimdo.model_vbar
    import comfy_aimdo.torch
    import comfy_aimdo.vram_buffer
    import safetensors.torch

    comfy_aimdo.model_vbar.ModelVBAR = Pages
    comfy_aimdo.model_vbar.vbar_fault, comfy_aimdo.model_vbar.vbar_unpin = fault, unpin
    comfy_aimdo.model_vbar.vbar_signature_compare = same
    comfy_aimdo.model_vbar.vbars_analyze = lambda device=None: ROOM.taken
    comfy_aimdo.torch.aimdo_to_tensor = tensor_at
    comfy_aimdo.host_buffer.HostBuffer = HostBuffer
    comfy_aimdo.vram_buffer.VRAMBuffer = Buffer
    comfy.cli_args.args.disable_pinned_memory = True
    comfy.memory_management.aimdo_enabled = True
    comfy.model_patcher.CoreModelPatcher = comfy.model_patcher.ModelPatcherDynamic
    comfy.utils.load_safetensors = lambda file: (safetensors.torch.load_file(file), None)
