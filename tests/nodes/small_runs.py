"""Runs of seconds by the nodes' own code on the tiny models of `zoo`. Imported by name."""

import torch
import zoo
from fewstep.training.run.config import DistilConfig
from graph import pack

SETTINGS = {
    "method": "phased",
    "steps": 2,
    "updates": 3,
    "batch": 2,
    "images": 2,
    "image_steps": 2,
    "rank": 2,
    "cfg": 2.0,
    "phases": 1,
}


def trained(host, family, model, name, vae=None, negative=None, **settings):
    """What `nodes.training.train` makes of an order."""
    training = pack(host, "nodes.training")
    order = training.Order(
        model=model,
        positive=zoo.conditioning(family),
        negative=negative or zoo.conditioning(family, 1),
        latent={"samples": 0 * zoo.latent(family)},
        config=DistilConfig(**{**SETTINGS, **settings}),
        memory="auto",
        name=name,
        node=None,
        vae=vae,
    )
    with torch.inference_mode():
        return training.train(order)
