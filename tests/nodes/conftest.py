"""The real host for the tests marked `comfy`: in process (`host`), and as a server over HTTP (`server`)."""

import asyncio
import shutil
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # for what the tests of this folder share,
sys.path.insert(0, str(Path(__file__).parent.parent))  # and those of others too

from comfy_server import Server, link_pack, workflow


@pytest.fixture(scope="session")
def host(tmp_path_factory, comfyui_folder):
    """ComfyUI's `nodes` module in this process, on the CPU, with the pack loaded by its own
    `load_custom_node`.
    """
    sys.path.insert(0, str(comfyui_folder))
    import comfy.cli_args

    comfy.cli_args.args.cpu = True
    import folder_paths

    import nodes

    base = tmp_path_factory.mktemp("comfy")
    loras = base / "models" / "loras"
    loras.mkdir(parents=True)
    folder_paths.set_user_directory(str(base / "user"))  # trajectory caches
    folder_paths.folder_names_and_paths["loras"] = ([str(loras)], {".safetensors"})
    assert asyncio.run(nodes.load_custom_node(str(link_pack(base))))
    return nodes


@pytest.fixture(scope="session")
def server(tmp_path_factory, comfyui_folder):
    base = tmp_path_factory.mktemp("server")
    link_pack(base)
    shutil.copy(Path(__file__).parent / "counting_pack.py", base / "custom_nodes")
    running = Server(base, comfyui_folder)
    yield running
    running.stop()


@pytest.fixture(name="workflow")
def workflow_fixture():
    return workflow


@pytest.fixture(params=["flow", "epsilon"])
def teacher(host, request):
    """What Load Demo Teacher gives for each of the teachers."""
    from graph import load

    return load(host, request.param)


@pytest.fixture
def flow(host):
    """What Load Demo Teacher gives for the flow teacher."""
    from graph import load

    return load(host, "flow")
