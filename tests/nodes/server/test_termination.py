"""In a real ComfyUI server: whoever ends the process while a run is under way loses nothing of it."""

import json
import os
import signal

import pytest
from comfy_server import Server, link_pack

pytestmark = pytest.mark.comfy


@pytest.mark.skipif(os.name != "posix", reason="Windows ends processes without asking")
def test_a_sigterm_saves_state_and_lora_and_then_ends_the_process(tmp_path, comfyui_folder, workflow):
    link_pack(tmp_path)
    server = Server(tmp_path, comfyui_folder)
    try:
        change = dict(n3__updates=5000, n3__batch=1, n3__name="ended", n3__quality="quick")
        server.queue(workflow("distil_in_one_click", **change))
        done = server.wait(
            lambda: [run["done"] for run in server.get("/fewstep/runs")["runs"] if run["done"]], 200
        )
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(60) == -signal.SIGTERM
    finally:
        server.process.kill()
        server.log.close()
    (folder,) = (tmp_path / "user" / "fewstep" / "runs").iterdir()
    status = json.loads((folder / "status.json").read_text())
    assert status["state"] == "paused" and status["done"] >= done[0]
    assert (folder / "state.safetensors").exists()
    assert len(list((tmp_path / "models" / "loras").glob("ended_*.safetensors"))) == 1
