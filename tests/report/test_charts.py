"""What the report draws: the chain of nodes, and curves on axes."""

import itertools
import math
import shutil
from pathlib import Path

from pipeline.chain import manifest
from pipeline.chain.finished import Finished
from pipeline.report import charts, figures, graph, page
from pipeline.report.nodes import Node, Parent, nodes
from tests.report import summary_of


def node(name, *parents):
    """A node with what the picture of the chain needs; parents: role, name, whether it lies here."""
    recipe = {"name": "talk", "digest": "d" * 64, "kept": 4}
    record = {"node": name, "title": name, "control_of": "", "recipe": recipe, "outputs": "0" * 64}
    return Node(Finished(Path(name), record), [Parent(role, at, "0" * 64, at * here, True, "") for role, at, here in parents])


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
