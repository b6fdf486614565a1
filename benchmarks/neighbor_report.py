"""Tables and the plot of the neighbor search, made from its record.

    python benchmarks/neighbor_report.py benchmarks/results/<device>/neighbors.json

writes `neighbors.md` and `neighbors.png` beside the record, as `bench_neighbors.py` does when it ends.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glassconv._files import write_json, write_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAME = "neighbors"
OURS = "glassconv"
# Okabe and Ito's colors and one of Tol's, for the color-blind to tell apart; markers for those who see none.
STYLES = {
    OURS: ("#000000", "o"),
    "vesin": ("#e69f00", "s"),
    "vesin views": ("#882255", "*"),
    "vesin sorted": ("#d55e00", "D"),
    "vesin-torch": ("#f0e442", "v"),
    "nvalchemi-toolkit-ops": ("#009e73", "^"),
    "matscipy": ("#0072b2", "P"),
    "scipy cKDTree": ("#56b4e9", "X"),
    "freud AABBQuery": ("#cc79a7", "<"),
    "ASE": ("#999999", ">"),
}
Row = dict[str, Any]
Record = dict[str, Any]


def select(record: Record, **wanted: Any) -> list[Row]:
    """The rows with these values, among those that were measured."""
    return [
        row
        for row in record["rows"]
        if "left_out" not in row and all(row.get(key) == value for key, value in wanted.items())
    ]


def fresh(record: Record, kind: str = "liquid", order: str = "random", threads: int = 1) -> list[Row]:
    """Fresh lists of one kind of system."""
    return select(record, benchmark="search", kind=kind, order=order, threads=threads)


def milliseconds(seconds: float) -> str:
    """Three digits, thousands in full."""
    value = 1e3 * seconds
    return f"{value:.0f} ms" if value >= 1000 else f"{value:.3g} ms"


def times(ratio: float) -> str:
    """A ratio."""
    return f"{ratio:.0f} x" if ratio >= 100 else f"{ratio:.3g} x"


def cells(values: Iterable[str]) -> str:
    """A line of a table."""
    return "| " + " | ".join(values) + " |"


def heading(values: Iterable[str]) -> list[str]:
    """The first two lines of a table."""
    names = list(values)
    return [cells(names), "|---" * len(names) + "|"]


def search_table(rows: list[Row]) -> list[str]:
    """A line for each library, a column for each N: its time and, in brackets, the ratio to ours."""
    sizes = sorted({row["n_nodes"] for row in rows})
    by = {(row["peer"], row["n_nodes"]): row for row in rows}
    outputs = {row["peer"]: row["output"] for row in rows}
    lines = heading(["", "returns", *(f"N = {n:,}" for n in sizes)])
    for peer, output in outputs.items():
        entries = []
        for n in sizes:
            row = by.get((peer, n))
            entry = "" if row is None else milliseconds(row["median_s"])
            if row is not None and peer != OURS:
                entry += f" ({times(row['ratio'])})"
                if row["more_edges"]:
                    entry += f" [{row['more_edges']:+} edges]"
            entries.append(entry)
        lines.append(cells([peer, output, *entries]))
    return lines


def per_particle(record: Record, order: str) -> list[tuple[int, float]]:
    """N and our seconds per particle, liquid, one thread."""
    rows = [row for row in fresh(record, order=order) if row["peer"] == OURS]
    return sorted((row["n_nodes"], row["median_s"] / row["n_nodes"]) for row in rows)


def per_particle_table(record: Record) -> list[str]:
    """Our time per particle against N for both orders."""
    found = {order: dict(per_particle(record, order)) for order in ("random", "simulated")}
    sizes = sorted({n for values in found.values() for n in values})
    lines = heading(["order of the particles", *(f"N = {n:,}" for n in sizes)])
    for order, values in found.items():
        lines.append(cells([order, *(f"{1e9 * values[n]:.0f} ns" if n in values else "" for n in sizes)]))
    return lines


def feature_table(record: Record) -> list[str]:
    """A line for each form of ours, a column for each N: its time and the ratio to its baseline."""
    rows = select(record, benchmark="feature")
    sizes = sorted({row["n_nodes"] for row in rows})
    by = {(row["feature"], row["n_nodes"]): row for row in rows}
    lines = heading(["", "compared with", *(f"N = {n:,}" for n in sizes)])
    for name, baseline in {row["feature"]: row["baseline"] for row in rows}.items():
        entries = [
            "" if row is None else f"{milliseconds(row['median_s'])} ({times(row['ratio'])})"
            for row in (by.get((name, n)) for n in sizes)
        ]
        lines.append(cells([name, baseline, *entries]))
    return lines


def memory_table(record: Record) -> list[str]:
    """Peaks of memory."""
    lines = heading(["", "N", "edges", "peak", "peak / public output", "time of the first call"])
    for row in select(record, benchmark="memory"):
        ratio = times(row["ratio"]) if "ratio" in row else ""
        peak = f"{row['peak_bytes'] / 1e6:.0f} MB"
        numbers = (f"{row['n_nodes']:,}", f"{row['n_edges']:,}", peak, ratio, milliseconds(row["seconds"]))
        lines.append(cells([row["peer"], *numbers]))
    return lines


def targets(record: Record) -> list[tuple[str, float, str, bool]]:
    """What was to be reached: name, value found, its bound as text, and whether it is met."""
    found: list[tuple[str, float, str, bool]] = []

    def at_most(name: str, value: float, bound: float) -> None:
        found.append((name, value, f"<= {bound:g}", value <= bound))

    def at_least(name: str, value: float, bound: float) -> None:
        found.append((name, value, f">= {bound:g}", value >= bound))

    for row in fresh(record):
        for peer, bound in (("vesin", 4.0), ("matscipy", 10.0)):
            if row["peer"] == peer and row["n_nodes"] in (32_768, 262_144):
                at_least(f"{peer} / glassconv, N = {row['n_nodes']:,}", row["ratio"], bound)
    for row in fresh(record, threads=2):
        if row["peer"] == OURS and row["n_nodes"] >= 32_768:
            at_least(f"one thread / two threads, N = {row['n_nodes']:,}", 1 / row["ratio"], 1.7)
    for order in ("random", "simulated"):
        values = [s for n, s in per_particle(record, order) if 10_000 <= n <= 1_000_000]
        if len(values) > 1:
            name = f"largest / smallest time per particle, N = 10^4 to 10^6, order {order}"
            at_most(name, max(values) / min(values), 1.3)
    for row in select(record, benchmark="memory", peer=OURS):
        at_most(f"peak memory / public output, N = {row['n_nodes']:,}", row["ratio"], 3.0)
    for row in select(record, benchmark="feature"):
        bound = {"float32": 1.0}.get(row["feature"], 1.2 if row["feature"].startswith("batch") else None)
        if bound is not None:
            name = f"{row['feature']} / {row['baseline']}, N = {row['n_nodes']:,}"
            at_most(name, row["ratio"], bound)
    return found


def target_table(record: Record) -> list[str]:
    """The targets, met and not."""
    lines = heading(["target", "found", "bound", ""])
    for name, value, bound, met in targets(record):
        lines.append(cells([name, f"{value:.3g}", bound, "met" if met else "NOT met"]))
    return lines


def warnings(record: Record) -> list[str]:
    """What failed or was left out, and what kept more threads busy than it was told."""
    lines = [f"- measurements that failed: {record['failed']}"] if record["failed"] else []
    for row in record["rows"]:
        what = row.get("peer") or f"{row.get('feature')}"
        where = (
            f"{what}, {row['benchmark']}, {row['kind']}, {row['order']}, N = {row['n_nodes']:,}, "
            f"threads: {row['threads']}"
        )
        if "left_out" in row:
            lines.append(f"- left out: {where}: {row['left_out']}")
        elif row.get("busy_threads", 0) > 1.1 * row["threads"]:
            lines.append(f"- {where}: kept {row['busy_threads']:.2f} threads busy")
    return lines


def origin(record: Record) -> str:
    """Machine, versions, date, commit and command."""
    source = record["provenance"]
    isa = (source["build"] or {}).get("isa", "reference")
    versions = {"torch": source["packages"]["torch"]} | {k: v for k, v in source["peers"].items() if v}
    used = ("torch", "vesin", "vesin-torch", "nvalchemi-toolkit-ops", "matscipy", "scipy", "freud-analysis",
            "ase")  # fmt: skip
    packages = ", ".join(f"{name} {versions[name]}" for name in used if name in versions)
    commit = source["commit"] or "no commit"
    sha, *changed = commit.split("+")
    return (
        f"{source['device_name']} ({isa}), {source['n_cpus']} cores; {packages}; {source['date'][:10]}, "
        f"commit {'+'.join([sha[:10], *changed])}; `{source['command']}`"
    )


def readme(record: Record, figure: str) -> list[str]:
    """The part of the README: the figure at this path, the table of the liquid, and where both come from."""
    two = {row["n_nodes"]: 1 / row["ratio"] for row in fresh(record, threads=2) if row["peer"] == OURS}
    memory = select(record, benchmark="memory", peer=OURS)
    what = f"Kob-Andersen liquid, cutoff {record['cutoff']:g} (40 neighbors), float64, particles shuffled"
    lines = [
        f"The neighbor search, {what}, one thread; medians of repeated calls",
        "(memory is kept from one to the next), in brackets over ours, measured in turn:",
        "",
        f"![time of the neighbor search against N]({figure})",
        "",
        *search_table(fresh(record)),
        "",
    ]
    if two:
        listed = ", ".join(f"{speed:.2f} at N = {n:,}" for n, speed in sorted(two.items()))
        lines += [f"Two threads are faster than one by a factor of {listed}."]
    if memory:
        largest = max(memory, key=lambda row: row["n_nodes"])
        lines += [
            f"Peak memory at N = {largest['n_nodes']:,}: {largest['ratio']:.2f} times the public output."
        ]
    return [*lines, "", origin(record), ""]


def markdown(record: Record) -> str:
    """Everything, as Markdown."""
    lines = [f"# Neighbor search, cutoff {record['cutoff']:g}, float64", "", origin(record), ""]
    lines += [
        "Medians of repeated calls, which keep memory from one to the next; in brackets the time over ours,"
    ]
    lines += ["both measured in turn. Times in the table of memory are those of a first call.", ""]
    cases = dict.fromkeys(
        (row["kind"], row["order"], row["threads"]) for row in select(record, benchmark="search")
    )
    for kind, order, threads in cases:
        title = f"## {kind.capitalize()}, order {order}, {threads} thread{'s' if threads > 1 else ''}"
        lines += [title, "", *search_table(fresh(record, kind, order, threads)), ""]
    for title, table in (
        ("Time per particle, liquid, one thread", per_particle_table),
        ("Forms, one thread", feature_table),
        ("Memory", memory_table),
        ("Targets", target_table),
    ):
        lines += [f"## {title}", "", *table(record), ""]
    notes = warnings(record)
    if notes:
        lines += ["## Notes", "", *notes, ""]
    return "\n".join(lines)


def plot(record: Record) -> Figure:
    """Time and time per particle against N: liquid, shuffled, one thread; ours thick."""
    from matplotlib.figure import Figure

    rows = fresh(record)
    figure = Figure(figsize=(9.0, 3.9), layout="constrained")
    total, each = figure.subplots(1, 2)
    for peer, (color, marker) in STYLES.items():
        points = sorted((row["n_nodes"], row["median_s"]) for row in rows if row["peer"] == peer)
        if not points:
            continue
        sizes = [n for n, _ in points]
        ours = peer == OURS
        style = {
            "color": color,
            "marker": marker,
            "linewidth": 3.0 if ours else 1.2,
            "zorder": 3 if ours else 2,
        }
        style["markersize"] = 6.0 if ours else 4.5
        total.loglog(sizes, [1e3 * s for _, s in points], label=peer, **style)
        each.loglog(sizes, [1e6 * s / n for n, s in points], label=peer, **style)
    total.set_ylabel("time (ms)")
    each.set_ylabel("time per particle (µs)")
    for axes in (total, each):
        axes.set_xlabel("particles")
        axes.grid(alpha=0.3)
    figure.legend(*total.get_legend_handles_labels(), loc="outside right upper", fontsize=8, frameon=False)
    figure.suptitle(
        f"Kob-Andersen liquid, cutoff {record['cutoff']:g}, float64, one thread, "
        f"{record['provenance']['device_name']}",
        fontsize=10,
    )
    return figure


def write(record: Record, folder: Path) -> list[Path]:
    """The record, its tables and its plot in this folder, each whole or not at all."""
    from glassconv.plotting import save

    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{NAME}.{ending}" for ending in ("json", "md", "png")]
    write_json(paths[0], record)
    write_text(paths[1], markdown(record))
    save(plot(record), paths[2])
    return paths


def newest(results: Path) -> tuple[Path, Record] | None:
    """The last record in `results/*/`, and where it lies."""
    found = [(path, json.loads(path.read_text(encoding="utf-8"))) for path in results.glob(f"*/{NAME}.json")]
    return max(found, key=lambda item: item[1]["provenance"]["date"], default=None)


def main() -> int:
    """Write the tables and the plot of the record that is named."""
    if len(sys.argv) != 2:
        print(__doc__, file=sys.stderr)
        return 2
    path = Path(sys.argv[1])
    write(json.loads(path.read_text(encoding="utf-8")), path.parent)
    return 0


if __name__ == "__main__":
    sys.exit(main())
