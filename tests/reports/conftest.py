"""A small evaluation for its report, and a browser for every report."""

import html
import json
import re
import shutil
import subprocess

import pytest

from dlprobe.localization import SlidingSettings
from dlprobe.studies import EvaluateSettings, evaluate


@pytest.fixture(scope="package")
def small_evaluation(tiny_manifest, tiny_backbone, tiny_fit, tmp_path_factory):
    """Return an evaluation of one photograph and two fakes of it, clean and compressed."""
    frame = tiny_manifest.frame
    some = (frame["source_id"] == frame["source_id"].min()) & frame["generator"].isin(["", "telea+pca"])
    return evaluate(
        tiny_manifest.select(some),
        tiny_backbone,
        tiny_fit.probes["residual-srm/dice-autoencoded-pristine"],
        tmp_path_factory.mktemp("report") / "out",
        settings=EvaluateSettings(seen="keep", protocols=("dlprobe", "tgif"), degrade=("jpeg:quality=60",)),
        sliding=SlidingSettings(stride_px=56),
    )


BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
#: A page in a frame of a given width, which a window cannot be made as narrow as; the script sees its document.
FRAME = """<!doctype html><title>not done</title><body style="margin:0">
<iframe id="frame" src="file://%s" style="border:0;width:%dpx;height:900px"></iframe>
<script>document.getElementById("frame").addEventListener("load", async () => {
  const view = document.getElementById("frame").contentWindow, page = view.document;
  const pause = () => new Promise((done) => setTimeout(done, 20));
  try { document.title = JSON.stringify(await (async () => { %s })()); }
  catch (error) { document.title = JSON.stringify(String(error)); }
});</script>"""


@pytest.fixture
def browse(tmp_path):
    """Return a function that opens a page at a width, runs a script on it and returns what the script returned.

    The page must log nothing to the console, errors among it.
    """
    if BROWSER is None:
        pytest.skip("no Chromium or Chrome on this machine")

    def run(path, script, width_px=1280):
        frame = tmp_path / "frame.html"
        frame.write_text(FRAME % (path, width_px, script))
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--hide-scrollbars"]
        options += ["--allow-file-access-from-files", "--virtual-time-budget=20000", "--window-size=1300,900"]
        command = [BROWSER, *options, f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", frame]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
        assert "CONSOLE" not in done.stderr
        return json.loads(html.unescape(re.search(r"<title>(.*?)</title>", done.stdout, re.DOTALL)[1]))

    return run
