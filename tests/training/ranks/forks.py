"""Processes that make a run together, forked from one that has imported everything: a process of its own.

Each line of its input is a scenario as JSON, {"name", "world", "folder", ...}; its answer is the list of exit
codes. What a process says goes to <folder>/said.<rank>. "line" in the place of "name": a command line, to
which each of "more" {rank: [...]} adds. "again" {...}: start all once more, asked so, when they have failed,
as `torchrun --max-restarts 1` does, by one store.
"""

import json
import os
import signal
import socket
import sys
import threading
from argparse import Namespace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parents[1]))
import conftest  # noqa: F401
import torch
import torch.distributed.fsdp
from fewstep.training.adapter.sharding import Sharded
from fewstep.training.cli import agreement
from fewstep.training.cli import main as command_line
from fewstep.training.cli.spec import Spec
from fewstep.training.formats.files import write_json, write_tensors
from fewstep.training.models.denoiser import Guided
from fewstep.training.ranks import group, watch  # noqa: F401   imported before the fork
from fewstep.training.ranks.joining import joined
from fewstep.training.ranks.led import Led
from fewstep.training.ranks.ranks import ALONE
from fewstep.training.run import probe
from fewstep.training.run.config import DistilConfig
from fewstep.training.run.fitting import FitConfig, SolverFit
from fewstep.training.run.following import Follower
from fewstep.training.run.interrupts import ended_in_order
from fewstep.training.run.job import Job
from fewstep.training.run.run import Run
from fewstep.training.trajectories import cache
from fewstep.training.trajectories.cache import CacheSpec, TrajectoryCache
from parts import ABOUT, SMALL
from tiny import Tiny

SCENARIOS = {}


def scenario(function):
    """What a process does, given its ranks and the asked."""
    SCENARIOS[function.__name__] = function
    return function


class Overflowing(Tiny):
    """Answers NaN for some samples where it is trained."""

    def __call__(self, x, sigma, condition):
        odd = (x.flatten(1)[:, 0] > 0.7) & torch.is_grad_enabled()
        return torch.where(odd[:, None, None, None], torch.nan, super().__call__(x, sigma, condition))


class Block(torch.nn.Module):
    """A piece of work of its own, for `checkpointing.blocks`."""

    def __init__(self, width, generator):
        super().__init__()
        sizes = (2 * width, width), (width, 2 * width)
        self.up, self.down = (torch.nn.Linear(*reversed(size)) for size in sizes)
        for p in self.parameters():
            p.data = torch.randn(p.shape, generator=generator) / p.shape[-1] ** 0.5

    def forward(self, x):
        return x + self.down(torch.nn.functional.silu(self.up(x)))


class Deep(Tiny):
    """The same with blocks, which can be gathered one by one."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        first, _, last = self.module
        inside = torch.nn.ModuleList(Block(24, generator) for _ in range(3))
        self.module = Layers(first, inside, last).requires_grad_(False).eval()


class Layers(torch.nn.Module):
    def __init__(self, first, inside, last):
        super().__init__()
        self.first, self.inside, self.last = first, inside, last

    def forward(self, x):
        x = self.first(x)
        for block in self.inside:
            x = block(x)
        return self.last(x)


def made(ranks, settings, denoiser=None, cache=None):
    """A run; setting `micros`: the micro-batch of each rank."""
    settings = dict(settings)
    micros = settings.pop("micros", None)
    if settings.get("method") == "restoration":
        settings["process"] = [{"kind": "blur", "width": 1.0}, {"kind": "noise"}]
    config = DistilConfig(**{**SMALL, "batch": 5, **settings})
    run = Run(denoiser or Tiny(), config, ranks=ranks, cache=cache)
    if micros:
        run.descent.micro = micros[ranks.rank]
    return run


@scenario
def methods(ranks, asked):
    """A run of each of the settings, whose adapter, losses and the like every rank writes down."""
    for name, settings in asked["runs"].items():
        settings = dict(settings)
        torch.set_default_dtype(getattr(torch, settings.pop("dtype", "float64")))
        denoiser = Overflowing() if settings.pop("overflows", False) else None
        if settings.pop("in_pieces", False):
            settings["checkpointing"], denoiser = True, Deep()
            whole = sum(p.numel() for p in denoiser.module.parameters())
            if ranks.world > 1:
                denoiser = Sharded(denoiser, ranks, "cpu")
                own = sum(p.to_local().numel() for p in denoiser.module.parameters())
                assert own <= whole * 0.6
        run = made(ranks, settings, denoiser)
        for _ in run.progress():
            pass
        for _ in ranks.all_come():
            pass
        run.close()
        ranks.meanwhile = None
        tensors = {f"adapter.{i}": p for i, p in enumerate(run.student.lora.parameters())}
        tensors |= {f"averaged.{i}": a for i, a in enumerate(run.student.averaged)}
        tensors |= {"moments": run.times.moments, "loss": torch.tensor([v for _, v in run.loss])}
        tensors |= {"state": torch.tensor([run.descent.scale, run.descent.skipped, run.done])}
        tensors |= {"data": run.source.data.condition, "held": run.probe.held.reference}
        write_tensors(f"{asked['folder']}/{name}.{ranks.world}.{ranks.rank}.safetensors", tensors, {})


@scenario
def pulls(ranks, asked):
    """An update down the divergence of Fisher, whose gradients in x by the two scores are of so many rows."""
    torch.set_default_dtype(torch.float64)
    in_pieces, wanted = asked["in_pieces"], asked["rows"][ranks.rank]
    fisher = {"method": "matching", "divergence": "fisher", "batch": asked["batch"]}
    denoiser = Sharded(Deep(), ranks, "cpu") if in_pieces else Tiny()
    run, rows = made(ranks, {**fisher, "checkpointing": in_pieces}, denoiser), []
    for _ in run.source.gather():
        pass
    pull = run.student._pulls[1.0]
    usual = pull._of
    pull._of = lambda denoiser, x, *others: (rows.append(len(x)), usual(denoiser, x, *others))[1]
    run.update("student")
    for _ in ranks.all_come():
        pass
    run.close()
    assert rows == [wanted, wanted], rows


@scenario
def job(ranks, asked):
    """A run with its state in a folder. last: pause after that update. kill: (rank, when) of a kill -9.
    fail: (rank, what is raised) at update 4. interrupt: how often Ctrl-C is pressed there. full: whose disk.
    """
    folder, last = Path(asked["folder"]), asked.get("last")
    victim, when = asked.get("kill", (None, None))
    odd, error = asked.get("fail", (None, None))
    denoiser, me = Tiny(), ranks.rank
    if victim == me and when == "sampling":
        denoiser = _dies(denoiser)
    if asked.get("nan") == me:
        denoiser = _where_trained(lambda x0: torch.nan * x0)
    if asked.get("tight") == me:
        denoiser = _where_trained(_of_one_sample)
    if victim == me and when == "writing a share":
        cache.write_shard = _killed_in(cache.write_shard)
    if asked.get("threads"):
        torch.set_num_threads(1 + me)
    if asked.get("full") == me:
        cache.write_shard = _no_space
    identity = {"patches": "", "conditioning": "three"}
    run = made(ranks, asked.get("settings", {}), denoiser, (folder / "trajectories", identity))
    try:
        keeper = Job(folder, run, ABOUT, 3, clock=lambda: run.done) if ranks.leads else Follower(run)
        with ended_in_order(), keeper as job, ranks.together():
            for _ in job.progress():
                if victim == me and when == "training" and run.done == 6:
                    _killed()
                if victim == me and when == "writing the state" and run.done == 5:
                    os.fsync = _killed
                if odd == me and run.done == 4:
                    raise {"memory": MemoryError("out of memory"), "disk": OSError(28, "No space left")}[
                        error
                    ]
                if run.done == 4:
                    for n in range(asked.get("interrupt", 0)):
                        threading.Timer(n / 20, os.kill, (os.getpid(), signal.SIGINT)).start()
                if asked.get("tell") == me and run.done == 4:
                    os.kill(os.getpid(), signal.SIGTERM)
                if asked.get("drift") == me and run.done == 4:
                    run.student.lora.parameters()[0].data[0, 0] += 1e-6
                if run.done == last:
                    raise KeyboardInterrupt
    finally:
        run.close()
    result = [*run.student.lora.parameters(), *run.student.averaged]
    write_tensors(folder / f"result.{me}", {str(i): t for i, t in enumerate(result)}, {})


def _no_space(*_):
    raise OSError(28, "No space left on device")


def _killed(*_):
    os.kill(os.getpid(), signal.SIGKILL)


def _killed_in(write):
    def writing(*args):
        os.fsync = _killed
        return write(*args)

    return writing


def _where_trained(change):
    class Changed(Tiny):
        def __call__(self, *args):
            x0 = super().__call__(*args)
            return change(x0) if torch.is_grad_enabled() else x0

    return Changed()


def _of_one_sample(x0):
    if len(x0) > 1:
        raise torch.OutOfMemoryError("CUDA out of memory")
    return x0


def _dies(denoiser):
    class Dies(Tiny):
        calls = 0

        def __call__(self, *args):
            self.calls += 1
            if self.calls == 3:
                _killed()
            return super().__call__(*args)

    return Dies()


@scenario
def trajectories(ranks, asked):
    """A cache in a folder of each rank's own, or in one of all; and how often the teacher is asked."""
    own = asked["folders"][ranks.rank]
    teacher, calls = Guided(Tiny(), 2.0), []

    class Counted:
        def __getattr__(self, name):
            return getattr(teacher, name)

        def __call__(self, x, sigma, condition):
            calls.append(len(x))
            return teacher(x, sigma, condition)

    spec = CacheSpec(
        **teacher.identity,
        conditions=teacher.conditions,
        path=teacher.path.name,
        shape=tuple(teacher.shape),
        sigmas=(1.0, 0.75, 0.5, 0.25, 0.0),
        kept=(0, 2, 4),
        shard=4,
    )
    cache = TrajectoryCache(own, spec)
    shares = list(cache.build(Counted(), asked.get("count", 26), ranks))
    states, _ = cache.read(asked.get("count", 26))
    write_tensors(f"{asked['folder']}/states.{ranks.world}.{ranks.rank}.safetensors", {"states": states}, {})
    write_json(f"{asked['folder']}/calls.{ranks.world}.{ranks.rank}.json", [len(calls), shares])


@scenario
def fit(ranks, asked):
    """A fit; rank 0 writes down the recipe."""
    config = FitConfig(steps=(2, 3), trajectories=asked["trajectories"], reference_steps=24, kept=24)
    tiny = Tiny()
    tiny.module.double()  # so that rounding, which a fit magnifies, is none of a comparison's
    run = SolverFit(Guided(tiny, 2.0), config, Path(asked["folder"]) / str(ranks.world), ranks=ranks)
    for _ in run.progress():
        pass
    assert bool(run.found) == ranks.leads
    if ranks.leads:
        write_json(f"{asked['folder']}/recipe.{ranks.world}.json", [run.recipe(n).to_json() for n in (2, 3)])


@scenario
def led(ranks, asked):
    """Rank 0 asks a teacher, whole and in parts; the others' share of the rows is `asked`'s."""
    teacher = Guided(Tiny(), 2.0)
    calls, x = [], torch.randn(7, *teacher.shape, generator=torch.Generator().manual_seed(0))
    rows = x, torch.full((7,), 0.5, dtype=torch.float64), torch.arange(7) % 3
    wanted = teacher(*rows), *teacher.apart(*rows, "uc")
    ask = teacher.denoiser.module.forward
    teacher.denoiser.module.forward = lambda seen: (calls.append(len(seen)), ask(seen))[1]
    with Led(teacher, ranks) as asker:
        if ranks.leads:
            found = asker(*rows), *asker.apart(*rows, "uc")
            assert all(torch.allclose(one, other, atol=1e-5) for one, other in zip(found, wanted))
    assert calls == [2 * len(range(ranks.rank, 7, ranks.world))] * 2


@scenario
def given(ranks, asked):
    """What processes have to agree on; `other`: what rank 1 is given instead."""
    other = asked.get("other") if ranks.rank == 1 else None
    settings = {"batch": 8, **({"lr": 0.5} if other == "settings" else {})}
    spec = Spec(model="flow", device="cpu")
    if other == "prompts":
        spec = Spec(model="flow", prompts=("a cat",))
    if other == "version":
        agreement.VERSION = "0.0.1"
    agreement.check_given(ranks, agreement.of_spec(spec, settings))
    denoiser = Tiny()
    if other == "weights":
        next(denoiser.module.parameters()).data[0, 0] += 1
        denoiser.base = "0" * 16
    if other == "encoder":
        denoiser.conditions, ask = 3, denoiser.module.forward
        denoiser.module.forward = lambda x: 1.2 * ask(x)
    agreement.check_weights(ranks, denoiser)
    agreement.check_answers(ranks, denoiser)
    folder = Path(asked["folder"]) / (str(ranks.rank) if asked.get("apart") else "one")
    folder.mkdir(exist_ok=True)
    agreement.PATIENCE = 0.5
    agreement.check_shared(ranks, folder, asked.get("shared", False))
    if asked.get("batch"):
        made(ranks, {"batch": asked["batch"]}).close()


def _child(asked, rank, port, restarts=None):
    """One process of a scenario; ends it."""
    world = asked["world"]
    if restarts is not None:
        os.environ |= {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": str(restarts)}
        asked = {**asked, **asked["again"]} if restarts else asked
    os.environ |= {
        **{name: str(rank) for name in ("RANK", "LOCAL_RANK")},
        **{name: str(world) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE")},
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    said = os.open(f"{asked['folder']}/said.{rank}", os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    os.dup2(said, 1)
    os.dup2(said, 2)

    def run(args):
        with joined() as ranks:
            SCENARIOS[asked["name"]](ranks, asked)
        return 0

    status = 1
    try:
        if "line" in asked:
            status = command_line.main([*asked["line"], *asked.get("more", {}).get(str(rank), [])])
        else:
            status = command_line._status(Namespace(command="distil", run=run))
    except SystemExit as end:
        status = end.code
    except BaseException:
        import traceback

        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _free_port():
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        return place.getsockname()[1]


def _warm():
    """What a process does for the first time takes it a second, mostly of imports: do it before the forks."""
    run = made(ALONE, {"updates": 1, "images": 1})
    for _ in run.progress():
        pass
    run.close()


def _ended(asked, port, *restarts):
    """The exit codes of its processes, once all have ended. "told": when one has, the others are told to end,
    as torchrun does.
    """
    children = []
    for rank in range(asked["world"]):
        if not (child := os.fork()):
            _child(asked, rank, port, *restarts)
        children.append(child)
    codes = {}
    while len(codes) < len(children):
        child, status = os.wait()
        codes[child] = os.waitstatus_to_exitcode(status)
        if codes[child] and asked.get("told"):
            for other in set(children) - set(codes):
                os.kill(other, signal.SIGTERM)
    return [codes[child] for child in children]


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background job ignores
    torch.set_num_threads(1)
    _warm()
    watch.BEAT = 0.2  # seconds: a test waits for less
    probe.MEASURED = 4  # measurements of a run
    for line in sys.stdin:
        asked = json.loads(line)
        port = _free_port()
        if "again" in asked:
            agent = torch.distributed.TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False)
            codes = [_ended(asked, port, restarts) for restarts in (0, 1)]
            del agent
        else:
            codes = _ended(asked, port)
        print(json.dumps(codes), flush=True)
