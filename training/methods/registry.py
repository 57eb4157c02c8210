"""The list of methods: a method's file registers it, and whoever offers methods asks here."""

from ...diffusion.faults import BadValue
from .method import Method

METHODS: dict[str, Method] = {}


def register(method: Method) -> Method:
    """Add a method to the list; raises BadValue when its name is taken."""
    if method.name in METHODS:
        raise BadValue("method {name} is registered already. Choose another name.", name=method.name)
    METHODS[method.name] = method
    return method


def names(task: str | None = "distillation", needs: str | None = None) -> tuple[str, ...]:
    """The names of the methods of that task that need such data, None for any, as they were registered."""
    return tuple(
        name
        for name, method in METHODS.items()
        if task in (None, method.task) and needs in (None, method.needs)
    )


def get(name: str) -> Method:
    """The method of that name; raises BadValue when there is none."""
    if name not in METHODS:
        raise BadValue("method must be one of {choices}, got {got!r}.", choices=list(METHODS), got=name)
    return METHODS[name]


def restores(name: str) -> bool:
    """Whether that is the name of a method that learns to undo a process."""
    return name in names("restoration")
