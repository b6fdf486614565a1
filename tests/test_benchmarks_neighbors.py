"""The benchmark of the neighbor search: its systems, its record, and what is made of the record."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import neighbor_report
import pytest
import torch
from neighbor_peers import CUTOFF, PEERS, inside, make_batch, make_system, mixed_sizes

import glassconv

REPOSITORY = Path(__file__).resolve().parent.parent


def search_row(peer: str, n_nodes: int, median_s: float, **more: Any) -> dict[str, Any]:
    row = {"benchmark": "search", "kind": "liquid", "order": "random", "n_nodes": n_nodes, "threads": 1,
           "peer": peer, "output": "full", "median_s": median_s, "busy_threads": 1.0}  # fmt: skip
    return row | ({} if peer == "glassconv" else {"more_edges": 0}) | more


def made_up_record() -> dict[str, Any]:
    rows = [
        search_row("glassconv", 32_768, 0.010),
        search_row("vesin", 32_768, 0.041, ratio=4.1),
        search_row("matscipy", 32_768, 0.099, ratio=9.9),
        search_row("freud AABBQuery", 32_768, 0.3, ratio=30.0, more_edges=-2),
        search_row("glassconv", 1_000_000, 0.4),
        search_row("glassconv", 32_768, 0.006, threads=2, ratio=0.6, baseline="1 thread", busy_threads=2.5),
        {**search_row("ASE", 32_768, 0.0), "left_out": "not installed"},
        {"benchmark": "feature", "kind": "liquid", "order": "random", "n_nodes": 4096, "threads": 1,
         "feature": "float32", "baseline": "float64", "median_s": 0.001, "ratio": 1.25},
        {"benchmark": "memory", "kind": "liquid", "order": "random", "n_nodes": 1_000_000, "threads": 1,
         "peer": "glassconv", "n_edges": 40_400_000, "seconds": 0.5, "peak_bytes": 2_000_000_000,
         "output_bytes": 1_454_400_000, "ratio": 1.375},
    ]  # fmt: skip
    source = {"device_name": "a processor", "build": None, "n_cpus": 2, "packages": {"torch": "2.13"},
              "peers": {"vesin": "0.6.2", "ase": None}, "date": "2026-01-02T03:04:05+00:00",
              "commit": "0123456789abcdef+changes", "command": "python bench"}  # fmt: skip
    return {"benchmark": "neighbor search", "cutoff": 2.0, "failed": 3, "rows": rows, "provenance": source}


def test_table_has_times_ratios_and_other_numbers_of_edges() -> None:
    table = "\n".join(neighbor_report.search_table(neighbor_report.fresh(made_up_record())))
    assert "| glassconv | full | 10 ms | 400 ms |" in table
    assert "| vesin | full | 41 ms (4.1 x) |  |" in table
    assert "300 ms (30 x) [-2 edges]" in table
    assert "ASE" not in table


def test_targets_are_judged_by_their_bounds() -> None:
    verdicts = {name: met for name, _, _, met in neighbor_report.targets(made_up_record())}
    assert verdicts == {
        "vesin / glassconv, N = 32,768": True,
        "matscipy / glassconv, N = 32,768": False,
        "one thread / two threads, N = 32,768": False,  # 1 / 0.6 < 1.7
        "largest / smallest time per particle, N = 10^4 to 10^6, order random": False,  # 400 / 305 ns
        "peak memory / public output, N = 1,000,000": True,
        "float32 / float64, N = 4,096": False,
    }


def test_report_names_origin_and_what_is_not_as_it_should_be() -> None:
    text = neighbor_report.markdown(made_up_record())
    assert (
        "a processor (reference), 2 cores; torch 2.13, vesin 0.6.2; 2026-01-02, commit 0123456789+changes"
        in text
    )
    assert "- measurements that failed: 3" in text
    assert "left out: ASE, search, liquid, random, N = 32,768, threads: 1: not installed" in text
    assert "glassconv, search, liquid, random, N = 32,768, threads: 2: kept 2.50 threads busy" in text


def test_files_of_a_record(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    paths = neighbor_report.write(made_up_record(), tmp_path / "device")
    assert [path.name for path in paths] == ["neighbors.json", "neighbors.md", "neighbors.png"]
    assert json.loads(paths[0].read_text()) == made_up_record()
    assert paths[2].read_bytes().startswith(b"\x89PNG")
    assert paths[2].stat().st_size < 100_000
    found = neighbor_report.newest(tmp_path)
    assert found is not None
    assert found[0] == paths[0]


def test_plot_has_a_line_for_each_library_and_ours_is_thick() -> None:
    pytest.importorskip("matplotlib")
    for axes in neighbor_report.plot(made_up_record()).axes:
        widths = {line.get_label(): line.get_linewidth() for line in axes.get_lines()}
        assert set(widths) == {"glassconv", "vesin", "matscipy", "freud AABBQuery"}
        assert widths.pop("glassconv") > 2 * max(widths.values())
        assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")


@pytest.mark.parametrize("kind", ["liquid", "gas", "dilute gas"])
def test_systems_have_their_number_and_density(kind: str) -> None:
    system = make_system(kind, "random", 1500)
    lengths = system.cell.diagonal()
    assert system.positions.shape == (1500, 3)
    assert bool(((system.positions >= 0) & (system.positions < lengths)).all())
    assert float(1500 / lengths.prod()) == pytest.approx(0.12 if kind == "dilute gas" else 1.2)


def test_order_changes_the_order_alone() -> None:
    shuffled, simulated = (make_system("liquid", order, 1000) for order in ("random", "simulated"))
    assert not torch.equal(shuffled.positions, simulated.positions)
    by_x = [s.positions[s.positions[:, 0].argsort()] for s in (shuffled, simulated)]
    assert torch.equal(*by_x)


def test_triclinic_basis_has_the_same_neighbors() -> None:
    cubic, skewed = (make_system(kind, "random", 1000) for kind in ("liquid", "triclinic"))
    counts = [glassconv.neighbor_list(s.positions, CUTOFF, cell=s.cell).row_ptr for s in (cubic, skewed)]
    assert torch.equal(*counts)


def test_wrapped_positions_lie_below_the_length() -> None:
    positions = torch.tensor([[-1e-30, 2.0, 5.0]], dtype=torch.float64)
    assert inside(positions, 2.0).tolist() == [[0.0, 0.0, 1.0]]


def test_batches_of_mixed_sizes_add_up() -> None:
    sizes = mixed_sizes(5000, 64, 512)
    assert sum(sizes) == 5000
    assert min(sizes) >= 64
    assert len(set(sizes)) > 5
    positions, cells, batch = make_batch(sizes[:3])
    assert positions.shape == (sum(sizes[:3]), 3)
    assert batch.bincount().tolist() == sizes[:3]
    assert (torch.tensor(sizes[:3]) / torch.linalg.det(cells)).tolist() == pytest.approx([1.2] * 3)


@pytest.mark.parametrize("peer", ["matscipy", "scipy cKDTree", "ASE"])
def test_peers_find_as_many_edges(peer: str) -> None:
    system = make_system("liquid", "random", 1000)
    found, expected = (PEERS[name].count(PEERS[name].make(system, 1)()) for name in (peer, "glassconv"))
    assert found == expected


def run_benchmark(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """One search and one measurement of memory."""
    command = [sys.executable, "benchmarks/bench_neighbors.py", "--quick", "--out", str(folder), "-k",
               "N1k and matscipy or memory", "-p", "no:cacheprovider", *options]  # fmt: skip
    # without the published configuration, with plugins of the folder
    environment = os.environ | {"GLASSCONV_SHARED_DATA": str(folder), "PYTHONPATH": str(folder)}
    environment.pop("PYTEST_XDIST_WORKER", None)  # whose benchmarks are disabled
    return subprocess.run(
        command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=300, check=False
    )


@pytest.mark.parametrize("problem", ["KeyboardInterrupt", "AssertionError"])
def test_a_run_that_is_not_complete_writes_nothing(tmp_path: Path, problem: str) -> None:
    plugin = f"def pytest_runtest_call(item):\n    if 'memory' in item.name:\n        raise {problem}\n"
    (tmp_path / "trouble.py").write_text(plugin)
    result = run_benchmark(tmp_path, "-p", "trouble")
    assert result.returncode != 0
    assert "| matscipy | full, shifts, sorted by i |" in result.stdout
    assert "interrupted, or something failed: nothing written" in result.stdout
    assert not list(tmp_path.glob("neighbors.*"))


def test_a_run_writes_its_record(tmp_path: Path) -> None:
    result = run_benchmark(tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    record = json.loads((tmp_path / "neighbors.json").read_text())
    assert {"device_name", "commit", "date", "command", "peers", "packages"} <= set(record["provenance"])
    search, memory = record["rows"]
    assert (search["peer"], search["n_nodes"], search["threads"]) == ("matscipy", 1000, 1)
    assert search["more_edges"] == 0
    assert search["rounds"] >= 3
    assert search["min_s"] <= search["median_s"] <= search["max_s"]
    assert search["ratio"] > 0
    assert memory["ratio"] > 0.8  # the result itself is in the peak, but for what fits between other memory
    assert memory["n_edges"] > 100_000
