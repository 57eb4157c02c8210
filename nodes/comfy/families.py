"""The usual settings of a MODEL: by its family, and the shift of its training grid."""

from ...training.methods.phases import usual_shift
from ...training.models.families import usual
from . import host


def family(model):
    """The settings of a MODEL's family (`training.families`)."""
    return usual(*(c.__name__ for c in type(model.model.model_config).__mro__))


def shift(model):
    """The usual shift of a MODEL's training grid."""
    sampling = model.get_model_object("model_sampling")
    return usual_shift(host.path_of(sampling), host.sigma_of(sampling))
