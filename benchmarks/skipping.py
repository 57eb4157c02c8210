"""Rivals of a fitted solver that leave out model calls: the host's caching nodes and a forecast, at as many
real calls, for `solvers.py`.

    images, name, calls = skipping.best(task, calls, pairs)

Each samples with more steps than there are calls, and with the best pairs of the host's at that number. What
is tried is judged on a few noises, the best of it run on all: the best in hindsight, as with the pairs.

EasyCache, LazyCache   the host's nodes, the threshold by bisection: the lowest that leaves out enough.
                       LazyCache works on predictions, EasyCache on the network, of which exact denoisers
                       have none
forecast               chosen steps are real, in the others the prediction is the parabola in flow time
                       through the last three (the kind of Spectrum and TaylorSeer nodes)
"""

import math

import core
import torch
from fewstep.training.models.demo.teacher import label_vector

JUDGED, FINALISTS, PAIRS = 8, 3, 3
MORE = (1.25, 1.5, 2.0)  # steps for each call
BISECTIONS, HIGHEST = 6, 3.0  # of a threshold, and the largest that the nodes take


def best(task, calls, pairs):
    """(images, name, real calls) of the best rival within so many calls; (None, None, None) where there is
    none.

    pairs: (sampler, scheduler) names, of one call a step.
    """
    model, budget = core.model(task.type), calls // task.cost
    tried = []
    for sampler, scheduler in pairs[:PAIRS]:
        for steps in sorted({math.ceil(more * budget) for more in MORE} - {budget}):
            levels = core.sigmas(model, sampler, scheduler, steps)
            if not core.descends(levels):
                continue
            for kind, settings in (*FORECASTS.items(), *caches(task).items()):
                run = settings(task, model, sampler, levels, budget)
                if run is None:
                    continue
                name = f"{kind}, {len(levels) - 1} steps, {sampler} + {scheduler}"
                images, used = run(JUDGED)
                if used <= calls:
                    tried.append((float(task.errors(images).square().mean()), name, run))
    finals = []
    for _, name, run in sorted(tried, key=lambda one: one[0])[:FINALISTS]:
        images, used = run(len(task.noise))
        if used <= calls:  # a cache decides by the whole batch
            finals.append((float(task.errors(images).square().mean()), images, name, used))
    return min(finals, key=lambda one: one[0])[1:] if finals else (None, None, None)


# ---- forecasts ---------------------------------------------------------------------------------


def forecast(power):
    """Real steps spread as t^power over the steps, the first and the last among them."""

    def settings(task, model, sampler, levels, budget):
        steps = len(levels) - 1
        places = (torch.linspace(0, 1, budget) ** power * (steps - 1)).round().int().unique().tolist()
        if budget < 2:
            return None
        return lambda count: _forecast(task, model, sampler, levels, set(places), count)

    return settings


FORECASTS = {"forecast, even": forecast(1.0), "forecast, early": forecast(1.5)}


def _forecast(task, model, sampler, levels, real, count):
    known, calls, asked = [], 0, 0

    def denoise(x, sigma):
        nonlocal calls, asked
        time = float(task.path.flow_time(torch.tensor(sigma, dtype=torch.float64)))
        if asked in real:
            calls += task.cost
            known.insert(0, (time, task.denoise(x, sigma)))
            x0 = known[0][1]
        else:
            x0 = extrapolated(time, known[:3])
        asked += 1
        return x0

    images, _ = core.run(model, core.sampler(sampler), levels, task.noise[:count].float(), denoise)
    return images, calls


def extrapolated(time, known):
    """The polynomial through (time, value) pairs, at that time (Lagrange)."""
    out = 0.0
    for i, (own, value) in enumerate(known):
        weight = math.prod((time - other) / (own - other) for j, (other, _) in enumerate(known) if j != i)
        out = out + weight * value
    return out


# ---- the host's nodes --------------------------------------------------------------------------


def caches(task):
    """{name: settings} of the nodes that can be used on this task."""
    found = {"LazyCache": cache("LazyCache", _on_predictions)}
    if task.cost == 2:
        found["EasyCache"] = cache("EasyCache", _on_network)
    return found


def cache(name, sampled):
    """The node with the lowest threshold that keeps within the budget on the judged noises."""

    def settings(task, model, sampler, levels, budget):
        def run(count, threshold):
            from comfy_extras import nodes_easycache

            node = getattr(nodes_easycache, f"{name}Node")
            cached = node.execute(model, threshold, 0.0, 1.0, False).result[0]
            return sampled(task, model, cached, core.sampler(sampler), levels, count)

        low, high = 0.0, HIGHEST
        if run(JUDGED, high)[1] > budget * task.cost:
            return None
        for _ in range(BISECTIONS):
            middle = math.sqrt(max(low, 1e-3) * high)
            low, high = (low, middle) if run(JUDGED, middle)[1] <= budget * task.cost else (middle, high)
        return lambda count: run(count, high)

    return settings


def _on_predictions(task, model, cached, sampler, levels, count):
    """(images, calls) with a cache over the task's own denoiser."""
    calls = 0

    def denoise(x, sigma):
        nonlocal calls
        calls += task.cost
        return task.denoise(x, sigma)

    # all the channels of the task's samples, which are not the host model's
    cached.model_options["transformer_options"]["easycache"].output_channels = None
    guider = core.pack_module("FewstepInspectSampler").probing.DenoiserGuider(cached, denoise)
    return _sampled(guider, task, sampler, levels, count), calls


def _on_network(task, model, cached, sampler, levels, count):
    """(images, calls) with a cache over the host's model of the same weights."""
    from comfy.samplers import CFGGuider

    names = [task.denoise.teacher.labels[number] for number in task.denoise.condition[:count]]
    labels = torch.stack([label_vector(name) for name in names])[:, None]
    guider = CFGGuider(cached)
    guider.set_conds([[labels, {}]], [[torch.zeros_like(labels), {}]])
    guider.set_cfg(task.denoise.cfg)
    with core.pack_module("FewstepCompare").ModelCalls(cached) as counter:
        images = _sampled(guider, task, sampler, levels, count)
        return images, counter.take(count)


def _sampled(guider, task, sampler, levels, count):
    noise = task.noise[:count].float()
    into = guider.model_patcher.model.process_latent_in
    with torch.no_grad():
        return into(guider.sample(noise, torch.zeros_like(noise), sampler, levels, disable_pbar=True, seed=0))
