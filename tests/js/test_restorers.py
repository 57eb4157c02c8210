"""Which picture "Use it" takes to restore, without a browser: graphs of bare nodes."""

import pytest

from .graphs import BUILD
from .plots import node

GRAPH = (
    BUILD
    + """
import { restoringPlan } from "./js/graph/restorers.js";
import { chainTo, wiresOf } from "./js/graph/walk.js";
import { distilOf } from "./js/graph/oneclick.js";

const graph = build(data);
const loader = graph.nodes[0];
const wires = wiresOf(graph);
const end = { node: loader, slot: 0 };
const plan = { graph, wires, chain: chainTo(wires, end), end, distil: distilOf(graph, end) };
const told = (one) => one && `${one.node.id}.${one.slot}`;
try {
  const { latent, image, process, vae, positive, clip } = restoringPlan(plan, []);
  answer([latent, image, process, vae, positive, clip].map((one) => told(one) ?? null));
} catch (error) {
  answer(error.message);
}
"""
)
LOADER = ["CheckpointLoaderSimple", {}, ["MODEL", "CLIP", "VAE"]]
BARE = ["UNETLoader", {}, ["MODEL"]]
IMAGE = ["LoadImage", {}, ["IMAGE", "MASK"]]
PROCESS = ["FewstepForwardProcess", {}, ["FEWSTEP_PROCESS"]]
TEXT = ["CLIPTextEncode", {"clip": ["CLIP", "load", 1]}, ["CONDITIONING"]]


def encode(source):
    return ["VAEEncode", {"pixels": ["IMAGE", source, 0], "vae": ["VAE", "load", 2]}, ["LATENT"]]


@pytest.mark.parametrize(
    "nodes, wanted",
    [
        ({"load": LOADER}, "graph.noPicture"),
        ({"load": LOADER, "image": IMAGE}, [None, "image.0", None, "load.2", None, "load.1"]),
        ({"load": BARE, "image": IMAGE}, "graph.noVae"),
        (
            {"load": LOADER, "text": TEXT, "image": IMAGE, "encode": encode("image")},
            ["encode.0", None, None, "load.2", "text.0", None],
        ),
        (
            {
                "load": LOADER,
                "image": IMAGE,
                "encode": encode("image"),
                "mask": ["SetLatentNoiseMask", {"samples": ["LATENT", "encode", 0]}, ["LATENT"]],
            },
            ["mask.0", None, None, "load.2", None, "load.1"],
        ),
        # pictures that were learnt from are whole: they are destroyed first
        (
            {
                "load": LOADER,
                "image": IMAGE,
                "encode": encode("image"),
                "process": PROCESS,
                "distil": [
                    "FewstepDistil",
                    {
                        "model": ["MODEL", "load", 0],
                        "pictures": ["LATENT", "encode", 0],
                        "process": ["FEWSTEP_PROCESS", "process", 0],
                    },
                    ["LORA_MODEL"],
                ],
            },
            [None, "image.0", "process.0", "load.2", None, "load.1"],
        ),
        (
            {
                "load": LOADER,
                "image": IMAGE,
                "process": PROCESS,
                "corrupt": ["FewstepCorrupt", {"image": ["IMAGE", "image", 0]}, ["LATENT", "IMAGE", "IMAGE"]],
            },
            ["corrupt.0", None, None, "load.2", None, "load.1"],
        ),
        (
            {
                "load": BARE,
                "latent": ["VAEEncode", {"pixels": ["IMAGE", "image", 0]}, ["LATENT"]],
                "image": IMAGE,
            },
            "graph.noPrompts",
        ),
    ],
)
def test_what_is_restored(tmp_path, nodes, wanted):
    assert node(tmp_path, GRAPH, nodes) == wanted
