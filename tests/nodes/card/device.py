"""A CUDA card that is only pretended: CPU arithmetic, and a memory of which tensors lie on the card.

    with PretendedCard() as card:
        module.to(CARD)                # tensor.device says cuda:0 from now on
    card.crossings                     # what CUDA would have refused
    card.syncs, card.transfers         # where the computer waited for the card, what went across

A tensor lies where its storage does, so views, parameters and saved tensors follow by themselves. What an
operation makes lies on the card when one of its arguments does. An operation on tensors of both sides is
written down, not refused: an exception in the backward pass would be told as something else.

The computer waits for the card where it asks for numbers (`item`, `bool`, `tolist`), for a size that depends
on them (`nonzero`, masks as indices), or for a copy, unless that was told not to block and goes to the card,
or from it to locked pages.

It changes `torch.Tensor` for the whole process, and belongs into one of its own.
"""

import collections
import contextlib
import os
import sys

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode, is_traceable_wrapper_subclass
from torch.utils._pytree import tree_leaves

HERE, ROOMS = os.path.dirname(__file__), ("/comfy", "/training/", "/nodes/")
CARD, CPU = torch.device("cuda", 0), torch.device("cpu")
PLAIN = (torch.Tensor, torch.nn.Parameter)
COPYING = {"copy_", "_to_copy"}  # what carries tensors across
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_"}  # CUDA takes indices from the CPU
# operations whose outcome, or its size, is known to the computer only when the card has computed it
WAITING = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "bincount", "unique_dim", "_unique2"}
SYNCS, TRANSFERS = collections.Counter(), collections.Counter()  # (what, line) -> how often
REAL_DEVICE = torch._C.TensorBase.device
REAL_TO = torch._C.TensorBase.to
REAL_GENERATOR = torch.Generator


class Marks:
    """A set of storages, by address; a storage that is gone is in it no longer."""

    def __init__(self):
        self.known = {}

    def add(self, tensor):
        storage = _storage(tensor)
        if storage is not None:
            self.known[storage._cdata] = StorageWeakRef(storage)
        return tensor

    def discard(self, tensor):
        storage = _storage(tensor)
        if storage is not None:
            self.known.pop(storage._cdata, None)
        return tensor

    def __contains__(self, tensor):
        storage = _storage(tensor)
        reference = self.known.get(storage._cdata) if storage is not None else None
        return reference is not None and not reference.expired()


ON_CARD, LOCKED = Marks(), Marks()


def _parts(tensor):
    """{name: tensor} of what a tensor that only wraps others is made of; such a one lies where they do."""
    return {name: getattr(tensor, name) for name in tensor.__tensor_flatten__()[0]}


def _storage(tensor):
    if is_traceable_wrapper_subclass(tensor):
        return _storage(next(iter(_parts(tensor).values())))
    try:
        return tensor.untyped_storage()
    except (NotImplementedError, RuntimeError):  # tensors without one
        return None


def put(tensor, on_card=True):
    """The tensor, said to lie on the card or not."""
    return ON_CARD.add(tensor) if on_card else ON_CARD.discard(tensor)


def is_card(device):
    """Whether a device, its name or its number means the card."""
    return device is not None and torch.device(device).type == "cuda"


def waited(what):
    """Count one wait of the computer for the card."""
    SYNCS[what, _line()] += 1


def transferred(tensor, on_card, blocking, locked=False):
    """Count one copy from one side to the other; locked: what the computer gets lies in locked pages."""
    what = f"{'to' if on_card else 'from'} the card {tuple(tensor.shape)}"
    TRANSFERS[what, _line()] += 1
    CURRENT[-1].queue("copy", COPY)
    if blocking or not (on_card or locked):
        Stream.computer = CURRENT[-1].time
        waited(what)


class Stream:
    """A queue of the card: each thing begins when what was queued before it is done, what the queue was told
    to wait for, and the computer had asked for it. Times are in operations; a copy takes `COPY` of them.
    """

    cuda_stream = 0
    computer = 0.0  # until when the computer waited for the card; else it asks for everything at once

    def __init__(self, *args, **options):
        self.time = 0.0

    def wait_stream(self, other):
        self.time = max(self.time, other.time)

    def queue(self, what, length):
        begin = max(self.time, Stream.computer)
        self.time = begin + length
        TIMELINE.append((what, self, begin, self.time))

    def synchronize(self):
        Stream.computer = max(Stream.computer, self.time)
        waited("synchronize a stream")


COPY = 3
MAIN = Stream()
CURRENT, TIMELINE = [MAIN], []  # (what, stream, begin, end)


@contextlib.contextmanager
def on_stream(stream):
    """Within: what is asked of the card is queued there."""
    CURRENT.append(stream)
    try:
        yield
    finally:
        CURRENT.pop()


class Event:
    """A moment of a queue. Who waits for it here is never the computer's main thread."""

    def record(self, stream):
        pass

    def synchronize(self):
        pass


def _empty(real):
    """`torch.empty` that knows locked pages."""

    def make(*size, pin_memory=False, **options):
        made = real(*size, **options)
        return LOCKED.add(made) if pin_memory else made

    return make


class Moved(torch.autograd.Function):
    """A copy on the other side, and its gradient back again."""

    @staticmethod
    def forward(ctx, tensor, on_card, dtype):
        ctx.side, ctx.dtype = tensor in ON_CARD, tensor.dtype
        return put(REAL_TO(tensor.detach(), dtype, copy=True), on_card)

    @staticmethod
    def backward(ctx, gradient):
        transferred(gradient, ctx.side, blocking=True)
        return put(REAL_TO(gradient.detach(), ctx.dtype, copy=True), ctx.side), None, None


class _OfEitherSide(type):
    """`torch.Generator` that knows the card, and that is still a type to ask for."""

    def __call__(cls, device=CPU):
        return REAL_GENERATOR(CPU if is_card(device) else device)

    def __instancecheck__(cls, value):
        return isinstance(value, REAL_GENERATOR)


class _Generator(metaclass=_OfEitherSide):
    pass


def _wrapper(real):
    """`Tensor._make_wrapper_subclass` that knows the card: what is wrapped says where it lies."""

    def make(*args, device=None, **options):
        return real(*args, device=CPU if is_card(device) else device, **options)

    return make


def _new(real):
    """`Tensor.__new__` of a kind of tensor made of another one, which a mode lets PyTorch refuse."""

    def make(cls, *args, **options):
        if cls is not torch.Tensor and args and isinstance(args[0], torch.Tensor):
            return torch.Tensor._make_subclass(cls, args[0])
        return real(cls, *args, **options)

    return make


def _to(tensor, *args, **kwargs):
    """`Tensor.to` that knows the card. It replaces the method, which works in the backward pass too."""
    wraps = is_traceable_wrapper_subclass(tensor)
    device, dtype, blocking = kwargs.get("device"), kwargs.get("dtype"), not kwargs.get("non_blocking")
    if flags := [value for value in args if isinstance(value, bool)]:
        blocking = not flags[0]
    for value in (*args, kwargs.get("other")):
        if isinstance(value, torch.dtype):
            dtype = value
        elif isinstance(value, torch.Tensor):
            device, dtype = value.device, value.dtype
        elif isinstance(value, (str, torch.device)) or type(value) is int:
            device = value
    side, dtype = tensor in ON_CARD, dtype or tensor.dtype
    target = side if device is None else is_card(device)
    if device is not None and torch.device(device).type == "meta":
        return REAL_TO(tensor, *args, **kwargs)
    if wraps and target != side:
        moved = {name: _to(part, device, not blocking) for name, part in _parts(tensor).items()}
        form = tensor.__tensor_flatten__()[1]
        tensor = type(tensor).__tensor_unflatten__(moved, form, tensor.shape, tensor.stride())
    if wraps or target == side:
        return REAL_TO(tensor, dtype, copy=bool(kwargs.get("copy")))
    transferred(tensor, target, blocking)
    if torch.is_grad_enabled() and tensor.requires_grad:
        return Moved.apply(tensor, target, dtype)
    return put(REAL_TO(tensor.detach(), dtype, copy=True), target)


def _numpy(tensor, **options):
    if tensor in ON_CARD:
        raise TypeError("can't convert cuda:0 device type tensor to numpy")
    return torch._C.TensorBase.numpy(tensor, **options)


def _tolist(tensor):
    if tensor in ON_CARD:
        waited("tolist")
    return torch._C.TensorBase.tolist(tensor)


def _from_data(real):
    """`torch.tensor` or `torch.as_tensor` that knows the card: PyTorch makes these where no mode sees it."""

    def make(data, *, device=None, **options):
        if isinstance(data, torch.Tensor):
            return _to(data, *(x for x in (device, options.get("dtype")) if x is not None))
        if not is_card(device):
            return real(data, device=device, **options)
        made = put(real(data, **options))
        transferred(made, True, blocking=True)
        return made

    return make


class PretendedCard(TorchDispatchMode):
    """Within: `cuda` is a device that tensors can lie on."""

    def __init__(self):
        super().__init__()
        self.crossings = {}  # (operation, line) -> how often
        self.syncs, self.transfers = SYNCS, TRANSFERS
        # what autograd itself makes in the backward pass names no device: it goes with either
        self.undecided = Marks()

    def __enter__(self):
        replaced = {
            "device": property(lambda tensor: CARD if tensor in ON_CARD else REAL_DEVICE.__get__(tensor)),
            "is_cuda": property(lambda tensor: tensor in ON_CARD),
            "to": _to,
            "cpu": lambda tensor: _to(tensor, CPU),
            "cuda": lambda tensor, device=CARD, **_: _to(tensor, device),
            "numpy": _numpy,
            "tolist": _tolist,
        }
        for name, value in replaced.items():
            setattr(torch.Tensor, name, value)
        torch.empty, torch.Generator = _empty(torch.empty), _Generator
        torch.Tensor.__new__ = _new(torch.Tensor.__new__)
        torch.Tensor._make_wrapper_subclass = _wrapper(torch.Tensor._make_wrapper_subclass)
        torch.tensor, torch.as_tensor = _from_data(torch.tensor), _from_data(torch.as_tensor)
        torch.cuda._lazy_init = lambda: None  # asked for whenever a device is named
        return super().__enter__()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if any(hasattr(kind, "__tensor_flatten__") for kind in types):
            return NotImplemented  # what such a tensor is made of comes here by itself
        kwargs = dict(kwargs or {})
        name = function._schema.name.removeprefix("aten::")
        named = kwargs.get("device")
        if is_card(named):
            kwargs["device"] = CPU
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        sides = [tensor in ON_CARD for tensor in tensors]
        if any(sides) and name not in COPYING:
            self._look(name, tensors, sides)
        self._count(name, tensors, sides, args)
        with torch._C.DisableTorchFunctionSubclass():  # which PyTorch decides above this place, as without it
            out = function(*args, **kwargs)
        made = [t for t in tree_leaves(out) if type(t) is torch.Tensor and not any(t is x for x in tensors)]
        # a cast's own gradient names the CPU, where the numbers really are: it stays on its side
        on_card = is_card(named) or (sides[:1] == [True] if name in COPYING else any(sides))
        if on_card:
            for tensor in made:
                put(tensor)
            if name not in COPYING:
                CURRENT[-1].queue(name, 1)
        elif not tensors and torch._C._current_graph_task_id() != -1:  # in the backward pass
            for tensor in made:
                self.undecided.add(tensor)
        return out

    def _count(self, name, tensors, sides, args):
        """Count a wait or a transfer."""
        if name == "copy_" and sides[0] != sides[1]:
            blocking = not (len(args) > 2 and args[2])
            transferred(tensors[1], sides[0], blocking, locked=tensors[0] in LOCKED)
        elif any(sides) and (
            name in WAITING or name in INDEXING and any(t.dtype == torch.bool for t in tensors[1:])
        ):
            Stream.computer = CURRENT[-1].time
            waited(name)

    def _look(self, name, tensors, sides):
        """Write down tensors that CUDA would refuse beside those on the card."""
        if name in INDEXING and sides[0]:
            tensors = [t for t in tensors if t.is_floating_point()]
        for tensor in tensors:
            if tensor in ON_CARD or tensor.ndim == 0:  # a number is taken from the CPU
                continue
            if tensor in self.undecided:
                put(tensor)
                continue
            key = f"{name} of {tuple(tensor.shape)}", _line()
            self.crossings[key] = self.crossings.get(key, 0) + 1


def _line():
    """The line, of the pack or of the host, that is under way."""
    frame = sys._getframe(1)
    while frame is not None:
        file = frame.f_code.co_filename
        if any(room in file for room in ROOMS) and not file.startswith(HERE):
            return f"{file}:{frame.f_lineno}"
        frame = frame.f_back
    return "?"
