"""Throughput over time with the faults marked on it, as PNG beside the JSON."""

from collections.abc import Callable, Sequence
from pathlib import Path

from loadtest.chaos.history import Event, Fault
from loadtest.chaos.measure import acknowledged, throughput

BINS_MAX = 500
BIN_S_MIN = 0.2
COLOURS = tuple(f"C{number}" for number in range(1, 10))


def draw(events: Sequence[Event], path: Path, say: Callable[[str], None]) -> None:
    """Write the chart; without matplotlib (the extra `bench`) say so and write nothing."""
    try:
        import matplotlib
    except ImportError:
        say("no chart: matplotlib is missing (pip install -e '.[bench]')")
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot

    times = acknowledged(events)
    if not times:
        say("no chart: nothing was acknowledged")
        return
    faults = [event for event in events if isinstance(event, Fault)]
    colours = dict(zip(dict.fromkeys(fault.name for fault in faults), COLOURS, strict=False))
    figure, axes = pyplot.subplots(figsize=(11, 4), dpi=80)
    axes.plot(*throughput(times, max(BIN_S_MIN, (times[-1] - times[0]) / BINS_MAX)), linewidth=0.8)
    for fault in faults:
        axes.axvspan(fault.t - times[0], fault.over - times[0], color=colours[fault.name], alpha=0.12, linewidth=0)
        axes.axvline(fault.t - times[0], color=colours[fault.name], linewidth=1)
    for name, colour in colours.items():
        axes.plot([], [], color=colour, label=name)
    axes.set_xlabel("seconds")
    axes.set_ylabel("updates acknowledged as durable, a second")
    axes.set_title("faults (lines), and until all is whole again (bands)")
    axes.set_ylim(bottom=0)
    axes.grid(visible=True, alpha=0.3)
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
    figure.savefig(path, bbox_inches="tight")
    pyplot.close(figure)
    say(f"chart: {path}")
