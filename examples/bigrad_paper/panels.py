"""The picture of the two interdiction experiments: a panel a size, a row a method, a point a seed."""

from collections.abc import Sequence
from pathlib import Path

from runner import Record


def panels(records: Sequence[Record], path: Path) -> None:
    """Per cent of test items with both decisions right; a method's name is 'size: row'. A bar marks the mean."""
    from matplotlib.figure import Figure

    sizes, rows = (list(dict.fromkeys(r.method.split(": ")[part] for r in records)) for part in (0, 1))
    figure = Figure(figsize=(9, 0.8 + 0.28 * len(rows)), layout="constrained")
    every = figure.subplots(1, len(sizes), sharex=True, sharey=True, squeeze=False)[0]
    for axes, size in zip(every, sizes, strict=True):
        for k, row in enumerate(rows):
            both = [r.figures["both"] for r in records if r.method == f"{size}: {row}"]
            axes.plot(both, [k] * len(both), "o", color="tab:blue", alpha=0.5, ms=5)
            axes.plot(sum(both) / len(both), k, "|", color="black", ms=14, mew=2)
        axes.set_title(size, fontsize=10)
        axes.set_xlabel("both decisions right, %")
        axes.set_yticks(range(len(rows)), rows)
        axes.grid(axis="x", alpha=0.3)
        axes.set_xlim(left=-1)
    every[0].invert_yaxis()
    figure.savefig(path, dpi=110)
