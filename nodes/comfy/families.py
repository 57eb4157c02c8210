"""The usual settings of a MODEL: by its family, and the shift of its training grid."""

from comfy.model_patcher import ModelPatcher

from ...training.methods.phases import usual_shift
from ...training.models.families import Family, usual
from .levels import path_of, sigma_of


def family(model: ModelPatcher) -> Family:
    """The settings of a MODEL's family (`training.models.families`)."""
    return usual(*(kind.__name__ for kind in type(model.model.model_config).__mro__))


def shift(model: ModelPatcher) -> float:
    """The usual shift of a MODEL's training grid."""
    sampling = model.get_model_object("model_sampling")
    return usual_shift(path_of(sampling), sigma_of(sampling))
