"""The command line: `fewstep demo`, `fit`, `distil`, `reflow`, `resume` and `export`."""

import os
import sys
import traceback
from collections.abc import Sequence

try:
    from ...diffusion.faults import Fault
    from ..models.memory_errors import is_out_of_memory
    from ..ranks.joining import several, speaks
    from ..ranks.watch import Ended
    from .arguments import parser
except ImportError as error:
    if error.name != "torch":
        raise
    print(
        f"fewstep needs PyTorch, and can't import it ({error}). Install it with "
        "pip install torch, or as pytorch.org says for your GPU.",
        file=sys.stderr,
    )
    sys.exit(2)


def main(argv: Sequence[str] | None = None) -> int:
    """Parse and run; returns the exit status. A fault of the user's input is one line on stderr, status 2."""
    args = parser().parse_args(argv)
    if not several():
        return _status(args)
    try:
        status = _status(args)
    except Exception:
        traceback.print_exc()
        status = 1
    if status:  # connections to processes that have gone are not waited for
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    return status


def _status(args):
    try:
        return args.run(args)
    except Ended:  # which one of the processes has told
        return 2
    except (Fault, OSError, ImportError) as error:
        return _refused(args.command, str(error)) if speaks() else 2
    except KeyboardInterrupt as stop:
        if speaks():
            print(f"\nfewstep {args.command}: stopped. {stop}".rstrip(), file=sys.stderr)
        return 130
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        why = " ".join(str(error).split())[:200] or type(error).__name__
        return _refused(
            args.command,
            f"the run must fit into memory, and does not ({why}). Choose a smaller batch, rank or size.",
        )


def _refused(command, said):
    print(f"fewstep {command}: {said}", file=sys.stderr)
    return 2
