"""The command line: `fewstep demo` and `fewstep fit`."""

import argparse
import math
import sys
from pathlib import Path

from .config import METHODS

ABOUT_FIT = """\
Fit solvers to a packaged teacher: for each step count a step grid and weights of its own, learnt from accurate trajectories. No
weight of the model is changed. Writes recipe_<steps>.json, report.txt, report.png (error against step count) and samples.png
(teacher, Euler and fitted from the same noise). The trajectories are kept: the same command, or one with other --steps, goes on
from them, also after Ctrl-C."""


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message):
        self.exit(2, f"{self.prog}: {message}\n")


def main(argv=None):
    """Parse and run; returns the exit status. A fault of the user's input is one line on stderr, status 2."""
    args = _parser().parse_args(argv)
    try:
        return args.run(args)
    except (ValueError, OSError) as error:
        print(f"fewstep {args.command}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        print(f"\nfewstep {args.command}: stopped. {stop}".rstrip(), file=sys.stderr)
        return 130


def _parser():
    parser = Parser(prog="fewstep", description="Make a diffusion model good in 1 to 8 steps.")
    commands = parser.add_subparsers(dest="command", required=True)

    demo = commands.add_parser("demo", help="distil a LoRA from the packaged teacher and show what it does")
    demo.add_argument("--out", default="demo-out", help="folder for the picture, curves, LoRA and metrics (default: %(default)s)")
    _common(demo)
    demo.add_argument("--method", choices=METHODS, default=METHODS[0], help="how to distil (default: %(default)s)")
    demo.set_defaults(run=_demo)

    fit = commands.add_parser("fit", help="fit few-step solvers to the packaged teacher, without training", description=ABOUT_FIT,
                              formatter_class=argparse.RawDescriptionHelpFormatter)
    fit.add_argument("--out", default="fit-out", help="folder for recipes, report, samples and trajectories (default: %(default)s)")
    _common(fit)
    fit.add_argument("--steps", type=_numbers, default="1,2,3,4,6,8", help="step counts, each gets a recipe (default: %(default)s)")
    fit.add_argument("--trajectories", type=int, default=64, help="of the teacher; a quarter is held out (default: %(default)s)")
    fit.add_argument("--reference-steps", type=int, default=60, help="of each trajectory (default: %(default)s)")
    fit.add_argument("--cfg", type=float, default=2.0, help="guidance that the solvers are fitted for (default: %(default)g)")
    fit.add_argument("--effort", type=float, default=0.5,
                     help="model calls spent on each step count, as a multiple of the trajectories'; inf: until nothing improves "
                          "(default: %(default)s)")
    fit.add_argument("--seconds", type=float, default=math.inf,
                     help="begin no further improvement after this time; the trajectories are always finished (default: no limit)")
    fit.set_defaults(run=_fit)
    return parser


def _common(command):
    command.add_argument("--teacher", choices=("flow", "epsilon"), default="flow", help="packaged model (default: %(default)s)")
    command.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where the model runs (default: %(default)s)")
    command.add_argument("--seed", type=int, default=0, help="of all that is drawn (default: %(default)s)")


def _numbers(text):
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be whole numbers such as 2,4,8, got {text!r}") from None


def _demo(args):
    from .demo.run import COLUMNS, demo

    result = demo(args.out, kind=args.teacher, method=args.method, device=args.device, seed=args.seed)
    print(f"\n{'':14}{'RMSE to teacher':>16}{'Frechet to data':>17}")
    for name in COLUMNS:
        row = result["columns"][name]
        print(f"{name:14}{row['rmse']:16.4f}{row['frechet']:17.3f}")
    print(f"{result['seconds']:.0f} s. Written to {args.out}: demo.png, curves.png, lora.safetensors, metrics.json")
    return 0


def _fit(args):
    from .demo.fit import fit, recipe_file

    run = fit(args.out, kind=args.teacher, steps=args.steps, trajectories=args.trajectories, reference_steps=args.reference_steps,
              cfg=args.cfg, effort=args.effort, seconds=args.seconds, seed=args.seed, device=args.device)
    names = ", ".join(recipe_file(Path(), steps).name for steps in run.config.steps)
    print(f"\n{run.report()}\nWritten to {args.out}: {names}, report.txt, report.png, samples.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
