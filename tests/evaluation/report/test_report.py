"""The report of an evaluation: it needs no other file, shows every figure, and escapes names."""

from __future__ import annotations

import csv
import json
import math
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import msgspec
import numpy as np
import pytest
from evaluations import DENSITY, design, evaluation, picture, point, tensor
from matplotlib.figure import Figure

from splitwire.codec.profile import Clipping
from splitwire.evaluation.answer.bd_rate import bd_rate, envelope
from splitwire.evaluation.answer.compare import compare
from splitwire.evaluation.answer.results import Disagreement, Estimate, Evaluation, Point
from splitwire.evaluation.answer.standings import families
from splitwire.evaluation.contenders import SPLITWIRE
from splitwire.evaluation.report.drawing import Sheet
from splitwire.evaluation.report.feature_plots import expected_shares, fitted
from splitwire.evaluation.report.page import headline, render, table_csv, write_report
from splitwire.evaluation.report.plots import _curve_caption, _draw_curve, _draw_encode, draw

SECTIONS = ("answer", "curves", "points", "bd", "costs", "features-section", "disagreements", "reproduce")
PLOTS = ("curve", "curve-all", "kl", "encode", "stages", "features", "channels")
BESIDE = ("plots/", "results.csv", "results.json")


class Page(HTMLParser):
    """ids, links, the rows of the first table as (texts, values), and all text outside scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.rows: list[list[tuple[str, str]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.ids += [values["id"]] if "id" in values else []
        self.links += [v for k, v in attrs if k in ("src", "href", "xlink:href", "srcset", "action", "data")]
        self._open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag == "td":
            self.rows[-1].append(("", values.get("data-v", "")))

    def handle_endtag(self, tag):
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data):
        if not {"script", "style"} & set(self._open):
            self.text += data
        if "td" in self._open:
            text, value = self.rows[-1][-1]
            self.rows[-1][-1] = (text + data, value)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the report of a usual evaluation."""
    folder = tmp_path_factory.mktemp("evaluation")
    assert write_report(evaluation(), folder) == folder / "report.html"
    return folder


@pytest.fixture(scope="module")
def page(report) -> Page:
    return Page((report / "report.html").read_text(encoding="utf-8"))


def plain(e: Evaluation) -> str:
    """The page without its plots, which take longest."""
    return render(e, compare(e), [])


@pytest.mark.slow
def test_every_section_and_plot_is_there_once(page):
    assert len(page.ids) == len(set(page.ids))
    for name in (*SECTIONS, *PLOTS):
        assert page.ids.count(name) == 1, name
    assert page.ids.index("curves") < page.ids.index("points") < page.ids.index("reproduce")


def test_nothing_is_loaded_from_elsewhere(page, report):
    text = (report / "report.html").read_text(encoding="utf-8")
    assert page.links
    for link in page.links:
        assert link.startswith(("#", "data:", *BESIDE)), link
    assert "url(http" not in text
    assert "@import" not in text
    targets = {link[1:] for link in page.links if link.startswith("#")}
    assert targets <= set(page.ids)


def test_the_table_has_the_figures_of_the_evaluation(page):
    e = evaluation()
    rows = [row for row in page.rows if len(row) > 5]
    expected = [p for points in families(e).values() for p in points]
    assert len(rows) == len(expected) == len(e.points)
    assert rows[0][0][0] == SPLITWIRE
    for row, p in zip(rows, expected, strict=True):
        assert [text.removeprefix(" ") for text, _ in row[:1]] == [p.family]
        assert row[1][1] == p.setting
        values = [float(value) for _, value in row[2:-1]]
        figures = [p.figures[name].value for name in ("top1", "top5", "kl")]
        assert values == [p.bytes, p.loss.value, p.loss.high, p.bits_per_element, p.encode_ms, *figures]
        assert row[-1][1] == p.sends
    tagged = [row[1][0] for row in rows if "default" in row[1][0]]
    assert [text.split("default")[0] for text in tagged] == ["n4"]


def test_the_csv_has_every_number(report):
    e = evaluation()
    rows = list(csv.DictReader((report / "results.csv").read_text(encoding="utf-8").splitlines()))
    assert len(rows) == 1 + len(e.points)
    assert float(rows[0]["top1_low"]) == e.whole["top1"].low
    assert rows[0]["kl"] == rows[0]["bytes"] == ""
    for row, p in zip(rows[1:], e.points, strict=True):
        assert (row["family"], row["setting"], row["sends"]) == (p.family, p.setting, p.sends)
        for name in ("bytes", "bits_per_element", "encode_ms"):
            assert float(row[name]) == getattr(p, name)
        for name, x in (*p.figures.items(), ("loss", p.loss)):
            assert [float(row[name + end]) for end in ("", "_low", "_high")] == [x.value, x.low, x.high]


def test_each_plot_is_a_file_with_axes_units_and_a_legend(report):
    assert {p.stem for p in (report / "plots").iterdir()} == set(PLOTS)
    units = {
        "curve": ("bytes per image (log)", "bits per element at the cut", "Top-1 accuracy, %", "1 % lost", "splitwire"),
        "curve-all": ("bytes per image (log)", "bits per element at the cut", "Top-1 accuracy, %", "float32"),
        "kl": ("bytes per image (log)", "KL divergence from the whole network, nats", "JPEG"),
        "encode": ("bytes per image (log)", "encode, ms per image (log)", "AVIF"),
        "stages": ("milliseconds per image", "bytes per image", "on the device", "in the cloud", "never sent"),
        "features": ("value of a feature", "share of the elements per bin, % (log)", "clipped", "levels of n4",
                     "fitted density (λ 0.77, μ -1.43, slope 0.1)"),
        "channels": ("channel, sorted by mean (of 192)", "value of a feature", "± one standard deviation"),
    }  # fmt: skip
    for name, words in units.items():
        assert (report / "plots" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        svg = ElementTree.parse(report / "plots" / f"{name}.svg")
        texts = {t.text for t in svg.iter("{http://www.w3.org/2000/svg}text")}
        assert set(words) <= texts, (name, set(words) - texts)


@pytest.mark.slow
def test_settings_are_named_in_any_order_where_there_is_room(tmp_path):
    """n8 has the highest rate and comes first; n6 lies on it; the default n4 is named before r0.4, which lies on it."""
    sent = {"n8": 2000, "n6": 1990, "r0.4": 690, "n4": 700, "r0.2": 300}
    points = tuple(point(SPLITWIRE, name, size, 0.001 if size > 500 else 0.008) for name, size in sent.items())
    write_report(evaluation(points=points, disagreements=()), tmp_path)
    svg = ElementTree.parse(tmp_path / "plots" / "curve.svg")
    texts = {t.text for t in svg.iter("{http://www.w3.org/2000/svg}text")}
    assert {"n4", "r0.2"} <= texts and "r0.4" not in texts
    assert len({"n8", "n6"} & texts) == 1


def test_plots_take_the_colours_of_the_page(report):
    text = (report / "report.html").read_text(encoding="utf-8")
    drawings = text[text.index("<body>") :]
    assert drawings.count("<svg viewBox") == 1 + 2 * len(PLOTS)  # and the mark at the top
    assert "#2456e6" not in drawings
    assert "var(--f0)" in drawings
    assert "<title>splitwire n3: 674 bytes" in drawings


def test_everything_that_repeats_it(page):
    e = evaluation()
    for text in (e.command, e.fingerprint, e.data.digest, e.created, *e.machine.values(), *e.notes):
        assert text in page.text
    assert "a/broken.jpg: truncated at byte 812" in page.text
    assert page.text.count("coat/0") == 8


def test_names_are_escaped():
    bad = "<img src=x onerror=alert(1)>\"'&"
    e = evaluation(
        model=bad, cut=bad, command=bad, notes=(bad,), machine={bad: bad},
        points=(point(SPLITWIRE, "n4", 500, 0.001), point(bad, bad, 600, 0.002)),
        disagreements=(Disagreement(name=bad, whole=bad, split=bad, target=bad, picture=picture(0)),),
    )  # fmt: skip
    text = plain(e)
    assert "<img src=x" not in text
    assert Page(text).text.count(bad) >= 12


def test_odd_evaluation_is_drawn(tmp_path):
    """A user's metric, dollars and signs in names, one setting, no features, no stages: as little as there can be."""
    name = "mean $IoU$ <b> 像"
    figure = Estimate(value=2.5, low=2.4, high=2.6)
    only_point = Point(
        family=SPLITWIRE, setting="n4", sends="features", bytes=100.0, bits_per_element=0.5, encode_ms=0.0,
        figures={name: figure}, loss=Estimate(value=0.0, low=0.0, high=0.0),
    )  # fmt: skip
    e = evaluation(
        task="custom", figure=name, whole={name: figure}, points=(only_point,), tensors=(), designs=(), stages={},
        disagreements=(), max_loss=None, chosen=None, notes=(),
    )  # fmt: skip
    page = Page(write_report(e, tmp_path).read_text(encoding="utf-8"))
    assert {p.stem for p in (tmp_path / "plots").iterdir()} == {"curve", "encode"}
    assert "<b>" not in (tmp_path / "plots" / "curve.svg").read_text(encoding="utf-8")
    assert "nothing else qualifies" in page.text
    assert "no budget was given" in page.text
    assert "Nowhere in these images" in page.text


def test_several_tensors_are_drawn_apart(monkeypatch):
    from splitwire.evaluation.report import plots

    e = evaluation(
        points=(point(SPLITWIRE, "n4", 500, 0.001),), tensors=(tensor("a"), tensor("b", 1)),
        designs=(design("n4", 4, "a"), design("n4", 5, "b")), stages={},
    )  # fmt: skip
    monkeypatch.setattr(plots, "plot", lambda name, heading, *_, **__: (name, heading))
    drawn: list[Any] = plots.draw(e, compare(e))  # (name, heading) of each plot
    assert [name for name, _ in drawn][-4:] == ["features-1", "channels-1", "features-2", "channels-2"]
    assert drawn[-1][1] == "The channels of b"
    assert ("symbols, bit-packed", 12288 * (2 + 3) / 8, False) in plots.stage_bytes(e, compare(e))


@pytest.mark.parametrize("drawing", [_draw_curve, _draw_encode])
def test_lines_join_settings_of_one_kind_only(drawing):
    """Points n and r alternate in size: a line over both would go up and down between them."""
    sizes = {"n2": 100, "r0.1": 150, "n4": 200, "r0.2": 250}
    e = evaluation(points=tuple(point(SPLITWIRE, name, size, 0.001) for name, size in sizes.items()))
    sheet = Sheet(figure=Figure(), evaluation=e, comparison=compare(e), narrow=False)
    drawing(sheet)
    ends = [np.asarray(line.get_xdata()).tolist() for line in sheet.figure.axes[0].lines]
    assert [xs for xs in ends if len(set(xs)) > 1 and max(xs) > 1] == [[100, 200], [150, 250]]


def test_the_caption_names_the_kinds_of_points_that_are_there():
    two = evaluation(points=tuple(point(SPLITWIRE, name, 100, 0.001) for name in ("n2", "r0.1", "n4")))
    words = "Operating points n (uniform) and r (designed for their bits) are a line each."
    assert words in _curve_caption(two, compare(two))
    one = evaluation(points=(point(SPLITWIRE, "n2", 100, 0.001), point("JPEG", "q 9", 300, 0.0, sends="image")))
    assert "Operating points" not in _curve_caption(one, compare(one))


def test_headline():
    e = evaluation()
    c = compare(e)
    ours, other = c.of(SPLITWIRE), next(s for s in c.standings if s.family != SPLITWIRE)
    assert ours is not None
    text = headline(e, c)
    assert f"splitwire sends {ours.bytes:,.0f} bytes per image" in text
    assert f"({other.family} {other.setting}) needs {other.bytes:,.0f} bytes" in text
    none = evaluation(points=(point(SPLITWIRE, "n2", 500, 0.05), point("JPEG", "q 9", 300, 0.0, sends="image")))
    assert "no setting of splitwire qualifies; JPEG q 9 does it in 300 bytes" in headline(none, compare(none))


def test_a_family_without_curve_says_why():
    text = Page(plain(evaluation())).text
    assert "1 setting: no curve" in text
    assert "the curves share" in text


def test_csv_leaves_missing_figures_empty():
    ours, other = point(SPLITWIRE, "n4", 500, 0.001), point("JPEG", "q 9", 300, 0.0)
    del other.figures["kl"]
    rows = list(csv.DictReader(table_csv(evaluation(points=(ours, other))).splitlines()))
    assert [bool(row["kl"]) for row in rows] == [False, True, False]


# The fitted density


def test_the_slope_of_the_density_is_found():
    density = fitted(tensor(), design("n4", 4).clipping)
    assert density is not None
    assert (density.rate, density.location, density.slope) == (DENSITY.rate, DENSITY.location, 0.1)
    t = tensor()
    np.testing.assert_allclose(expected_shares(density, t.edges), t.densities, atol=0.01)
    relu = fitted(t, Clipping(method="relu_model", rate=1.0, location=-1.0))
    assert relu is not None
    assert relu.slope == 0
    assert fitted(t, Clipping(method="histogram", reason="no fit")) is None


def test_a_point_mass_belongs_to_its_bin():
    relu = fitted(tensor(), Clipping(method="relu_model", rate=1.0, location=-1.0))
    assert relu is not None
    shares = expected_shares(relu, (-1.0, 0.0, 1.0, 100.0))
    assert shares[0] == 0
    assert shares[1] > relu.zero_mass
    assert math.isclose(shares.sum(), 1)


# BD-rate


def curve(sizes: list[float], losses: list[float], factor: float = 1.0) -> list[Point]:
    return [point("x", str(k), factor * s, x, kl=x + 1e-3) for k, (s, x) in enumerate(zip(sizes, losses, strict=True))]


SIZES, LOSSES = [100.0, 200.0, 400.0, 800.0], [0.1, 0.03, 0.01, 0.002]


@pytest.mark.parametrize("figure", ["top1", "kl"])
@pytest.mark.parametrize(("factor", "rate"), [(1.0, 0.0), (0.5, -0.5), (2.0, 1.0)])
def test_bd_rate_of_scaled_curves(figure, factor, rate):
    result = bd_rate(curve(SIZES, LOSSES), curve(SIZES, LOSSES, factor), figure)
    assert result.rate == pytest.approx(rate, abs=1e-9)
    assert (result.points, result.overlap) == (4, 1.0)


def test_bd_rate_takes_the_envelope():
    noisy = [*curve(SIZES, LOSSES), point("x", "worse", 300, 0.05), point("x", "equal", 900, LOSSES[-1])]
    assert envelope(noisy, "top1") == envelope(curve(SIZES, LOSSES), "top1")
    assert bd_rate(curve(SIZES, LOSSES), noisy, "top1").rate == pytest.approx(0.0, abs=1e-9)
    same = [point("x", "a", 100, 0.1), point("x", "b", 100, 0.05), point("x", "c", 200, 0.01)]
    assert [b for b, _ in envelope(same, "top1")] == [100, 200]


def test_bd_rate_says_why_there_is_none():
    reference = curve(SIZES, LOSSES)
    assert bd_rate(reference, reference[:2], "top1").reason == "2 settings: no curve"
    flat = curve(SIZES, [0.01] * 4)
    assert bd_rate(reference, flat, "top1").reason == "improves at 1 setting only"
    assert bd_rate(flat, reference, "top1").reason == "the reference improves at 1 setting only"
    apart = curve(SIZES, [0.5, 0.4, 0.3, 0.2])
    assert bd_rate(reference, apart, "top1").reason == "the curves reach no common quality"
    narrow = curve(SIZES, [0.5, 0.4, 0.3, 0.09])
    assert bd_rate(reference, narrow, "top1").reason == "the curves share 10 % of the range only"
    assert bd_rate(reference, reference, "map").rate is None


# In a browser


def test_in_a_browser_the_table_sorts_marks_and_button_answer_and_nothing_complains(report, tmp_path):
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no chromium")
    script = """<script>
    const wide = document.documentElement.scrollWidth > window.innerWidth ? "too wide" : "fits";
    const buttons = [...document.querySelectorAll("#table button")];
    const seen = buttons.filter((b) => b.parentElement.getBoundingClientRect().right < 480).map((b) => b.textContent);
    buttons[2].click();
    const sizes = [...document.querySelectorAll("#table td:nth-child(3)")].map((c) => Number(c.dataset.v));
    const tip = [...document.querySelectorAll(".narrow .tip")].find((t) => t.getBoundingClientRect().width > 0);
    tip.dispatchEvent(new MouseEvent("click", { bubbles: true }));
    const shown = document.querySelector(".note:not([hidden])").textContent === tip.querySelector("title").textContent;
    document.body.click();
    const gone = document.querySelector(".note").hidden;
    const bars = document.querySelector("button.bars");
    const paths = [...bars.closest("figure").querySelectorAll('.narrow [id*="-rest-"] path')];
    const states = [0, 1, 2].map(() => {
      const opacities = new Set(paths.map((p) => getComputedStyle(p).strokeOpacity));
      const state = [bars.getAttribute("aria-pressed"), ...opacities];
      bars.click();
      return state;
    });
    const tall = paths.filter((p) => p.getBoundingClientRect().height > 0).length;
    document.body.textContent = JSON.stringify([wide, seen, sizes, shown && gone, states, tall]);
    </script>"""
    page = tmp_path / "page.html"
    page.write_text((report / "report.html").read_text(encoding="utf-8") + script, encoding="utf-8")
    done = subprocess.run(
        [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--window-size=500,900", "--enable-logging=stderr",
         "--v=0", f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", page.as_uri()],
        capture_output=True, text=True, timeout=300, check=True,
    )  # fmt: skip
    assert "CONSOLE" not in done.stderr
    shown = done.stdout[done.stdout.index("<body>") + len("<body>") :].split("<")[0].strip()
    wide, seen, sizes, tapped, states, intervals = json.loads(shown)
    assert wide == "fits"
    assert seen[:4] == ["family", "setting", "bytes", "loss"]
    assert sizes == sorted(p.bytes for p in evaluation().points)
    assert tapped
    # the button shows the intervals that are hidden, and hides them again
    assert states == [["false", "0"], ["true", "0.45"], ["false", "0"]]
    assert intervals > 0


@pytest.mark.slow
def test_a_mean_preserving_quantizer_is_drawn_without_thresholds(tmp_path: Path) -> None:
    plain = design("n4", 4)
    mean_preserving = msgspec.structs.replace(
        plain, quantizer=msgspec.structs.replace(plain.quantizer, mean_preserving=True)
    )
    write_report(evaluation(designs=(mean_preserving,)), tmp_path)
    drawn = (tmp_path / "plots" / "features.svg").read_text(encoding="utf-8")
    assert "levels of n4" in drawn and "thresholds" not in drawn


@pytest.mark.slow
def test_where_every_setting_answers_alike_it_is_said_and_the_divergence_shown(tmp_path):
    zero, all_right = Estimate(value=0.0, low=0.0, high=0.03), Estimate(value=1.0, low=1.0, high=1.0)
    level = evaluation(
        points=tuple(
            msgspec.structs.replace(p, loss=zero, figures={**p.figures, "top1": all_right}) for p in evaluation().points
        ),
        whole={"top1": all_right},
    )
    comparison = compare(level)
    plots = draw(level, comparison)
    assert [p.name for p in plots if p.name in ("curve", "curve-all", "kl")] == ["kl"]
    words = "Every setting of every contender has 100.00 % Top-1 accuracy on these 2,000 images"
    assert plots[0].caption.startswith(words)
    assert comparison.verdict[0].startswith(words)
    assert not compare(evaluation()).verdict[0].startswith("Every setting")


@pytest.mark.slow
def test_intervals_of_the_chosen_are_drawn_and_the_rest_on_demand():
    e = evaluation()
    comparison = compare(e)
    curve = next(p for p in draw(e, comparison) if p.name == "curve-all")
    chosen = {(s.family, s.setting) for s in comparison.standings} | {(SPLITWIRE, e.default_op)}
    rest = re.findall(r'<g id="rest-\d+">\s*<path [^>]*stroke-opacity: ([0-9.]+)', curve.svg)
    assert len(rest) == len(e.points) - len(chosen)
    assert set(rest) == {"0"}  # the files do not show them
    assert len(re.findall(r'id="curve-all-w-rest-\d+"', curve.wide)) == len(rest)
    page = render(e, comparison, [curve])
    assert 'class="bars"' in page
