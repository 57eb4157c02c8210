"""Over HTTP, on a real ComfyUI server: both example workflows, and cancelling a run."""

import asyncio
import time

import pytest

aiohttp = pytest.importorskip("aiohttp")     # ComfyUI brings it
pytestmark = pytest.mark.comfy


def images(server, entry):
    """Paths of the images that a finished prompt saved."""
    return [server.base / i["type"] / i["filename"] for out in entry["outputs"].values() for i in out.get("images", [])]


def loras(server, pattern="*.safetensors"):
    return sorted((server.base / "models" / "loras").glob(pattern))


def test_the_pack_and_its_templates_are_served(server):
    ours = {name for name in server.get("/object_info") if name.startswith("Fewstep")}
    assert ours == {f"Fewstep{n}" for n in ("LoadDemoTeacher", "Schedule", "Sampler", "ConsistencySampler", "Distil", "LoadLora")}
    assert "IMPORT FAILED" not in server.text()
    assert len(server.get("/workflow_templates")["fewstep"]) == 2


def test_sample_in_4_steps(server, workflow):
    entry = server.result(server.queue(workflow("sample_in_4_steps")))
    assert entry["status"]["status_str"] == "success", entry["status"]
    paths = images(server, entry)
    assert len(paths) == 4 and all(p.stat().st_size > 500 for p in paths)


@pytest.mark.parametrize("kind", ["flow", "epsilon"])
def test_distil_in_one_click(server, workflow, kind):
    name = f"click-{kind}"
    prompt = workflow("distil_in_one_click", n1__teacher=kind, n3__updates=20, n3__batch=8, n3__name=name)
    entry = server.result(server.queue(prompt))
    assert entry["status"]["status_str"] == "success", entry["status"]
    assert len(images(server, entry)) == 5      # the preview and four pictures
    assert len(loras(server, f"{name}_*.safetensors")) == 1
    server.post("/free", {"unload_models": True, "free_memory": True})
    again = workflow("sample_in_4_steps", n1__teacher=kind, n2__model=["9", 0], n5__model=["9", 0], n5__cfg=1.0)
    again["9"] = {"class_type": "LoraLoaderModelOnly",
                  "inputs": {"model": ["1", 0], "lora_name": loras(server, f"{name}_*")[0].name, "strength_model": 1.0}}
    entry = server.result(server.queue(again))
    assert entry["status"]["status_str"] == "success" and len(images(server, entry)) == 4
    assert "lora key not loaded" not in server.text()


async def cancel_while_training(server, prompt, after):
    """Queue, wait until the distil node reports step `after`, interrupt; (prompt id, seconds until it stopped)."""
    base = f"http://127.0.0.1:{server.port}"
    async with aiohttp.ClientSession() as session, session.ws_connect(f"{base}/ws?clientId=test") as socket:
        async with session.post(f"{base}/prompt", json={"prompt": prompt, "client_id": "test"}) as reply:
            queued = (await reply.json())["prompt_id"]
        asked = None
        async for message in socket:
            if message.type != aiohttp.WSMsgType.TEXT:
                continue
            event = message.json()
            if event["type"] == "progress" and event["data"]["node"] == "3":
                if asked is None and event["data"]["value"] >= after:
                    asked = time.monotonic()
                    await session.post(f"{base}/interrupt", json={"prompt_id": queued})
            if event["type"] == "execution_interrupted":
                return queued, time.monotonic() - asked
            assert event["type"] not in ("execution_error", "execution_success"), event


def test_cancel_takes_effect_at_once_and_keeps_the_lora(server, workflow):
    prompt = workflow("distil_in_one_click", n3__updates=1000, n3__batch=4, n3__name="cancelled")
    queued, seconds = asyncio.run(asyncio.wait_for(cancel_while_training(server, prompt, 40), 240))
    assert seconds < 3      # steps 1 to 18 sample the teacher; one update of batch 4 takes about 0.2 s
    entry = server.result(queued, 20)
    assert entry["status"]["status_str"] == "error" and "execution_interrupted" in str(entry["status"]["messages"])
    assert len(loras(server, "cancelled_*.safetensors")) == 1 and not loras(server, ".*")
    follow = server.result(server.queue(workflow("sample_in_4_steps", n5__noise_seed=11)))
    assert follow["status"]["status_str"] == "success"


def test_bad_input_is_one_clear_error(server, workflow):
    reply = server.post("/prompt", {"prompt": workflow("sample_in_4_steps", n1__label="unicorn")})
    assert "label" in str(reply["node_errors"])
    reply = server.post("/prompt", {"prompt": workflow("sample_in_4_steps", n2__steps=0)})
    assert "steps" in str(reply["node_errors"])
    entry = server.result(server.queue(workflow("distil_in_one_click", n3__name="///")))
    message = str(entry["status"]["messages"])
    assert entry["status"]["status_str"] == "error" and "name must hold a letter or a digit" in message
