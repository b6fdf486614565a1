"""`glassconv.compat.ase`: the arguments and results of ASE's neighbor list."""

from __future__ import annotations

import doctest
import itertools
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.neighborlist import natural_cutoffs
from ase.neighborlist import neighbor_list as ase_neighbor_list
from matscipy.neighbours import neighbour_list as matscipy_neighbor_list
from neighbor_oracle import brute_force, sort_edges

import glassconv.compat.ase
from glassconv.compat.ase import neighbor_list

PERIODICITIES = list(itertools.product([False, True], repeat=3))


def random_atoms(seed: int, pbc: Any = True, n_atoms: int = 24) -> Atoms:
    """Atoms of three elements in and around a skewed cell, which is as thin as some distances are long."""
    rng = np.random.default_rng(seed)
    cell = np.diag(rng.uniform(2.0, 6.0, 3)) + rng.uniform(-1.0, 1.0, (3, 3))
    positions = rng.uniform(-0.7, 1.7, (n_atoms, 3)) @ cell
    return Atoms(numbers=rng.choice([1, 6, 8], n_atoms), positions=positions, cell=cell, pbc=pbc)


def rows(i: Any, j: Any, S: Any) -> np.ndarray:
    return sort_edges(np.column_stack([i, j, S]))


def check_same(atoms: Atoms, cutoff: Any, **options: Any) -> int:
    """All quantities of ours against ASE's; gives the number of pairs."""
    ours = dict(zip("ijdDS", neighbor_list("ijdDS", atoms, cutoff, **options), strict=True))
    theirs = dict(zip("ijdDS", ase_neighbor_list("ijdDS", atoms, cutoff, **options), strict=True))
    assert {name: array.dtype for name, array in ours.items()} == {n: a.dtype for n, a in theirs.items()}
    assert bool((np.diff(ours["i"]) >= 0).all())
    columns = [np.column_stack([found[name] for name in "ijSdD"]) for found in (ours, theirs)]
    mine, other = (table[np.lexsort(table[:, 4::-1].T)] for table in columns)
    np.testing.assert_array_equal(mine[:, :5], other[:, :5])
    # sums of coordinates to 30, in another order
    np.testing.assert_allclose(mine[:, 5:], other[:, 5:], rtol=0, atol=1e-13)
    return len(ours["i"])


def of_species(atoms: Atoms) -> dict[Any, float]:
    del atoms
    return {("H", "H"): 1.3, ("C", "H"): 2.4, (6, 6): 1.9, (8, "H"): 0.0, ("Au", "O"): 5.0}


def few_radii(atoms: Atoms) -> Any:
    return np.array(natural_cutoffs(atoms)) * 1.3


def many_radii(atoms: Atoms) -> list[float]:
    return list(np.random.default_rng(3).uniform(0.0, 1.6, len(atoms)))


CUTOFFS: dict[str, Callable[[Atoms], Any]] = {
    "number": lambda _: 2.2,
    "integer": lambda _: 2,
    "dict": of_species,
    "few radii": few_radii,
    "many radii": many_radii,
}


@pytest.mark.parametrize("self_interaction", [False, True])
@pytest.mark.parametrize("pbc", PERIODICITIES, ids=str)
@pytest.mark.parametrize("kind", list(CUTOFFS))
def test_matches_ase(kind: str, pbc: tuple[bool, ...], self_interaction: bool) -> None:
    n_pairs = 0
    for seed in range(4):
        atoms = random_atoms(seed, pbc)
        n_pairs += check_same(atoms, CUTOFFS[kind](atoms), self_interaction=self_interaction)
    assert n_pairs > 50


def test_radii_without_types(monkeypatch: pytest.MonkeyPatch) -> None:
    """More radii than types are searched for with the largest, and the same pairs are found."""
    monkeypatch.setattr(glassconv.compat.ase, "_MAX_TYPES", 2)
    for seed, pbc in enumerate(PERIODICITIES):
        atoms = random_atoms(seed, pbc)
        for radii in (few_radii(atoms), many_radii(atoms)):
            for self_interaction in (False, True):
                check_same(atoms, radii, self_interaction=self_interaction)


def test_the_sum_of_two_radii_is_no_neighbor(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pair at exactly its cutoff is none, one nearer by a rounding is; with types and without."""
    atoms = Atoms("H4", positions=[[0, 0, 0], [1, 0, 0], [10, 0, 0], [11, 0, 0]])
    for max_types in (256, 2):
        monkeypatch.setattr(glassconv.compat.ase, "_MAX_TYPES", max_types)
        for radii in ([0.5, 0.5, 0.75, 0.25], [0.5, 0.5 + 2.0**-52, 0.75, 0.25 + 2.0**-52]):
            expected = [] if radii[1] == 0.5 else [(0, 1), (1, 0), (2, 3), (3, 2)]
            i, j = neighbor_list("ij", atoms, radii)
            assert list(zip(i.tolist(), j.tolist(), strict=True)) == expected


@pytest.mark.parametrize("kind", list(CUTOFFS))
def test_pairs_are_those_of_the_definition(kind: str) -> None:
    atoms = random_atoms(11, (True, False, True))
    cutoff = CUTOFFS[kind](atoms)
    reach = np.full((24, 24), cutoff) if np.ndim(cutoff) == 0 and kind != "dict" else np.zeros((24, 24))
    if kind == "dict":
        for pair in itertools.permutations(["H", "C", "O"], 2):
            both = [np.array(atoms.symbols) == name for name in pair]
            reach[np.ix_(*both)] = {("C", "H"): 2.4, ("H", "C"): 2.4}.get(pair, 0.0)
        for name, length in (("H", 1.3), ("C", 1.9)):
            reach[np.ix_(*[np.array(atoms.symbols) == name] * 2)] = length
    elif np.ndim(cutoff) == 1:
        reach = np.add.outer(cutoff, cutoff)
    expected = brute_force(atoms.positions, reach, atoms.cell.array, (True, False, True), np.arange(24))
    expected[:, 2:] *= -1  # their shift moves the second atom
    np.testing.assert_array_equal(rows(*neighbor_list("ijS", atoms, cutoff)), sort_edges(expected))


@pytest.mark.parametrize("seed", range(5))
def test_matches_matscipy(seed: int) -> None:
    atoms = random_atoms(seed, n_atoms=40)
    theirs = matscipy_neighbor_list("ijdDS", atoms, 2.5)
    ours = neighbor_list("ijdDS", atoms, 2.5)
    np.testing.assert_array_equal(rows(*ours[:2], ours[4]), rows(*theirs[:2], theirs[4]))
    order, theirs_order = (np.lexsort((*f[4].T, f[1], f[0])) for f in (ours, theirs))
    np.testing.assert_allclose(ours[2][order], theirs[2][theirs_order], rtol=0, atol=1e-13)
    np.testing.assert_allclose(ours[3][order], theirs[3][theirs_order], rtol=0, atol=1e-13)


@pytest.mark.parametrize("self_interaction", [False, True])
@pytest.mark.parametrize("quantities", ["i", "D", "Sji", "dd", "jS", "ijdDS"])
def test_quantities_come_in_the_order_asked_for(quantities: str, self_interaction: bool) -> None:
    atoms = random_atoms(1)
    every = dict(zip("ijdDS", neighbor_list("ijdDS", atoms, 2.0, self_interaction), strict=True))
    found = neighbor_list(quantities, atoms, 2.0, self_interaction)
    assert isinstance(found, np.ndarray if len(quantities) == 1 else tuple)
    for letter, array in zip(quantities, [found] if len(quantities) == 1 else found, strict=True):
        np.testing.assert_array_equal(array, every[letter])
    i, j, S = every["i"], every["j"], every["S"]
    D = atoms.positions[j] - atoms.positions[i] + S @ atoms.cell.array
    np.testing.assert_allclose(every["D"], D, rtol=0, atol=1e-13)
    np.testing.assert_allclose(every["d"], np.linalg.norm(D, axis=1), rtol=1e-13)


def test_each_atom_comes_before_its_neighbors() -> None:
    i, j, d, S = neighbor_list("ijdS", random_atoms(2), 2.0, self_interaction=True)
    first = np.searchsorted(i, np.arange(24))
    np.testing.assert_array_equal(j[first], np.arange(24))
    assert not d[first].any()
    assert not S[first].any()
    np.testing.assert_array_equal(d == 0, np.isin(np.arange(len(i)), first))


@pytest.mark.parametrize("cutoff", [1.5, {("H", "H"): 1.5}, [], {("Au", "Au"): 1.5}], ids=str)
@pytest.mark.parametrize("self_interaction", [False, True])
def test_no_atoms(cutoff: Any, self_interaction: bool) -> None:
    found = neighbor_list("ijdDS", Atoms(), cutoff, self_interaction)
    assert [array.shape for array in found] == [(0,), (0,), (0,), (0, 3), (0, 3)]
    assert [array.dtype.kind for array in found] == ["i", "i", "f", "f", "i"]


@pytest.mark.parametrize("self_interaction", [False, True])
def test_no_pair_has_a_cutoff(self_interaction: bool) -> None:
    atoms = molecule("CH3CH2OH")
    for cutoff in ({("Au", "Au"): 3.0}, {("C", "H"): 0.0}, np.zeros(9)):
        assert check_same(atoms, cutoff, self_interaction=self_interaction) == 0


def test_molecule_without_a_cell() -> None:
    atoms = molecule("CH3CH2OH")
    bonds = neighbor_list("ij", atoms, natural_cutoffs(atoms, mult=1.2))
    n_bonds = np.bincount(bonds[0], minlength=len(atoms))
    valence = {"C": 4, "O": 2, "H": 1}
    assert n_bonds.tolist() == [valence[symbol] for symbol in atoms.symbols]
    check_same(atoms, {("H", "C"): 1.3, ("H", "O"): 1.1})


def test_slab_with_a_zero_cell_vector() -> None:
    atoms = bulk("Cu", cubic=True) * (3, 3, 1)
    atoms.cell[2], atoms.pbc = 0.0, (True, True, False)
    assert check_same(atoms, 3.0) > 0


def test_documented_difference_where_the_cell_vector_is_zero() -> None:
    atoms = Atoms("H2", positions=[[0, 0, 0], [0, 0, 0.7]], pbc=True)
    with pytest.raises(ValueError, match="cell: expected linearly independent periodic vectors"):
        neighbor_list("i", atoms, 2.0)


def test_result_is_the_callers() -> None:
    atoms = random_atoms(3)
    before = neighbor_list("ijdDS", atoms, 2.0)
    for array in neighbor_list("ijdDS", atoms, 2.0):
        array[...] = 0
    for first, second in zip(before, neighbor_list("ijdDS", atoms, 2.0), strict=True):
        np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"quantities": "ijq"}, "quantities: expected letters among 'ijdDS', got 'ijq'"),
        ({"quantities": ""}, "quantities: expected letters among 'ijdDS', got ''"),
        ({"a": np.zeros((3, 3))}, "a: expected ase.Atoms, got ndarray"),
        ({"cutoff": 0.0}, "cutoff: expected a positive finite number, got 0.0"),
        ({"cutoff": "long"}, "cutoff: expected a positive finite number, got 'long'"),
        ({"cutoff": None}, "cutoff: expected a positive finite number, got None"),
        ({"cutoff": [1.0, 2.0]}, r"cutoff: expected 9 radii, one for each atom, got shape \(2,\)"),
        ({"cutoff": [1.0] * 8 + [-1.0]}, "cutoff: expected finite radii from 0, got -1.0 for atom 8"),
        ({"cutoff": [np.nan] * 9}, "cutoff: expected finite radii from 0, got nan for atom 0"),
        ({"cutoff": ["1"] * 9}, "cutoff: expected finite radii from 0, got 1 for atom 0"),
        ({"cutoff": {}}, "cutoff: expected a cutoff for some pair of elements, got none"),
        ({"cutoff": {"CH": 1.0}}, "cutoff: expected pairs of elements, got 'CH'"),
        ({"cutoff": {("C", "H", "O"): 1.0}}, "cutoff: expected pairs of elements, got"),
        ({"cutoff": {("C", "Zz"): 1.0}}, "cutoff: expected symbols or atomic numbers of elements, got 'Zz'"),
        ({"cutoff": {("C", 1.5): 1.0}}, "cutoff: expected symbols or atomic numbers of elements, got 1.5"),
        (
            {"cutoff": {("C", "H"): -1.0}},
            r"cutoff: expected finite lengths from 0, got -1.0 for \('C', 'H'\)",
        ),
        ({"cutoff": {("C", "H"): None}}, "cutoff: expected finite lengths from 0, got None"),
        (
            {"cutoff": {("C", "H"): 1.0, (1, 6): 2.0}},
            r"cutoff: expected one length for \(1, 6\) in either order, got 1.0 and 2.0",
        ),
    ],
    ids=str,
)
def test_bad_input_is_named(changed: dict[str, Any], message: str) -> None:
    arguments = {"quantities": "ij", "a": molecule("CH3CH2OH"), "cutoff": 2.0} | changed
    with pytest.raises(ValueError, match=message):
        neighbor_list(**arguments)


def test_the_documented_example() -> None:
    results = doctest.testmod(glassconv.compat.ase)
    assert results.attempted > 0
    assert results.failed == 0


def test_without_ase_the_extra_is_named() -> None:
    code = "import sys; sys.modules['ase'] = None\nimport glassconv\nglassconv.compat.ase"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert result.stderr.strip().endswith(
        "ImportError: glassconv.compat.ase needs ASE: pip install 'glassconv[compat]'"
    )
