"""The figure of a scaling experiment: accuracy over the batch size."""

from __future__ import annotations

from collections.abc import Sequence

from steadynorm.lab.recipe import find_recipe
from steadynorm.lab.report.figure import Drawing, canvas, head, percent_ticks, render, series
from steadynorm.lab.report.scale.summary import Place

__all__ = ["draw_accuracy"]


def draw_accuracy(found: Sequence[Place]) -> Drawing:
    """Draw a line for each variant that has a number."""
    from matplotlib.ticker import FuncFormatter, NullLocator

    title = "Validation accuracy over the batch size"
    handles, labels = [], []
    with canvas(width=6.4, height=4.6) as (figure, axes):
        for index, variant in enumerate(dict.fromkeys(place.variant for place in found)):
            mine = [(place.batch_size, place.accuracy) for place in found if place.variant == variant]
            known = [(batch, accuracy) for batch, accuracy in mine if accuracy is not None]
            if not known:
                continue
            batches, style = [batch for batch, _ in known], series(index)
            axes.plot(batches, [one.mean for _, one in known], marker="o", markersize=4.5, **style)
            lows, highs = [one.low for _, one in known], [one.high for _, one in known]
            axes.fill_between(batches, lows, highs, color=style["color"], alpha=0.12, linewidth=0)
            handles.append(axes.plot([], [], **style)[0])
            labels.append(find_recipe(variant).summary)
        axes.set_xscale("log", base=2)
        axes.set_xticks(sorted({place.batch_size for place in found}))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda batch, _: f"{batch:,.0f}"))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlabel("images in a step")
        percent_ticks(axes.yaxis)
        head(axes, title, handles, labels)
        caption = "Median of the last epochs. Line: mean of the seeds. Band: lowest to highest."
        return render(figure, name="accuracy", title=title, caption=caption)
