"""Heat maps of what was learnt: from a method's record to cells on the page."""

from medplan.evaluate.heatmaps import heat_chart, heatmap_sections
from medplan.method import Heatmap
from medplan.records import encode, write_json

RECORD = Heatmap(title="Likeness", names=("A/x", "B/<y>"), values=((1.0, -1.0), (0.0, 1.0)))


def test_every_number_is_a_cell_whose_colour_goes_from_cold_through_white_to_warm():
    chart = heat_chart(encode(RECORD))
    cells, _, scale = chart.rpartition("</title>")
    assert cells.count("<rect") == 4
    assert cells.count("#b2182b") == 2 and cells.count("#2166ac") == 1 and cells.count("#ffffff") == 1
    assert scale.index("#2166ac") < scale.index("#ffffff") < scale.index("#b2182b")
    assert scale.index(">-1<") < scale.index(">0<") < scale.index(">1<")
    assert "A/x / B/&lt;y&gt;: -1.00" in chart and "<y>" not in chart


def test_a_run_without_heat_maps_has_no_section(tmp_path):
    assert heatmap_sections(tmp_path) == ""
    write_json(RECORD, tmp_path / "heatmaps" / "likeness.json")
    assert "Likeness" in heatmap_sections(tmp_path)
