"""What each command does with its arguments; returns the exit status.

Heavy parts are imported when they are asked for.
"""

import functools
import json
import shlex
import sys
from argparse import Namespace
from pathlib import Path

from ...diffusion.faults import BadValue
from .. import methods


def _out(folder):
    """--out, unless it is a file."""
    if Path(folder).exists() and not Path(folder).is_dir():
        raise BadValue("out must be a folder, and {folder} is a file. Choose another --out.", folder=folder)
    return folder


def demo(args: Namespace) -> int:
    """`fewstep demo`."""
    _check_alone("demo")
    from .demo import COLUMNS
    from .demo import demo as run

    asked = {"kind": args.teacher, "device": args.device, "seed": args.seed}
    result = run(_out(args.out), method=args.method, quality=args.quality, **asked)
    heads = {
        "rmse": "RMSE to teacher",
        "distance_teacher": "distance to teacher",
        "distance_data": "to data",
        "diversity": "diversity",
    }
    print(f"\n{'':14}" + "".join(f"{head:>21}" for head in heads.values()))
    for name in COLUMNS:
        row = result["columns"][name]
        print(f"{name:14}" + "".join(f"{row[key]:21.4f}" for key in heads))
    print(
        f"{result['seconds']:.0f} s. "
        f"Written to {args.out}: demo.png, curves.png, lora.safetensors, metrics.json"
    )
    return 0


def fit(args: Namespace) -> int:
    """`fewstep fit`."""
    return _in_ranks(_fit, args)


def _fit(args, ranks):
    from .demo_fit import fit as run
    from .demo_fit import recipe_file

    found = run(
        _out(args.out),
        kind=args.teacher,
        steps=args.steps,
        calls=args.calls or (),
        trajectories=args.trajectories,
        reference_steps=args.reference_steps,
        denoise=args.denoise,
        cfg=args.cfg,
        effort=args.effort,
        seconds=args.seconds,
        seed=args.seed,
        device=args.device,
        ranks=ranks,
        shared=args.shared,
    )
    if not ranks.leads:
        return 0
    names = ", ".join(recipe_file(Path(), found, count).name for count in found.counts)
    print(f"\n{found.report()}\nWritten to {args.out}: {names}, report.txt, report.png, samples.png")
    return 0


def distil(args: Namespace) -> int:
    """`fewstep distil` and `fewstep reflow`."""
    return _in_ranks(_distil, args)


def _check_alone(command):
    """Refuse several processes for a command that is made by one."""
    from ..ranks.joining import several

    if several():
        raise BadValue(
            "{command} must be run by one process. Leave torchrun out; those that several can share are fit, "
            "distil, reflow and resume.",
            command=command,
        )


def _in_ranks(command, args):
    """The command as one of several processes: started here, by --processes, or by torchrun before."""
    from ..ranks import joining
    from . import launch

    if args.processes not in (None, 1):
        return launch.launch(args.processes)

    def say(text):
        print(f"fewstep {args.command}: {text}", file=sys.stderr, flush=True)

    with joining.joined(say=say) as ranks:
        ranks.check_same({"command": args.command})
        return command(args, ranks)


def _distil(args, ranks):
    from ..models.demo.net import KINDS
    from ..run.config import length_of
    from . import headless
    from .spec import Spec, read_config
    from .start_from import StartFrom

    settings = {"method": args.usual_method}
    if args.config:
        settings |= read_config(args.config)
    if args.quality:
        settings |= length_of(args.quality)
    settings |= dict(_setting(text) for text in args.set)
    settings |= _given(args, "method", "seed", "optimizer", "lora_precision")
    if methods.restores(settings["method"]) and not settings.get("process"):
        raise BadValue(
            "process must be given for the method restoration, got none. Write process = [{{kind = "
            '"blur"}}] into the --config file, or --set \'process=[{{"kind": "blur"}}]\'.',
        )
    given = [f"--{name}" for name in _given(args, "prompts", "negative", "size", "dtype")]
    if args.model in KINDS and given:
        raise BadValue(
            "{given} must be left out for the packaged teacher {model}, which has its own; they are for a "
            "diffusers folder. Leave them out, or give --model FOLDER.",
            given=given,
            model=args.model,
        )
    if args.memory is not None and not 1e-3 <= args.memory < 1e9:
        raise BadValue(
            "memory must be a number of GB from 0.001 up, got {got:g}. Leave it out for what is free.",
            got=args.memory,
        )
    if args.start_partly and args.start_from is None:
        raise BadValue("--start-partly must go with --start-from FILE, got no file. Add it.")
    memory = args.memory and int(args.memory * 1e9)
    out = _out(args.out)
    spec = Spec(model=args.model, **_of_pipeline(args), device=args.device)
    start = None if args.start_from is None else StartFrom.of(args.start_from, args.start_partly)
    how = {"start": start, "ranks": ranks, "shared": args.shared, "shard_base": args.shard_base}
    work = functools.partial(headless.distil, out, spec, settings, memory, below=args.runs, **how)
    return _shown(work, out, ranks)


def _of_pipeline(args):
    """The options that only a diffusers folder has, as a `Spec` names them."""
    from ..formats.prompts import from_file

    found = _given(args, "negative", "dtype")
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


def resume(args: Namespace) -> int:
    """`fewstep resume`."""
    return _in_ranks(_resume, args)


def _resume(args, ranks):
    from . import headless

    several = {"ranks": ranks, "shared": args.shared, "shard_base": args.shard_base}
    return _shown(functools.partial(headless.resume, args.folder, **several), args.folder, ranks)


def _shown(work, out, ranks):
    """Run with a progress bar; say what came of it. Rank 0 does, for all."""
    from tqdm import tqdm

    from ..run.interrupts import ended_in_order
    from .headless import SPEC

    # no bar before there is work
    bar = tqdm(dynamic_ncols=True, file=sys.stderr, delay=1e-3, disable=not ranks.leads)

    def placed(folder):
        nonlocal out
        out = folder

    def show(run, progress):
        bar.total, bar.n, bar.desc = progress.total, progress.step, progress.stage
        if progress.loss is not None and run.probe.fidelity:
            bar.set_postfix_str(
                f"loss {progress.loss:.4f}, distance to teacher {run.probe.fidelity[-1][1]:.3f}"
                + _several(ranks),
                refresh=False,
            )
        bar.update(0)

    try:
        with bar, ended_in_order():
            run = work(show=show, placed=placed)
    except KeyboardInterrupt:
        if not (Path(out) / SPEC).exists():
            raise
        raise KeyboardInterrupt(f"To go on: fewstep resume {shlex.quote(str(out))}") from None
    if ranks.leads:
        _report(run, out)
    return 0


def _several(ranks):
    """How the processes stand, where there are several."""
    from ..run.machine import gib

    taken = [row["memory"] for row in ranks.table() if row.get("memory")]
    return f", {ranks.world} processes, {gib(sum(taken))}" if taken else ""


def _report(run, out):
    """Say what came of a run."""
    from ..run.probe import ALIKE, NONE

    fidelity, skipped = run.probe.fidelity, run.learners.skipped
    now = f"{run.probe.best.fidelity:.4f} now" if run.probe.best else "not measured since"
    left_out = f", {skipped} left out as not finite" if skipped else ""
    print(
        f"{run.done} updates{left_out}; distance to the teacher {fidelity[0][1]:.4f} before, {now} "
        f"({run.config.steps} steps){_faces(run.probe.told())}. "
        f"Written to {out}: lora.safetensors, curves.png"
    )
    start = "the LoRA that it began with" if run.student.warmed else "the untrained model"
    if run.probe.outcome == NONE:
        goal = "the whole pictures" if run.config.restores else "the teacher"
        print(f"The LoRA is no nearer to {goal} than {start}. Lower lr, or train longer.")
    elif run.probe.outcome == ALIKE:
        print(
            f"By the distribution of its pictures the LoRA can't be told apart from {start}. Train longer, "
            "or judge by the pictures."
        )


def _faces(told):
    """The other faces of what is kept, with their intervals; "" where they are not known."""
    names = {"distance": "of distributions", "diversity": "diversity"}
    known = {name: told[key] for key, name in names.items() if key in told}
    return "".join(f", {name} {v:.3f} ({low:.3f} to {high:.3f})" for name, (v, low, high) in known.items())


def _given(args, *names):
    """{name: value} of those arguments that were given."""
    return {name: value for name in names if (value := getattr(args, name)) is not None}


def _setting(text):
    """("name", value) of "name=value", the value as JSON where it is some, text otherwise."""
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


def export(args: Namespace) -> int:
    """`fewstep export`."""
    _check_alone("export")
    from . import export as exporting

    count = exporting.export(args.lora, args.out, args.to, args.family)
    print(f"{count} layers written to {args.out} for {args.to}")
    return 0
