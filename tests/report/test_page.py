"""The report's page is whole and safe, its numbers are those of the evaluation, and its first screen tells what was made."""

import itertools
import re
from html.parser import HTMLParser

from pipeline.chain import manifest
from pipeline.report import figures, page, story
from pipeline.report.held_out import Cell
from pipeline.report.nodes import nodes
from tests.conftest import flags_of
from tests.report import summary_of


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
