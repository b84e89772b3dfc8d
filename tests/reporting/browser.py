"""Pages in a real browser, and what is asked of every page there."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--hide-scrollbars", "--enable-logging=stderr",
)  # fmt: skip
COMMAND = (str(CHROMIUM), *FLAGS)
# A copy of the page measures itself; the real one forbids scripts other than its own.
MEASURE = """<script>
addEventListener("load", () => {
  const narrow = getComputedStyle(document.querySelector(".plot.narrow")).display
  const texts = document.querySelectorAll("svg text").length
  console.log(`measured ${innerWidth} ${document.documentElement.scrollWidth} ${narrow} ${texts}`)
})
</script>"""

_USE = """
const files = []
URL.createObjectURL = (blob) => { files.push({ blob }); return "data:," }
HTMLAnchorElement.prototype.click = function () { files.at(-1).name = this.download }
const saved = async () => {
  while (!files[0]?.name) await new Promise((next) => setTimeout(next, 1))
  const { blob, name } = files.shift()
  if (blob.type !== "image/png") return { name, type: blob.type, text: await blob.text() }
  const { width, height } = await createImageBitmap(blob)
  return { name, type: blob.type, size: [width, height] }
}
addEventListener("load", async () => {
  // The browser's clock jumps ahead where no timer is set, past what its other threads, such as encoders, still do.
  const ticking = setInterval(() => {}, 1)
  const answer = await (async () => { %s })().catch((error) => `${error}`)
  document.title = `answer${JSON.stringify(answer)}`
  clearInterval(ticking)
})
"""


def browse(page: Path, profile: Path, width: int, *flags: str) -> tuple[np.ndarray, str]:
    """A screenshot [height, width, rgb], 0 to 1, and what the page wrote to the console."""
    image = page.with_suffix(".shot.png")
    profile.mkdir()
    command = [*COMMAND, f"--user-data-dir={profile}", f"--window-size={width},1600", *flags]
    done = subprocess.run(
        [*command, f"--screenshot={image}", page.as_uri()], capture_output=True, text=True, timeout=120, check=False
    )
    assert image.is_file(), done.stderr
    console = "\n".join(re.findall(r"CONSOLE[^\"]*\"(.*?)\", source", done.stderr, re.DOTALL))
    return matplotlib.image.imread(image)[..., :3], console


needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")
each_scheme = pytest.mark.parametrize("dark", [False, True])
each_width = pytest.mark.parametrize(("width", "narrow"), [(360, "block"), (1200, "none")])


def check_drawing(page: Path, folder: Path, dark: bool) -> np.ndarray:
    """The console is empty and the page not; gives bool [1600, 1200], whether a pixel differs from the background."""
    scheme = ["--blink-settings=preferredColorScheme=0"] if dark else []
    pixels, console = browse(page, folder / "profile", 1200, *scheme)
    assert console == ""
    assert pixels.shape[:2] == (1600, 1200)
    corner = pixels[2, 2].mean()
    assert corner < 0.2 if dark else corner > 0.95
    drawn = np.abs(pixels - pixels[2, 2]).max(axis=-1) > 0.3
    assert 0.01 < drawn.mean() < 0.3  # neither blank nor a block of colour
    return drawn


def with_script(page: Path, copy: Path, script: str) -> Path:
    """A copy of a page, with a script of the test's after its own."""
    text = re.sub(r"<meta http-equiv[^>]*>", "", page.read_text())
    copy.write_text(text.replace("</body>", f"{script}</body>"))
    return copy


def use(page: Path, folder: Path, script: str) -> Any:
    """What `script`, the body of an async function that is run in a copy of the page, returns: JSON.

    Of what the page saves, `await saved()` gives the next file: {name, type, text}, or of a picture {name, type, size}.
    """
    copy = with_script(page, folder / "copy.html", f"<script>{_USE % script}</script>")
    command = [*COMMAND, f"--user-data-dir={folder / 'profile'}", "--window-size=1200,1600"]
    done = subprocess.run(
        [*command, "--virtual-time-budget=1000000", "--dump-dom", copy.as_uri()],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    (answer,) = re.findall(r"<title>answer(.*?)</title>", done.stdout, re.DOTALL) or [done.stderr]
    return json.loads(html.unescape(answer))


def printed_pages(page: Path, folder: Path) -> int:
    """How many sheets the page takes on paper."""
    paper = folder / "printed.pdf"
    command = [*COMMAND, f"--user-data-dir={folder / 'printer'}", f"--print-to-pdf={paper}", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert paper.is_file(), done.stderr
    return len(re.findall(rb"/Type\s*/Page\b", paper.read_bytes()))


def check_width(page: Path, folder: Path, width: int, narrow: str) -> None:
    """The page fits a screen of `width` pixels and shows its narrow figures as `narrow`, a value of CSS's `display`.

    Headless windows are never narrower than 500 pixels, so a phone is a frame within one.
    """
    with_script(page, folder / "copy.html", MEASURE)
    frame = folder / "frame.html"
    frame.write_text(f'<body style="margin:0"><iframe src="copy.html" style="width:{width}px;height:1500px;border:0">')
    _, console = browse(frame, folder / "profile", max(width, 600))
    words = console.split()
    assert words[:2] == ["measured", str(width)]
    assert int(words[2]) <= width
    assert words[3] == narrow and int(words[4]) > 40
