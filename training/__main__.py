"""The command line: `fewstep demo`, `fit`, `distil`, `reflow`, `resume` and `export`."""

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
ABOUT_DISTIL = """\
Distil a LoRA from a packaged teacher (flow, epsilon) or a diffusers folder. Writes lora.safetensors with its recipe inside, for
ComfyUI's own loader, and curves.png. The state is saved as it goes: after Ctrl-C, a crash or a power cut `fewstep resume` goes on
where it stopped. Settings come from a JSON or TOML file, whose names are those of `DistilConfig`, and from --set name=value."""


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message):
        self.exit(2, f"{self.prog}: {message}\n")


def main(argv=None):
    """Parse and run; returns the exit status. A fault of the user's input is one line on stderr, status 2."""
    args = _parser().parse_args(argv)
    try:
        return args.run(args)
    except (ValueError, OSError, RuntimeError, MemoryError, ArithmeticError, ImportError) as error:
        if isinstance(error, RuntimeError) and not str(error).endswith("."):
            raise       # not one of ours
        print(f"fewstep {args.command}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        print(f"\nfewstep {args.command}: stopped. {stop}".rstrip(), file=sys.stderr)
        return 130


def _parser():
    parser = Parser(prog="fewstep", description="Make a diffusion model good in 1 to 8 steps.")
    commands = parser.add_subparsers(dest="command", required=True)
    text = {"formatter_class": argparse.RawDescriptionHelpFormatter}

    demo = commands.add_parser("demo", help="distil a LoRA from the packaged teacher and show what it does")
    demo.add_argument("--out", default="demo-out", help="folder for the picture, curves, LoRA and metrics (default: %(default)s)")
    _common(demo)
    demo.add_argument("--method", choices=METHODS, default=METHODS[0], help="how to distil (default: %(default)s)")
    demo.set_defaults(run=_demo)

    fit = commands.add_parser("fit", help="fit few-step solvers to the packaged teacher, without training", description=ABOUT_FIT,
                              **text)
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

    for name, method, about in (("distil", METHODS[0], "distil a LoRA, from a packaged teacher or a diffusers folder"),
                                ("reflow", "rectified-diffusion", "the same from noise and picture pairs, in one or more rounds")):
        command = commands.add_parser(name, help=about, description=ABOUT_DISTIL, **text)
        _distil_arguments(command, name, method)
    resume = commands.add_parser("resume", help="go on with a run that was stopped")
    resume.add_argument("folder", help="the --out of the run")
    resume.set_defaults(run=_resume)
    export = commands.add_parser("export", help="write a LoRA in another program's keys")
    export.add_argument("lora", help="a LoRA made by Fewstep")
    export.add_argument("out", help="the file to write")
    export.add_argument("--to", choices=("diffusers", "comfyui"), default="diffusers",
                        help="diffusers: for pipe.load_lora_weights; comfyui: of a file in diffusers' keys (default: %(default)s)")
    export.set_defaults(run=_export)
    return parser


def _distil_arguments(command, name, method):
    command.add_argument("--model", default="flow", help="flow, epsilon, or a diffusers folder (default: %(default)s)")
    command.add_argument("--out", default=f"{name}-out", help="folder of the run (default: %(default)s)")
    command.add_argument("--config", help="JSON or TOML file of settings")
    command.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="one setting, over the config file")
    command.add_argument("--prompts", help="text file, one prompt a line")
    command.add_argument("--negative", default="", help="negative prompt of the teacher's guidance")
    command.add_argument("--size", type=_numbers, default="512,512", help="width,height in pixels (default: %(default)s)")
    command.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where the model runs (default: %(default)s)")
    command.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32",
                         help="of the model's weights; the LoRA is float32 (default: %(default)s)")
    command.add_argument("--memory", type=float, help="GB that the run may take (default: what is free)")
    command.add_argument("--method", choices=METHODS, help=f"how to distil (default: {method})")
    command.add_argument("--seed", type=int, help="of all that is drawn (default: 0)")
    command.set_defaults(run=_distil, usual_method=method)


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


def _distil(args):
    from . import headless
    from .prompts import from_file

    if len(args.size) != 2:
        raise ValueError(f"size must be width,height such as 512,768, got {','.join(map(str, args.size))}.")
    settings = {"method": args.usual_method, **(headless.read_config(args.config) if args.config else {})}
    settings |= dict(_setting(text) for text in args.set)
    settings |= {name: value for name in ("method", "seed") if (value := getattr(args, name)) is not None}
    spec = headless.Spec(model=args.model, prompts=tuple(from_file(args.prompts)) if args.prompts else (), negative=args.negative,
                         width=args.size[0], height=args.size[1], device=args.device, dtype=args.dtype)
    if args.memory is not None and not 0 < args.memory < math.inf:
        raise ValueError(f"memory must be a number of GB above 0, got {args.memory:g}. Leave it out for what is free.")
    memory = args.memory and int(args.memory * 1e9)
    return _shown(lambda show: headless.distil(args.out, spec, settings, memory, show=show), args.out)


def _resume(args):
    from . import headless

    return _shown(lambda show: headless.resume(args.folder, show=show), args.folder)


def _shown(work, out):
    """Run with a progress bar; say what came of it."""
    from tqdm import tqdm

    bar = tqdm(dynamic_ncols=True, file=sys.stderr)

    def show(run, progress):
        bar.total, bar.n, bar.desc = progress.total, progress.step, progress.stage
        if progress.loss is not None and run.fidelity:
            bar.set_postfix_str(f"loss {progress.loss:.4f}, distance to teacher {run.fidelity[-1][1]:.3f}", refresh=False)
        bar.update(0)

    with bar:
        run = work(show)
    skipped = f", {run.descent.skipped} left out as not finite" if run.descent.skipped else ""
    best = f"distance to the teacher {run.fidelity[0][1]:.4f} before, {(run.best or run.fidelity[-1][::-1])[0]:.4f} now"
    print(f"{run.done} updates{skipped}; {best} ({run.config.steps} steps). Written to {out}: lora.safetensors, curves.png")
    return 0


def _setting(text):
    """("name", value) of "name=value", the value as JSON where it is some, text otherwise."""
    import json

    name, sign, value = text.partition("=")
    if not sign:
        raise ValueError(f"--set must be NAME=VALUE, got {text!r}.")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def _export(args):
    from .headless import export

    print(f"{export(args.lora, args.out, args.to)} layers written to {args.out} for {args.to}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
