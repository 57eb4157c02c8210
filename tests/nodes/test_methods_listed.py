"""A method that is registered is a choice of the nodes, without another edit."""

import dataclasses

import pytest
from graph import pack

pytestmark = pytest.mark.comfy


def choices(host, node="FewstepDistil"):
    """The methods that a node offers."""
    schema = host.NODE_CLASS_MAPPINGS[node].define_schema()
    return next(i.options for i in schema.inputs if i.id == "method")


def test_a_registered_method_is_a_choice_and_a_restorer_is_none(host):
    methods = pack(host, "training.methods")
    known = methods.names()
    assert choices(host) == ["auto", *known] and "restoration" not in known
    methods.register(dataclasses.replace(methods.get("reflow"), name="toy", title="toy"))
    try:
        assert choices(host) == ["auto", *known, "toy"]
        assert choices(host, "FewstepTrainOnPairs") == ["rectified-diffusion", "reflow", "toy"]
    finally:
        del pack(host, "training.methods.registry").METHODS["toy"]
    assert choices(host) == ["auto", *known]
