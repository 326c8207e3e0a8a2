"""The report: its batches are those that the nodes read, its page is whole, safe and readable."""

import html
import itertools
import json
import math
import os
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

from pipeline import objectives
from pipeline.chain import finished, manifest
from pipeline.chain.finished import Finished
from pipeline.models import tokenization
from pipeline.report import batches, charts, figures, graph, lines, page, story
from pipeline.report.held_out import Cell
from pipeline.report.nodes import Node, Parent, nodes
from pipeline.training.trainer import ROW, StageTrainer
from tests.conftest import SMALL, flags_of
from tests.objectives import NAMES

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
HOSTILE = '<script>alert(1)</script><img src="https://example.org/x.png"> &amp; "quoted" \u202e<b>'


@pytest.fixture
def seen(monkeypatch):
    """The batches that nodes train on, as they come."""
    found = []
    real = StageTrainer.training_step

    def spy(self, model, inputs, *more):
        found.append({key: value for key, value in inputs.items() if key != ROW})
        return real(self, model, inputs, *more)

    monkeypatch.setattr(StageTrainer, "training_step", spy)
    return found


def agrees(folder, batch):
    """Hold a node's first batch, made again, against the one that it read."""
    record = manifest.read(folder)
    made = batches.first(finished.read(folder))
    wanted = lines.split(batch, record["family"], tokenization.load(str(folder)))
    assert made.rows == sum(len(ids) for key, ids in batch.items() if key.endswith("input_ids"))
    assert len(made.lines) + made.more == len(wanted)
    assert list(made.lines) == wanted[: len(made.lines)]
    assert made.agrees is True
    return made


@pytest.mark.parametrize("name", ["pretrain", "sft", "dpo"])
def test_the_first_batch_is_the_one_that_the_node_read(run, copy, data, tmp_path, seen, name):
    more = ["--gradient_accumulation_steps", "2"] if name != "dpo" else ["--train_sampling_strategy", "group_by_length"]
    status, _, err = run(name, *flags_of(name, copy, data, tmp_path / name), *more)
    assert status == 0, err
    made = agrees(tmp_path / name, seen[0])
    assert 0 < made.counted < made.read
    text = "".join(token.text for token in made.lines[0].tokens if token.counts)
    wanted = {"pretrain": r"saw the", "sft": r"^The \w+ did\.<\|im_end\|>", "dpo": r"^The \w+ did\.<\|im_end\|>$"}
    assert re.search(wanted[name], text), text
    if name == "dpo":
        assert [line.name for line in made.lines[:2]] == ["pair 1, chosen", "pair 1, rejected"]
        assert "And so on" in "".join(token.text for token in made.lines[1].tokens if token.counts)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "causal"])
def test_every_objective_shows_what_it_asks(run, data, tmp_path, seen, name):
    folder = tmp_path / "pretrain"
    given = [*SMALL["pretrain"], "--objective", name]
    given[given.index("--max_steps") + 1] = "1"
    status, _, err = run("pretrain", "--output", folder, "--data", data / "text.jsonl", *given)
    assert status == 0, err
    made = agrees(folder, seen[0])
    family = objectives.load(name).family
    assert bool(made.counted) == (family != "embedder" or name == "fusion")  # one part of which hides tokens
    if family == "masked":
        assert any(token.saw == "[MASK]" and token.text != "[MASK]" for line in made.lines for token in line.tokens)
    if family == "seq2seq":
        assert not any(token.counts for token in made.lines[0].tokens)
        assert all(token.counts for token in made.lines[1].tokens)
    text = page.render(tmp_path, nodes(tmp_path), "x")
    assert "Not measured yet" in text
    assert "<mark>" in text.split('id="masks"')[1].split("</p>", 2)[2] or family == "embedder"


def test_a_recipe_that_changed_is_said_and_not_shown(copy, data, monkeypatch, tmp_path):
    shutil.copy(data / "chats.jsonl", tmp_path / "chats.jsonl")
    record = manifest.read(copy / "sft")
    record["recipe"]["data"] = str(tmp_path / "chats.jsonl")
    (copy / "sft" / manifest.NAME).write_text(json.dumps(record))
    assert "is no longer what" not in page.render(copy, nodes(copy), "x")
    with (tmp_path / "chats.jsonl").open("a") as file:
        file.write('{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho."}]}\n')
    text = page.render(copy, nodes(copy), "x")
    assert "is no longer what sft was made with" in text
    assert text.count("first step: the same") == 2


def test_a_node_that_can_not_be_shown_whole_says_why(copy):
    log = copy / "sft" / "log.jsonl"
    log.write_text(log.read_text().replace('"tokens": ', '"tokens": 1', 1))
    (copy / "dpo" / "tokenizer.json").write_text("{}")
    manifest.write_json(copy / "pretrain" / manifest.NAME, manifest.read(copy / "pretrain") | {"stage": "removed"})
    text = page.render(copy, nodes(copy), "x")
    assert "several processes read it, or code or libraries have changed since" in text
    assert "tokenizer.json is not the file that was made" in text
    assert "removed: no such script in stages/" in text


def test_tokens_of_one_character_show_together():
    tokenizer = tokenization.train(["abc"], 262, 64)
    ids = tokenizer.encode("a中\nb")
    assert lines.texts(tokenizer, ids, set(tokenizer.all_special_ids)) == ["a", "", "", "中", "\n", "b"]
    assert lines.texts(tokenizer, ids[:3], set())[-1] == "\N{REPLACEMENT CHARACTER}"
    assert page.visible("a\n\tb\x1b\u202e") == "a↵\n⇥\tb␛⟨U+202E⟩"


class Page(HTMLParser):
    """What a page holds, read by the standard library's parser."""

    VOID = ("meta", "link", "br", "img", "path", "rect")

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.ids, self.text = [], [], {}, ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "link", "br", "img"):
            self.open.append(tag)
        if "id" in dict(attrs):
            assert dict(attrs)["id"] not in self.ids, "an id stands twice"
            self.ids[dict(attrs)["id"]] = tag

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, "tags are not nested"

    def handle_data(self, data):
        self.text += data

    def all(self, *names):
        return [attributes for tag, attributes in self.tags if tag in names]


PARENTS = {"pretrain": "unigram", "sft": "pretrain", "dpo": "sft"}


def block_of(node, rival, figure):
    """The figures of one node, in the form of the real ones."""
    models = {node: {"role": "node", "asked": ""}, rival: {"role": "parent" if rival in PARENTS else "baseline", "asked": ""}}
    metrics = {
        "loss": {"meaning": "nats a token", "unit": "nats", "better": "less"},
        "right": {"meaning": "answers that are right", "unit": "share", "better": "more"},
    }
    compared = {"metric": "right", "against": rival, "role": models[rival]["role"], **figure, "better": True}
    return {
        "stage": node, "title": node.upper(), "of": "4 held-out rows of talk", "rows": 4, "models": models, "metrics": metrics,
        "figures": {name: dict.fromkeys(models, figure) for name in metrics}, "comparisons": [compared], "primary": compared,
        "skipped": {"rows that are too long": 3},
    }  # fmt: skip


def summary_of(copy, prompt="Who saw the cat?"):
    """An evaluation in the form of the real one."""
    figure = {"value": 0.5, "low": 0.25, "high": 0.75, "n": 40}
    return {
        "inputs": "0", "measured": {name: manifest.read(copy / name)["outputs"] for name in PARENTS}, "missing": [],
        "nodes": {name: block_of(name, rival, figure) for name, rival in PARENTS.items()},
        "samples": [{"prompt": prompt, "answers": dict.fromkeys(PARENTS, f"The dog did.\n{prompt}")}],
    }  # fmt: skip


@pytest.fixture
def made(copy, run):
    """The page of a chain with an evaluation, as the script makes it."""
    manifest.write_json(copy / "evaluate.json", summary_of(copy, HOSTILE))
    status, out, err = run("report", "--runs", copy)
    assert status == 0, err
    assert "it lies in" in out
    return copy / "report.html"


def test_the_page_is_whole_and_needs_nothing_else(made):
    found = Page(made.read_text(encoding="utf-8"))
    assert found.open == []
    assert made.stat().st_size < 5e6
    assert len(found.all("h1")) == 1
    assert [len(found.all(tag)) for tag in ("header", "nav", "main", "footer", "title")][:4] == [1, 1, 1, 1]
    assert not found.all("script", "iframe", "object", "embed", "img", "form", "input", "base")
    levels = [int(tag[1]) for tag, _ in found.tags if re.fullmatch(r"h\d", tag)]
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    for tag, attributes in found.tags:
        for key in ("src", "href", "srcset", "data", "action", "poster", "xlink:href"):
            assert attributes.get(key, "#").startswith(("#", "data:,")), (tag, attributes)
        assert not [key for key in attributes if key.startswith("on")]
        if attributes.get("href", "").startswith("#"):
            assert attributes["href"][1:] in found.ids
    assert not re.search(r"url\(|@import|@font-face", made.read_text(encoding="utf-8"))
    assert dict(found.tags)["html"]["lang"] == "en"


def test_pictures_and_tables_have_names(made):
    found = Page(made.read_text(encoding="utf-8"))
    assert len(found.all("svg")) == 2 + 3 + 6  # the chain small and whole, three losses, two figures of each node
    for picture in found.all("svg"):
        assert picture["role"] == "img"
        assert [found.ids[name] for name in picture["aria-labelledby"].split()] == ["title", "desc"]
    tables = len(found.all("table"))
    assert tables == len(found.all("caption")) == 4 + 6
    regions = [attributes for attributes in found.all("div") if attributes.get("role") == "region"]
    assert len(regions) == tables + 2  # the pictures of the chain scroll, too
    assert all(found.ids[region["aria-labelledby"]] in ("caption", "p") and region["tabindex"] == "0" for region in regions)
    assert all(cell["scope"] in ("col", "row") for cell in found.all("th"))


def test_no_two_landmarks_have_one_name(made):
    """Who jumps from part to part of the page hears its name alone (axe: landmark-unique)."""
    page = made.read_text(encoding="utf-8")
    named = re.findall(r'<(?:section|div)[^>]* aria-labelledby="([^"]+)"', page)
    names = [re.sub(r"<[^>]+>", "", re.search(rf'id="{name}"[^>]*>(.*?)</(?:h2|h3|p|caption)>', page)[1]) for name in named]
    assert len(names) > 10
    assert len(set(names)) == len(names), names


class Cells(HTMLParser):
    """The tables of a page: caption → lines of cells."""

    def __init__(self, text):
        super().__init__()
        self.tables, self.lines, self.inside, self.caption = {}, [], "", ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        if tag == "table":
            self.lines, self.caption = [], ""
        elif tag == "tr":
            self.lines.append([])
        elif tag in ("td", "th"):
            self.lines[-1].append("")
        if tag in ("td", "th", "caption"):
            self.inside = tag

    def handle_endtag(self, tag):
        if tag == self.inside:
            self.inside = ""
        if tag == "table":
            self.tables[" ".join(self.caption.split())] = [[" ".join(cell.split()) for cell in line] for line in self.lines]

    def handle_data(self, data):
        if self.inside == "caption":
            self.caption += data
        elif self.inside:
            self.lines[-1][-1] += data


def distinct(summary):
    """Give every figure and every difference numbers of its own; return them as the page should print them, by what they are of."""
    number, wanted = iter(range(1, 10_000)), {}
    for name, block in summary["nodes"].items():
        for metric, found in block["figures"].items():
            share = block["metrics"][metric]["unit"] == "share"
            for label in found:
                value = next(number) / 1000
                found[label] = {"value": value, "low": value - 0.0005, "high": value + 0.0005, "n": 40}
                one, low, high = (value, value - 0.0005, value + 0.0005)
                wanted[name, metric, label] = (
                    f"{100 * one:.1f}% [{100 * low:.1f}, {100 * high:.1f}]" if share else f"{one:.3f} [{low:.3f}, {high:.3f}]"
                )
        for one in block["comparisons"]:
            one |= {"value": (value := next(number) / 1000), "low": value - 0.001, "high": value + 0.001, "n": 40}
            wanted[name, one["metric"], "against", one["against"]] = f"{100 * value:+.1f} points"
        block["primary"] = block["comparisons"][0]
    return wanted


def test_every_number_of_the_page_is_that_of_the_evaluation(copy, run):
    """Each cell by itself: figures no two of which are alike, found under their own heading in their own row."""
    summary = summary_of(copy)
    wanted = distinct(summary)
    assert len({*wanted.values()}) == len(wanted) == 15
    manifest.write_json(copy / "evaluate.json", summary)
    assert run("report", "--runs", copy)[0] == 0
    text = (copy / "report.html").read_text(encoding="utf-8")
    tables = Cells(text).tables
    for name, block in summary["nodes"].items():
        (found,) = [lines for caption, lines in tables.items() if caption.startswith(f"{name}: figures") or (name in caption and "igures" in caption)]  # fmt: skip
        headings = [heading.partition(" (")[0] for heading in found[0]]
        for metric in block["figures"]:
            (line,) = [line for line in found[1:] if line[0].split()[0] == metric]
            for label in block["models"]:
                assert wanted[name, metric, label] in line[headings.index(label)]
        for one in block["comparisons"]:
            difference = wanted[name, one["metric"], "against", one["against"]]
            where = [line for lines in tables.values() for line in lines if any(difference in cell for cell in line)]
            assert where
            assert all(one["metric"] in " ".join(line) and one["against"] in " ".join(line) for line in where), where


def test_hostile_text_is_shown_and_never_run(made):
    text = made.read_text(encoding="utf-8")
    assert "<script" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert "\u202e" not in text
    assert "<script>alert(1)</script>" in Page(text).text


def test_the_same_nodes_give_the_same_bytes_once(made, run):
    first, when = made.read_bytes(), made.stat().st_mtime_ns
    status, out, _ = run("report", "--runs", made.parent)
    assert (status, made.stat().st_mtime_ns) == (0, when)
    assert "up to date" in out
    status, _, _ = run("report", "--runs", made.parent, "--output", made.parent / "other" / "page.html")
    assert (made.parent / "other" / "page.html").read_bytes() == first
    manifest.write_json(made.parent / "evaluate.json", summary_of(made.parent))
    status, out, _ = run("report", "--runs", made.parent)
    assert "it lies in" in out
    assert made.read_bytes() != first


def test_a_chain_that_does_not_hang_together_is_said(copy, run, data):
    manifest.write_json(copy / "evaluate.json", summary_of(copy))
    status, _, err = run("sft", *flags_of("sft", copy, data), "--r", "4")
    assert status == 0, err
    text = page.render(copy, nodes(copy), "x")
    assert "another than the one here; make dpo again" in text
    assert text.count('class="edge broken"') == 2  # drawn small and whole
    assert "or not measured: sft." in text


def test_a_faulty_command_is_one_plain_line(run, tmp_path):
    status, _, err = run("report", "--runs", tmp_path)
    assert (status, err.count("\n")) == (2, 1)
    assert "no finished node; run make first" in err
    status, _, err = run("report", "--rums", tmp_path)
    assert status == 2
    assert "--rums: unknown flag" in err


def test_a_control_is_drawn_beside_what_it_controls(copy):
    """As a control of the middle node whose weights began at random."""
    shutil.copytree(copy / "sft", copy / "sft-control")
    record = manifest.read(copy / "sft-control") | {"node": "sft-control", "control_of": "sft", "starts_from": "random"}
    manifest.write_json(copy / "sft-control" / manifest.NAME, record)
    summary = summary_of(copy)
    manifest.write_json(copy / "evaluate.json", summary)
    found = nodes(copy)
    assert [node.name for node in found] == ["pretrain", "sft", "sft-control", "dpo"]
    assert [parent.label for node in found for parent in node.parents] == ["", "only its tokenizer", ""]
    drawn = page._charts(found, {table.name: table for table in figures.tables(found, summary)})
    assert [[curve.name for curve in chart.curves if "training" in curve.name] for chart in drawn] == [
        ["pretrain, training"], ["sft, training", "sft-control, training"], ["dpo, training"],
    ]  # fmt: skip
    assert [curve.name for curve in drawn[0].curves][1:] == ["pretrain, held out: 0.500", "unigram, held out: 0.500"]
    assert len(drawn[2].curves) == 1, "its loss is of another kind than the figure of that name"
    text = page.render(copy, found, "x")
    assert "only its tokenizer" in text
    assert "control of sft" in text
    assert text.count('class="edge loose"') == 2  # drawn small and whole
    record["recipe"] = record["recipe"] | {"digest": "0" * 64}
    manifest.write_json(copy / "sft-control" / manifest.NAME, record)
    drawn = page._charts(nodes(copy), {})
    assert [[curve.name for curve in chart.curves] for chart in drawn][1:3] == [["sft, training"], ["sft-control, training"]], (
        "losses of different data are on axes of their own"
    )


def test_the_first_screen_tells_what_was_made_and_how_good_it_is(copy):
    summary = summary_of(copy)
    summary["samples"].insert(0, {"prompt": "asked of one", "answers": {"dpo": "yes"}})
    manifest.write_json(copy / "evaluate.json", summary)
    shown = nodes(copy)
    samples = [(sample, Cell()) for sample in summary["samples"]]
    told = story.told(copy, shown, figures.tables(shown, summary), samples)
    assert told.lead[0].startswith("dpo is what came out, an aligned chat model")
    assert "Made by pretrain → sft → dpo from " in told.lead[1]
    assert [(result.name, result.metric, result.own) for result in told.results] == [
        (name, "right", "50.0% [25.0, 75.0]") for name in ("pretrain", "sft", "dpo")
    ]
    assert told.results[1].rivals == [("pretrain (parent)", "50.0% [25.0, 75.0]")]
    assert "better, clear of zero" in told.results[1].difference
    assert (told.prompt, list(told.answers)) == ("Who saw the cat?", ["pretrain", "sft", "dpo"]), "what most of them were asked"
    bare = story.told(copy, shown, [], [])
    assert (bare.results, bare.prompt) == ([], "")


def test_what_is_not_shown_of_a_batch_is_counted_as_it_is():
    def batch(more, paired):
        return batches.Batch([lines.Line("chosen", [], second=paired)], more, 1, 1, 1, "", None, 1, "tokens")

    assert [batch(*of).rest for of in ((0, False), (1, False), (2, True), (4, True))] == [
        "",
        "1 more row",
        "1 more pair",
        "2 more pairs",
    ]


def node(name, *parents):
    """A node with what the picture of the chain needs; parents: role, name, whether it lies here."""
    recipe = {"name": "talk", "digest": "d" * 64, "kept": 4}
    record = {"node": name, "title": name, "control_of": "", "recipe": recipe, "outputs": "0" * 64}
    return Node(Finished(Path(name), record), [Parent(role, at, "0" * 64, at * here, True, "") for role, at, here in parents])


def test_a_node_has_an_arrow_from_each_of_its_parents():
    shown = [
        node("base"), node("chat", ("parent", "base", True)), node("reward", ("parent", "chat", True)),
        node("policy", ("parent", "chat", True), ("reward", "reward", True), ("teacher", "their/model", False)),
    ]  # fmt: skip
    picture = graph.draw(shown)
    at = {box.name: box for box in picture.boxes}
    assert set(at) == {"base", "chat", "reward", "policy", "their/model"}
    assert at["base"].y == at["their/model"].y < at["chat"].y < at["reward"].y < at["policy"].y
    assert [edge.label for edge in picture.edges] == ["", "", "", "reward", "teacher"]
    assert len({edge.tip for edge in picture.edges[2:]}) == 3, "arrows end side by side"
    for one, other in itertools.combinations(picture.boxes, 2):
        assert abs(one.x - other.x) >= one.wide or abs(one.y - other.y) >= one.high, "boxes lie on each other"
    assert all(box.x + box.wide <= picture.width and box.y + box.high <= picture.height for box in picture.boxes)


def test_pairs_are_told_from_rows_with_a_prompt():
    """Two answers to one prompt are a pair; a desirable and an undesirable answer to two prompts are not."""
    import torch

    tokenizer = tokenization.train(["abc"], 262, 64)
    masks = torch.tensor([[0, 0, 1], [0, 0, 1]])
    pair = {"input_ids": torch.tensor([[7, 8, 1], [7, 8, 9]]), "completion_mask": masks}
    assert [line.name for line in lines.split(pair, "causal", tokenizer)] == ["pair 1, chosen", "pair 1, rejected"]
    rows = lines.split(pair | {"input_ids": torch.tensor([[7, 8, 1], [9, 8, 1]])}, "causal", tokenizer)
    assert [line.name for line in rows] == ["row 1", "row 2"]
    assert [token.counts for token in rows[0].tokens] == [False, False, True]


# In a browser: what follows asks Chromium itself.

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


def test_axes_are_round_and_hold_every_point():
    assert charts.ticks(0, 2_259_503) == [0, 1e6, 2e6]
    assert charts.ticks(0, 1) == [0, 0.25, 0.5, 0.75, 1]
    assert charts.ticks(3.3, 4.8) == [3.5, 4, 4.5]
    assert [charts.brief(value) for value in (0, 0.25, 1500, 2e6, 3.12e12)] == ["0", "0.25", "1.5k", "2M", "3.12T"]
    steps = [(tokens, 7 - tokens / 200) for tokens in range(1, 1001)]
    drawn = charts.loss("SFT", "", {"a": steps, "b": [(1, math.nan), (1000, 5.0)]}, {"floor": 1.5})
    points = [tuple(map(float, point.split())) for point in drawn.curves[0].path[1:].split("L")]
    assert len(points) <= 240
    assert all(charts.LEFT <= x <= charts.RIGHT and charts.TOP <= y <= charts.BOTTOM for x, y in points)
    assert points[0][1] < points[-1][1]  # a loss that falls goes down
    assert "nan" not in drawn.curves[1].path
    flat = charts.loss("SFT", "", {"a": [(1, 4.001), (2, 4.0)]}, {})
    assert len({mark.text for mark in flat.up}) == len(flat.up) >= 2
    assert abs(float(flat.curves[0].path.split()[1].split("L")[0]) - float(flat.curves[0].path.split()[2])) < 5
    assert [curve.name for curve in drawn.curves] == ["a", "b", "floor: 1.500"]
    lines = {"held out": 2.2, "5-gram": 2.4, "unigram": 50.0, "floor": 2.1}
    straight = charts.loss("SFT", "", {"a": steps}, lines).curves[1:]
    assert [curve.name for curve in straight if not curve.path] == ["unigram: 50.000, above the frame"]
    kinds = [curve.kind for curve in straight if curve.path]
    assert len(set(kinds)) == len(kinds) == 3, "the floor is drawn like the model"
