"""A MODEL's family: its usual settings, whether it can be trained, and its name in messages."""

import contextlib
from collections.abc import Iterator

import comfy.model_management
from comfy.model_patcher import ModelPatcher
from comfy.supported_models_base import BASE

from ...diffusion.faults import BadValue, Fault
from ...training.methods.phases import usual_shift
from ...training.models.families import Family, makes_otherwise, takes_zeros, usual
from ...training.models.memory_errors import is_out_of_memory
from .levels import path_of, sigma_of


def family(model: ModelPatcher) -> Family:
    """The settings of a MODEL's family (`training.models.families`)."""
    return usual(*names_of(model.model.model_config))


def zeros_mean_nothing(model: ModelPatcher) -> bool:
    """Whether a negative of zeros is what a MODEL was trained with for no prompt."""
    return takes_zeros(*names_of(model.model.model_config))


def shift(model: ModelPatcher) -> float:
    """The usual shift of a MODEL's training grid."""
    sampling = model.get_model_object("model_sampling")
    return usual_shift(path_of(sampling), sigma_of(sampling))


def check_trainable(model: ModelPatcher) -> None:
    """Raise ValueError, naming the family, for a model that makes neither pictures nor videos."""
    if what := makes_otherwise(*names_of(model.model.model_config)):
        raise BadValue(
            "model must make pictures or videos; {family} makes {what}, which Fewstep can't train.",
            family=names_of(model.model.model_config)[0],
            what=what,
        )


@contextlib.contextmanager
def named(model: ModelPatcher) -> Iterator[None]:
    """Within: an error of the model's own code is raised as a ValueError that names its family."""
    try:
        yield
    except (Fault, comfy.model_management.InterruptProcessingException):
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise BadValue(
            "model must be one that Fewstep can train with what is wired; the code of {family} gave "
            '"{error}". Wire the prompts and the latent that it is sampled with, pictures included.',
            family=names_of(model.model.model_config)[0],
            error=f"{type(error).__name__}: {error}",
        ) from error


def names_of(config: BASE) -> list[str]:
    """The class of a configuration in comfy.supported_models, and those that it inherits from."""
    return [kind.__name__ for kind in type(config).__mro__]
