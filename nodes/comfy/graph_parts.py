"""What the host samples a graph with, and every part of it that can be left out alone."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import comfy.sampler_helpers
import comfy.samplers
import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP, add_wrapper_with_key

from .denoiser import clone, differentiable_attention
from .guider_teacher import Inside

ATTENTION = "optimized_attention_override"
OWN = "fewstep"  # key of the wrapper here


@dataclasses.dataclass(frozen=True, kw_only=True)
class Graph:
    """A patcher's options, wrappers and callbacks, and prompts: those of `positive` one by one."""

    options: dict
    wrappers: dict
    callbacks: dict
    positive: list
    negative: list
    cfg: float

    @property
    def is_patched(self) -> bool:
        """Whether something in it could look at the noise level."""
        inner = {**self.options["transformer_options"], ATTENTION: None, "wrappers": None}
        others = [key for key in self.options if key != "transformer_options"]
        return bool(others or self.wrappers or any(inner.values()))


def graph_of(patcher: ModelPatcher, positive: list, negative: list, cfg: float) -> Graph:
    """What a sampler would have of a loaded model. Attention is computed as in training unless the graph
    chooses a backend, and sampling leaves the weights where they are.
    """
    options = dict(patcher.model_options)
    inner = {ATTENTION: differentiable_attention, **options.get("transformer_options", {})}
    inner["wrappers"] = {kind: dict(of) for kind, of in inner.get("wrappers", {}).items()}
    options["transformer_options"] = inner
    add_wrapper_with_key(WrappersMP.PREPARE_SAMPLING, OWN, _as_loaded, options, True)
    return Graph(
        options=options,
        wrappers=patcher.wrappers,
        callbacks=patcher.callbacks,
        positive=clone(positive),
        negative=clone(negative),
        cfg=cfg,
    )


def _as_loaded(executor: Any, model: Any, shape: list, conds: dict, *args: Any, **kwargs: Any) -> Any:
    """The host's `prepare_sampling` where nothing but the model itself is to be loaded."""
    others, _ = comfy.sampler_helpers.get_additional_models(conds, model.model_dtype())
    if others or model.get_nested_additional_models():
        return executor(model, shape, conds, *args, **kwargs)
    return model.model, conds, []


def inside(
    patcher: ModelPatcher,
    graph: Graph,
    number: int,
    latent: torch.Tensor,
    mask: torch.Tensor | None,
    sigmas: torch.Tensor,
    work: Callable[[Callable], None],
) -> None:
    """Call work(ask) where a sampler would run along `sigmas` with that prompt; ask(x, sigma (n,)) -> x0, on
    the model's device. latent: what would be sampled on, in the shape of x; mask: of its parts to be painted.
    """
    before = patcher.wrappers, patcher.callbacks
    patcher.wrappers, patcher.callbacks = graph.wrappers, graph.callbacks
    try:
        guider = comfy.samplers.CFGGuider(patcher)
        guider.set_conds([graph.positive[number]], graph.negative)
        guider.set_cfg(graph.cfg)
        guider.model_options = graph.options
        sampler, levels = Inside(work), sigmas.float()
        guider.sample(torch.zeros_like(latent), latent, sampler, levels, mask, disable_pbar=True, seed=0)
    finally:
        patcher.wrappers, patcher.callbacks = before


def parts_of(graph: Graph, number: int) -> Iterator[tuple[str, Graph]]:
    """(name, the graph without it) of all that can be left out, of the entries those of that prompt."""
    for name, options in _without(graph.options, 3):
        yield name, dataclasses.replace(graph, options=options)
    for field in ("wrappers", "callbacks"):
        for name, kept in _without(getattr(graph, field), 2):
            yield name, dataclasses.replace(graph, **{field: kept})
    if len(graph.negative) > 1:
        yield (
            f"negative: {len(graph.negative)} combined",
            dataclasses.replace(graph, negative=graph.negative[:1]),
        )
    both = [("positive", [number]), ("negative", range(len(graph.negative)))]
    for field, which in both:
        entries = getattr(graph, field)
        for i in which:
            for key in entries[i][1]:
                yield f"{field}: {key}", dataclasses.replace(graph, **{field: _lacking(entries, [i], key)})
    # a ControlNet on both: without it on one of them guidance is farther off than with it
    for key in graph.positive[number][1]:
        if any(key in options for _, options in graph.negative):
            kept = {field: _lacking(getattr(graph, field), which, key) for field, which in both}
            yield f"positive and negative: {key}", dataclasses.replace(graph, **kept)


def _lacking(entries: list, which: Sequence[int], key: str) -> list:
    """Conditioning of which those entries are without that key."""
    return [
        [cross, {k: v for k, v in options.items() if k != key}] if i in which else [cross, options]
        for i, (cross, options) in enumerate(entries)
    ]


def _without(value: dict, depth: int) -> Iterator[tuple[str, dict]]:
    """(name, the dict without it) of every leaf of nested dicts and lists, down to that depth, and of all
    leaves that one node put there.
    """
    makers: dict[str, list[tuple]] = {}
    for path, part in _leaves(value, depth):
        where = " ".join(str(key) for key in path if isinstance(key, str) and key != "transformer_options")
        maker = _maker(part)
        makers.setdefault(maker, []).append(path)
        yield f"{maker} ({where})" if maker else where, _removed(value, {path})
    for maker, paths in makers.items():
        if maker and len(paths) > 1:
            yield maker, _removed(value, set(paths))


def _leaves(value: Any, depth: int, path: tuple = ()) -> Iterator[tuple[tuple, Any]]:
    """(keys that lead to it, what is there)."""
    for key, part in list(value.items() if isinstance(value, dict) else enumerate(value)):
        if key == OWN or part is None or part is differentiable_attention:
            continue
        if depth and isinstance(part, (dict, list)):
            yield from _leaves(part, depth - 1, (*path, key))
        else:
            yield (*path, key), part


def _removed(value: Any, paths: set[tuple], here: tuple = ()) -> Any:
    """Nested dicts and lists without what those keys lead to."""
    if not any(path[: len(here)] == here for path in paths):
        return value
    pairs = value.items() if isinstance(value, dict) else enumerate(value)
    kept = [(k, _removed(v, paths, (*here, k))) for k, v in pairs if (*here, k) not in paths]
    return dict(kept) if isinstance(value, dict) else [part for _, part in kept]


def _maker(part: Any) -> str:
    """The node or function that put a part there; "" for plain values."""
    function = part[0] if isinstance(part, list) and part else part
    if isinstance(function, (bool, int, float, str, dict, list, torch.Tensor)):
        return ""
    name = getattr(function, "__qualname__", None) or type(function).__qualname__
    return name.split(".<locals>")[0].removesuffix(".execute").removesuffix(".patch")
