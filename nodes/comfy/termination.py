"""The host's process is asked to end (SIGTERM) while a run is under way: the run is cancelled, as a user's
cancel does, and its state written, before the process ends as it would have.
"""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator

import comfy.model_management

PATIENCE = 60  # seconds for a state to be written; systems that end a process wait 10 to 90


@contextlib.contextmanager
def after_saving() -> Iterator[None]:
    """Within: a SIGTERM waits for the block's end, at most PATIENCE.

    A job runs in a thread of the host's, and only the main thread, where its server's loop is, can set what a
    signal does; nothing is done where there is none, or somebody else has set it.
    """
    saved, before = threading.Event(), []

    def asked(number, frame):
        comfy.model_management.interrupt_current_processing()
        saved.wait(PATIENCE)
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

    def begin():
        if _is_free() and not saved.is_set():
            before.append(signal.signal(signal.SIGTERM, asked))

    def end():
        if before and signal.getsignal(signal.SIGTERM) is asked:
            signal.signal(signal.SIGTERM, before[0])

    _in_the_loop(begin)
    try:
        yield
    finally:
        saved.set()
        _in_the_loop(end)


def _is_free():
    main = threading.current_thread() is threading.main_thread()
    return main and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def _in_the_loop(work):
    import server

    loop = getattr(getattr(server.PromptServer, "instance", None), "loop", None)
    if loop is not None and loop.is_running():
        with contextlib.suppress(RuntimeError):  # closed meanwhile
            loop.call_soon_threadsafe(work)
