"""What a node would do, told before it is queued: what its automatic settings stand for, memory and time.

    GET /fewstep/forecast?node=FewstepDistil&checkpoint=NAME&width=1024&height=1024&rank=0&...

    {"values": {input: number that its 0 stands for}, "lines": [what else there is to say, in words]}

Nothing is loaded for it: the network is built from the file's header, without numbers (`comfy.unloaded`),
which tells weights, LoRA and the host's own estimate of a sample exactly as the run will begin with them. How
many samples fit at once is measured when it begins; what a run before of the same family and size found is
quoted.
Time is updates x batch / samples per second of the newest run of that family and method on this machine, and
of the updates that other adapters make first, what `_time` takes them for.
"""

import math
from collections.abc import Mapping
from typing import Any

import comfy.model_management
import folder_paths
from aiohttp import web

from ..diffusion.faults import Fault, Message
from ..training import methods
from ..training.formats.files import load_lora
from ..training.models.families import usual
from ..training.run import runs
from ..training.run.config import QUALITY, DistilConfig
from ..training.run.machine import available, gib
from ..training.run.memory import CARD, CPU, beside_weights
from .comfy import folders, residency
from .comfy.unloaded import Unloaded, of_file
from .demo_teacher import EmojiConfig, build
from .pairs import USUAL_UPDATES
from .run_inputs import patterns
from .run_results import time_of
from .server import messages

management = comfy.model_management
PATH = "/fewstep/forecast"
AUTOMATIC = {  # of the settings by their names here: the inputs whose 0 stands for them
    "FewstepDistil": ("cfg", "rank", "learning_rate", "updates", "phases"),
    "FewstepTrainOnPairs": ("rank", "learning_rate", "updates", "phases"),
    "FewstepReflowPairs": ("cfg",),
}
TRAINING = ("FewstepDistil", "FewstepTrainOnPairs")


def answer(request: web.Request) -> web.Response:
    """GET /fewstep/forecast."""
    found = forecast(request.query)
    found["lines"] = [messages.told(line) for line in found["lines"]]
    return web.json_response(found, headers={"Cache-Control": "no-store"})


def forecast(asked: Mapping[str, str]) -> dict[str, Any]:
    """{"values", "lines"} for a node's widgets and what is wired to it, as texts."""
    node = asked.get("node", "")
    if node == "FewstepRestore":
        return {"values": _of_lora(asked.get("lora_name", "")), "lines": []}
    model = _model(asked)
    if model is None or node not in AUTOMATIC:
        return {"values": {}, "lines": []}
    settings = settings_of(asked, model.families)
    try:
        lines = _lines(asked, settings, model) if node in TRAINING else []
    except Fault as fault:  # a setting that is half typed
        lines = [fault.message]
    return {"values": {name: settings[name] for name in AUTOMATIC[node]}, "lines": lines}


def _model(asked: Mapping[str, str]) -> Unloaded | None:
    """The model of the file that is wired; None where none is known, or its header doesn't tell."""
    if teacher := asked.get("demo"):
        if teacher not in ("flow", "epsilon"):
            return None
        return Unloaded((EmojiConfig.__name__,), build(teacher).model)
    for kind in ("checkpoint", "unet"):
        if name := asked.get(kind):
            try:
                return of_file(kind, name)
            except LookupError:
                return None
    return None


def settings_of(asked: Mapping[str, str], families: tuple[str, ...]) -> dict[str, Any]:
    """The settings that a run would have, by the names of the node's inputs."""
    family = usual(*families)
    quality = QUALITY.get(asked.get("quality", ""), (USUAL_UPDATES, 0))
    steps = int(_number(asked, "steps") or 4)
    return {
        "cfg": _number(asked, "cfg") or family.cfg,
        "rank": int(_number(asked, "rank") or family.rank),
        "learning_rate": _number(asked, "learning_rate") or family.lr * methods.get(_method(asked)).lr_share,
        "updates": int(_number(asked, "updates") or quality[0]),
        "phases": int(_number(asked, "phases") or steps),
        "batch": int(_number(asked, "batch") or 8),
        "steps": steps,
    }


def _method(asked):
    """The method that is asked for; the usual one, to which all with no needs of their own are alike, where
    what is wired chooses.
    """
    return asked["method"] if asked.get("method") in methods.names() else DistilConfig.method


def _number(asked, name):
    """0 for what is no number of that size."""
    try:
        value = float(asked.get(name, 0))
    except ValueError:
        return 0
    return value if 0 <= value < 1e9 else 0


def _lines(asked: Mapping[str, str], settings: dict[str, Any], model: Unloaded) -> list[Message]:
    fields = {name: settings[name] for name in ("cfg", "rank", "learning_rate", "updates", "batch")}
    first = Message(
        "CFG {cfg:g}, rank {rank}, learning rate {learning_rate:g}, {updates} updates of {batch} samples",
        **fields,
    )
    shape = _shape(asked, model)
    before = runs.like(folders.of_user("runs"), model.families[0])
    time = _time(settings, shape, before, _method(asked))
    lines = [first, _memory(asked, settings, model, shape), time]
    same = next((run for run in before if list(shape or ()) == run["shape"] and run["plan"]), None)
    if same:
        fields = {"name": same["name"], "plan": Message.from_dict(same["plan"])}
        lines.insert(2, Message("{name}, of the same family and size, took {plan}", **fields))
    return [line for line in lines if line is not None]


def _shape(asked: Mapping[str, str], model: Unloaded) -> tuple[int, ...] | None:
    """(channels, [frames,] height, width) of the latent that is wired; None where that is not known."""
    sizes = [_number(asked, name) for name in ("height", "width")]
    if not all(sizes) or model.model is None:
        return None
    known = model.model.latent_format
    sizes = [int(size) // known.spacial_downscale_ratio for size in sizes]
    frames = int(_number(asked, "length"))
    if known.latent_dimensions == 3:
        sizes = [(frames or 1) // (known.temporal_downscale_ratio or 1) + 1, *sizes]
    return (known.latent_channels, *sizes)


def _memory(
    asked: Mapping[str, str], settings: dict[str, Any], model: Unloaded, shape: tuple[int, ...] | None
) -> Message | None:
    """Weights, and what the run takes beside them at least, against what may be taken."""
    if model.model is None:
        return None
    include, exclude = patterns(asked.get("layers", "*"))
    config = DistilConfig(
        method=_method(asked),
        rank=max(1, settings["rank"]),
        include=include,
        exclude=exclude,
        optimizer=asked.get("optimizer") or DistilConfig.optimizer,
    )
    weights = residency.weight_bytes(model.model)
    lower_rank = not _number(asked, "rank")
    device = management.get_torch_device()
    place = CPU if management.is_device_cpu(device) else CARD
    beside = beside_weights(model.model.diffusion_model, config, lower_rank, place)
    if shape is not None:
        beside += model.model.memory_required([1, *shape])
    sizes = {"weights": gib(weights), "beside": gib(beside)}
    if place is CPU:
        free = available(device)
        room = gib(free) if math.isfinite(free) else "?"
        return Message(
            "Memory: weights {weights} and at least {beside} for LoRA and samples, of {room} free",
            **sizes,
            room=room,
        )
    room = _room(device, asked.get("memory", ""))
    sizes["room"] = gib(max(0, room))
    if asked.get("residency") == residency.STREAMED or weights + beside > room:
        return Message(
            "Memory: weights {weights}, streamed, and at least {beside} beside them, of {room} free", **sizes
        )
    return Message(
        "Memory: weights {weights}, resident, and at least {beside} beside them, of {room} free", **sizes
    )


def _room(device: Any, memory: str) -> float:
    """Bytes that a run may take once all other models have left."""
    loaded = [m for m in management.current_loaded_models if m.device == device]
    free = management.get_free_memory(device) + sum(m.model_loaded_memory() for m in loaded)
    budget = int(memory.split()[0]) << 30 if memory[:1].isdigit() else free
    return min(free, budget) - management.extra_reserved_memory()


def _time(
    settings: dict[str, Any], shape: tuple[int, ...] | None, before: list[dict[str, Any]], method: str
) -> Message:
    """How long the updates take, at the pace of the newest of those runs that is of the method.

    An update that another adapter makes before the student's first is taken to be as dear as one of phased,
    at the newest pace of that. Where none is known it is taken to be half of one of the student's, whose pace
    has an update of the fake in it, or more.
    """
    pace = _pace(before, method, shape)
    if pace is None:
        return Message(
            "Time: told in the first minute, as no run of this family and method was made here yet"
        )
    each, name = pace
    each_first, _ = _pace(before, DistilConfig.method, shape) or (each / 2, "")
    config = DistilConfig(method=method, updates=settings["updates"])
    first = sum(role.first(config) for role in methods.get(method).roles(config))
    seconds = settings["batch"] * (settings["updates"] * each + first * each_first)
    return Message(
        "Time: training takes about {time}, at the pace of {name}", time=time_of(seconds), name=name
    )


def _pace(
    before: list[dict[str, Any]], method: str, shape: tuple[int, ...] | None
) -> tuple[float, str] | None:
    """(seconds a sample of that shape, in proportion to its size, name) of the newest run of that method."""
    for run in before:
        if run["method"] == method and run["samples_per_second"] and shape and run["shape"]:
            return math.prod(shape) / math.prod(run["shape"]) / run["samples_per_second"], run["name"]
    return None


def _of_lora(name: str) -> dict[str, int]:
    """{"steps": those that a LoRA was made for}; {} where that is not known."""
    path = folder_paths.get_full_path("loras", name)
    if path is None or not path.endswith(".safetensors"):
        return {}
    try:
        recipe = load_lora(path)[1]
    except (Fault, OSError):
        return {}
    return {"steps": len(recipe.sigmas) - 1} if recipe is not None else {}
