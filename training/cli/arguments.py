"""The arguments of each command."""

import argparse
import math
from typing import Any

from .. import methods
from ..formats.lora_keys import FAMILIES
from ..formats.precision import PRECISIONS
from ..formats.version import VERSION
from ..ranks.joining import speaks
from ..run.config import QUALITY, DistilConfig
from ..run.fitting import EFFORTS, STANDARD
from ..run.optimisers import OPTIMISERS
from . import commands

ABOUT_DEMO = """\
Distil a LoRA from a packaged teacher, with nothing to download, and show what it does: demo.png (teacher,
untrained model and LoRA from the same noise), curves.png, lora.safetensors, metrics.json, and a table of
errors, distances and diversity. About five minutes on two CPU cores; with --quality, as long as `fewstep
distil --quality` trains:

  quick     phased, about a minute; only a first look
  standard  phased-matching, about eight minutes: phased first, then the distribution of the teacher's
            pictures is matched, in the 4 steps that such a LoRA is for
  best      the same for longer, about twenty minutes"""
ABOUT_FIT = """\
Fit solvers to a packaged teacher: for each step count, or budget of model calls, a step grid and weights of
its own, learnt from accurate trajectories. No weight of the model is changed. Writes recipe_<steps>.json
(recipe_<calls>_calls.json), report.txt, report.png (error against steps or calls) and samples.png (teacher,
Euler and fitted from the same noise). The trajectories are kept: the same command, or one with other --steps
or --calls, goes on from them, also after Ctrl-C."""
ABOUT_DISTIL = """\
Distil a LoRA from a packaged teacher (flow, epsilon) or a diffusers folder. Writes lora.safetensors with its
recipe inside, for ComfyUI's own loader, and curves.png. The state is saved as it goes: after Ctrl-C, a crash
or a power cut `fewstep resume` goes on where it stopped. Settings come from a JSON or TOML file, whose names
are those of `DistilConfig`, and from --set name=value."""


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, and takes no option by half its name: `launch` knows whole ones."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})

    def error(self, message: str) -> None:
        """End the program with that line."""
        self.exit(2, f"{self.prog}: {message}\n" if speaks() else None)


def parser() -> Parser:
    """The whole command line; parsed arguments have `run`, the function of `commands` to call with them."""
    whole = Parser(prog="fewstep", description="Make a diffusion model good in 1 to 8 steps.")
    whole.add_argument("--version", action="version", version=f"fewstep {VERSION}")
    subparsers = whole.add_subparsers(dest="command", required=True)
    _demo(subparsers)
    _fit(subparsers)
    about = "distil a LoRA, from a packaged teacher or a diffusers folder"
    _distil(subparsers, "distil", methods.names()[0], about)
    about = "the same from noise and picture pairs, in one or more rounds"
    _distil(subparsers, "reflow", "rectified-diffusion", about)
    resume = subparsers.add_parser("resume", help="go on with a run that was stopped")
    resume.add_argument("folder", help="the --out of the run")
    _several(resume, in_pieces=True)
    resume.set_defaults(run=commands.resume)
    _export(subparsers)
    return whole


def _demo(subparsers):
    command = subparsers.add_parser(
        "demo",
        help="distil a LoRA from the packaged teacher and show what it does",
        description=ABOUT_DEMO,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument(
        "--out",
        default="demo-out",
        help="folder for the picture, curves, LoRA and metrics (default: %(default)s)",
    )
    _common(command)
    names = methods.names()
    command.add_argument(
        "--method",
        choices=names,
        help=f"how to distil (default: {names[0]}; with --quality standard or best phased-matching)",
    )
    command.add_argument(
        "--quality",
        choices=tuple(QUALITY),
        help=f"how long to train: {_lengths()} (default: {DistilConfig.updates} updates)",
    )
    command.set_defaults(run=commands.demo)


def _fit(subparsers):
    command = subparsers.add_parser(
        "fit",
        help="fit few-step solvers to the packaged teacher, without training",
        description=ABOUT_FIT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument(
        "--out",
        default="fit-out",
        help="folder for recipes, report, samples and trajectories (default: %(default)s)",
    )
    _common(command)
    counts = command.add_mutually_exclusive_group()
    counts.add_argument(
        "--steps",
        type=_numbers,
        default="1,2,3,4,6,8",
        help="step counts, each gets a recipe; with guidance a step is two model calls "
        "(default: %(default)s)",
    )
    counts.add_argument(
        "--calls",
        type=_numbers,
        help="budgets of model calls in the place of --steps; each gets a recipe, and with guidance the fit "
        "decides which steps need both calls",
    )
    command.add_argument(
        "--trajectories",
        type=int,
        default=64,
        help="of the teacher; three eighths are held out (default: %(default)s)",
    )
    command.add_argument(
        "--reference-steps",
        type=int,
        default=60,
        help="of each trajectory; twice the steps of the longest solver or more (default: %(default)s)",
    )
    command.add_argument(
        "--denoise",
        type=float,
        default=1.0,
        help="the time at which the solvers start, above 0 and at most 1: below 1 from a noised picture, for "
        "image to image or the last part of a split schedule (default: %(default)g)",
    )
    command.add_argument(
        "--cfg",
        type=float,
        default=2.0,
        help="guidance that the solvers are fitted for (default: %(default)g)",
    )
    command.add_argument(
        "--effort",
        type=_effort,
        default=STANDARD,
        help=f"model calls spent on each step count: {', '.join(EFFORTS)}, or a multiple of the "
        "trajectories' own; inf: until nothing improves (default: %(default)s)",
    )
    command.add_argument(
        "--seconds",
        type=float,
        default=math.inf,
        help="begin no further improvement after this time; the trajectories are always finished "
        "(default: no limit)",
    )
    _several(command)
    command.set_defaults(run=commands.fit)


def _effort(text):
    """A name as it is, anything else as a number."""
    try:
        return text if text in EFFORTS else float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be {', '.join(EFFORTS)} or a number, got {text!r}") from None


def _distil(subparsers, name, method, about):
    command = subparsers.add_parser(
        name,
        help=about,
        description=ABOUT_DISTIL,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument(
        "--model", default="flow", help="flow, epsilon, or a diffusers folder (default: %(default)s)"
    )
    command.add_argument("--out", default=f"{name}-out", help="folder of the run (default: %(default)s)")
    command.add_argument(
        "--runs",
        action="store_true",
        help="--out is a folder of runs, and this one a new folder in it: with --out "
        "ComfyUI/user/fewstep/runs the panel lists it",
    )
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
    command.add_argument(
        "--method", choices=methods.names(task=None), help=f"how to distil (default: {method})"
    )
    command.add_argument(
        "--quality",
        choices=tuple(QUALITY),
        help="how long to train, over the config file: "
        f"{_lengths()} (default: {DistilConfig.updates} updates)",
    )
    command.add_argument(
        "--start-from",
        metavar="FILE",
        help="LoRA to begin with, of any rank, in ComfyUI's, diffusers' or kohya's keys: an earlier run's or "
        "a public one of the same model (default: none)",
    )
    command.add_argument(
        "--start-partly",
        action="store_true",
        help="begin with the part of that file which is a plain LoRA of the model's layers (default: refuse "
        "a file that has more)",
    )
    command.add_argument("--seed", type=int, help="of all that is drawn (default: 0)")
    command.add_argument(
        "--optimizer",
        choices=OPTIMISERS,
        help="adamw8bit: a quarter of its memory, if bitsandbytes or torchao is installed (default: adamw)",
    )
    command.add_argument(
        "--lora-precision",
        choices=tuple(PRECISIONS),
        help="of the LoRA's file: fp16 and bf16 halve it, fp16 loses least (default: fp16)",
    )
    _several(command, in_pieces=True)
    command.set_defaults(run=commands.distil, usual_method=method)


def _lengths():
    """What the qualities stand for."""
    return ", ".join(f"{name} {updates} updates" for name, (updates, _) in QUALITY.items())


def _several(command, in_pieces=False):
    command.add_argument(
        "--processes",
        type=int,
        help="make the run with that many processes of this machine, a card each with --device cuda; for "
        "several machines use torchrun (default: 1)",
    )
    command.add_argument(
        "--shared",
        action="store_true",
        help="the processes of all machines see the same folder, which is refused where one doesn't "
        "(default: found out)",
    )
    if in_pieces:
        command.add_argument(
            "--shard-base",
            action="store_true",
            help="each process holds a piece of the model, for one that is larger than a card (default: all)",
        )


def _export(subparsers):
    command = subparsers.add_parser("export", help="write a LoRA in another program's keys")
    command.add_argument("lora", help="a LoRA made by Fewstep")
    command.add_argument("out", help="the file to write, a new one")
    command.add_argument(
        "--to",
        choices=("diffusers", "comfyui"),
        default="diffusers",
        help="diffusers: for pipe.load_lora_weights; comfyui: of a file in diffusers' keys "
        "(default: %(default)s)",
    )
    command.add_argument("--family", choices=FAMILIES, help="of the model (default: what the file tells)")
    command.set_defaults(run=commands.export)


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
