"""In the real ComfyUI: which MODELs have a path of ours."""

import pytest
from graph import pack

pytestmark = pytest.mark.comfy


def sampling_of(host, kind):
    import comfy.model_base

    config = pack(host, "nodes.demo_teacher").EmojiConfig({})
    return comfy.model_base.model_sampling(config, getattr(comfy.model_base.ModelType, kind))


@pytest.mark.parametrize("kind", ["IMG_TO_IMG", "STABLE_CASCADE", "IMG_TO_IMG_FLOW"])
def test_an_unsupported_model_is_refused_by_its_type(host, kind):
    sampling = sampling_of(host, kind)
    with pytest.raises(
        ValueError, match="model must be an epsilon, v-prediction, EDM or flow model; this one's type is "
    ):
        pack(host, "nodes.comfy.levels").path_of(sampling)


@pytest.mark.parametrize(
    "kind, path, prediction",
    [
        ("EPS", "variance exploding", "epsilon"),
        ("EDM", "variance exploding", "edm"),
        ("FLUX", "flow", "velocity"),
        ("FLOW_COSMOS", "variance exploding", "velocity"),  # flow, sampled with sigma = t / (1 - t)
        ("V_PREDICTION_DDPM", "variance exploding", "v"),
    ],
)
def test_a_path_is_told_by_how_noise_is_mixed_in(host, kind, path, prediction):
    levels, sampling = pack(host, "nodes.comfy.levels"), sampling_of(host, kind)
    assert (levels.path_of(sampling).name, levels.prediction_of(sampling)) == (path, prediction)


def test_a_model_that_mixes_noise_in_its_own_way_is_refused(host):
    import comfy.model_sampling

    class Other(comfy.model_sampling.ModelSamplingDiscrete, comfy.model_sampling.EPS):
        def noise_scaling(self, sigma, noise, latent_image, max_denoise=False):
            return (1 - sigma**2) ** 0.5 * latent_image + sigma * noise

    with pytest.raises(ValueError, match="model must be an epsilon"):
        pack(host, "nodes.comfy.levels").path_of(Other())
