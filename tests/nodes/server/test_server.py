"""Over HTTP, on a real ComfyUI server: the example workflows, cancelling a run, and files that are loaded
again.
"""

import asyncio
import json

import pytest

aiohttp = pytest.importorskip("aiohttp")  # ComfyUI brings it
pytestmark = pytest.mark.comfy


def images(server, entry):
    """Paths of the images that a finished prompt saved."""
    return [
        server.base / i["type"] / i["filename"]
        for out in entry["outputs"].values()
        for i in out.get("images", [])
    ]


def loras(server, pattern="*.safetensors"):
    return sorted((server.base / "models" / "loras").glob(pattern))


def test_the_pack_and_its_templates_are_served(server):
    ours = {name for name in server.get("/object_info") if name.startswith("Fewstep")}
    assert ours == {
        f"Fewstep{n}"
        for n in (
            "LoadDemoTeacher",
            "Schedule",
            "EditSchedule",
            "TranslateSchedule",
            "ShowSchedule",
            "DrawSchedule",
            "ForwardProcess",
            "Corrupt",
            "Restore",
            "Sampler",
            "ConsistencySampler",
            "InspectSampler",
            "Compare",
            "Fit",
            "Distil",
            "Prompts",
            "ReflowPairs",
            "LoadPairs",
            "TrainOnPairs",
            "LoadLora",
            "SaveRecipe",
            "LoadRecipe",
        )
    }
    assert "(IMPORT FAILED)" not in server.text()  # a pack: the host's own extras may lack a library
    assert len(server.get("/workflow_templates")["fewstep"]) == 4


def test_sample_in_4_steps(server, workflow):
    entry = server.result(server.queue(workflow("sample_in_4_steps")))
    assert entry["status"]["status_str"] == "success", entry["status"]
    paths = images(server, entry)
    assert len(paths) == 4 and all(p.stat().st_size > 500 for p in paths)


def pixels(paths):
    """Saved pictures as floats (N, H, W, 3)."""
    import numpy as np
    from PIL import Image

    return np.stack([np.asarray(Image.open(p).convert("RGB"), dtype=float) / 255 for p in paths])


def test_how_many_steps(server, workflow):
    entry = server.result(server.queue(workflow("how_many_steps")))
    assert entry["status"]["status_str"] == "success", entry["status"]
    compared, inspected = (entry["outputs"][n]["fewstep"][0] for n in ("3", "4"))
    assert compared["chosen"] in compared["report"] and len(compared["rows"]) == 9
    assert inspected["right"] and inspected["calls"] >= 2
    assert len(images(server, entry)) == 6 and all(p.stat().st_size > 500 for p in images(server, entry))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"n8__method": "deterministic"},
        {"n8__method": "consistency", "n8__method.fresh_noise": 0.8},
        {"n3__schedule": "phase edges", "n3__schedule.phases": 4},
    ],
    ids=str,
)
def test_every_schedule_node(server, workflow, changes):
    entry = server.result(server.queue(workflow("every_schedule_node", **changes)))
    assert entry["status"]["status_str"] == "success", entry["status"]
    drawn = entry["outputs"]["7"]["fewstep"][0]["schedules"]
    assert {len(v["sigmas"]) for v in drawn.values()} == {7, 9} and entry["outputs"]["9"]["fewstep"][0][
        "calls"
    ] == 6
    assert len(images(server, entry)) == 4


def test_image_to_image_with_a_mask_and_a_batch(server, workflow):
    """Four pictures from four noises; half of each is drawn anew from the middle of the way, the other half
    stays.
    """
    entry = server.result(server.queue(workflow("image_to_image")))
    assert entry["status"]["status_str"] == "success", entry["status"]
    before, after = (
        pixels([server.base / i["type"] / i["filename"] for i in entry["outputs"][n]["images"]])
        for n in ("13", "15")
    )
    assert (
        len(before) == 4 and min(abs(before[i] - before[j]).mean() for i in range(4) for j in range(i)) > 0.01
    )
    change = abs(after - before).mean((0, 1, 3))
    assert change[17:].max() < 0.01 < change[:14].mean()


async def cancel_while_running(server, prompt, node, after):
    """Queue, wait for that step of the node, interrupt; (prompt id, the last step that it still made)."""
    base = f"http://127.0.0.1:{server.port}"
    async with aiohttp.ClientSession() as session, session.ws_connect(f"{base}/ws?clientId=cancel") as socket:
        async with session.post(f"{base}/prompt", json={"prompt": prompt, "client_id": "cancel"}) as reply:
            queued = (await reply.json())["prompt_id"]
        asked, last = False, 0
        async for message in socket:
            if message.type != aiohttp.WSMsgType.TEXT:
                continue
            event = message.json()
            if event["type"] == "progress" and event["data"]["node"] == node:
                last = event["data"]["value"]
                if not asked and last >= after:
                    asked = True
                    await session.post(f"{base}/interrupt", json={"prompt_id": queued})
            if event["type"] == "execution_interrupted":
                return queued, last
            assert event["type"] not in ("execution_error", "execution_success"), event


def cancelled(server, prompt, node, after):
    """As above, and an end of waiting."""
    return asyncio.run(asyncio.wait_for(cancel_while_running(server, prompt, node, after), 240))


def test_cancel_in_the_middle_of_a_run(server, workflow):
    prompt = workflow("sample_in_4_steps", n2__steps=400, n4__batch_size=16, n5__noise_seed=5)
    _, last = cancelled(server, prompt, "5", 5)
    assert last < 100


def test_fit_save_and_load_draw_the_same_picture_to_the_bit(server, workflow):
    entry = server.result(server.queue(workflow("fit_a_solver")))
    assert entry["status"]["status_str"] == "success", entry["status"]
    data, saved = entry["outputs"]["3"]["fewstep"][0], entry["outputs"]["4"]["text"][0].removeprefix("Saved ")
    assert [row["steps"] for row in data["rows"]] == [2, 4] and data["chosen"] == 4
    assert all(0 < row["fitted"] < 1 for row in data["rows"])
    again = server.result(server.queue(workflow("load_a_recipe", n3__recipe_name=saved)))
    assert (
        again["status"]["status_str"] == "success"
        and "4 steps, 8 model calls, flow, cfg 2" in again["outputs"]["3"]["text"][0]
    )
    fitted, loaded = (
        pixels([server.base / i["type"] / i["filename"] for i in e["outputs"]["7"]["images"]])
        for e in (entry, again)
    )
    assert len(fitted) == 2 and (fitted == loaded).all() and fitted.std() > 0.1
    listed = server.get("/object_info/FewstepLoadRecipe")["FewstepLoadRecipe"]["input"]["optional"][
        "recipe_name"
    ]
    assert saved in str(listed)


GUIDED = [["1", 0], ["1", 2], ["1", 3]]  # model, positive, negative of the demo teacher


def advanced(graph, guider, recipe, node):
    """The graph with SamplerCustomAdvanced and what comes after, by a GUIDER and a node's SAMPLER, SIGMAS."""
    sampled = {"guider": guider, "noise": ["20", 0], "latent_image": ["2", 0]}
    sampled |= {"sampler": [recipe, 0 + (recipe == "3")], "sigmas": [recipe, 1 + (recipe == "3")]}
    return graph | {
        "20": {"class_type": "RandomNoise", "inputs": {"noise_seed": 7}},
        node: {"class_type": "SamplerCustomAdvanced", "inputs": sampled},
        "6": {"class_type": "VAEDecode", "inputs": {"samples": [node, 0], "vae": ["1", 1]}},
        "7": {"class_type": "SaveImage", "inputs": {"images": ["6", 0], "filename_prefix": "fewstep-calls"}},
    }


def test_a_budget_of_8_calls_at_cfg_4_fitted_saved_and_loaded_is_the_same_to_the_bit(server, workflow):
    # on these noises steps that ask for unlike parts are well nearer than auto; on 8 auto is handed on
    noises = {"n3__trajectories": 16, "n3__seed": 2, "n3__minutes": 5.0}
    graph = workflow("fit_a_solver", n3__cfg=4.0, n3__calls="8", **noises)
    graph = {number: graph[number] for number in "1234"}
    entry = server.result(server.queue(advanced(graph, ["3", 6], "3", "21")))
    assert entry["status"]["status_str"] == "success", entry["status"]
    (row,) = entry["outputs"]["3"]["fewstep"][0]["rows"]
    saved = entry["outputs"]["4"]["text"][0].removeprefix("Saved ")
    recipe = json.loads((server.base / "models" / "fewstep" / saved).read_text())
    letters = "".join(recipe["asks"])
    assert recipe["version"] == 4 and len(recipe["asks"]) == row["steps"] and len(set(recipe["asks"])) > 1
    assert row["count"] == 8 and row["calls"] == len(letters) <= 8
    model, positive, negative = GUIDED
    load = {"model": ["40", 0], "positive": positive, "negative": negative, "recipe_name": saved}
    graph = {number: graph[number] for number in "12"} | {
        "30": {"class_type": "FewstepLoadRecipe", "inputs": load},
        "40": {"class_type": "TestCountCalls", "inputs": {"model": model}},
        "41": {"class_type": "TestTellCalls", "inputs": {"latent": ["31", 0]}},
    }
    again = server.result(server.queue(advanced(graph, ["30", 3], "30", "31")))
    assert again["status"]["status_str"] == "success", again["status"]
    assert f"{row['calls']} model calls" in again["outputs"]["30"]["text"][0]
    samples, count = again["outputs"]["41"]["counted"]
    print(f"{letters}: {row['calls']} calls by the recipe, {samples / count:g} made of each picture")
    assert samples == row["calls"] * count
    first, second = (
        pixels([server.base / i["type"] / i["filename"] for i in e["outputs"]["7"]["images"]])
        for e in (entry, again)
    )
    assert len(first) == 2 and (first == second).all() and first.std() > 0.1


def test_cancel_of_a_fit_keeps_its_trajectories(server, workflow):
    prompt = workflow("fit_a_solver", n3__trajectories=32, n3__seed=5)
    cancelled(server, prompt, "3", 30)
    kept = [
        sorted(m.parent.glob("0*"))
        for m in (server.base / "user" / "fewstep").rglob("manifest.json")
        if json.loads(m.read_text())["spec"].get("seed") == 5
    ]
    assert [len(shards) for shards in kept] == [1]  # 30 of 100 are one shard of four, and some
    written = kept[0][0].stat().st_mtime_ns
    follow = server.result(
        server.queue(workflow("fit_a_solver", n3__trajectories=9, n3__seed=5, n3__steps="1"))
    )
    assert follow["status"]["status_str"] == "success" and kept[0][0].stat().st_mtime_ns == written
    assert len(list(kept[0][0].parent.glob("0*"))) == 2


RECIPE = {
    "version": 2,
    "method": "fitted",
    "path": "flow",
    "sigmas": [1.0, 0.5, 0.0],
    "coefficients": [[0.5, 0.5], [0.0, 1.0, 0.0]],
    "churn": 0.0,
    "cfg": 2.0,
    "shift": 1.0,
    "order": 1,
    "base": "",
    "errors": {},
    "trained": {},
}


@pytest.mark.parametrize(
    "changes, why",
    [
        ({"sigmas": [1.0, float("nan"), 0.0]}, "bad.json: The recipe must hold finite numbers, got NaN"),
        ({"sigmas": [0.5, 1.0, 0.0]}, "bad.json: recipe sigmas must descend"),
        (
            {"coefficients": [[0.5, 0.5], [0.0, float("inf")]]},
            "bad.json: The recipe must hold finite numbers, got Infinity",
        ),
        ({"version": 99}, "bad.json: The recipe must be of version 4"),
        ({"method": None, "extra": 1}, "bad.json: The recipe must"),
        (
            {"path": "variance exploding"},
            "recipe_name must be for a model on the flow path, bad.json was made for variance exploding",
        ),
    ],
    ids=str,
)
def test_a_bad_recipe_is_refused_by_its_files_name(server, workflow, changes, why):
    folder = server.base / "models" / "fewstep"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "bad.json").write_text(json.dumps({**RECIPE, **changes}))
    entry = server.result(server.queue(workflow("load_a_recipe", n3__recipe_name="bad.json")))
    assert entry["status"]["status_str"] == "error" and why in str(entry["status"]["messages"])
    (folder / "bad.json").write_text(json.dumps(RECIPE))  # the same name, and right
    entry = server.result(server.queue(workflow("load_a_recipe", n3__recipe_name="bad.json")))
    assert entry["status"]["status_str"] == "success"


def test_a_recipe_that_is_not_there_is_one_clear_error(server, workflow):
    entry = server.result(server.queue(workflow("load_a_recipe", n3__recipe_name="absent.json")))
    message = str(entry["status"]["messages"])
    assert (
        entry["status"]["status_str"] == "error"
        and "recipe_name must be a file in models/fewstep, got" in message
    )


@pytest.mark.parametrize("kind, method", [("flow", "auto"), ("epsilon", "auto"), ("flow", "phased-matching")])
def test_distil_in_one_click(server, workflow, kind, method):
    name = f"click-{kind}-{method}"
    small = {"n3__updates": 20, "n3__batch": 8, "n3__name": name, "n3__method": method}
    prompt = workflow("distil_in_one_click", n1__teacher=kind, **small)
    entry = server.result(server.queue(prompt))
    assert entry["status"]["status_str"] == "success", entry["status"]
    assert len(images(server, entry)) == 5  # the preview and four pictures
    check_stock_loader(server, workflow, kind, name)


@pytest.mark.slow
def test_distil_in_one_click_with_best(server, workflow):
    """A whole run as *best* has it; the LoRA comes nearer to the teacher than the untrained model."""
    prompt = workflow("distil_in_one_click", n3__quality="best", n3__batch=8, n3__name="best")
    entry = server.result(server.queue(prompt), 7200)  # half an hour on a busy machine
    assert entry["status"]["status_str"] == "success", entry["status"]
    run = next(run for run in server.get("/fewstep/runs")["runs"] if run["name"] == "best")
    assert run["updates"] == 1600 and run["best"] < run["before"]
    print({key: run[key] for key in ("updates", "before", "best", "seconds") if key in run})
    check_stock_loader(server, workflow, "flow", "best")


def check_stock_loader(server, workflow, kind, name):
    """The host's own loader takes every key of the one LoRA of that name, and pictures are drawn with it."""
    (lora,) = loras(server, f"{name}_*.safetensors")
    server.post("/free", {"unload_models": True, "free_memory": True})
    again = workflow(
        "sample_in_4_steps", n1__teacher=kind, n2__model=["9", 0], n5__model=["9", 0], n5__cfg=1.0
    )
    again["9"] = {
        "class_type": "LoraLoaderModelOnly",
        "inputs": {"model": ["1", 0], "lora_name": lora.name, "strength_model": 1.0},
    }
    entry = server.result(server.queue(again))
    assert entry["status"]["status_str"] == "success" and len(images(server, entry)) == 4
    assert "lora key not loaded" not in server.text()


def test_pause_run_another_workflow_and_go_on(server, workflow):
    """Cancel takes effect at once and keeps LoRA and state; the same queued again goes on from there, into
    the same file.
    """
    prompt = workflow("distil_in_one_click", n3__updates=60, n3__batch=4, n3__name="cancelled")
    queued, last = cancelled(server, prompt, "3", 40)
    assert last < 60  # of 78, of which 1 to 18 sample the teacher
    entry = server.result(queued, 20)
    assert entry["status"]["status_str"] == "error" and "execution_interrupted" in str(
        entry["status"]["messages"]
    )
    assert len(loras(server, "cancelled_*.safetensors")) == 1 and not loras(server, ".*")
    follow = server.result(server.queue(workflow("sample_in_4_steps", n5__noise_seed=11)))
    assert follow["status"]["status_str"] == "success"
    first = loras(server, "cancelled_*.safetensors")[0].read_bytes()
    entry = server.result(server.queue(prompt))
    assert entry["status"]["status_str"] == "success", entry["status"]
    assert len(images(server, entry)) == 5
    last = loras(server, "cancelled_*.safetensors")
    assert len(last) == 1 and last[0].read_bytes() != first


def test_pairs_are_drawn_trained_on_and_loaded_again(server, workflow):
    """Reflow in two stages over HTTP, and the file of pairs in a new prompt."""
    teacher = {"model": ["1", 0], "positive": ["1", 4], "negative": ["1", 3], "latent": ["2", 0]}
    prompt = {name: node for name, node in workflow("distil_in_one_click").items() if name in ("1", "2")}
    prompt["3"] = {
        "class_type": "FewstepReflowPairs",
        "inputs": {**teacher, "count": 6, "steps": 6, "cfg": 0.0, "name": "http", "seed": 0},
    }
    train = {
        **teacher,
        "method": "reflow",
        "steps": 2,
        "cfg": 0.0,
        "memory": "auto",
        "name": "http-pairs",
        "seed": 0,
        "updates": 3,
    }
    prompt["4"] = {"class_type": "FewstepTrainOnPairs", "inputs": {**train, "pairs": ["3", 0]}}
    entry = server.result(server.queue(prompt))
    assert entry["status"]["status_str"] == "success", entry["status"]
    assert len(loras(server, "http-pairs_*.safetensors")) == 1
    prompt["3"] = {"class_type": "FewstepLoadPairs", "inputs": {"file": "http_00001.pairs.safetensors"}}
    prompt["4"]["inputs"].update(name="http-loaded", pairs=["3", 0])
    entry = server.result(server.queue(prompt))
    assert entry["status"]["status_str"] == "success", entry["status"]
    prompt["1"]["inputs"]["teacher"] = "epsilon"
    prompt["4"]["inputs"]["seed"] = 1
    message = str(server.result(server.queue(prompt))["status"]["messages"])
    assert "pairs must have been drawn with this model and these prompts; their base, path differ" in message


def test_bad_input_is_one_clear_error(server, workflow):
    reply = server.post("/prompt", {"prompt": workflow("sample_in_4_steps", n1__label="unicorn")})
    assert "label" in str(reply["node_errors"])
    reply = server.post("/prompt", {"prompt": workflow("sample_in_4_steps", n2__steps=0)})
    assert "steps" in str(reply["node_errors"])
    entry = server.result(server.queue(workflow("distil_in_one_click", n3__name="///")))
    message = str(entry["status"]["messages"])
    assert entry["status"]["status_str"] == "error" and "name must hold a letter or a digit" in message
