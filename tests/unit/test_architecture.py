"""Block diagrams of a network from a description written by hand."""

import json
from itertools import combinations

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.patches import FancyBboxPatch
from matplotlib.text import Annotation

from diffractory.evaluation.architecture import architecture_figure, read_architecture
from diffractory.evaluation.style import figure_style
from diffractory.store import InputError


def block(name, kind, inputs, outputs, parameters, parent):
    return {"name": name, "kind": kind, "inputs": inputs, "outputs": outputs,
            "parameters": parameters, "depth": name.count("."), "parent": parent}  # fmt: skip


SPOTS, TOKENS = [45, 256], [46, 64]
NETWORK = [
    block("", "Net", [[45, 3]], [[7], [230]], 3_000_000, ""),
    block("encoder", "PointlistEncoder", [[45, 3]], [SPOTS], 70_000, ""),
    block("encoder.layers.0", "Pointwise", [[45, 3]], [[45, 64]], 384, "encoder"),
    block("encoder.layers.1", "Pointwise", [[45, 64]], [[45, 64]], 384, "encoder"),
    block("body", "Body", [SPOTS, [45], [45, 45]], [[64], []], 2_000_000, ""),
    block("body.project", "Linear", [SPOTS], [[45, 64]], 16_448, "body"),
    block("body.bias", "StructuralBias", [[45, 45]], [[8, 46, 46]], 144, "body"),
]
for k in range(8):
    layer = f"body.layers.{k}"
    NETWORK += [
        block(layer, "GraphormerLayer", [TOKENS, [46], [8, 46, 46]], [TOKENS, []], 78_592, "body"),
        block(f"{layer}.norm", "LayerNorm", [TOKENS], [TOKENS], 128, layer),
        block(f"{layer}.experts", "MixtureOfExperts", [TOKENS, [46]], [TOKENS, []], 61_696, layer),
        block(f"{layer}.experts.gate", "Linear", [TOKENS], [[46, 4]], 256, f"{layer}.experts"),
    ]
NETWORK += [
    block(
        "body.layers.8", "GraphormerLayer", [TOKENS, [46], [8, 46, 46]], [TOKENS, []], 99, "body"
    ),
    block("body.experts", "MixtureOfExperts", [TOKENS], [[64], []], 61_696, "body"),
    block("body.experts.gate", "Linear", [[64]], [[4]], 256, "body.experts"),
    block("crystal_system", "Linear", [[64]], [[7]], 455, ""),
    block("space_group", "Linear", [[64]], [[230]], 14_950, ""),
]


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "architecture.json"
    path.write_text(json.dumps(NETWORK), "utf-8")
    return path


def drawn(path, *arguments):
    """Return a drawing in the style of the project, laid out."""
    with figure_style():
        drawing = architecture_figure(path, *arguments, "Title")
        FigureCanvasAgg(drawing.figure).draw()
    return drawing


def words(drawing):
    return [text.get_text() for text in drawing.figure.axes[0].texts]


def arrows(drawing):
    """Return whether each arrow, from top to bottom, is solid."""
    found = [text for text in drawing.figure.axes[0].texts if isinstance(text, Annotation)]
    found.sort(key=lambda text: text.xy[1])
    return [text.arrow_patch.get_linestyle() in ("-", "solid") for text in found]


def test_whole_network_is_its_outermost_blocks(path):
    drawing = drawn(path, "", False)
    assert drawing.data["name"].tolist() == ["encoder", "body", "crystal_system", "space_group"]
    assert drawing.data["parameters_each"].tolist() == [70_000, 2_000_000, 455, 14_950]
    assert drawing.data["inputs"][1] == "45 × 256, 45, 45 × 45"  # noqa: RUF001
    assert drawing.data["outputs"][1] == "64, scalar"
    assert "2,000,000" in words(drawing)
    # The heads run one after the other on the same token.
    assert arrows(drawing) == [True, True, False]


def test_children_are_drawn_in_order_and_unequal_ones_apart(path):
    drawing = drawn(path, "encoder", False)
    assert drawing.data["name"].tolist() == ["encoder.layers.0", "encoder.layers.1"]
    assert drawing.data["repeats"].tolist() == [1, 1]
    assert "layers.1" in words(drawing)


def test_equal_layers_are_drawn_once_with_their_parts(path):
    drawing = drawn(path, "body", True)
    layer = "body.layers.0"
    assert drawing.data["name"].tolist() == [
        "body.project", "body.bias", layer, f"{layer}.norm", f"{layer}.experts", "body.layers.8",
        "body.experts",
    ]  # fmt: skip
    assert drawing.data["repeats"].tolist() == [1, 1, 8, 1, 1, 1, 1]
    for text in ("GraphormerLayer × 8", "layers.0 to layers.7", "norm", "78,592",  # noqa: RUF001
                 "parameters each"):  # fmt: skip
        assert text in words(drawing)
    # The bias goes into the layers, but not as what they work on.
    assert arrows(drawing) == [False, False, True, True, True]
    filled = [box.get_facecolor() for box in boxes(drawing)]
    assert len(set(filled)) == 3  # frame, plain and mixture of experts
    assert filled[4] == filled[6] != filled[0]
    flat = drawn(path, "body", False)
    assert flat.data["name"].tolist() == [
        "body.project", "body.bias", layer, "body.layers.8", "body.experts"
    ]  # fmt: skip


def boxes(drawing):
    return [p for p in drawing.figure.axes[0].patches if isinstance(p, FancyBboxPatch)]


@pytest.mark.parametrize(("parent", "inside"), [("", False), ("encoder", False), ("body", True)])
def test_nothing_overlaps_or_is_cut(parent, inside, path):
    drawing = drawn(path, parent, inside)
    extents = [box.get_window_extent() for box in boxes(drawing)]
    for a, b in combinations(extents, 2):
        nested = a.y0 < b.y0 and b.y1 < a.y1 and a.x0 < b.x0 and b.x1 < a.x1
        assert nested or not a.overlaps(b)
    texts = [t for t in drawing.figure.axes[0].texts if not isinstance(t, Annotation)]
    for a, b in combinations(texts, 2):
        assert not a.get_window_extent().overlaps(b.get_window_extent()), (a, b)
    for text in texts:
        inner = text.get_window_extent()
        assert any(box.x0 < inner.x0 and inner.x1 < box.x1 and box.y0 < inner.y0
                   and inner.y1 < box.y1 for box in extents), text  # fmt: skip
    page = drawing.figure.bbox
    assert all(page.x0 <= box.x0 and box.x1 <= page.x1 for box in extents)
    assert all(page.y0 <= box.y0 and box.y1 <= page.y1 for box in extents)


@pytest.mark.parametrize("text", ["", "{}x", '{"name": 1}', '[{"name": "a"}]', "[1]",
                                  json.dumps([NETWORK[1] | {"outputs": None}])])  # fmt: skip
def test_bad_descriptions_are_named(text, tmp_path):
    path = tmp_path / "architecture.json"
    path.write_text(text, "utf-8")
    with pytest.raises(InputError, match=r"architecture\.json does not describe a network"):
        read_architecture(path)


def test_missing_descriptions_and_blocks_are_named(path, tmp_path):
    with pytest.raises(InputError, match=r"none\.json"):
        read_architecture(tmp_path / "none.json")
    with pytest.raises(InputError, match="no blocks in graphormer"):
        architecture_figure(path, "graphormer", True, "Title")
