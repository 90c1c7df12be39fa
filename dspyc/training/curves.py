"""loss_curves.png: what a run's events say, as a picture."""

import io
import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

log = logging.getLogger("dspyc.training")
CURVES = "loss_curves.png"
_TRAINING, _VALIDATION, _OTHER = "#3b6fb6", "#e07b39", "#5f6b7a"
_INK, _GRID = "#2b2f36", "#e3e6ea"
_PLACES = {"left": 0.075, "right": 0.98, "top": 0.875, "bottom": 0.085, "hspace": 0.42, "wspace": 0.18}
_NOISY = 60  # points; above, the training loss is drawn faintly behind its running mean
_ROOM = 1.08  # times the highest value


def draw_curves(events: Sequence[Mapping[str, Any]], title: str, best_step: int | None = None) -> bytes | None:
    """A PNG of losses, learning rate and gradient norm over the steps; the same events give the same bytes.

    `best_step`, that of the best evaluation, gets a ring. None where there is nothing to draw, or matplotlib is not installed.
    """
    training, validation = _series(events, "loss"), _series(events, "validation_loss")
    if not training[0] and not validation[0]:
        return None
    try:
        # The fonts are listed when matplotlib is first imported, which is worth no warning.
        logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        log.info("matplotlib is not installed, so %s is not drawn: pip install matplotlib.", CURVES)
        return None
    figure: Any = Figure(figsize=(8, 6), dpi=120, facecolor="white")
    FigureCanvasAgg(figure)
    panels = figure.subplot_mosaic([["loss", "loss"], ["rate", "norm"]], height_ratios=[2.4, 1], gridspec_kw=_PLACES)
    figure.suptitle(title, fontsize=13, color=_INK, x=_PLACES["left"], y=0.975, ha="left", fontweight="bold")
    _losses(panels["loss"], training, validation, best_step)
    steps, rates = _series(events, "learning_rate")
    unit = math.floor(math.log10(max(rates))) if any(rates) else 0
    _small(panels["rate"], (steps, [rate / 10**unit for rate in rates]), f"learning rate (1e{unit})")
    _small(panels["norm"], _series(events, "grad_norm"), "gradient norm, before clipping")
    last = max(training[0] + validation[0])
    for panel in panels.values():
        _plain(panel, last)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


Series = tuple[list[int], list[float]]


def _series(events: Sequence[Mapping[str, Any]], name: str) -> Series:
    """(steps, values) of the events that have `name`; a half-precision step that overflowed has no finite norm."""
    found = [(int(e["step"]), float(e[name])) for e in events if isinstance(e.get(name), (int, float))]
    finite = [(step, value) for step, value in found if math.isfinite(value)]
    return [step for step, _ in finite], [value for _, value in finite]


def _losses(panel: Any, training: Series, validation: Series, best_step: int | None) -> None:
    steps, values = training
    if len(steps) > _NOISY:
        panel.plot(steps, values, color=_TRAINING, linewidth=0.8, alpha=0.3)
        values = _running_mean(values, max(3, len(values) // 25))
    if steps:
        panel.plot(steps, values, color=_TRAINING, linewidth=1.8, label="training", **_marks(steps))
    if validation[0]:
        panel.plot(*validation, color=_VALIDATION, linewidth=1.8, label="validation", **_marks(validation[0]))
    if best_step in validation[0]:
        loss = validation[1][validation[0].index(best_step)]
        ring = {"markersize": 9, "markerfacecolor": "none", "markeredgecolor": _VALIDATION}
        panel.plot(best_step, loss, "o", label=f"best: {loss:.3f} at step {best_step:,}", **ring)
    panel.set_title("loss (nats a token)", fontsize=10, color=_INK, loc="left")
    # Above the panel, where it hides no point.
    panel.legend(frameon=False, loc="lower right", bbox_to_anchor=(1, 1), ncols=3, fontsize=9, labelcolor=_INK)


def _small(panel: Any, series: Series, title: str) -> None:
    panel.plot(*series, color=_OTHER, linewidth=1.3, **_marks(series[0]))
    panel.set_title(title, fontsize=10, color=_INK, loc="left")


def _plain(panel: Any, last: int) -> None:
    from matplotlib.ticker import MaxNLocator

    panel.set_xlim(0, last * 1.02)
    highest = max((y for line in panel.lines for y in line.get_ydata()), default=1.0)
    panel.set_ylim(0, _ROOM * highest or 1.0)
    panel.set_xlabel("optimizer step", fontsize=9, color=_INK)
    panel.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True, steps=[1, 2, 5, 10]))
    panel.grid(color=_GRID, linewidth=0.8)
    panel.set_axisbelow(True)
    panel.tick_params(labelsize=9, colors=_INK, length=0)
    for side, spine in panel.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(_GRID)


def _marks(steps: Sequence[int]) -> dict[str, Any]:
    """Few points are shown each; a lone one would not be seen otherwise."""
    return {"marker": "o", "markersize": 3.5} if len(steps) <= 30 else {}


def _running_mean(values: Sequence[float], width: int) -> list[float]:
    """Of the `width` values around each, fewer at the ends."""
    half = width // 2
    windows = [values[max(0, i - half) : i + half + 1] for i in range(len(values))]
    return [sum(window) / len(window) for window in windows]
