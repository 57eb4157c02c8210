"""What "Use it" should do to a graph, and whether it did: rules of `one_click.py --use-it`.

A small LoRA with a recipe for the whole way stands for a finished run. As `one_click_rules.py` these rules
see the API graph before and after and what was asked and said, and know nothing of the pack's scripts.

    prepare(base)                -> writes the LoRA below that folder
    script(name, folder)         -> what the page runs
    verdict(before, after, seen) -> (verdict, why)
"""

from pathlib import Path

import torch
from api_graph import UNREAD, ApiGraph, End
from fewstep.training.formats.files import save_lora
from fewstep.training.formats.recipe import Recipe
from one_click_rules import (
    ASKED,
    GUIDES,
    REFUSED,
    RIGHT,
    WRONG,
    Sampler,
    Seen,
    becomes,
    conditioning,
    latent,
    meant,
    model_chain,
    samplers,
    stages,
)

LORA, CUT = "FewstepLoadLora", "FewstepEditSchedule"
NAME = "bench_fewstep_00001.safetensors"
# of the first and the second part of the way
FIRST, SECOND = "bench_first_00001.safetensors", "bench_second_00001.safetensors"
MODEL, SAMPLER, SIGMAS, CFG = range(4)  # outputs of the loader
STOCK = ("KSampler", "KSamplerAdvanced")
EXACT = ("WanAnimate2Cache",)  # caches that change no picture
SCRIPT = """async () => {
  const { useIt } = await import("/extensions/FOLDER/graph/useit.js");
  const { api } = await import("/scripts/api.js");
  try {
    await useIt(app, api, { lora: "NAME", method: "phased", model: "" });
  } catch (error) {
    bench.told.push(error.message);
  }
  bench.at = performance.now();
}"""


def script(name: str = NAME, folder: str = "fewstep") -> str:
    """What uses that LoRA, in the page of a server that has the pack in that folder."""
    return SCRIPT.replace("FOLDER", folder).replace("NAME", name)


def prepare(base: Path) -> None:
    """Write the LoRAs where the server lists them."""
    folder = base / "models" / "loras"
    folder.mkdir(parents=True, exist_ok=True)
    key = "diffusion_model.bench"
    tensors = {
        f"{key}.lora_up.weight": torch.zeros(4, 1),
        f"{key}.lora_down.weight": torch.zeros(1, 4),
        f"{key}.alpha": torch.ones(()),
    }
    for name, sigmas, part in (
        (NAME, (1.0, 0.9, 0.75, 0.5, 0.0), {}),
        (FIRST, (1.0, 0.8, 0.5), {"to_percent": 0.5}),
        (SECOND, (0.5, 0.25, 0.0), {"from_percent": 0.5}),
    ):
        save_lora(folder / name, tensors, Recipe(method="phased", path="flow", sigmas=sigmas, **part))


# ---- what should be done ---------------------------------------------------------------------------


def wanted(graph: ApiGraph) -> list[Sampler]:
    """The samplers that may be meant: those of pictures and video, and first passes, before others."""
    found = meant(graph)
    drawn = [one for one in found if becomes(graph, one) <= {"IMAGE", "VIDEO"}] or found
    usable = [one for one in drawn if takes_schedule(graph, one)]
    return [one for one in usable if not any(_before(graph, other, one) for other in usable)] or usable


def takes_schedule(graph: ApiGraph, sampler: Sampler) -> bool:
    """Whether a sampler can be given SAMPLER and SIGMAS."""
    inputs = graph.nodes[sampler.node]["inputs"]
    return graph.kind(sampler.node) in STOCK or {"sampler", "sigmas"} <= set(inputs)


def _before(graph: ApiGraph, first: Sampler, second: Sampler) -> bool:
    """Whether one is an earlier pass of the same model."""
    same = model_chain(graph, first)[-1:] == model_chain(graph, second)[-1:]
    start = latent(graph, second)
    return bool(first != second and same and start and first.node in graph.above([start[0]], "LATENT"))


def part(graph: ApiGraph, sampler: Sampler) -> tuple:
    """What of the way a sampler takes, by its widgets or its schedule; () for the whole."""
    i = sampler.node
    inputs = graph.nodes[i]["inputs"]
    if graph.kind(i) == "KSampler":
        return () if graph.value(i, "denoise") == 1 else ("denoise", graph.value(i, "denoise"))
    if graph.kind(i) == "KSamplerAdvanced":
        start, end, steps = (graph.value(i, name) for name in ("start_at_step", "end_at_step", "steps"))
        leaves = inputs["return_with_leftover_noise"] != "disable" and (UNREAD in (end, steps) or end < steps)
        return ("steps", start, end if leaves else None) if start != 0 or leaves else ()
    end = graph.origin(i, "sigmas")
    makers = graph.above([end[0]], "SIGMAS") if end else []
    whole = len(makers) == 1 and graph.kind(makers[0]) != "ManualSigmas"
    if whole and (
        "denoise" not in graph.nodes[makers[0]]["inputs"] or graph.value(makers[0], "denoise") == 1
    ):
        return ()
    return ("sigmas", end)


# ---- what was done ---------------------------------------------------------------------------------


def verdict(before: ApiGraph, after: ApiGraph, seen: Seen) -> tuple[str, str]:
    """(verdict, why) of a click."""
    able = wanted(before)
    loaders = [i for i in after.nodes if after.kind(i) == LORA and i not in before.nodes]
    said = " | ".join((*seen.asked, *seen.told))
    if not loaders:
        if after.nodes != before.nodes:
            return WRONG, f"changed, but loads nothing: {said}"
        if not said:
            return WRONG, "nothing happened"
        return (WRONG, f"refused: {said}") if able else (REFUSED, said)
    if len(loaders) > 1 or not able:
        return WRONG, "more than one loader" if able else "built where nothing can take it"
    staged = all(stages(before, sampler) for sampler in able)
    if staged and not seen.asked:
        return WRONG, "not asked which of two stages"
    faults = [_faults(before, after, loaders[0], sampler, seen) for sampler in able]
    best = min(faults, key=len)
    if best:
        return WRONG, "; ".join(best)
    return (ASKED, seen.asked[0]) if seen.asked else (RIGHT, "")


def _faults(before: ApiGraph, after: ApiGraph, loader: str, sampler: Sampler, seen: Seen) -> list[str]:
    """What is wrong, if that sampler was meant."""
    now = _counterpart(before, after, sampler)
    if now is None:
        return ["the sampler has no counterpart"] * 9
    if after.origin(now.guide, _model_input(after, now)) != (loader, MODEL):
        return ["the sampler's model is without the LoRA"] * 9
    faults = _of_model(before, after, loader, sampler, seen)
    if after.origin(now.node, "sampler") != (loader, SAMPLER):
        faults.append("another sampler than the recipe's")
    faults += _of_schedule(before, after, loader, sampler, now)
    cfg = "cfg" in after.nodes[now.guide]["inputs"]
    if cfg and after.origin(now.guide, "cfg") != (loader, CFG):
        faults.append("another cfg than the recipe's")
    if any("cfg" in name and name != "cfg" for name in after.nodes[now.guide]["inputs"]):
        faults.append("the guider has guidance of its own")
    wired, old = conditioning(after, now), conditioning(before, sampler)
    if wired[0] != old[0] or (wired[1] != old[1] and old[1] is not None and wired[1] is not None):
        faults.append("other prompts")
    if latent(after, now) != _moved(before, after, latent(before, sampler)):
        faults.append("another latent")
    return faults + _others(before, after, loader)


def _model_input(graph: ApiGraph, sampler: Sampler) -> str:
    return next(n for n in graph.inputs_of(sampler.guide, "MODEL") if n != "model_negative")


def _of_model(before: ApiGraph, after: ApiGraph, loader: str, sampler: Sampler, seen: Seen) -> list[str]:
    """The patches of the model, in their order, but for those that guide."""
    chain = list(reversed(model_chain(before, sampler)))
    kept = [before.kind(i) for i, _ in chain if not _goes(before.kind(i))]
    end, got = after.origin(loader, "model"), []
    while end:
        got.insert(0, after.kind(end[0]))
        names = after.inputs_of(end[0], "MODEL")
        end = after.origin(end[0], names[0]) if names else None
    faults = [] if got == kept else [f"model {got}, not {kept}"]
    silent = [
        before.kind(i)
        for i, _ in chain
        if _goes(before.kind(i)) and before.title(i) not in " ".join(seen.told)
    ]
    return faults + [f"{kind} left out in silence" for kind in silent]


def _goes(kind: str) -> bool:
    """Whether a patch is left out: it guides, or skips work so that the picture changes."""
    return bool(GUIDES.search(kind)) and kind not in EXACT


def _of_schedule(before: ApiGraph, after: ApiGraph, loader: str, sampler: Sampler, now: Sampler) -> list[str]:
    """The recipe's schedule, cut to the sampler's part of the way and no further."""
    taken, end = part(before, sampler), after.origin(now.node, "sigmas")
    if not taken:
        return [] if end == (loader, SIGMAS) else ["another schedule than the recipe's"]
    if not end or after.kind(end[0]) != CUT or after.origin(end[0], "sigmas") != (loader, SIGMAS):
        return [f"the schedule is not cut to {taken[0]}"]
    cut = after.origin(end[0], "part")
    if taken[0] == "sigmas":
        return [] if cut == taken[1] else ["the schedule is cut to another part"]
    return _of_plain_part(before, after, sampler, cut, taken)


def _of_plain_part(
    before: ApiGraph, after: ApiGraph, sampler: Sampler, cut: End | None, taken: tuple
) -> list[str]:
    """The host's own schedule for the steps, split as the plain sampler's widgets say."""
    splits = []
    while cut and after.kind(cut[0]) == "SplitSigmas":
        splits.append((cut[1], after.value(cut[0], "step")))
        cut = after.origin(cut[0], "sigmas")
    if not cut or after.kind(cut[0]) != "BasicScheduler":
        return ["the part is of no schedule"]
    same = [after.value(cut[0], n) == before.value(sampler.node, n) for n in ("scheduler", "steps")]
    if not all(same):
        return ["the part is of other steps"]
    if taken[0] == "denoise":
        return [] if after.value(cut[0], "denoise") == taken[1] and not splits else ["another denoise"]
    start, end = taken[1:]
    wanted_splits = ([(1, start)] if start != 0 else []) + ([(0, end)] if end is not None else [])
    return (
        [] if splits == wanted_splits and after.value(cut[0], "denoise") == 1 else ["the steps are cut wrong"]
    )


def _counterpart(before: ApiGraph, after: ApiGraph, sampler: Sampler) -> Sampler | None:
    """The sampler after the click that stands where this one stood."""
    found = {one.node: one for one in samplers(after)}
    if sampler.node in found:
        return found[sampler.node]
    goals = {(to, name) for _, to, name in before.goals(sampler.node)}
    for node, one in found.items():
        if node not in before.nodes and goals == {(to, name) for _, to, name in after.goals(node)}:
            return one
    return None


def _moved(before: ApiGraph, after: ApiGraph, end: End | None) -> End | None:
    """An end where it is now: of a sampler that was replaced, its counterpart's."""
    if end is None or end[0] in after.nodes:
        return end
    gone = next((one for one in samplers(before) if one.node == end[0]), None)
    now = gone and _counterpart(before, after, gone)
    return (now.node, 0) if now else None


def _others(before: ApiGraph, after: ApiGraph, loader: str) -> list[str]:
    """What else was changed: nodes gone, and inputs that were not to be."""
    faults = []
    ours = {one.node for one in samplers(after) if loader in _above(after, one)}
    guides = {one.guide for one in samplers(after) if one.node in ours}
    replaced = {
        one.node
        for one in samplers(before)
        if one.node not in after.nodes and _counterpart(before, after, one)
    }
    old_guides = {one.guide for one in samplers(before) if one.guide not in after.nodes and one.node in ours}
    for i, node in before.nodes.items():
        if i not in after.nodes:
            if i not in replaced | old_guides:
                faults.append(f"{before.title(i)} is gone")
            continue
        for name, value in node["inputs"].items():
            now = after.nodes[i]["inputs"].get(name)
            meant_here = name in ("model", "cfg", "sampler", "sigmas", "guider") and i in ours | guides
            moved = isinstance(value, list) and _moved(before, after, (value[0], value[1])) == _end(now)
            if now != value and not meant_here and not moved:
                faults.append(f"{before.title(i)}: {name} is changed")
    return faults


def _end(value: object) -> End | None:
    return (value[0], value[1]) if isinstance(value, list) and len(value) == 2 else None


def _above(graph: ApiGraph, sampler: Sampler) -> list[str]:
    return [i for i, _ in model_chain(graph, sampler)]
