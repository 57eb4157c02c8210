"""The training methods, one file each. Config, command line, nodes, benchmarks and locales take their list
from here.

register(phased.METHOD)     # one line a method
names(), get("phased")
"""

from ...diffusion.faults import BadValue
from . import (
    consistency,
    consistency_training,
    phased,
    rectified_diffusion,
    reflow,
    restoration,
    windowed_reflow,
)
from .method import Method

_METHODS: dict[str, Method] = {}


def register(method: Method) -> Method:
    """Add a method to the list; raises BadValue when its name is taken."""
    if method.name in _METHODS:
        raise BadValue("method {name} is registered already. Choose another name.", name=method.name)
    _METHODS[method.name] = method
    return method


def unregister(name: str) -> None:
    """Take a method off the list again."""
    del _METHODS[name]


def names(task: str | None = "distillation") -> tuple[str, ...]:
    """The names of the methods of that task, None for all, in the order in which they were registered."""
    return tuple(name for name, method in _METHODS.items() if task in (None, method.task))


def get(name: str) -> Method:
    """The method of that name; raises BadValue when there is none."""
    if name not in _METHODS:
        raise BadValue("method must be one of {choices}, got {got!r}.", choices=list(_METHODS), got=name)
    return _METHODS[name]


register(phased.METHOD)
register(consistency.METHOD)
register(consistency_training.METHOD)
register(reflow.METHOD)
register(rectified_diffusion.METHOD)
register(windowed_reflow.METHOD)
register(restoration.METHOD)
