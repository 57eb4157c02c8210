"""The panel's routes on a real server: a run as it lives, its control, and what is refused."""

import asyncio
import http.client
import json
import time
import urllib.request

import pytest

aiohttp = pytest.importorskip("aiohttp")  # ComfyUI brings it
pytestmark = pytest.mark.comfy


def request(server, method, path, body=None, **headers):
    """(status, headers, bytes) of a raw request: no client tidies the path."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    try:
        connection.request(method, path, body, {k.replace("_", "-"): v for k, v in headers.items()})
        reply = connection.getresponse()
        return reply.status, dict(reply.getheaders()), reply.read()
    finally:
        connection.close()


def runs(server, name):
    return [run for run in server.get("/fewstep/runs")["runs"] if run["name"] == name]


async def events_until(server, prompt, client, done):
    """Queue a prompt and collect the panel's events until `done(run)`, or until the prompt has ended."""
    found, base = [], f"http://127.0.0.1:{server.port}"
    async with (
        aiohttp.ClientSession() as session,
        session.ws_connect(f"{base}/ws?clientId={client}") as socket,
    ):
        await session.post(f"{base}/prompt", json={"prompt": prompt, "client_id": client})
        async for message in socket:
            if message.type != aiohttp.WSMsgType.TEXT:
                continue
            event = message.json()
            if event["type"] == "fewstep.run":
                found.append(event["data"])
                if done(event["data"]["run"]):
                    return found
            assert event["type"] != "execution_error", event


def watch(server, prompt, done, seconds=240):
    return asyncio.run(
        asyncio.wait_for(events_until(server, prompt, f"panel{time.monotonic_ns()}", done), seconds)
    )


def test_a_run_is_told_of_from_its_start_to_its_end(server, workflow):
    prompt = workflow("distil_in_one_click", n3__updates=26, n3__batch=2, n3__name="told", n3__seed=41)
    events = watch(server, prompt, lambda run: run["state"] == "finished")
    states = [event["run"]["state"] for event in events]
    last = events[-1]["run"]
    check_kept(last, server.get(f"/fewstep/runs/{last['id']}/curves")["fidelity"])
    assert states[0] == "sampling" and "running" in states and states[-1] == "finished"
    assert [u for event in events for u, _ in event["loss"]] == list(
        range(1, 27)
    )  # each point once, in order
    last, (listed,) = events[-1]["run"], runs(server, "told")
    assert last == listed == server.get(f"/fewstep/runs/{last['id']}")
    assert (
        last["model"] == "flow" and last["done"] == last["updates"] == 26 and last["lora"].startswith("told_")
    )
    assert (
        last["samples_per_second"] > 0
        and last["memory"] > 1e8
        and last["resumable"]
        and last["error"] is None
    )
    curves = server.get(f"/fewstep/runs/{last['id']}/curves")
    assert len(curves["loss"]) == 26 and curves["fidelity"][0][0] == 0 and curves["fidelity"][-1][0] == 26
    assert last["previews"][0] == 0 and last["previews"][-1] == 26
    pictures = {}
    for column in ("teacher", "before", "0", "26"):
        status, headers, pictures[column] = request(
            server, "GET", f"/fewstep/runs/{last['id']}/preview/{column}"
        )
        assert status == 200 and headers["Content-Type"] == "image/png" and pictures[column][:4] == b"\x89PNG"
    assert len(set(pictures.values())) == 4
    stored = server.get(f"/fewstep/runs/{last['id']}/prompt")
    assert stored["node"] == "3" and stored["prompt"]["3"]["inputs"] == prompt["3"]["inputs"]
    assert server.get(f"/api/fewstep/runs/{last['id']}") == listed


def test_pause_resume_stop_and_delete(server, workflow):
    prompt = workflow("distil_in_one_click", n3__updates=400, n3__batch=2, n3__name="steered", n3__seed=42)
    run = watch(server, prompt, lambda run: run["done"] >= 3)[-1]["run"]
    place = f"/fewstep/runs/{run['id']}"
    assert server.get(place)["state"] == "running"
    curves = server.get(f"{place}/curves")  # as it lives: a panel that is opened meanwhile has its history
    assert len(curves["loss"]) >= 3 and curves["fidelity"][0][0] == 0
    assert request(server, "POST", f"{place}/delete")[0] == 409
    assert request(server, "POST", f"{place}/pause")[0] == 200
    server.wait(lambda: server.get(place)["state"] == "paused", 30)
    paused = server.get(place)
    assert 3 <= paused["done"] < 400 and paused["lora"].startswith("steered_")
    assert request(server, "POST", f"{place}/pause")[0] == request(server, "POST", f"{place}/stop")[0] == 409
    stored = server.get(f"{place}/prompt")
    queued = server.post(
        "/prompt", {"prompt": stored["prompt"], "partial_execution_targets": [stored["node"]]}
    )["prompt_id"]
    server.wait(lambda: server.get(place)["done"] > paused["done"], 120)
    assert request(server, "POST", f"{place}/stop")[0] == 200
    assert server.result(queued, 60)["status"]["status_str"] == "success"
    stopped = server.get(place)
    assert (
        stopped["state"] == "stopped"
        and paused["done"] < stopped["done"] < 400
        and stopped["lora"] == paused["lora"]
    )
    check_settings(server.get(f"{place}/settings"), server.base)
    assert "Went on at update" in stopped["log"][0]["message"]
    check_names_and_copies(server, place, stopped)
    assert request(server, "POST", f"{place}/delete")[0] == 200
    assert not runs(server, "my own") and request(server, "GET", place)[0] == 404
    assert (server.base / "models" / "loras" / stopped["lora"]).exists()


def test_a_run_that_was_stopped_or_deleted_runs_when_the_same_is_queued(server, workflow):
    """The host would take the node's result of before, as nothing of the graph has changed."""
    prompt = workflow("distil_in_one_click", n3__updates=400, n3__batch=2, n3__name="anew", n3__seed=44)

    def run_past(least):
        queued = server.queue(prompt)
        server.wait(lambda: any(run["done"] > least for run in runs(server, "anew")), 120)
        (run,) = runs(server, "anew")
        assert request(server, "POST", f"/fewstep/runs/{run['id']}/stop")[0] == 200
        assert server.result(queued, 60)["status"]["status_str"] == "success"
        return runs(server, "anew")[0]

    stopped = run_past(2)
    gone_on = run_past(stopped["done"])
    assert gone_on["id"] == stopped["id"] and "Went on at update" in gone_on["log"][0]["message"]
    assert request(server, "POST", f"/fewstep/runs/{stopped['id']}/delete")[0] == 200
    assert run_past(2)["log"] == []


def check_kept(run, fidelity):
    """What is kept is the best measured after training began; what came before stands apart."""
    assert run["before"] == fidelity[0][1]
    assert run["best"] == dict(fidelity)[run["kept"]] == min(value for update, value in fidelity if update)


def check_settings(found, base):
    settings = found["settings"]
    assert settings["steps"] == 4 and settings["cfg"] > 1 and settings["rank"] > 0 and settings["lr"] > 0
    assert found["folder"].startswith(str(base))


def check_names_and_copies(server, place, run):
    assert request(server, "POST", f"{place}/rename?name=my%20own")[0] == 200
    assert server.get(place)["name"] == "my own"
    for name in ("", "%20", "x" * 201):
        assert request(server, "POST", f"{place}/rename?name={name}")[0] == 400
    status, _, body = request(server, "POST", f"{place}/export?precision=fp32")
    copy = server.base / "models" / "loras" / json.loads(body)["file"]
    half = server.base / "models" / "loras" / run["lora"]
    assert status == 200 and copy.stat().st_size > 1.8 * half.stat().st_size
    # the demo teacher's LoRA has no other keys, which is said and not guessed
    assert request(server, "POST", f"{place}/export?to=diffusers")[0] == 409
    assert request(server, "POST", f"{place}/export?to=kohya")[0] == 409


BAD = ["..", "%2e%2e", "..%2f..%2fcomfy.db", "0" * 24, "x" * 5000, "%00", "{id}", "%F0%9F%98%80"]


@pytest.mark.parametrize(
    "method, path",
    [
        *(
            ("GET", f"/fewstep/runs/{bad}{end}")
            for bad in BAD
            for end in ("", "/curves", "/settings", "/prompt", "/preview/teacher")
        ),
        *(
            ("POST", f"/fewstep/runs/{bad}/{verb}")
            for bad in BAD
            for verb in ("pause", "stop", "delete", "rename?name=x", "export")
        ),
        ("GET", "/fewstep/runs/../../comfy.db"),
        ("POST", "/fewstep/runs"),
        ("DELETE", "/fewstep/runs"),
        ("GET", "/fewstep/model"),
        ("GET", "/fewstep/model?checkpoint=../../comfy.db"),
        ("GET", "/fewstep/model?other=1"),
        ("GET", "/fewstep/model?checkpoint=a&unet=b"),
    ],
)
def test_hostile_requests_are_refused(server, method, path):
    before = server.get("/fewstep/runs")
    status, _, body = request(server, method, path)
    assert 400 <= status < 500, (status, body[:200])
    assert server.get("/fewstep/runs") == before


def test_hostile_bodies_and_origins_are_refused(server, workflow):
    watch(
        server,
        workflow("distil_in_one_click", n3__updates=1, n3__batch=1, n3__name="hostile", n3__seed=43),
        lambda run: run["state"] == "finished",
    )
    (run,) = runs(server, "hostile")
    place = f"/fewstep/runs/{run['id']}"
    assert request(server, "POST", f"{place}/delete", b"x" * 2**20)[0] == 413
    assert (
        request(server, "POST", f"{place}/delete", iter([b"x" * 1000] * 50))[0] == 413
    )  # chunked: no length is given
    assert request(server, "POST", f"{place}/delete", Origin="http://evil.example")[0] == 403
    assert request(server, "POST", f"{place}/delete", Sec_Fetch_Site="cross-site")[0] == 403
    assert request(server, "GET", f"{place}/delete")[0] in (404, 405)
    for column in (
        "..%2fstatus",
        "../status.json",
        "%2e%2e%2fstate.safetensors",
        "status",
        "99",
        "-1",
        "%C2%B2",
        "9" * 3000,
    ):
        assert 400 <= request(server, "GET", f"{place}/preview/{column}")[0] < 500
    assert runs(server, "hostile") == [run]
    with urllib.request.urlopen(f"http://127.0.0.1:{server.port}{place}") as reply:
        assert json.load(reply) == run
    assert request(server, "POST", f"{place}/delete", b"{}", Content_Type="text/plain")[0] == 200
    assert not runs(server, "hostile")
