"""ComfyUI's own page in a real Chromium, for the tests marked `browser`."""

import os
import shutil
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # for what the tests of this folder share,
sys.path.insert(0, str(Path(__file__).parent.parent))  # and those of others too

from comfy_server import Server, link_pack
from frontend import FOLDER, Frontend
from old_runs import write_runs

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]


# of the package and not the session: while Playwright runs, no other test could use asyncio
@pytest.fixture(scope="package")
def chromium(comfyui_folder):
    """A browser; tests that ask for it are skipped where it, ComfyUI or Playwright is missing."""
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if comfyui_folder is None:
        pytest.skip("needs a real ComfyUI: set COMFYUI_PATH to its folder")
    if program is None:
        pytest.skip("needs Chromium: no program chromium or google-chrome was found")
    module = pytest.importorskip("playwright.sync_api", reason="needs the Python package playwright")
    playwright = module.sync_playwright().start()
    browser = playwright.chromium.launch(executable_path=program, args=FLAGS)
    yield browser
    browser.close()
    playwright.stop()


@pytest.fixture(scope="package")
def comfy(chromium, tmp_path_factory, comfyui_folder):
    """A server of its own, with ComfyUI's frontend, or with the build that FEWSTEP_FRONTEND names."""
    base = tmp_path_factory.mktemp("browser")
    link_pack(base, FOLDER)
    build = os.environ.get("FEWSTEP_FRONTEND")
    running = Server(base, comfyui_folder, *(["--front-end-root", build] if build else []))
    yield running
    running.stop()


@pytest.fixture(scope="package")
def page_of_comfy(chromium, comfy):
    yield Frontend(chromium, comfy)


@pytest.fixture
def front(page_of_comfy):
    """The page; a test fails in which our code left an error, or used something deprecated of the host."""
    page_of_comfy.trouble.clear()
    yield page_of_comfy
    assert page_of_comfy.trouble == []
    page_of_comfy.leave()


@pytest.fixture
def old_runs(comfy):
    """Writes that many finished runs, with changes of their status; they go after the test."""
    root = comfy.base / "user" / "fewstep" / "runs"
    yield lambda count, **changes: write_runs(root, count, **changes)
    shutil.rmtree(root)
