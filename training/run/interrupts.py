"""Ctrl-C and the system's wish that a process ends (SIGTERM) come between any two lines of Python; what must
not be cut in two holds them back.
"""

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextlib.contextmanager
def held_back() -> Iterator[None]:
    """Let such a signal that comes meanwhile take effect at the block's end.

    Signals reach the main thread alone; elsewhere nothing is done.
    """
    usual = {number: signal.getsignal(number) for number in SIGNALS} if in_main_thread() else {}
    usual = {number: handler for number, handler in usual.items() if callable(handler)}
    asked = []
    for number in usual:
        signal.signal(number, lambda *args: asked.append(args))
    try:
        yield
    finally:
        for number, handler in usual.items():
            signal.signal(number, handler)
    for number, frame in asked[:1]:
        usual[number](number, frame)


@contextlib.contextmanager
def ended_in_order() -> Iterator[None]:
    """Within: a SIGTERM leaves every block on its way out, as Ctrl-C does, so that states are saved; it ends
    the process at once where nobody has set this. Only the main thread can, elsewhere nothing is done.
    """
    if not in_main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def in_main_thread() -> bool:
    """Whether this is the thread that signals reach."""
    return threading.current_thread() is threading.main_thread()
