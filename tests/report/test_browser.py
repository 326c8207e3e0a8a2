"""The report in a browser: Chromium itself is asked."""

import html
import json
import os
import re
import shutil
import subprocess

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


PROBE = """<script>
addEventListener("load", () => {
  for (const folded of document.querySelectorAll("details")) folded.open = true;
  const luminance = color => {
    const [r, g, b] = color.match(/[\\d.]+/g).slice(0, 3).map(v => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = element => {
    for (let at = element; at; at = at.parentElement) {
      const color = getComputedStyle(at).backgroundColor;
      if (color !== "rgba(0, 0, 0, 0)" && color !== "transparent") return color;
    }
    return "rgb(255, 255, 255)";
  };
  let worst = [99, ""], count = 0;
  for (const element of document.body.querySelectorAll("*")) {
    if (["SCRIPT", "TITLE", "DESC"].includes(element.tagName.toUpperCase())) continue;
    if (![...element.childNodes].some(node => node.nodeType === 3 && node.data.trim())) continue;
    const style = getComputedStyle(element), inside = element.closest("svg");
    const over = inside && element.closest("svg").querySelector(".box") ? getComputedStyle(inside.querySelector(".box")).fill : ground(element);
    const [a, b] = [luminance(inside ? style.fill : style.color), luminance(over)].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    count += 1;
    if (ratio < worst[0]) worst = [ratio, element.outerHTML.slice(0, 80)];
  }
  const small = [...document.querySelectorAll("svg text")].map(text => text.getBoundingClientRect().height);
  const root = document.documentElement, answer = document.createElement("pre");
  answer.id = "answer";
  answer.textContent = JSON.stringify({
    width: innerWidth, scrolls: root.scrollWidth, worst, count, paper: getComputedStyle(document.body).backgroundColor,
    cut: [...document.querySelectorAll("[role=region]")].filter(region => region.scrollWidth > region.clientWidth && region.querySelector("table")).map(region => region.getAttribute("aria-labelledby")),
    regions: [...document.querySelectorAll("[role=region]")].every(region => { region.focus(); return document.activeElement === region; }),
    smallest: Math.min(...small),
  });
  parent.document.body.append(answer);
});
</script>"""


def browser(source, *flags):
    """Run Chromium without a window, a network or a profile of the user's; return what it prints."""
    profile = source.parent / "profile"
    root = ["--no-sandbox"] if os.geteuid() == 0 else []
    command = [CHROMIUM, "--headless", *root, "--disable-gpu", "--hide-scrollbars", f"--user-data-dir={profile}",
               "--host-resolver-rules=MAP * ~NOTFOUND", *flags, source.as_uri()]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


@pytest.mark.skipif(not CHROMIUM, reason="no chromium here: apt-get install chromium")
@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [320, 390, 768, 1280])
def test_it_reads_well_in_a_browser(made, tmp_path, width, dark):
    probed = tmp_path / "probed.html"
    inner = html.escape(made.read_text(encoding="utf-8").replace("</body>", f"{PROBE}</body>"))
    frame = f'<iframe srcdoc="{inner}" style="border: 0; width: {width}px; height: 900px"></iframe>'  # no window is this narrow
    probed.write_text(f'<!DOCTYPE html><meta charset="utf-8"><meta name="color-scheme" content="light dark">{frame}', "utf-8")
    scheme = f"--blink-settings=preferredColorScheme={0 if dark else 1}"
    printed = browser(probed, "--dump-dom", "--window-size=1400,1000", scheme)
    found = json.loads(html.unescape(re.search(r'<pre id="answer">(.*?)</pre>', printed)[1]))
    assert found["width"] == width
    assert found["scrolls"] <= width, "the page scrolls sideways"
    assert found["count"] > 100
    assert found["worst"][0] >= 4.5, found["worst"]
    assert found["regions"], "a region that scrolls can't be reached with the keyboard"
    assert width < 1280 or not found["cut"], "a table loses columns"
    assert found["smallest"] >= 10, "letters in a picture are too small to read"
    assert (found["paper"] == "rgb(255, 255, 255)") != dark


@pytest.mark.skipif(not CHROMIUM, reason="no chromium here: apt-get install chromium")
def test_a_screenshot_is_taken_and_is_not_blank(made, tmp_path):
    shot = tmp_path / "phone.png"
    browser(made, f"--screenshot={shot}", "--window-size=320,2000")
    assert shot.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert shot.stat().st_size > 20_000  # an empty page of this size has 4 kB
