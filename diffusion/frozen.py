"""What a frozen dataclass needs to bring its fields into one form."""

from typing import Any


def normalise(frozen: Any, **fields: Any) -> None:
    """Set fields of a frozen dataclass from its own `__post_init__`, the one place where they may change."""
    for name, value in fields.items():
        object.__setattr__(frozen, name, value)
