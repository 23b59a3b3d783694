"""Charts against concurrency, as PNG beside the JSON."""

from collections.abc import Callable
from pathlib import Path
from statistics import median

from loadtest.bus.rounds import Results

PREFIX = "calls_big_"


def draw(results: Results, json_path: Path, say: Callable[[str], None]) -> None:
    """Write FILE-calls.png and FILE-cpu.png; without matplotlib (the extra `bench`) say so and write nothing."""
    try:
        import matplotlib
    except ImportError:
        say("no charts: matplotlib is missing (pip install -e '.[bench]')")
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot

    for suffix, title, attribute in (
        ("calls", "calls a second, 1.1 KB both ways", "per_second"),
        ("cpu", "CPU us a call, all processes", "cpu_us"),
    ):
        figure, axes = pyplot.subplots(figsize=(8, 5), dpi=110)
        for contender, measured in results.items():
            points = {
                int(name.removeprefix(PREFIX)): median(getattr(value, attribute) for value in values)
                for name, values in measured.items()
                if name.startswith(PREFIX)
            }
            if len(points) > 1:
                axes.plot(list(points), list(points.values()), marker="o", label=contender)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xlabel("calls in flight")
        axes.set_title(title)
        axes.grid(visible=True, which="both", alpha=0.3)
        axes.legend()
        path = json_path.with_name(f"{json_path.stem}-{suffix}.png")
        figure.savefig(path)
        pyplot.close(figure)
        say(f"chart: {path}")
