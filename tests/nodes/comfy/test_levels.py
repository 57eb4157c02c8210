"""In the real ComfyUI: which MODELs have a path of ours."""

import pytest
from graph import pack

pytestmark = pytest.mark.comfy


@pytest.mark.parametrize("kind", ["IMG_TO_IMG", "FLOW_COSMOS", "STABLE_CASCADE", "IMG_TO_IMG_FLOW"])
def test_an_unsupported_model_is_refused_by_its_type(host, kind):
    import comfy.model_base

    demo = pack(host, "nodes.demo_teacher")
    sampling = comfy.model_base.model_sampling(
        demo.EmojiConfig({}), getattr(comfy.model_base.ModelType, kind)
    )
    with pytest.raises(
        ValueError, match="model must be an epsilon, v-prediction, EDM or flow model; this one's type is "
    ):
        pack(host, "nodes.comfy.levels").path_of(sampling)
