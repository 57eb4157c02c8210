"""What "Make this model few-step" should have read from a graph, and whether it did: rules of `one_click.py`.

They see the API graph before the click and after it, what was asked and what was said, and derive from the
first by themselves what an artist would accept: they know nothing of the pack's scripts.

    expect(graph)               -> Expected: build, ask or refuse, and why
    verdict(before, after, seen) -> (verdict, why)
"""

import dataclasses
import itertools
import re

from api_graph import UNREAD, ApiGraph, End

DISTIL = "FewstepDistil"
RIGHT, ASKED, REFUSED, WRONG = "right", "asked rightly", "refused rightly", "wrong"
FEW_STEPS, LOW_CFG, MANY_STEPS = 8, 1.5, 12
ACCELERATOR = re.compile(
    r"lightning|lightx2v|hyper[-_]?(sd|flux)|\blcm|turbo|dmd|distill|causvid|fastwan|pusa|_lcm"
    r"|\d[-_ ]?steps?\b|self[-_]?forcing|causal[-_]?forcing|flash",
    re.IGNORECASE,
)
FEW_STEP_MODEL = re.compile(
    r"turbo|schnell|lightning|lightx2v|distill|\blcm|dmd|causal[-_]?forcing|hidream_i1_fast|sdxs"
    r"|flux-?2-klein-\db(?!-base)|flux-?2-klein-(?!base)",
    re.IGNORECASE,
)
# nodes of the host that change guidance in a way a trained model can't hold
GUIDES = re.compile(
    r"CFGNorm|CFGZeroStar|CFGOverride|RescaleCFG|SkipLayerGuidance|VideoLinearCFG|VideoTriangleCFG"
    r"|^APG$|Mahiro|LatentApplyOperationCFG|^TCFG$|EpsilonScaling|TemporalScoreRescaling|FreSca"
    r"|PerturbedAttention|SelfAttentionGuidance|DynamicThresholding|RenormCFG|PerpNeg$|LTXVApplySTG"
    r"|NAGuidance|EasyCache|LazyCache|FluxKVCache|TeaCache|WanAnimate2Cache|FewstepLoadLora"
)
FIXES = re.compile(
    r"ControlNetApply|ControlNetInpainting|ConditioningSetArea|ConditioningSetMask|SetTimestepRange|GLIGEN"
)
PLAIN = {"CONDITIONING", "CLIP", "STRING", "BOOLEAN", "COMBO", None}
NUMBERS = {"INT", "FLOAT"}
MEDIA = {"IMAGE", "VIDEO", "AUDIO", "VOXEL", "MESH", "SPLAT", "MASK", "VIDEO_FRAMES", "LATENT_AUDIO"}
FAMILIES = [
    (r"flux-?_?2|flux2", "Flux 2"),
    (r"chroma", "Chroma"),
    (r"krea", "Krea"),
    (r"flux|kontext", "Flux"),
    (r"qwen|firered", "Qwen-Image"),
    (r"z[-_]?image", "Z-Image"),
    (r"hidream", "HiDream"),
    (r"lumina|netayume|newbie", "Lumina"),
    (r"anima(?!te)", "Anima"),
    (r"sd3|stable-diffusion-3", "SD3.5"),
    (r"sd_?xl", "SDXL"),
    (r"sd1|v1-5|sd15|dreamshaper|512-inpaint|majicmix|absolute", "SD1.5"),
    (r"wan|bernini|scail|infinite|humo|chrono|void", "Wan"),
    (r"ltx", "LTX"),
    (r"hunyuan_?3d|hunyuan3d|tripo", "3D"),
    (r"hunyuan|capybara", "Hunyuan Video"),
    (r"kandinsky", "Kandinsky"),
    (r"ace_step|stable[-_]audio|music", "audio"),
    (r"sam3|sdpose|rtdetr|lotus|moge", "maps"),
    (r"seedvr|\bpid", "upscaler"),
]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampler:
    """A node that samples, and the one that guides it (itself, or its guider)."""

    node: str
    guide: str

    def __str__(self):
        return self.node


@dataclasses.dataclass(frozen=True, kw_only=True)
class Expected:
    """kind: "build", "ask", "refuse" or "either" (build or ask); samplers: those that may be meant."""

    kind: str
    why: str
    samplers: tuple[Sampler, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Seen:
    """What the page showed: texts of questions and of notices, and milliseconds to the built group."""

    asked: tuple[str, ...] = ()
    told: tuple[str, ...] = ()
    built: float | None = None


def family_of(graph: ApiGraph, name: str) -> str:
    """The model's family, by the files that its sampler's loaders name, else by the template's name."""
    files = " ".join(model_files(graph, sampler) for sampler in samplers(graph))
    for text in (files, name):
        for pattern, family in FAMILIES:
            if re.search(pattern, text, re.IGNORECASE):
                return family
    return "other"


# ---- the samplers of a graph -----------------------------------------------------------------------


def samplers(graph: ApiGraph) -> list[Sampler]:
    """Every node that samples: with a model and a prompt of its own, or with a guider."""
    found = []
    for i in graph.nodes:
        if graph.kind(i).startswith("Fewstep"):
            continue
        outputs = graph.outputs(i)
        if graph.inputs_of(i, "GUIDER") and "LATENT" in outputs:
            guide = graph.origin(i, graph.inputs_of(i, "GUIDER")[0])
            found.append(Sampler(node=i, guide=guide[0]))
        elif (
            graph.inputs_of(i, "MODEL")
            and graph.inputs_of(i, "CONDITIONING")
            and ("LATENT" in outputs or "IMAGE" in outputs)
            and "MODEL" not in outputs
            and "CONDITIONING" not in outputs
        ):
            found.append(Sampler(node=i, guide=i))
    return found


def meant(graph: ApiGraph) -> list[Sampler]:
    """Those that a shown picture needs; all, where none is shown."""
    every = samplers(graph)
    return [one for one in every if graph.is_shown(one.node)] or every


def model_chain(graph: ApiGraph, sampler: Sampler) -> list[End]:
    """The model's ends from the sampler's input up to its loader."""
    names = [n for n in graph.inputs_of(sampler.guide, "MODEL") if n != "model_negative"]
    return _chain_from(graph, graph.origin(sampler.guide, names[0]) if names else None)


def _chain_from(graph: ApiGraph, end: End | None) -> list[End]:
    chain = []
    while end and end not in chain:
        chain.append(end)
        names = graph.inputs_of(end[0], "MODEL")
        end = graph.origin(end[0], names[0]) if names else None
    return chain


def model_files(graph: ApiGraph, sampler: Sampler) -> str:
    """Names of the files that the loader of a sampler's model shows."""
    chain = model_chain(graph, sampler)
    values = graph.nodes[chain[-1][0]]["inputs"].values() if chain else ()
    return " ".join(v for v in values if isinstance(v, str))


def conditioning(graph: ApiGraph, sampler: Sampler) -> tuple[End | None, End | None]:
    """(positive, negative) as they arrive."""
    names = graph.inputs_of(sampler.guide, "CONDITIONING")
    positive = next((n for n in ("positive", "conditioning", "cond1") if n in names), None)
    ends = [graph.origin(sampler.guide, n) if n in names else None for n in (positive, "negative")]
    return ends[0], ends[1]


def latent(graph: ApiGraph, sampler: Sampler) -> End | None:
    """What the sampler begins with."""
    names = graph.inputs_of(sampler.node, "LATENT")
    return graph.origin(sampler.node, names[0]) if names else None


def cfg_of(graph: ApiGraph, sampler: Sampler) -> float | None:
    """Its guidance; None where it can't be read or is of another kind."""
    if "cfg" in graph.nodes[sampler.guide]["inputs"]:
        value = graph.value(sampler.guide, "cfg")
        return None if value is UNREAD else float(value)
    inputs = graph.nodes[sampler.guide]["inputs"]
    return None if any("cfg" in name for name in inputs) else 1.0


def steps_of(graph: ApiGraph, sampler: Sampler) -> int | None:
    """How many steps it takes; None where it can't be read."""
    nodes = [sampler.node, *graph.above([sampler.node], "SIGMAS")]
    for i in nodes:
        inputs = graph.nodes[i]["inputs"]
        if "steps" in inputs:
            value = graph.value(i, "steps")
            return None if value is UNREAD else int(value)
        if graph.kind(i) == "ManualSigmas":
            text = graph.value(i, "sigmas")
            return None if text is UNREAD else max(1, len(re.findall(r"\d*\.?\d+", text)) - 1)
    return None


def becomes(graph: ApiGraph, sampler: Sampler) -> set[str]:
    """Types of what the sampler's latent is made into."""
    met, types = [sampler.node], set()
    for i in met:
        for slot, to, _ in graph.goals(i):
            if graph.output_type(i, slot) != "LATENT":
                continue
            outputs = graph.outputs(to)
            types |= set(outputs) - {"LATENT", "CONDITIONING", "INT", "FLOAT", "NOISE", "SIGMAS", "MODEL"}
            if "LATENT" in outputs and to not in met:
                met.append(to)
    if not types and "IMAGE" in graph.outputs(sampler.node):
        return {"IMAGE"}
    return types


def texts(graph: ApiGraph, end: End | None) -> set[str]:
    """The prompts that a conditioning comes from, as far as they can be read."""
    found = set()
    for i in graph.above([end[0]] if end else [], "CONDITIONING"):
        if not graph.inputs_of(i, "CLIP"):
            continue
        for name in graph.nodes[i]["inputs"]:
            value = graph.value(i, name)
            if graph.input_type(i, name) in ("STRING", None) and isinstance(value, str) and value.strip():
                found |= {part.strip() for part in re.split(r"\n---\n?", value) if part.strip()}
    return found


def carried(graph: ApiGraph, end: End | None) -> set[tuple]:
    """What a conditioning carries beside its text: class, values and sources of each node on its way."""
    found = set()
    for i in graph.above([end[0]] if end else [], "CONDITIONING"):
        inputs = graph.nodes[i]["inputs"]
        others = [n for n in graph.wired(i) if graph.input_type(i, n) not in PLAIN | NUMBERS]
        sources = {(n, graph.origin(i, n)) for n in others}
        numbers = {
            (n, graph.value(i, n))
            for n in inputs
            if graph.input_type(i, n) in NUMBERS and graph.value(i, n) is not UNREAD
        }
        if sources or (numbers and not graph.inputs_of(i, "CLIP")):
            found.add((graph.kind(i), frozenset(sources | numbers)))
    return found


def stages(graph: ApiGraph, sampler: Sampler) -> list[Sampler]:
    """The samplers of other models that share one way from noise to picture with this one."""
    found = []
    own = model_chain(graph, sampler)[-1:]
    for other in samplers(graph):
        if other == sampler or model_chain(graph, other)[-1:] == own:
            continue
        for first, second in ((sampler, other), (other, sampler)):
            end = latent(graph, second)
            if end and end[0] == first.node and _goes_on(graph, second):
                found.append(other)
    return found


def _goes_on(graph: ApiGraph, second: Sampler) -> bool:
    inputs = graph.nodes[second.node]["inputs"]
    split = any(graph.kind(i).startswith("SplitSigmas") for i in graph.above([second.node], "SIGMAS"))
    return (
        split or inputs.get("add_noise") == "disable" or (graph.value(second.node, "start_at_step") or 0) != 0
    )


# ---- what should be done ---------------------------------------------------------------------------


def few_step(graph: ApiGraph, sampler: Sampler) -> str | None:
    """Why a sampler's model is few-step already, or None."""
    for i, _ in model_chain(graph, sampler):
        inputs = graph.nodes[i]["inputs"]
        strength = [graph.value(i, n) for n in ("strength_model", "strength") if n in inputs]
        if graph.kind(i) == "FewstepLoadLora":
            return "few-step LoRA of the pack"
        name = str(inputs.get("lora_name", ""))
        if inputs.get("lora_name") and ACCELERATOR.search(name) and strength[:1] != [0]:
            return f"accelerator {name}"
    steps, cfg = steps_of(graph, sampler), cfg_of(graph, sampler)
    if steps is not None and steps <= FEW_STEPS and cfg is not None and cfg <= LOW_CFG:
        return f"{steps} steps at CFG {cfg:g}"
    if FEW_STEP_MODEL.search(model_files(graph, sampler)):
        return "name"
    return None


def expect(graph: ApiGraph) -> Expected:
    """What the click should do."""
    found = meant(graph)
    if not found:
        return Expected(kind="refuse", why="no node samples")
    able, refusals = [], []
    for sampler in found:
        reason = _refusal(graph, sampler)
        (refusals.append(reason) if reason else able.append(sampler))
    if not able:
        return Expected(kind="refuse", why="; ".join(sorted(set(refusals))))
    fast = {sampler: few_step(graph, sampler) for sampler in able}
    slow = [sampler for sampler in able if not fast[sampler]]
    if not slow:
        weak = all(why == "name" and (steps_of(graph, one) or 0) > MANY_STEPS for one, why in fast.items())
        whys = "; ".join(sorted(set(fast.values())))
        return Expected(
            kind="either" if weak else "ask", why=f"few-step already: {whys}", samplers=tuple(able)
        )
    if all(stages(graph, sampler) for sampler in slow):
        return Expected(kind="ask", why="two stages", samplers=tuple(able))
    return Expected(kind="either" if len(slow) < len(able) else "build", why="", samplers=tuple(able))


def _refusal(graph: ApiGraph, sampler: Sampler) -> str | None:
    media = becomes(graph, sampler)
    if media and not media <= {"IMAGE", "VIDEO"}:
        return "becomes " + ", ".join(sorted(media))
    positive, negative = conditioning(graph, sampler)
    ways = graph.above([end[0] for end in (positive, negative) if end], "CONDITIONING")
    if fixed := [graph.kind(i) for i in ways if FIXES.search(graph.kind(i))]:
        return f"steered by {fixed[0]}"
    if all(not graph.wired(i) for i in ways):
        return "no prompt reaches it"
    return None


# ---- what was done ---------------------------------------------------------------------------------


def verdict(before: ApiGraph, after: ApiGraph, seen: Seen) -> tuple[str, str]:
    """(verdict, why) of a click. Where it was asked and gone on with, what was built counts too."""
    expected = expect(before)
    new = [i for i in after.nodes if i not in before.nodes]
    distils = [i for i in new if after.kind(i) == DISTIL]
    if changed := _changed(before, after):
        return WRONG, f"changed the user's own {changed}"
    if not distils:
        if new:
            return WRONG, "built, but what trains does not run"
        return _without(expected, seen)
    if expected.kind == "refuse":
        return WRONG, f"built although {expected.why}"
    if expected.kind == "ask" and not seen.asked:
        return WRONG, f"not asked: {expected.why}"
    # a subgraph that stands in the graph twice has them twice
    pairs = itertools.product(distils, expected.samplers)
    best = min((_faults(before, after, distil, sampler, seen) for distil, sampler in pairs), key=len)
    if best:
        return WRONG, "; ".join(best)
    return (ASKED, expected.why or seen.asked[0]) if seen.asked else (RIGHT, "")


def _without(expected: Expected, seen: Seen) -> tuple[str, str]:
    said = " | ".join((*seen.asked, *seen.told))
    if not said:
        return WRONG, "nothing happened"
    if expected.kind == "refuse":
        return REFUSED, f"{expected.why}: {said}"
    return WRONG, f"refused: {said}"


def _changed(before: ApiGraph, after: ApiGraph) -> str | None:
    for i, node in before.nodes.items():
        if i not in after.nodes or after.nodes[i]["inputs"] != node["inputs"]:
            return f"{before.title(i)} ({i})"
    return None


def _faults(before: ApiGraph, after: ApiGraph, distil: str, sampler: Sampler, seen: Seen) -> list[str]:
    """What is wrong with what was built, if that sampler was meant."""
    wanted_positive, wanted_negative = conditioning(before, sampler)
    faults = _of_model(before, after, distil, sampler, seen)
    positive = after.origin(distil, "positive")
    faults += _of_prompts(after, positive, wanted_positive, "positive")
    leaked = texts(after, positive) & (texts(after, wanted_negative) - texts(after, wanted_positive))
    if leaked:
        faults.append(f"negative among the positive: {min(leaked)[:40]!r}")
    cfg = cfg_of(before, sampler)
    if wanted_negative and (cfg is None or cfg > 1):
        faults += _of_negative(after, after.origin(distil, "negative"), wanted_negative)
    given = after.value(distil, "cfg")
    guider = after.origin(distil, "guider")
    faults += _of_guider(before, after, guider, sampler) if guider else []
    if not guider and (cfg is None or given is UNREAD or abs(max(cfg, 1.0) - float(given)) > 1e-6):
        faults.append(f"cfg {given} for {cfg}")
    wanted_latent, given_latent = latent(before, sampler), after.origin(distil, "latent")
    first = [latent(before, one) for one in stages(before, sampler)]  # its size is the second's too
    if given_latent not in (wanted_latent, *first):
        faults.append(f"latent {_named(after, given_latent)}, not {_named(after, wanted_latent)}")
    if stages(before, sampler):
        faults += _of_stage(before, after, distil, sampler)
    vaes = _vaes(before, sampler)
    if vaes and after.origin(distil, "vae") not in vaes:
        faults.append(f"vae {_named(after, after.origin(distil, 'vae'))}")
    return faults


def _of_stage(before: ApiGraph, after: ApiGraph, distil: str, sampler: Sampler) -> list[str]:
    """One of two models learns its own part of the way, and the second from where the first ends."""
    begins, ends = (after.value(distil, name) for name in ("from_percent", "to_percent"))
    wanted = _ends_of(before, sampler)
    # of the model's time: the steps tell whether it is cut, where it is cut the schedule
    if ((begins > 0), (ends < 1)) != wanted or not 0 <= begins < ends <= 1:
        return [f"part {begins:g} to {ends:g} of the way, where it begins and ends inside is {wanted}"]
    first = after.origin(distil, "first_stage")
    others = {model_chain(before, one)[0] for one in stages(before, sampler)}
    return [] if not begins or first in others else ["the first of two models is not there"]


def _ends_of(graph: ApiGraph, sampler: Sampler) -> tuple[bool, bool]:
    """Whether a sampler begins, and whether it ends, inside the way from noise to picture."""
    inputs = graph.nodes[sampler.node]["inputs"]
    if "start_at_step" in inputs:
        steps = steps_of(graph, sampler) or 1
        return graph.value(sampler.node, "start_at_step") > 0, graph.value(
            sampler.node, "end_at_step"
        ) < steps
    sigmas = graph.origin(sampler.node, graph.inputs_of(sampler.node, "SIGMAS")[0])
    return sigmas[1] == 1, sigmas[1] == 0


def _of_guider(before: ApiGraph, after: ApiGraph, guider: End, sampler: Sampler) -> list[str]:
    """A guider that teaches is the sampler's own, or one of all that the sampler gets."""
    if guider[0] == sampler.guide:
        return []
    made = Sampler(node=guider[0], guide=guider[0])
    same = (
        model_chain(after, made) == model_chain(before, sampler)
        and conditioning(after, made) == conditioning(before, sampler)
        and cfg_of(after, made) == cfg_of(before, sampler)
    )
    return [] if same else ["guider of other inputs than the sampler's"]


def _named(graph: ApiGraph, end: End | None) -> str:
    return graph.title(end[0]) if end else "none"


def _of_model(before: ApiGraph, after: ApiGraph, distil: str, sampler: Sampler, seen: Seen) -> list[str]:
    chain = model_chain(before, sampler)[::-1]
    given = _chain_from(after, after.origin(distil, "model"))[::-1]
    said = " ".join(seen.told)
    faults, left = [], list(given)
    for i, slot in chain:
        if left and (left[0] == (i, slot) or _same_patch(before, i, after, left[0][0])):
            left.pop(0)
            if GUIDES.search(before.kind(i)):
                faults.append(f"{before.kind(i)} stays, which training refuses")
        elif not GUIDES.search(before.kind(i)):
            faults.append(f"{before.kind(i)} is left out")
        elif before.title(i) not in said:
            faults.append(f"{before.kind(i)} is left out in silence")
    return faults + [f"model through {after.title(i)}, which is not sampled" for i, _ in left]


def _same_patch(before: ApiGraph, i: str, after: ApiGraph, other: str) -> bool:
    """Whether a node does to a model what another does."""
    if before.kind(i) != after.kind(other) or not before.inputs_of(i, "MODEL"):
        return False
    names = set(before.nodes[i]["inputs"]) - set(before.inputs_of(i, "MODEL"))
    return all(
        before.origin(i, n) == after.origin(other, n)
        and (before.value(i, n) == after.value(other, n) or before.origin(i, n))
        for n in names
    )


def _of_prompts(after: ApiGraph, end: End | None, wanted: End | None, name: str) -> list[str]:
    missing = texts(after, wanted) - texts(after, end)
    faults = [f"{name} lacks {min(missing)[:40]!r}"] if missing else []
    kinds = {after.kind(i) for i in after.above([end[0]] if end else [], "CONDITIONING")}
    own = end and (end == wanted or "FewstepPrompts" in kinds)
    if not own and not texts(after, wanted):
        faults.append(f"{name} is another")
    lost = carried(after, wanted) - carried(after, end)
    return faults + [f"{name} lacks {kind}" for kind, _ in sorted(lost, key=str)]


def _of_negative(after: ApiGraph, end: End | None, wanted: End) -> list[str]:
    if end == wanted:
        return []
    faults = _of_prompts(after, end, wanted, "negative")
    zeroed = [
        "ConditioningZeroOut" in {after.kind(i) for i in after.above([e[0]] if e else [], "CONDITIONING")}
        for e in (end, wanted)
    ]
    if zeroed[0] != zeroed[1]:
        faults.append("negative: zeroed or not")
    if end and after.kind(end[0]) == "FewstepPrompts" and not texts(after, wanted):
        if "mine" in str(after.value(end[0], "source")) or "my pictures" in str(
            after.value(end[0], "source")
        ):
            faults.append("negative: of the pictures, where the graph's is empty")
    return faults


def _vaes(graph: ApiGraph, sampler: Sampler) -> set[End]:
    """The VAEs of the nodes that decode what the sampler makes."""
    met, found = [sampler.node], set()
    for i in met:
        for slot, to, _ in graph.goals(i):
            if graph.output_type(i, slot) != "LATENT":
                continue
            if "LATENT" in graph.outputs(to) and to not in met:
                met.append(to)
            elif "IMAGE" in graph.outputs(to):
                found |= {graph.origin(to, name) for name in graph.inputs_of(to, "VAE")}
    return found
