"""Tables and the plot of the convolution, made from its record.

    python benchmarks/convolution_report.py benchmarks/results/<device>/convolution.json

writes `convolution.md` and `convolution.png` beside the record, as `bench_convolution.py` does when it ends.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import roofline
from neighbor_report import cells, heading, milliseconds, select, times

from glassconv._files import write_json, write_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NAME = "convolution"
OURS, THEIRS = "glassconv", "e3nn"
DIRECTIONS = {
    "forward": "forward",
    "backward": "backward",
    "both": "forward + backward",
    "double": "double backward",
}
# Okabe and Ito's colors, for the color-blind to tell apart; dashes and markers for those who see none.
COLORS = {2: "#0072b2", 3: "#d55e00"}
Row = dict[str, Any]
Record = dict[str, Any]


def group_of(row: Row) -> tuple[str, str, str, int]:
    """What stands in one table: the system, the form of the weights, the type, the threads."""
    return row["system"], row["weights"], row["dtype"], row["threads"]


def find(record: Record, **wanted: Any) -> Row | None:
    """The measurement of a convolution with these values; the system of the README unless given."""
    usual = {"system": "liquid", "weights": "lowrank", "dtype": "float32", "threads": 1, "peer": OURS}
    rows = select(record, benchmark="convolution", **(usual | wanted))
    return rows[-1] if rows else None


def with_ratio(row: Row) -> str:
    """A time, in brackets the time over ours."""
    return f"{milliseconds(row['median_s'])} ({times(row['ratio'])})"


def multiple(row: Row) -> str:
    """Of the floor."""
    return f"{row['over_floor']:.2f}" if "over_floor" in row else ""


def share(row: Row) -> str:
    """Of the peak of multiply-adds."""
    return f"{100 * row['fma_share']:.0f} %" if "fma_share" in row else ""


def group_table(rows: list[Row]) -> list[str]:
    """A line for each list of irreps and direction: our time and what it amounts to, then the others'."""
    others = list(dict.fromkeys(row["peer"] for row in rows if row["peer"] != OURS))
    by = {(row["irreps"], row["direction"], row["peer"]): row for row in rows}
    has_threads = any(row.get("baseline") == "1 thread" for row in rows)
    names = ["irreps", "N", "E", "", OURS, *(["over 1 thread"] if has_threads else []), "floor", "bound by",
             "x floor", "GB/s", "GFLOP/s", "FMA peak", *others]  # fmt: skip
    lines = heading(names)
    in_order = list(DIRECTIONS)
    lists = list(dict.fromkeys(row["irreps"] for row in rows))
    pairs = {(row["irreps"], row["direction"]) for row in rows}
    for irreps, direction in sorted(pairs, key=lambda p: (lists.index(p[0]), in_order.index(p[1]))):
        ours = by.get((irreps, direction, OURS))
        any_row = next(row for row in rows if (row["irreps"], row["direction"]) == (irreps, direction))
        entries = [irreps, f"{any_row['n_nodes']:,}", f"{any_row['n_edges']:,}", DIRECTIONS[direction]]
        if ours is None:
            entries += [""] * (7 + has_threads)
        else:
            entries += [milliseconds(ours["median_s"])]
            entries += [times(ours["ratio"])] if has_threads else []
            entries += [
                milliseconds(ours["floor_s"]) if "floor_s" in ours else "",
                ours.get("floor_is") or "",
                multiple(ours),
                f"{ours['gbyte_s']:.3g}",
                f"{ours['gflop_s']:.3g}",
                share(ours),
            ]
        found = (by.get((irreps, direction, peer)) for peer in others)
        lines.append(cells([*entries, *("" if row is None else with_ratio(row) for row in found)]))
    return lines


def machine_table(found: roofline.Roofline) -> list[str]:
    """Rates of the timed loops."""
    threads = sorted({loop["threads"] for loop in found["loops"]})
    names = {"fma": "multiply-adds", "memfma": "multiply-adds, one operand from L1", "load": "loads from L1"}
    lines = heading(["", "instructions", "type", *(f"{n} thread{'s' * (n > 1)}" for n in threads)])
    per = {(loop["what"], loop["isa"], loop["dtype"], loop["threads"]): loop for loop in found["loops"]}
    for what, isa, dtype in dict.fromkeys(key[:3] for key in per):
        entries = []
        for n in threads:
            loop = per.get((what, isa, dtype, n))
            if loop is None:
                entries.append("")
            elif what == "load":
                entries.append(f"{1e-9 * loop['per_s'] * loop['lanes'] * 4:.0f} GB/s")
            else:
                entries.append(f"{2e-9 * loop['per_s'] * loop['lanes']:.0f} GFLOP/s")
        lines.append(cells([names[what], isa, dtype, *entries]))
    by = {(b["what"], b["threads"]): b["bytes_per_s"] for b in found["bandwidths"]}
    for what in dict.fromkeys(key[0] for key in by):
        entries = [f"{1e-9 * by[what, n]:.1f} GB/s" if (what, n) in by else "" for n in threads]
        lines.append(cells([f"memory, {what}", "", "", *entries]))
    return lines


def machine_line(found: roofline.Roofline) -> str:
    """The roofline of one thread in one line."""
    parts = []
    for dtype in ("float32", "float64"):
        rate = roofline.rate(found, "fma", dtype)
        if rate is not None:
            parts.append(f"{2e-9 * rate[0]:.0f} GFLOP/s in {dtype} ({rate[1]})")
    bandwidth = roofline.bandwidth(found)
    if bandwidth is not None:
        parts.append(f"{1e-9 * bandwidth:.0f} GB/s")
    return f"One core of this machine at best, measured: {', '.join(parts) or 'not known'}."


def memory_table(record: Record) -> list[str]:
    """Peaks of memory."""
    lines = heading(["irreps", "weights", "", "results", OURS, THEIRS, "ratio"])
    rows = select(record, benchmark="memory")
    by = {(r["irreps"], r["weights"], r["direction"], r["peer"]): r for r in rows}
    for key in dict.fromkeys(key[:3] for key in by):
        ours, theirs = by.get((*key, OURS)), by.get((*key, THEIRS))
        size = [f"{(ours or theirs or {})['result_bytes'] / 1e6:.0f} MB"]
        size += ["" if row is None else f"{row['peak_bytes'] / 1e6:.0f} MB" for row in (ours, theirs)]
        is_pair = ours is not None and theirs is not None and ours["peak_bytes"] > 0
        size.append(times(theirs["peak_bytes"] / ours["peak_bytes"]) if is_pair else "")
        lines.append(cells([key[0], key[1], DIRECTIONS[key[2]], *size]))
    return lines


def warnings(record: Record) -> list[str]:
    """What failed or was left out, what kept more threads busy than it was told, what was not checked."""
    lines = [f"- measurements that failed: {record['failed']}"] if record["failed"] else []
    if not record["roofline"]["checked"]:
        lines.append("- no objdump: the loops of the roofline are not checked in the disassembly")
    for row in record["rows"]:
        where = (
            f"{row['peer']}, {row['benchmark']}, {row['irreps']}, {row['system']}, {row['weights']}, "
            f"{row['dtype']}, {DIRECTIONS[row['direction']]}, threads: {row['threads']}"
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
    versions = source["packages"] | {name: version for name, version in source["peers"].items() if version}
    packages = ", ".join(
        f"{name} {versions[name]}" for name in ("torch", "e3nn", "cuequivariance-torch") if name in versions
    )
    sha, *changed = (source["commit"] or "no commit").split("+")
    return (
        f"{source['device_name']} ({isa}), {source['n_cpus']} cores; {packages}; {source['date'][:10]}, "
        f"commit {'+'.join([sha[:10], *changed])}; `{source['command']}`"
    )


def systems(record: Record) -> dict[str, str]:
    """What the systems are of, by name and number of nodes."""
    rows = select(record, benchmark="convolution")
    return {f"{row['system']}, N = {row['n_nodes']:,}": row["what"] for row in rows if "what" in row}


def best_ratio(record: Record, irreps: str, weights: str, direction: str) -> str:
    """Our time, in brackets e3nn's over it, where measured."""
    ours = find(record, irreps=irreps, weights=weights, direction=direction)
    theirs = find(record, irreps=irreps, weights=weights, direction=direction, peer=THEIRS)
    text = "" if ours is None else milliseconds(ours["median_s"])
    return text if theirs is None else f"{text} ({times(theirs['ratio'])})"


def readme_table(record: Record) -> list[str]:
    """A line for each list of irreps and form of the weights."""
    lines = heading(["irreps", "weights", "N", "forward", "forward + backward", "double backward",
                     "multiple of the floor"])  # fmt: skip
    rows = [
        r
        for r in select(record, benchmark="convolution", peer=OURS)
        if group_of(r)[::2] == ("liquid", "float32")
    ]
    for irreps, weights in dict.fromkeys((r["irreps"], r["weights"]) for r in rows if r["threads"] == 1):
        shown = ("forward", "both", "double")
        found = [find(record, irreps=irreps, weights=weights, direction=d) for d in shown]
        if re.search(r"-C(4|16)$", irreps) or not any(found):
            continue  # those are in the plot
        n_nodes = next(row["n_nodes"] for row in found if row)
        title = "" if re.match(r"(glass|first|tiny)-", irreps) else f"{irreps} "
        title += f"`{record['lists'][irreps]['irreps_in']}`"
        entries = [best_ratio(record, irreps, weights, d) for d in shown]
        floors = " / ".join(multiple(row) for row in found if row)
        lines.append(cells([title, weights, f"{n_nodes:,}", *entries, floors]))
    return lines


def readme(record: Record, figure: str) -> list[str]:
    """The part of the README: the figure at this path, the table, and where both come from."""
    usual = find(record, irreps="glass-l3-C8", direction="forward")
    edges = "" if usual is None else f", N = {usual['n_nodes']:,} (E = {usual['n_edges']:,}) where not said"
    lines = [
        f"The convolution, Kob-Andersen liquid{edges}, float32,",
        f"one thread, weights explicit or low-rank (H = {record['n_radial']}); in brackets the time over",
        "ours of e3nn's TensorProduct with gather and sum, measured in turn on the same inputs. The floor is",
        "the least time that the arithmetic or the memory of this machine allows, for the three directions:",
        "",
        f"![time of the convolution against the number of channels]({figure})",
        "",
        *readme_table(record),
        "",
        machine_line(record["roofline"]),
    ]
    memory = {
        (r["peer"], r["direction"]): r["peak_bytes"]
        for r in select(record, benchmark="memory", irreps="glass-l3-C8", weights="lowrank")
    }
    if {(OURS, "both"), (THEIRS, "both")} <= set(memory):
        peaks = [memory[peer, "both"] / 1e6 for peer in (OURS, THEIRS)]
        lines.append(
            f"Peak memory of forward + backward at l_max 3, C = 8, low-rank: {peaks[0]:.0f} MB, of e3nn "
            f"{peaks[1]:.0f} MB, beyond inputs."
        )
    return [*lines, "", origin(record), ""]


def markdown(record: Record) -> str:
    """Everything, as Markdown."""
    lines = ["# Convolution", "", origin(record), ""]
    lines += ["Medians of repeated calls; in brackets the time over ours, both measured in turn on the same"]
    lines += ["inputs. The floor is the larger of the multiply-adds over their peak and the bytes over the"]
    lines += [
        "bandwidth of memory; both are counted as `benchmarks/convolution_counts.py` says. Small systems"
    ]
    lines += [f"stay in the caches, where bytes cost less. Low-rank weights: H = {record['n_radial']}.", ""]
    lines += ["Systems:", "", *(f"- {name}: {what}" for name, what in systems(record).items()), ""]
    lines += ["Irreps:", ""]
    lines += [
        f"- {name}: `{irreps['irreps_in']}`, harmonics `{irreps['irreps_sh']}`, to `{irreps['irreps_out']}`"
        for name, irreps in record["lists"].items()
    ]
    lines += ["", "## This machine", "", *machine_table(record["roofline"]), ""]
    rows = select(record, benchmark="convolution")
    for group in dict.fromkeys(map(group_of, rows)):
        system, weights, dtype, threads = group
        title = f"## {system.capitalize()}, {weights} weights, {dtype}, {threads} thread{'s' * (threads > 1)}"
        lines += [title, "", *group_table([row for row in rows if group_of(row) == group]), ""]
    lines += ["## Peak memory of a call, beyond what was there before it", "", *memory_table(record), ""]
    notes = warnings(record)
    if notes:
        lines += ["## Notes", "", *notes, ""]
    return "\n".join(lines)


def _time_panel(axes: Axes, record: Record, direction: str) -> None:
    """Time against the number of channels, low-rank weights: ours thick, e3nn dashed, the floor dotted."""
    for l_max, color in COLORS.items():
        ours, theirs = (
            [
                (channels, 1e3 * row["median_s"])
                for channels in (4, 8, 16, 32)
                if (row := find(record, irreps=f"glass-l{l_max}-C{channels}", direction=direction, peer=peer))
            ]
            for peer in (OURS, THEIRS)
        )
        floor = [
            (channels, 1e3 * row["floor_s"])
            for channels in (4, 8, 16, 32)
            if (row := find(record, irreps=f"glass-l{l_max}-C{channels}", direction=direction))
            and "floor_s" in row
        ]
        for points, name, style in (
            (theirs, THEIRS, {"linestyle": "--", "marker": "s", "linewidth": 1.2}),
            (ours, OURS, {"linestyle": "-", "marker": "o", "linewidth": 3.0}),
            (floor, "floor", {"linestyle": ":", "linewidth": 1.2}),
        ):
            if points:
                axes.plot(*zip(*points, strict=True), color=color, label=f"{name}, l_max {l_max}", **style)
    axes.set(xscale="log", yscale="log", xlabel="channels C", ylabel="time (ms)", title=DIRECTIONS[direction])
    axes.set_xticks([4, 8, 16, 32], labels=["4", "8", "16", "32"])
    axes.minorticks_off()
    axes.grid(alpha=0.3)


def speed_ups(record: Record) -> dict[str, dict[str, float]]:
    """e3nn's time over ours by list of irreps (weights as published, else low-rank) and direction."""
    found: dict[str, dict[str, float]] = {}
    for row in select(
        record, benchmark="convolution", peer=THEIRS, system="liquid", dtype="float32", threads=1
    ):
        name, weights = row["irreps"], row["weights"]
        is_published = not re.match(r"(glass|first|tiny)-", name)
        if weights == ("explicit" if is_published else "lowrank"):
            found.setdefault(name, {})[row["direction"]] = row["ratio"]
    return {name: found[name] for name in record["lists"] if name in found}


def _ratio_panel(axes: Axes, record: Record) -> None:
    """A bar for each list of irreps: how many times faster than e3nn."""
    found = speed_ups(record)
    names = list(found)[::-1]
    for shift, direction, color in ((0.2, "forward", "#009e73"), (-0.2, "both", "#cc79a7")):
        places = [
            (i + shift, found[name][direction]) for i, name in enumerate(names) if direction in found[name]
        ]
        if places:
            axes.barh(*zip(*places, strict=True), height=0.38, color=color, label=DIRECTIONS[direction])
    axes.set_yticks(
        range(len(names)), labels=[re.sub(r"^(first|tiny)-", "", name) for name in names], fontsize=7
    )
    axes.set(xscale="log", xlabel="time of e3nn / time of glassconv")
    axes.set_xlim(left=1.0)
    axes.grid(axis="x", alpha=0.3)


def plot(record: Record) -> Figure:
    """Time against C for l_max 2 and 3, forward and with backward, and the speed-up by list of irreps."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12.0, 4.4), layout="constrained")
    forward, both, ratios = figure.subplots(1, 3, width_ratios=(1, 1, 1.15))
    _time_panel(forward, record, "forward")
    _time_panel(both, record, "both")
    _ratio_panel(ratios, record)
    for axes, place in ((forward, "outside lower left"), (ratios, "outside lower right")):
        handles, labels = axes.get_legend_handles_labels()
        if handles:
            figure.legend(handles, labels, loc=place, ncols=3, fontsize=8, frameon=False)
    usual = find(record, irreps="glass-l3-C8", direction="forward")
    size = "" if usual is None else f", N = {usual['n_nodes']:,}, E = {usual['n_edges']:,}"
    figure.suptitle(
        f"Kob-Andersen liquid{size}, low-rank weights, float32, one thread, "
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
