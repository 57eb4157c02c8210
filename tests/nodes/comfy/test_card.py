"""In the real ComfyUI on a pretended card (`tests/nodes/card`): gradients wherever weights live and their
proof, where a session lets them live, how they arrive, and how often a run waits for the card. Each model is
a process of its own, for a card can't be taken out of one again.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.comfy
SCRIPTS = Path(__file__).parent.parent / "card"
FLOAT, HALF = "float32", "bfloat16"
QUICK = [("sd15", FLOAT, FLOAT), ("flux_dev", HALF, HALF)]
SLOW = [
    ("sd15", HALF, HALF),
    ("flux_dev", FLOAT, FLOAT),
    ("flux_dev", FLOAT, HALF),  # a file whose dtype is not the model's
    *((family, dtype, dtype) for family in ("sdxl", "sd3", "ltxv", "wan21") for dtype in (FLOAT, HALF)),
]
CASES = [*QUICK, *(pytest.param(*case, marks=pytest.mark.slow) for case in SLOW)]
PROVED = [
    ("sd15", HALF, ("60 %",)),
    *(
        pytest.param(family, dtype, (), marks=pytest.mark.slow)
        for family in ("sd15", "sdxl", "sd3", "flux_dev", "ltxv", "wan21")
        for dtype in (FLOAT, HALF, "float16")
    ),
]
SCALED, LAID_OUT = (
    ("fp8 scaled", "fp8 scaled, old"),
    ("mxfp8", "int8_tensorwise", "int8_tensorwise + convrot"),
)
PACKED = [
    (FLOAT, ("nvfp4", "fp8 file")),
    *(
        pytest.param(dtype, names, marks=pytest.mark.slow)
        for dtype in (FLOAT, HALF)
        for names in ((*SCALED, "fp8 e4m3fn"), LAID_OUT, ("convrot_w4a4", "asym_w4a8_int8"))
    ),
    pytest.param(HALF, ("nvfp4", "fp8 file"), marks=pytest.mark.slow),
    pytest.param(FLOAT, ("GGUF Q8_0", "GGUF Q4_K"), marks=pytest.mark.slow),
]
COSINE, SLOPE = 0.9999, 2e-3
COUNTED = [("sd15",), pytest.param(("sdxl", "sd3", "flux_dev", "ltxv", "wan21"), marks=pytest.mark.slow)]
# the most that may happen with weights that stay: of these the network's own are up to 2 in a forward pass
CALL = {"calls": 1, "syncs": 3, "transfers": 5}
UPDATE = {"calls": 2, "syncs": 10, "transfers": 13}  # of its student and its target; one is to the average


@pytest.fixture
def script(comfyui_folder):
    """Runs one of the scripts, and gives the JSON of each line that it prints."""

    def run(name, *arguments):
        environment = {**os.environ, "COMFYUI_PATH": str(comfyui_folder), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [sys.executable, str(SCRIPTS / name), *arguments],
            env=environment,
            capture_output=True,
            text=True,
            timeout=3600,  # half precision on a CPU takes long
        )
        assert done.returncode == 0, done.stderr[-4000:]
        return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]

    return run


@pytest.fixture(scope="module")
def table(pytestconfig):
    """Lines that are printed when all cases are done."""
    heads = f"{'slope':>10}{'1 - cosine':>12}{'norm ratio':>12}{'streamed':>10}"
    lines = ["", f"{'family, file > model':34}{'weights':>10}{'recomputed':>12}{heads}"]
    yield lines
    with pytestconfig.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print("\n".join(lines))


def line_of(name, case):
    slope = f"{case['slope']:10.4f}" if isinstance(case["slope"], float) else f"{'none':>10}"
    figures = f"{slope}{1 - case['cosine']:12.1e}{case['ratio']:12.5f}{case['streamed']:10}"
    return f"{name:34}{case['kind']:>10}{'blocks' if case['checkpointing'] else '':>12}{figures}"


def is_near(case):
    """Whether the gradient is that of resident weights."""
    return case["cosine"] >= COSINE and abs(case["ratio"] - 1) <= 1e-3


def is_right(case, dtype):
    """Whether it is so, and in float32 the loss's own."""
    if not is_near(case):
        return False
    return dtype != FLOAT or isinstance(case["slope"], float) and abs(case["slope"] - 1) <= SLOPE


@pytest.mark.parametrize("family, stored, dtype", CASES)
def test_gradients_wherever_weights_live(script, table, family, stored, dtype):
    cases = script("gradients.py", family, stored, dtype)
    for case in cases:
        table.append(line_of(f"{family}, {stored} > {dtype}", case))
    mended = [case for case in cases if case["kind"] != "unmended"]
    assert len(mended) == 16
    assert all(case["crossings"] == [] and case["adapter"] == ["cuda:0"] for case in cases)
    assert len({base for case in cases for base in case["bases"]}) == 1  # of the graph's model too
    assert [case["kind"] for case in cases if not case["streamed"]] == ["resident", "resident"]
    assert {case["kind"] for case in cases if not case["dynamic"]} == {"resident", "partial"}
    assert all(is_right(case, dtype) for case in mended)
    if stored == dtype:  # else the host casts into memory of its own each time, which nothing takes back
        assert not any(is_right(case, dtype) for case in cases if case["kind"] == "unmended")


@pytest.mark.parametrize(
    "dtype, names", PACKED, ids=lambda value: value if isinstance(value, str) else ", ".join(value)
)
def test_packed_weights_that_are_streamed_have_the_gradient_of_those_that_stay(script, table, dtype, names):
    cases = script("formats.py", dtype, *names)
    if "missing" in cases[0]:
        pytest.skip(cases[0]["missing"])
    ways = 8 if names[0].startswith("GGUF") else 10  # of GGUF no page can be taken away
    assert len(cases) == ways * len(names)
    for case in cases:
        whole = case["format"] in ("fp8 file", "fp8 e4m3fn") or case["format"].startswith("GGUF")
        right = is_near(case)
        table.append(line_of(f"{case['format']} > {dtype}", {**case, "slope": None}))
        assert case["crossings"] == []
        if case["kind"] == "resident":
            assert not case["streamed"]
        else:  # the file of "fp8 e4m3fn" is float32, and the loader was asked for fp8
            assert case["streamed"] > 10 and (case["packed"] > 3) == (case["format"] != "fp8 e4m3fn")
        if case["kind"] != "unmended":
            assert right and case["norm"] > 0, case
        elif dtype == FLOAT and not whole:  # else the host casts into memory of its own each time
            assert not right, case


@pytest.mark.parametrize("family, dtype, ways", PROVED)
def test_a_wrong_gradient_is_refused_and_a_right_one_is_not(script, pytestconfig, family, dtype, ways):
    """In the model's own precision, by the proof that every run begins with."""
    verdicts = script("faults.py", family, dtype, *ways)
    lines = ["", f"{family + ', ' + dtype:36}{'recomputed':>12}{'really off':>12}  the proof"]
    for case in verdicts:
        off = "no number" if case["off"] is None else f"{case['off']:.1e}"
        said = case["refused"] or f"{case['copies']:.3f} and {case['directions']:.3f} of what is refused"
        lines.append(
            f"{case['way']:36}{'blocks' if case.get('checkpointing') else '':>12}{off:>12}  {said[:80]}"
        )
    with pytestconfig.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print("\n".join(lines))
    # rounding makes up to 5e-3 in half precision; not every layer that finds no room is overwritten, and what
    # one layer's write over changes of Wan's gradient may be less: that fault may be refused, or pass
    least = 1e-4 if dtype == FLOAT else 1e-2
    for case in verdicts:
        cut = case["way"] == "input cut off"
        wrong = cut or case["off"] is None or case["off"] > least
        if case["way"] == "written over, unseen":
            said = case["refused"]
            assert case["off"] > 1e-3 and (said is not None or not wrong)
            assert said is None or "something writes over them" in said
            continue
        assert (case["refused"] is not None) == wrong, case
        if wrong and not cut:
            assert "weights are moved or taken away" in case["refused"]
    refused = {case["way"]: case["refused"] for case in verdicts}
    assert "a part of the model cuts it off" in refused["input cut off"]
    assert refused.get("evicted, not called again", refused["60 %, not called again"]) is not None


def test_where_a_session_lets_weights_live(script):
    (found,) = script("choices.py")
    resident = {"patcher": "ModelPatcher", "streamed": 0, "own": True, "dtypes": ["torch.bfloat16"]}
    for name, why in (
        ("plenty", ": they fit beside the run"),
        ("just enough", ": they fit beside the run"),
        ("forced resident", ", as chosen"),
    ):
        assert found[name] == {**resident, "told": f"weights resident{why}"}  # the file is in float32
    for name, why in (
        ("not with the run", ": they take 30 MiB and the run 2 MiB at least, of 31 MiB"),
        ("not in the budget", ": they take 30 MiB and the run 0 MiB at least, of 30 MiB"),
        ("forced to be streamed", ", as chosen"),
        ("resident runs out", ": memory ran out while all of them were loaded"),
        ("no recipe", ": their loader left no recipe to load them again"),
    ):
        case = found[name]
        assert case["patcher"] == "ModelPatcherDynamic" and case["streamed"] > 0
        assert case["told"] == f"weights streamed{why}" and case["own"] == (name != "no recipe")
    for name in ("forced resident, not with the run", "forced resident, not in the budget"):
        assert found[name]["refused"] == "NoMemory"
        assert "residency must be auto or streamed" in found[name]["why"]
    for name in ("HIGH_VRAM", "HIGH_VRAM, resident"):
        assert found[name]["patcher"] == "ModelPatcher" and found[name]["streamed"] == 0
    for name, why in (
        ("HIGH_VRAM, not in the budget", "--highvram or --gpu-only: they take 30 MiB"),
        ("HIGH_VRAM, no room beside", "One sample must fit beside all of the model's weights"),
    ):
        assert found[name]["refused"] == "NoMemory" and why in found[name]["why"], found[name]
    for name in ("NO_VRAM", "NO_VRAM, streamed", "NO_VRAM, not in the budget", "NO_VRAM, no room beside"):
        assert found[name]["streamed"] > 0
        assert found[name]["told"] == "weights streamed: ComfyUI was started with --novram"
    for name, only in (("HIGH_VRAM, streamed", "resident"), ("NO_VRAM, resident", "streamed")):
        assert found[name]["refused"] == "Failed"
        assert f"residency must be auto or {only} where ComfyUI was started with" in found[name]["why"]
    assert found["no recipe, forced resident"]["refused"] == "Failed"
    assert "no recipe to load them" in found["no recipe, forced resident"]["why"]
    for name, remedy in (
        ("forced resident runs out", "Let its weights be streamed"),
        ("both run out", "Choose a smaller or quantised model"),
    ):
        assert found[name]["refused"] == "NoMemory"
        assert "its weights take 30 MiB" in found[name]["why"] and remedy in found[name]["why"]
    assert not found["afterwards"]["in_training"]
    assert found["afterwards"]["file"] > 1.9 * found["afterwards"]["size"]  # reckoned in the model's dtype
    assert (found["crossings"], found["crossings with one planted"]) == (0, 1)


def test_a_run_learns_the_same_wherever_weights_live(script):
    """By the nodes' own code, which tells where they live."""
    (found,) = script("runs.py")
    assert found.pop("crossings") == []
    resident = found["resident"]
    assert len(resident["losses"]) == 2 and resident["norm"] > 0
    for name, run in found.items():
        assert run["losses"] == pytest.approx(resident["losses"], rel=1e-5), name
        assert run["norm"] == pytest.approx(resident["norm"], rel=1e-4), name
    why = {
        "resident": "weights resident: they fit beside the run",
        "preset": "weights streamed, as chosen",
        "no room beside": "weights streamed: beside all of them one sample found no room",
    }
    for name, words in why.items():
        assert found[name]["said"].endswith(words)
    assert "weights streamed: they take 61 MiB and the run" in found["streamed"]["said"]
    assert set(found) == {"resident", "streamed", "preset", "no room beside"}


@pytest.mark.parametrize(
    "family", ["sd15", *(pytest.param(f, marks=pytest.mark.slow) for f in ("flux_dev", "wan21"))]
)
def test_a_layers_weights_arrive_while_another_computes_forward_and_backward(script, pytestconfig, family):
    with_streams, without = script("overlap.py", family)
    lines = [
        "",
        f"{family + ', times in operations':40}{'copies':>8}{'computing':>11}{'all':>8}{'hidden':>8}",
    ]
    for case in (with_streams, without):
        for name in ("forward", "with its gradient"):
            part = case[name]
            hidden = (part["copies"] + part["computing"] - part["all"]) / part["copies"]
            sizes = f"{part['copies']:8.0f}{part['computing']:11.0f}{part['all']:8.0f}{hidden:8.0%}"
            lines.append(f"{name + ', streams: ' + str(case['streams']):40}{sizes}")
            if case is without:
                assert hidden == 0
            else:  # a layer's weights lie in its stream's buffer: of two layers at most
                assert hidden >= 0.8 and part["streams"] == 2
    with pytestconfig.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print("\n".join(lines))


@pytest.mark.parametrize("counted", COUNTED, ids="-".join)
def test_a_batch_of_prompts_is_one_call_and_seldom_waits_for_the_card(script, pytestconfig, counted):
    planted, *families = script("counts.py", *counted)
    unseen = ("not blocking", "on the CPU", "on the card")
    assert planted["planted"] == {name: int(name not in unseen) for name in planted["planted"]}
    lines = ["", f"{'calls, waits, transfers':24}" + "".join(f"{name:>20}" for name in families[0])[20:]]
    for case in families:
        parts = {name: part for name, part in case.items() if name != "family"}
        figures = ("{calls}, {syncs}, {transfers}".format(**part) for part in parts.values())
        lines.append(f"{case['family']:24}" + "".join(f"{each:>20}" for each in figures))
    with pytestconfig.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print("\n".join(lines))
    for case in families:
        for name, most in (("forward", CALL), ("teacher", CALL), ("update", UPDATE)):
            for what, cap in most.items():
                assert 0 < case[name][what] <= cap, (case["family"], name, case[name]["lines"])
        assert case["with its gradient"]["syncs"] <= case["forward"]["syncs"] + 1
    assert [case["family"] for case in families] == list(counted)
