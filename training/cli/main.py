"""The command line: `fewstep demo`, `fit`, `distil`, `reflow`, `resume` and `export`."""

import argparse
import math
import shlex
import sys
from pathlib import Path

from ...diffusion.faults import BadValue

try:
    from ..formats.lora_keys import FAMILIES
    from ..models.memory_errors import is_out_of_memory
    from ..run.config import DISTILLING, METHODS
except ImportError as error:
    if error.name != "torch":
        raise
    print(
        f"fewstep needs PyTorch, and can't import it ({error}). Install it with pip install 'fewstep[standalone]', or as "
        "pytorch.org says for your GPU.",
        file=sys.stderr,
    )
    sys.exit(2)

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
        said = str(error)
        if is_out_of_memory(error) and not said.endswith("."):  # PyTorch's own words
            why = " ".join(said.split())[:200] or type(error).__name__
            said = (
                f"the run must fit into memory, and does not ({why}). Choose a smaller batch, rank or size."
            )
        elif isinstance(error, RuntimeError) and not said.endswith("."):
            raise  # not one of ours
        print(f"fewstep {args.command}: {said}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        print(f"\nfewstep {args.command}: stopped. {stop}".rstrip(), file=sys.stderr)
        return 130


def _parser():
    parser = Parser(prog="fewstep", description="Make a diffusion model good in 1 to 8 steps.")
    commands = parser.add_subparsers(dest="command", required=True)
    text = {"formatter_class": argparse.RawDescriptionHelpFormatter}

    demo = commands.add_parser("demo", help="distil a LoRA from the packaged teacher and show what it does")
    demo.add_argument(
        "--out",
        default="demo-out",
        help="folder for the picture, curves, LoRA and metrics (default: %(default)s)",
    )
    _common(demo)
    demo.add_argument(
        "--method", choices=DISTILLING, default=DISTILLING[0], help="how to distil (default: %(default)s)"
    )
    demo.set_defaults(run=_demo)

    fit = commands.add_parser(
        "fit",
        help="fit few-step solvers to the packaged teacher, without training",
        description=ABOUT_FIT,
        **text,
    )
    fit.add_argument(
        "--out",
        default="fit-out",
        help="folder for recipes, report, samples and trajectories (default: %(default)s)",
    )
    _common(fit)
    fit.add_argument(
        "--steps",
        type=_numbers,
        default="1,2,3,4,6,8",
        help="step counts, each gets a recipe (default: %(default)s)",
    )
    fit.add_argument(
        "--trajectories",
        type=int,
        default=64,
        help="of the teacher; a quarter is held out (default: %(default)s)",
    )
    fit.add_argument(
        "--reference-steps", type=int, default=60, help="of each trajectory (default: %(default)s)"
    )
    fit.add_argument(
        "--cfg",
        type=float,
        default=2.0,
        help="guidance that the solvers are fitted for (default: %(default)g)",
    )
    fit.add_argument(
        "--effort",
        type=float,
        default=0.5,
        help="model calls spent on each step count, as a multiple of the trajectories'; inf: until nothing improves "
        "(default: %(default)s)",
    )
    fit.add_argument(
        "--seconds",
        type=float,
        default=math.inf,
        help="begin no further improvement after this time; the trajectories are always finished (default: no limit)",
    )
    fit.set_defaults(run=_fit)

    for name, method, about in (
        ("distil", METHODS[0], "distil a LoRA, from a packaged teacher or a diffusers folder"),
        ("reflow", "rectified-diffusion", "the same from noise and picture pairs, in one or more rounds"),
    ):
        command = commands.add_parser(name, help=about, description=ABOUT_DISTIL, **text)
        _distil_arguments(command, name, method)
    resume = commands.add_parser("resume", help="go on with a run that was stopped")
    resume.add_argument("folder", help="the --out of the run")
    resume.set_defaults(run=_resume)
    export = commands.add_parser("export", help="write a LoRA in another program's keys")
    export.add_argument("lora", help="a LoRA made by Fewstep")
    export.add_argument("out", help="the file to write, a new one")
    export.add_argument(
        "--to",
        choices=("diffusers", "comfyui"),
        default="diffusers",
        help="diffusers: for pipe.load_lora_weights; comfyui: of a file in diffusers' keys (default: %(default)s)",
    )
    export.add_argument("--family", choices=FAMILIES, help="of the model (default: what the file tells)")
    export.set_defaults(run=_export)
    return parser


def _distil_arguments(command, name, method):
    command.add_argument(
        "--model", default="flow", help="flow, epsilon, or a diffusers folder (default: %(default)s)"
    )
    command.add_argument("--out", default=f"{name}-out", help="folder of the run (default: %(default)s)")
    command.add_argument("--config", help="JSON or TOML file of settings")
    command.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="one setting, over the config file"
    )
    command.add_argument(
        "--prompts", help="text file, one prompt a line; this and the next three are for a diffusers folder"
    )
    command.add_argument("--negative", help="negative prompt of the teacher's guidance (default: empty)")
    command.add_argument("--size", type=_numbers, help="width,height in pixels (default: the model's own)")
    command.add_argument(
        "--device", choices=("cpu", "cuda"), default="cpu", help="where the model runs (default: %(default)s)"
    )
    command.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        help="of the model's weights; the LoRA is float32 (default: float32)",
    )
    command.add_argument("--memory", type=float, help="GB that the run may take (default: what is free)")
    command.add_argument("--method", choices=METHODS, help=f"how to distil (default: {method})")
    command.add_argument("--seed", type=int, help="of all that is drawn (default: 0)")
    command.set_defaults(run=_distil, usual_method=method)


def _common(command):
    command.add_argument(
        "--teacher", choices=("flow", "epsilon"), default="flow", help="packaged model (default: %(default)s)"
    )
    command.add_argument(
        "--device", choices=("cpu", "cuda"), default="cpu", help="where the model runs (default: %(default)s)"
    )
    command.add_argument("--seed", type=int, default=0, help="of all that is drawn (default: %(default)s)")


def _numbers(text):
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be whole numbers such as 2,4,8, got {text!r}") from None


def _out(folder):
    """--out, unless it is a file."""
    if Path(folder).exists() and not Path(folder).is_dir():
        raise BadValue("out must be a folder, and {folder} is a file. Choose another --out.", folder=folder)
    return folder


def _demo(args):
    from .demo import COLUMNS, demo

    result = demo(_out(args.out), kind=args.teacher, method=args.method, device=args.device, seed=args.seed)
    print(f"\n{'':14}{'RMSE to teacher':>16}{'Frechet to data':>17}")
    for name in COLUMNS:
        row = result["columns"][name]
        print(f"{name:14}{row['rmse']:16.4f}{row['frechet']:17.3f}")
    print(
        f"{result['seconds']:.0f} s. Written to {args.out}: demo.png, curves.png, lora.safetensors, metrics.json"
    )
    return 0


def _fit(args):
    from .demo_fit import fit, recipe_file

    run = fit(
        _out(args.out),
        kind=args.teacher,
        steps=args.steps,
        trajectories=args.trajectories,
        reference_steps=args.reference_steps,
        cfg=args.cfg,
        effort=args.effort,
        seconds=args.seconds,
        seed=args.seed,
        device=args.device,
    )
    names = ", ".join(recipe_file(Path(), steps).name for steps in run.config.steps)
    print(f"\n{run.report()}\nWritten to {args.out}: {names}, report.txt, report.png, samples.png")
    return 0


def _distil(args):
    from ..models.demo.net import KINDS
    from . import headless

    settings = {"method": args.usual_method, **(headless.read_config(args.config) if args.config else {})}
    settings |= dict(_setting(text) for text in args.set)
    settings |= {name: value for name in ("method", "seed") if (value := getattr(args, name)) is not None}
    if settings["method"] == "restoration" and not settings.get("process"):
        raise BadValue(
            "process must be given for the method restoration, got none. Write process = [{{kind = "
            '"blur"}}] into the --config file, or --set \'process=[{{"kind": "blur"}}]\'.',
        )
    given = [
        f"--{name}" for name in ("prompts", "negative", "size", "dtype") if getattr(args, name) is not None
    ]
    if args.model in KINDS and given:
        raise BadValue(
            "{given} must be left out for the packaged teacher {model}, which has its own; they are for a "
            "diffusers folder. Leave them out, or give --model FOLDER.",
            given=list(given),
            model=args.model,
        )
    if args.memory is not None and not 1e-3 <= args.memory < 1e9:
        raise BadValue(
            "memory must be a number of GB from 0.001 up, got {got:g}. Leave it out for what is free.",
            got=args.memory,
        )
    memory = args.memory and int(args.memory * 1e9)
    out, spec = _out(args.out), headless.Spec(model=args.model, **_of_pipeline(args), device=args.device)
    return _shown(lambda show: headless.distil(out, spec, settings, memory, show=show), out)


def _of_pipeline(args):
    """The options that only a diffusers folder has, as a `headless.Spec` names them."""
    from ..formats.prompts import from_file

    found = {name: value for name in ("negative", "dtype") if (value := getattr(args, name)) is not None}
    if args.size is not None:
        if len(args.size) != 2:
            raise BadValue(
                "size must be width,height such as 512,768, got {got}.",
                got=",".join(map(str, args.size)),
            )
        found["width"], found["height"] = args.size
    if args.prompts is not None:
        found["prompts"] = from_file(args.prompts)
        if not found["prompts"]:
            raise BadValue(
                "prompts must hold at least one prompt, and {prompts} has none. Write one a line.",
                prompts=args.prompts,
            )
    return found


def _resume(args):
    from . import headless

    return _shown(lambda show: headless.resume(args.folder, show=show), args.folder)


def _shown(work, out):
    """Run with a progress bar; say what came of it."""
    from tqdm import tqdm

    from .headless import SPEC

    bar = tqdm(dynamic_ncols=True, file=sys.stderr, delay=1e-3)  # no bar before there is work

    def show(run, progress):
        bar.total, bar.n, bar.desc = progress.total, progress.step, progress.stage
        if progress.loss is not None and run.fidelity:
            bar.set_postfix_str(
                f"loss {progress.loss:.4f}, distance to teacher {run.fidelity[-1][1]:.3f}", refresh=False
            )
        bar.update(0)

    try:
        with bar:
            run = work(show)
    except KeyboardInterrupt:
        if not (Path(out) / SPEC).exists():
            raise
        raise KeyboardInterrupt(f"To go on: fewstep resume {shlex.quote(str(out))}") from None
    skipped = f", {run.descent.skipped} left out as not finite" if run.descent.skipped else ""
    before, now = run.fidelity[0][1], (run.best or run.fidelity[-1][::-1])[0]
    print(
        f"{run.done} updates{skipped}; distance to the teacher {before:.4f} before, {now:.4f} now ({run.config.steps} steps). "
        f"Written to {out}: lora.safetensors, curves.png"
    )
    if now >= before:
        print("The LoRA is no nearer to the teacher than the untrained model. Lower lr, or train longer.")
    return 0


def _setting(text):
    """("name", value) of "name=value", the value as JSON where it is some, text otherwise."""
    import json

    name, sign, value = text.partition("=")
    if not sign:
        raise BadValue("--set must be NAME=VALUE, got {got!r}.", got=text)
    try:
        return name, json.loads(value)
    except RecursionError:
        raise BadValue(
            "--set {name} must be a setting's value, and is nested too deeply to be one.",
            name=name,
        ) from None
    except ValueError:
        return name, value


def _export(args):
    from .headless import export

    print(f"{export(args.lora, args.out, args.to, args.family)} layers written to {args.out} for {args.to}")
    return 0
