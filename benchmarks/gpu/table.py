"""Stage report: the measurements of a run as one table, with targets and peers beside them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

Record = dict[str, Any]
HEAD = (
    "what",
    "direction",
    "cold",
    "warm",
    "eager",
    "floor",
    "x floor",
    "GB/s",
    "GFLOP/s",
    "peak MB",
    "target",
    "met",
)


def read(folders: Iterable[Path], since: str) -> list[Record]:
    """The records of a run: those written since a date (ISO, UTC), oldest first."""
    files = sorted({file for folder in folders for file in folder.glob("*.jsonl")})
    lines = [line for file in files for line in file.read_text(encoding="utf-8").splitlines()]
    records = [record for record in map(json.loads, lines) if record["provenance"]["date"] >= since]
    return sorted(records, key=lambda record: record["provenance"]["date"])


def duration(seconds: float | None) -> str:
    """Three digits in microseconds below a millisecond, then in milliseconds."""
    if seconds is None:
        return ""
    return f"{1e6 * seconds:.3g} us" if seconds < 1e-3 else f"{1e3 * seconds:.3g} ms"


def number(value: float | None) -> str:
    """Three digits, nothing for what was not measured."""
    return "" if value is None else f"{value:.3g}" if value < 1000 else f"{value:.0f}"


def met(record: Record) -> str:
    """The verdict on a target, where there is one."""
    return {True: "met", False: "NOT met", None: ""}[record.get("met")]


def row(record: Record, what: str, direction: str, cold: str = "cold_s") -> tuple[str, ...]:
    """One line of the table."""
    peak = record.get("peak_bytes")
    return (
        what,
        direction + ("" if record.get("captured", True) else " (not captured)"),
        duration(record.get(cold)),
        duration(record.get("warm_s")),
        duration(record.get("eager_s")),
        duration(record.get("floor_s")),
        number(record.get("over_floor")),
        number(record.get("gbyte_s")),
        number(record.get("gflop_s")),
        number(None if peak is None else peak / 1e6),
        duration(record.get("target_s")),
        met(record),
    )


def newest(records: Sequence[Record], keys: Sequence[str]) -> list[Record]:
    """Of several measurements of one thing the last, in the order of the first."""
    found: dict[tuple[Any, ...], Record] = {}
    for record in records:
        found[tuple(record.get(key) for key in keys)] = record
    return list(found.values())


def main_rows(records: Sequence[Record]) -> list[tuple[str, ...]]:
    """Convolutions, searches and training steps."""
    of = {name: [r for r in records if r["benchmark"] == f"gpu {name}"] for name in
          ("convolution", "neighbors", "training step")}  # fmt: skip
    rows = [
        row(r, f"conv {r['case']}", r["direction"]) for r in newest(of["convolution"], ("case", "direction"))
    ]
    for r in newest(of["neighbors"], ("n_nodes",)):
        rows.append(row(r, f"neighbors N={r['n_nodes']}", "fixed capacity"))
        rows.append(("", "operator, waits", duration(r["operator_s"]), *[""] * 9))
        rows.append(("", "neighbor_list", duration(r["graph_s"]), *[""] * 9))
    for r in newest(of["training step"], ("implementation", "form")):
        cold = "median_s" if "median_s" in r else "cold_s"
        rows.append(row(r, f"training step, {r['implementation']}", r["form"], cold))
    return rows


def peer_lines(records: Sequence[Record]) -> list[str]:
    """Times of the peers over ours, the same call through autograd on both sides."""
    times = newest([r for r in records if r["benchmark"] == "gpu peer"], ("peer", "case"))
    base = {r["case"]: r for r in times if r["peer"] == "glassconv"}
    lines = []
    for r in times:
        if r["peer"] == "glassconv" or r["case"] not in base:
            continue
        parts = []
        for key, label in (("forward", "forward"), ("both", "forward + backward")):
            theirs, own = r[f"{key}_cold_s"], base[r["case"]][f"{key}_cold_s"]
            parts.append(f"{label} {duration(theirs)} = {theirs / own:.1f} x ours")
        lines.append(f"{r['peer']}, {r['case']}: {', '.join(parts)}")
    searches = newest([r for r in records if r["benchmark"] == "gpu peer search"], ("peer", "n_nodes"))
    return lines + [f"{r['peer']}, neighbors N={r['n_nodes']}: {duration(r['graph_s'])}" for r in searches]


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns of equal width: words to the left, numbers to the right."""
    widths = [max(len(cells[i]) for cells in rows) for i in range(len(rows[0]))]
    lines = []
    for cells in rows:
        padded = [
            c.ljust(w) if i < 2 else c.rjust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True))
        ]
        lines.append("  ".join(padded).rstrip())
    return lines


def table(records: Sequence[Record]) -> str:
    """Everything, as text."""
    if not records:
        return "no measurements"
    lines = []
    rows = main_rows(records)
    if rows:
        lines += aligned([HEAD, *rows])
        lines.append(
            "cold: replay of a CUDA graph, L2 cleared; warm: replays back to back, rotating inputs; eager: "
            "calls from Python. GB/s and GFLOP/s: what has to be moved and computed, over the cold time."
        )
    lines += peer_lines(records)
    verdicts = [r["met"] for r in records if r.get("met") is not None]
    if verdicts:
        lines.append(f"targets: {sum(verdicts)} of {len(verdicts)} met")
    last = records[-1]["provenance"]
    lines.append(
        f"{last['device_name']}, driver {last['driver']}, torch {last['packages']['torch']}, {last['date']}, "
        f"commit {last['commit']}, {len(records)} records"
    )
    return "\n".join(lines)
