"""What the tests of nodes in process share: loading, running and finding the pack's nodes. Imported by name."""

import sys

import torch


def load(host, kind, label="cat"):
    return run(host, "FewstepLoadDemoTeacher", teacher=kind, label=label)


def pack(host, name):
    """A module of the pack as ComfyUI loaded it."""
    return sys.modules[host.NODE_CLASS_MAPPINGS["FewstepFit"].__module__.removesuffix("nodes.fit") + name]


def run(host, node_id, **inputs):
    """Execute a V3 node as the host does, with its hidden inputs empty and inference mode on."""
    node = host.NODE_CLASS_MAPPINGS[node_id]
    node.hidden = type("Hidden", (), dict.fromkeys(("unique_id", "prompt", "extra_pnginfo")))
    with torch.inference_mode():
        return node.execute(**inputs).result
