"""What the report's plots share: their look, and how a drawing becomes SVG for the page, and files.

matplotlib writes concrete colours. They are chosen so that none stands for two things; in the page each becomes a
variable of its style sheet (`themed`), so that one drawing serves light and dark.
"""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from html import escape
from typing import TYPE_CHECKING

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure  # no pyplot: nothing global, no display
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from numpy.typing import ArrayLike

from splitwire.evaluation.answer.compare import Comparison
from splitwire.evaluation.answer.results import Evaluation
from splitwire.evaluation.answer.standings import families
from splitwire.evaluation.answer.wording import SHARES, title
from splitwire.evaluation.contenders import FAMILIES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

INK, MUTED, GRID, PAGE = "#1c2430", "#5b6675", "#dde2e8", "#fefefe"
THEME = {INK: "--ink", MUTED: "--muted", GRID: "--grid", PAGE: "--card"}

FAMILY_COLOURS = (
    ("#2456e6", "#84a9ff"),
    ("#d9541e", "#ff8f61"),
    ("#0f8a6a", "#3ecf9f"),
    ("#9a6a55", "#dbb3a1"),
    ("#8b3fc7", "#c493ff"),
    ("#b07d06", "#e6bd4f"),
    ("#c2185b", "#ff7fae"),
    ("#007f9e", "#51c8e4"),
    ("#687a1d", "#b7cd5d"),
    ("#7a4b2b", "#d09c78"),
    ("#59636f", "#a9b4c2"),
    ("#3b409f", "#9fa5f2"),
    ("#a3312f", "#f28f8a"),
    ("#2e7d32", "#83d287"),
    ("#99487d", "#e09ac8"),
    ("#4d6b8a", "#9dbbd8"),
)
"""(on light, on dark) of each family, in the order of FAMILIES, splitwire's first."""

MARKERS = "oshHDv^<>pPX*d8s"

TIP = "tip-"
WIDE, NARROW = 9.4, 3.9
"""Widths, inches of 72 pt, at which letters are readable in the column of a desktop and of a phone."""


@dataclass(frozen=True, kw_only=True)
class Plot:
    """One plot. wide, narrow: SVG elements for the page. svg, png: the wide one as files, on white."""

    name: str
    title: str
    caption: str
    wide: str
    narrow: str
    svg: str
    png: bytes


@dataclass(kw_only=True)
class Sheet:
    """What a drawing function draws on."""

    figure: Figure
    evaluation: Evaluation
    comparison: Comparison
    narrow: bool
    tips: list[str] = field(default_factory=list)
    hidden: int = 0

    def tip(self, text: str) -> str:
        """Id of an element that shows `text` under the pointer."""
        self.tips.append(text)
        return f"{TIP}{len(self.tips) - 1}"

    def rest(self) -> str:
        """Id of an interval that the page shows on demand; the files do not show it."""
        self.hidden += 1
        return f"rest-{self.hidden}"

    def axes(self) -> Axes:
        """The only axes of a plot, styled."""
        return dressed(self.figure.add_subplot())

    def legend(self, axes: Axes) -> None:
        """Beside the axes where there is room, else below them."""
        handles, labels = axes.get_legend_handles_labels()
        if self.narrow:
            self.figure.legend(
                handles, labels, frameon=False, loc="outside lower center", ncols=2, fontsize=7, columnspacing=1,
                handlelength=1.8,
            )  # fmt: skip
        else:
            self.figure.legend(handles, labels, frameon=False, loc="outside right upper")


Drawing = Callable[[Sheet], None]


def capital(text: str) -> str:
    """With a capital letter in front; mAP stays mAP."""
    return text if text[1:2].isupper() else text[:1].upper() + text[1:]


def plot(
    name: str, heading: str, caption: str, drawing: Drawing, e: Evaluation, comparison: Comparison, *, height: float
) -> Plot:
    """Draw it in both widths."""
    wide, tips = _drawn(drawing, e, comparison, narrow=False, height=height)
    small, small_tips = _drawn(drawing, e, comparison, narrow=True, height=height)
    svg, page, png = _svg(wide, name), _svg(small, f"{name}-narrow"), io.BytesIO()
    wide.set_layout_engine("none")  # it was laid out for the SVG
    with _style(), _names_may_be_odd():
        wide.savefig(png, format="png", dpi=160, facecolor="white", metadata={"Software": None})
    return Plot(
        name=name,
        title=heading,
        caption=caption,
        wide=themed(svg, f"{name}-w-", tips, heading),
        narrow=themed(page, f"{name}-n-", small_tips, heading),
        svg=svg,
        png=png.getvalue(),
    )


def _style() -> AbstractContextManager[None]:
    """Letters stay text, dollars in a user's names stay dollars."""
    return mpl.rc_context(
        {
            "svg.fonttype": "none", "text.parse_math": False, "font.size": 8.5, "axes.labelsize": 8.5,
            "legend.fontsize": 8, "xtick.labelsize": 8, "ytick.labelsize": 8, "axes.unicode_minus": True,
            "text.color": INK, "axes.labelcolor": INK, "xtick.color": MUTED, "ytick.color": MUTED,
            "axes.edgecolor": MUTED, "axes.facecolor": "none", "axes.linewidth": 0.7, "grid.color": GRID,
            "grid.linewidth": 0.7, "legend.labelcolor": INK,
        }
    )  # fmt: skip


def _drawn(
    drawing: Drawing, e: Evaluation, comparison: Comparison, *, narrow: bool, height: float
) -> tuple[Figure, list[str]]:
    with _style():
        figure = Figure(figsize=(NARROW, 0.66 * height + 1.2) if narrow else (WIDE, height), layout="constrained")
        sheet = Sheet(figure=figure, evaluation=e, comparison=comparison, narrow=narrow)
        drawing(sheet)
    return figure, sheet.tips


def _svg(figure: Figure, salt: str) -> str:
    file = io.StringIO()
    with _style(), mpl.rc_context({"svg.hashsalt": salt}), _names_may_be_odd():
        figure.savefig(file, format="svg", facecolor="white", metadata={"Date": None, "Creator": None})
    return file.getvalue()


@contextmanager
def _names_may_be_odd() -> Iterator[None]:
    """Without the warnings that odd names cause: a browser has letters that the font lacks, and very long names leave
    little room for the axes."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")
        warnings.filterwarnings("ignore", message="constrained_layout not applied")
        yield


def themed(svg: str, prefix: str, tips: Sequence[str], label: str) -> str:
    """The `svg` element for the page: ids of its own, colours as variables, no background, tips as <title>."""
    text = svg[svg.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    view = re.search(r'viewBox="([^"]+)"', text)
    box = view.group(1) if view else "0 0 1 1"
    body = text[text.index(">") + 1 :]
    body = re.sub(r'<g id="patch_1">.*?</g>\s*', "", body, count=1, flags=re.DOTALL)  # the white ground
    body = re.sub(r'\bid="', f'id="{prefix}', body)
    body = body.replace("url(#", f"url(#{prefix}").replace('href="#', f'href="#{prefix}')
    for k, tip in enumerate(tips):
        body = body.replace(
            f'id="{prefix}{TIP}{k}">', f'id="{prefix}{TIP}{k}" class="tip"><title>{escape(tip)}</title>', 1
        )
    for colour, variable in (*THEME.items(), *((c, f"--f{k}") for k, (c, _) in enumerate(FAMILY_COLOURS))):
        body = body.replace(colour, f"var({variable})")
    return f'<svg viewBox="{box}" role="img" aria-label="{escape(label)}">{body}'


def family_style(evaluation: Evaluation, family: str) -> tuple[str, str]:
    """(colour, marker) of a family: the same in every report, also where some contenders are missing."""
    order = [*FAMILIES, *(f for f in families(evaluation) if f not in FAMILIES)]
    k = order.index(family)
    if k >= len(FAMILY_COLOURS):
        k = 1 + k % (len(FAMILY_COLOURS) - 1)  # never splitwire's own
    return FAMILY_COLOURS[k][0], MARKERS[k]


def dressed(axes: Axes) -> Axes:
    """The common look: two spines, a grid behind."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(visible=True)
    axes.set_axisbelow(True)
    return axes


def scaled(factor: float) -> Callable[[ArrayLike], ArrayLike]:
    """What multiplies by `factor`."""
    return lambda values: np.multiply(values, factor)


def bytes_axis(sheet: Sheet, axes: Axes) -> None:
    """Log bytes below, bits per element at the cut above."""
    elements = sheet.evaluation.elements
    axes.set_xscale("log")
    axes.set_xlabel("bytes per image (log)")
    above = axes.secondary_xaxis("top", functions=(scaled(8 / elements), scaled(elements / 8)))
    above.set_xlabel("bits per element at the cut")
    above.spines["top"].set_visible(False)
    for axis in (axes.xaxis, above.xaxis):
        log_ticks(axis, axes.get_xlim())


def log_ticks(axis: Axis, limits: tuple[float, float]) -> None:
    """Plain numbers, at 1, 2 and 5 where the axis is short."""
    decades = math.log10(limits[1] / limits[0])
    subs = (1.0, 2.0, 5.0) if decades < 2.2 else (1.0, 3.0) if decades < 3 else (1.0,)
    axis.set_major_locator(LogLocator(subs=subs, numticks=20))
    axis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:,.10g}"))
    axis.set_minor_formatter(NullFormatter())


def figure_axis(axes: Axes, figure: str) -> None:
    """Name and unit of a figure on the y axis."""
    unit = ", %" if figure in SHARES else ", nats" if figure == "kl" else ""
    axes.set_ylabel(capital(title(figure)) + unit)
    if figure in SHARES:
        axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{100 * v:.10g}"))
