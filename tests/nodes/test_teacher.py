"""In the real ComfyUI: whatever node changes a MODEL, training asks for what a sampler gets from it, or
learns it through a guider, or refuses it by name. None differs in silence.
"""

import asyncio
import functools

import pytest
import torch
import torch._dynamo
import zoo
from graph import cfg_guider, core, off, pack, sampled

pytestmark = pytest.mark.comfy
SLOW = pytest.mark.slow
FAMILIES = (*(pytest.param(name, marks=SLOW) for name in ("sd15", "sdxl")), "sd3", "flux_dev", "wan21")
CFG, STEPS = 3.0, 3
SAME = 1e-3  # of two ends of a path, as a share of the host's
EQUAL, BAKED, REFUSED = "equal", "baked in through a guider", "refused by name"


@pytest.fixture(scope="module")
def core_nodes(host):
    """{name: function of a MODEL} of every node of the core that makes a MODEL of one, whose other inputs
    have defaults.
    """
    asyncio.run(host.init_extra_nodes(init_custom_nodes=False, init_api_nodes=False))
    found = {}
    for name, kind in sorted(host.NODE_CLASS_MAPPINGS.items()):
        inputs = kind.INPUT_TYPES().get("required", {})
        models = [key for key, of in inputs.items() if of[0] == "MODEL"]
        others = {key: default(*of) for key, of in inputs.items() if of[0] != "MODEL"}
        is_core = "custom_nodes" not in getattr(kind, "RELATIVE_PYTHON_MODULE", "")
        if (
            is_core
            and len(models) == 1
            and tuple(kind.RETURN_TYPES) == ("MODEL",)
            and None not in others.values()
        ):
            found[name] = functools.partial(executed, kind, models[0], others)
    return found


def default(kind, options=()):
    """What the frontend would have in an input; None where something must be wired."""
    choices = kind if isinstance(kind, list) else dict(options).get("options")
    return dict(options).get("default", choices[0] if choices else None)


def executed(kind, key, others, model, **changes):
    """The MODEL that a node makes of one, as the host executes it."""
    with torch.inference_mode():
        function = kind.execute if hasattr(kind, "define_schema") else getattr(kind(), kind.FUNCTION)
        made = function(**{key: model, **others, **changes})
        return getattr(made, "result", made)[0]


class Case:
    """A family's model, prompts and noise, and what comes of a change."""

    def __init__(self, host, family, latent=None):
        self.host, self.family, self.model = host, family, zoo.load(family)
        self.positive, self.negative = zoo.conditioning(family), zoo.conditioning(family, 1)
        self.noise = zoo.latent(family)[..., :4, :4] if latent is None else latent
        sampling, grids = (
            self.model.get_model_object("model_sampling"),
            pack(host, "diffusion.schedules.grids"),
        )
        levels = pack(host, "nodes.comfy.levels")
        path, sigma_of = levels.path_of(sampling), levels.sigma_of(sampling)
        self.grid = lambda of: grids.grid("uniform", STEPS, of.sigma_of, of.path)
        self.sigmas = grids.grid("uniform", STEPS, sigma_of, path)

    def host_end(self, guider, sigmas):
        return sampled(guider, self.noise, core("euler"), sigmas.float())

    def end(self, ask, of, sigmas):
        """Euler's path by what training would ask."""
        samplers, start = (
            pack(self.host, "diffusion.samplers"),
            pack(self.host, "training.trajectories.noises").start,
        )
        for_sampler = pack(self.host, "training.models.denoiser").for_sampler
        x = start(self.noise, sigmas, of.path, of.noise_scale)
        number = torch.zeros(len(x), dtype=torch.long)
        for state in samplers.sample(for_sampler(ask, number, dtype=torch.float64), x, sigmas, of.path):
            x = state.x
        return x

    def outcome(self, model, positive=None):
        """(what comes of it, difference, words): by the proof, and by paths of both sides."""
        positive = positive or self.positive
        denoiser = pack(self.host, "training.models.denoiser")
        guider_teacher = pack(self.host, "nodes.comfy.guider_teacher")
        proof, remedy = (
            pack(self.host, "nodes.comfy.teacher_proof"),
            pack(self.host, "nodes.training").TAKE_OFF,
        )
        levels = pack(self.host, "nodes.comfy.levels")
        sampling = model.get_model_object("model_sampling")
        try:
            levels.path_of(sampling)
        except ValueError as error:
            return REFUSED, None, str(error)
        sigmas = pack(self.host, "diffusion.schedules.grids").grid(
            "uniform", STEPS, levels.sigma_of(sampling), levels.path_of(sampling)
        )
        guider = cfg_guider(model, positive, self.negative, CFG)
        try:
            want = self.host_end(guider, sigmas)
        except Exception as error:
            return "not sampled by the host", None, f"{type(error).__name__}: {error}"
        words, with_session = "", pack(self.host, "nodes.comfy.session").training_session
        with with_session(model) as patcher, torch.no_grad():
            kind = pack(self.host, "nodes.comfy.denoiser").ComfyDenoiser
            plain = kind(patcher, positive, self.negative, self.noise)
            try:
                way = proof.proven(plain, patcher, positive, self.negative, CFG, sigmas, remedy)
            except ValueError as error:
                words = str(error)
            else:
                ours = self.end(denoiser.Guided(way, CFG), plain, sigmas)
                return EQUAL, off(ours, want) / off(want, 0 * want), type(way).__name__
            ours = self.end(denoiser.Guided(plain, CFG), plain, sigmas)
        difference = off(ours, want) / off(want, 0 * want)
        teacher, drawn = guider_teacher.Teacher(guider, self.noise.shape[1:]), []
        teacher.run(lambda: drawn.append(self.end(teacher, teacher, sigmas)), sigmas)
        baked = off(drawn[0], want) / off(want, 0 * want) < SAME
        return (BAKED if baked else REFUSED), difference, words


@pytest.mark.parametrize("family", FAMILIES)
def test_no_node_changes_the_teacher_in_silence(host, core_nodes, family):
    case, table = Case(host, family), []
    fingerprint = pack(host, "nodes.comfy.fingerprints").patches_of
    for name, node in core_nodes.items():
        try:
            model = node(case.model)
        except Exception as error:
            table.append((name, "not made by the node", None, f"{type(error).__name__}: {error}"))
            continue
        if model is case.model or fingerprint(model, model.model_options) == "":
            table.append((name, "no trace", 0.0, ""))
            continue
        with torch._dynamo.config.patch(disable=True):  # compiling changes nothing but the time
            table.append((name, *case.outcome(model)))
    print(f"\n{family}: {len(table)} nodes")
    for name, outcome, difference, words in table:
        print(f"  {name:30} {outcome:26} {'' if difference is None else f'{difference:.1e}':8} {words[:110]}")
    assert len(table) > 40
    silent = [row for row in table if row[1] == EQUAL and not row[2] < SAME]
    unnamed = [row for row in table if row[1] in (BAKED, REFUSED) and not named(row)]
    assert not silent and not unnamed
    assert sum(row[1] == BAKED for row in table) >= 8


def named(row):
    """Whether a refusal says what is why: a node, a key or a type, and what to do."""
    words = row[3]
    return ("because of " in words and words.endswith("Take it off.")) or "this one's type is" in words


def hooked(case):
    """The prompt with a LoRA hook, which changes the model for it alone."""
    import comfy.hooks

    key = "final_layer.linear.weight"
    weight = case.model.model.diffusion_model.state_dict()[key]
    hooks = comfy.hooks.create_hook_lora({f"diffusion_model.{key[:-7]}.diff": weight.clone()}, 1.0, 0.0)
    with torch.inference_mode():
        return comfy.hooks.set_hooks_for_conditioning(case.positive, hooks=hooks)


BITING = {  # nodes whose defaults do nothing to so small a model
    "SkipLayerGuidanceSD3": ("sd3", {"layers": "0", "start_percent": 0.0, "end_percent": 1.0}),
    "SkipLayerGuidanceDiTSimple": ("sd3", {"double_layers": "0", "single_layers": ""}),
    "SkipLayerGuidanceDiT": ("flux_dev", {"double_layers": "0", "start_percent": 0.0, "end_percent": 1.0}),
    "ContextWindowsManual": ("wan21", {"context_length": 2, "context_overlap": 1, "dim": 2}),
}


@pytest.mark.parametrize("name", BITING)
def test_what_bites_is_named_and_baked_in(host, core_nodes, name):
    family, changes = BITING[name]
    latent = zoo.latent(family)[..., :4, :4]
    case = Case(host, family, latent.repeat(1, 1, 5, 1, 1) if family == "wan21" else latent)
    outcome, difference, words = case.outcome(core_nodes[name](case.model, **changes))
    print(name, outcome, f"{difference:.2f}", words)
    assert outcome == BAKED and difference > 3 * SAME and named((0, 0, 0, words))


def test_a_hook_on_a_prompt_is_named_and_baked_in(host, core_nodes):
    case = Case(host, "sd3")
    outcome, difference, words = case.outcome(case.model, hooked(case))
    assert outcome == BAKED and difference > 0.01 and "because of positive: hooks" in words


def controlled(case):
    """(positive, negative) with a ControlNet of the model's own sizes, whose weights are drawn."""
    import comfy.cldm.cldm
    import comfy.controlnet
    import comfy.ops

    sizes = {**case.model.model.model_config.unet_config, "hint_channels": 3, "dtype": torch.float32}
    del sizes["out_channels"]
    network = comfy.cldm.cldm.ControlNet(**sizes, operations=comfy.ops.disable_weight_init)
    g = torch.Generator().manual_seed(0)
    weights = {key: 0.1 * torch.randn(w.shape, generator=g) for key, w in network.state_dict().items()}
    network.load_state_dict(weights)
    picture = torch.rand(1, 32, 32, 3, generator=g)
    apply = case.host.NODE_CLASS_MAPPINGS["ControlNetApplyAdvanced"]().apply_controlnet
    with torch.inference_mode():
        control = comfy.controlnet.ControlNet(network)
        return apply(case.positive, case.negative, control, picture, 1.0, 0.0, 1.0)


def test_a_controlnet_is_named_and_baked_in(host, core_nodes):
    case = Case(host, "sd15")
    positive, case.negative = controlled(case)
    outcome, difference, words = case.outcome(case.model, positive)
    assert outcome == BAKED and difference > 0.01 and "because of positive and negative: control" in words


def test_deep_shrink_is_right_on_samples_of_mixed_levels(host, core_nodes):
    """Its patch takes the first sample's level for all: asked one level a call, it equals the host."""
    case = Case(host, "sd15", zoo.latent("sd15"))
    shrunk = core_nodes["PatchModelAddDownscale"](case.model, block_number=1)
    outcome, difference, words = case.outcome(shrunk)
    assert outcome == EQUAL and difference < SAME and words == "ByLevel"
    plain = case.host_end(cfg_guider(case.model, case.positive, case.negative, CFG), case.sigmas)
    assert (
        off(case.host_end(cfg_guider(shrunk, case.positive, case.negative, CFG), case.sigmas), plain) > 0.01
    )


def settled(case, model):
    """A guider of that model as a teacher, asked as it can be."""
    teacher = pack(case.host, "nodes.comfy.guider_teacher").Teacher(
        cfg_guider(model, case.positive, case.negative, CFG), case.noise.shape[1:]
    )
    with torch.inference_mode():
        return pack(case.host, "nodes.comfy.guider_proof").settle(teacher, case.sigmas)


def test_a_guider_is_asked_as_it_can_be(host, core_nodes):
    """Momentum remembers: each path in a sampling run of its own. A deviation over the batch: one a call."""
    case = Case(host, "sd3")
    plain, momentum = settled(case, case.model), core_nodes["APG"](case.model, momentum=0.7)
    assert plain.rows == 8 and plain.each_path is None
    over_all = case.model.clone()
    over_all.set_model_sampler_post_cfg_function(lambda args: args["denoised"] / args["denoised"].std())
    assert settled(case, over_all).rows == 1 and settled(case, over_all).each_path is None
    assert settled(case, momentum).each_path is not None


def test_a_guider_that_remembers_draws_what_a_sampler_draws(host, core_nodes, tmp_path):
    case = Case(host, "sd3")
    momentum = core_nodes["APG"](case.model, momentum=0.7)
    teacher, caches = settled(case, momentum), pack(host, "training.trajectories.cache")
    spec = caches.CacheSpec(
        **teacher.identity,
        conditions=1,
        path=teacher.path.name,
        shape=teacher.shape,
        sigmas=tuple(case.sigmas.tolist()),
        kept=(0, STEPS),
        order=1,
        corrector=False,
        shard=1,
    )
    cache = caches.TrajectoryCache(tmp_path, spec)
    with torch.inference_mode():
        teacher.draw(lambda: list(cache.build(teacher, 2)), case.sigmas)
    states = cache.read(2)[0]
    guider = cfg_guider(momentum, case.positive, case.negative, CFG)
    for number, noise in enumerate(cache.noise(2).split(1)):
        case.noise = noise
        assert off(states[number : number + 1, -1], case.host_end(guider, case.sigmas)) < SAME
