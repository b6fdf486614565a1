"""What other searches test themselves by: ASE, matscipy, vesin, freud, torch_nl, nvalchemi, TorchMD-Net."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from neighbor_oracle import brute_force, check_well_formed, edges_of, half_of, sort_edges

from glassconv import neighbor_list

ase = pytest.importorskip("ase")
build = pytest.importorskip("ase.build")
ase_search = pytest.importorskip("ase.neighborlist").primitive_neighbor_list
graphite = pytest.importorskip("ase.lattice.hexagonal").Graphite

ALL = (True, True, True)
PERIODICITIES = list(itertools.product([False, True], repeat=3))


def search(atoms: ase.Atoms, cutoff: float, **options: object) -> np.ndarray:
    graph = neighbor_list(atoms.positions, cutoff, atoms.cell.array, tuple(map(bool, atoms.pbc)), **options)
    return edges_of(graph)


def by_ase(atoms: ase.Atoms, cutoff: float) -> np.ndarray:
    """Its i is our source and its j our receiver."""
    i, j, shifts = ase_search("ijS", atoms.pbc, atoms.cell.array, atoms.positions, cutoff)
    return sort_edges(np.column_stack([j, i, shifts]))


def coordination(edges: np.ndarray, n: int) -> list[int]:
    return np.bincount(edges[:, 0], minlength=n).tolist()


# --- ASE and matscipy ---

ODD_CELL = np.array([[0.2, 1.2, 1.4], [1.4, 0.1, 1.6], [1.3, 2.0, -0.1]])


@pytest.mark.parametrize(
    ("cutoff", "pbc", "n_neighbors"),
    [
        (1.1, ALL, 6),
        (1.5, ALL, 18),
        (1.1, (False, False, False), 0),
        (1.1, (True, False, False), 2),
        (1.1, (True, False, True), 4),
    ],
)
def test_one_atom_in_a_unit_cube(backend: str, cutoff: float, pbc: object, n_neighbors: int) -> None:
    positions = torch.full((1, 3), 0.5, dtype=torch.float64)
    graph = neighbor_list(positions, cutoff, torch.eye(3), pbc)
    assert graph.n_edges == n_neighbors
    vectors = graph.vectors(positions, torch.eye(3, dtype=torch.float64))
    assert torch.equal(vectors, graph.shifts.double())


@pytest.mark.parametrize("size", [1, 2, 3])
def test_atoms_of_graphite_have_three_neighbors(backend: str, size: int) -> None:
    atoms = graphite("C", latticeconstant=(2.5, 10.0), size=[size, size, 1])
    assert coordination(search(atoms, 1.85), len(atoms)) == [3] * len(atoms)


@pytest.mark.parametrize("repeat", [1, 2, 3])
@pytest.mark.parametrize("cubic", [False, True])
def test_atoms_of_aluminium_have_twelve_neighbors(backend: str, repeat: int, cubic: bool) -> None:
    atoms = build.bulk("Al", cubic=cubic) * repeat
    graph = neighbor_list(torch.from_numpy(atoms.positions), 3.1, torch.from_numpy(atoms.cell.array))
    assert coordination(edges_of(graph), len(atoms)) == [12] * len(atoms)
    lengths = graph.distances(torch.from_numpy(atoms.positions), torch.from_numpy(atoms.cell.array))
    torch.testing.assert_close(lengths, torch.full_like(lengths, 4.05 / 2**0.5))


def test_inner_atom_of_a_crystal_has_neighbors_of_its_own_cell_only(backend: str) -> None:
    atoms = build.bulk("X", "fcc", a=2**0.5) * 3
    edges = search(atoms, 1.02)
    assert coordination(edges, 27) == [12] * 27
    assert not edges[edges[:, 0] == 13, 2:].any()


@pytest.mark.parametrize("pbc", PERIODICITIES, ids=str)
def test_a_repeated_cell_has_the_neighbors_of_the_cell(backend: str, pbc: tuple[bool, bool, bool]) -> None:
    """An odd left-handed cell, positions outside, repeated along its periodic axes."""
    atoms = ase.Atoms(numbers=range(10), cell=ODD_CELL, pbc=pbc)
    atoms.set_scaled_positions(3 * np.random.default_rng(42).random((10, 3)) - 1)
    for cutoff in (0.7, 1.3, 2.4):
        n_cells = 2 ** sum(pbc)
        counts = coordination(search(atoms, cutoff), 10)
        repeated = atoms * tuple(1 + int(axis) for axis in pbc)
        assert coordination(search(repeated, cutoff), 10 * n_cells) == counts * n_cells
        np.testing.assert_array_equal(search(atoms, cutoff), by_ase(atoms, cutoff))


@pytest.mark.parametrize("pbc", [ALL, (False,) * 3, (True, False, True)], ids=str)
@pytest.mark.parametrize("moved", [False, True])
@pytest.mark.in_emulator(moved=[True])
def test_a_gas_of_4001_atoms(backend: str, pbc: tuple[bool, bool, bool], moved: bool) -> None:
    """As many edges come as go; vectors are those of the nearest images."""
    positions = 29.0 * np.random.default_rng(42).random((4001, 3))
    positions[[100, 200, 300]] += 29.0 * np.eye(3) * moved
    graph = neighbor_list(torch.from_numpy(positions), 1.85, [29.0] * 3, pbc)
    edges = edges_of(graph)
    assert coordination(edges, 4001) == np.bincount(edges[:, 1], minlength=4001).tolist()
    direct = positions[edges[:, 0]] - positions[edges[:, 1]]
    nearest = direct - 29.0 * np.rint(direct / 29.0) * pbc
    cell = torch.full((3,), 29.0, dtype=torch.float64)
    vectors = graph.vectors(torch.from_numpy(positions), cell).numpy()
    np.testing.assert_allclose(vectors, nearest, rtol=0, atol=1e-12)
    atoms = ase.Atoms(positions=positions, cell=[29.0] * 3, pbc=pbc)
    np.testing.assert_array_equal(edges, by_ase(atoms, 1.85))


@pytest.mark.parametrize("x", [0.5, 9.5])
def test_open_axes_ignore_the_cell(backend: str, x: float) -> None:
    """A pair across the face of a cell that is not periodic, and the same in a cell that holds both."""
    positions = np.array([[x, 0.5, 0.5], [x + 0.6, 0.5, 0.5]])
    for cell in ([1.0, 1, 1], [2.0, 1, 1], [10.0, 10, 10], [20.0, 10, 10], np.zeros(3), None):
        graph = neighbor_list(positions, 1.1, cell, False)
        assert edges_of(graph).tolist() == [[0, 1, 0, 0, 0], [1, 0, 0, 0, 0]]


def test_atoms_a_little_apart_across_a_face(backend: str) -> None:
    """0.0058 is a covalent radius there, and 0.00945 the distance through the face."""
    positions = np.array([[0.0, 0.0, 0.0], [0.0, 0.0, 0.99875 * 7.56]])
    graph = neighbor_list(positions, 0.0116, [7.56] * 3)
    assert edges_of(graph).tolist() == [[0, 1, 0, 0, 1], [1, 0, 0, 0, -1]]


@pytest.mark.parametrize(
    ("cutoffs", "n_neighbors"),
    [
        ({"HC": 1.2}, [0, 1, 0, 0, 1]),
        ({"CO": 1.4}, [1, 2, 1, 0, 0]),
        ({"HC": 1.2, "CO": 1.4}, [1, 3, 1, 0, 1]),
        ({"HC": 1.85, "CO": 1.85, "HO": 1.85, "HH": 1.85, "CC": 1.85, "OO": 1.85}, [2, 3, 1, 1, 1]),
    ],
    ids=str,
)
def test_bonds_of_formic_acid(backend: str, cutoffs: dict[str, float], n_neighbors: list[int]) -> None:
    """Cutoffs of pairs of elements; others are never bonded."""
    atoms = build.molecule("HCOOH")
    atoms.center(vacuum=5.0)
    elements, matrix = "HCO", np.zeros((3, 3))
    for (a, b), cutoff in cutoffs.items():
        matrix[elements.index(a), elements.index(b)] = matrix[elements.index(b), elements.index(a)] = cutoff
    types = np.array([elements.index(symbol) for symbol in atoms.get_chemical_symbols()])
    graph = neighbor_list(atoms.positions, matrix, atoms.cell.array, False, types=types)
    assert coordination(edges_of(graph), len(atoms)) == n_neighbors


# --- vesin ---

CRYSTALS = {
    "fcc": lambda: build.bulk("Cu", "fcc", a=3.6),
    "diamond": lambda: build.bulk("Si", "diamond", a=6.0),
    "diamond, cubic": lambda: build.bulk("Si", "diamond", a=6.0, cubic=True),
    "rhombohedral, 20 degrees": lambda: build.bulk("Bi", "rhombohedral", a=6.0, alpha=20),
    "rhombohedral, 5 degrees": lambda: build.bulk("Bi", "rhombohedral", a=6.0, alpha=5),
    "rock salt": lambda: build.bulk("NaCl", "rocksalt", a=5.64),
    "graphite": lambda: graphite("C", latticeconstant=(2.461, 6.708), size=(2, 1, 1)),
    "slab": lambda: build.fcc111("Al", (2, 2, 4), vacuum=7.0),
    "molecule": lambda: build.molecule("C6H6"),
    "molecule in a cell": lambda: build.molecule("CH3CH2NH2", vacuum=2.0, pbc=(True, False, True)),
    "nanotube": lambda: build.nanotube(4, 2, length=1, vacuum=4.0),
}


@pytest.mark.parametrize("name", list(CRYSTALS))
@pytest.mark.parametrize("cutoff", [3.05, 5.1])
@pytest.mark.parametrize("moved", ["as built", "rotated", "rotated and translated"])
@pytest.mark.in_emulator(cutoff=[3.05])
def test_crystals_and_molecules_as_by_ase(backend: str, name: str, cutoff: float, moved: str) -> None:
    """Cutoffs lie between shells, so that rounding does not decide."""
    atoms = CRYSTALS[name]()
    rng = np.random.default_rng(34)
    if moved != "as built":
        rotation, _ = np.linalg.qr(rng.normal(size=(3, 3)))
        atoms.positions, atoms.cell = atoms.positions @ rotation, atoms.cell.array @ rotation
    if moved == "rotated and translated":
        atoms.positions += rng.normal(size=3) * 30.0
    edges = search(atoms, cutoff)
    np.testing.assert_array_equal(edges, by_ase(atoms, cutoff))
    np.testing.assert_array_equal(search(atoms, cutoff, half=True), half_of(edges))


@pytest.mark.parametrize("pbc", PERIODICITIES, ids=str)
def test_mixed_periodicity_in_a_turned_cell(backend: str, pbc: tuple[bool, bool, bool]) -> None:
    rng = np.random.default_rng(0)
    cell = np.eye(3)[[2, 0, 1]] + 0.1 * rng.normal(size=(3, 3))
    atoms = ase.Atoms(positions=rng.random((100, 3)), cell=cell, pbc=pbc)
    np.testing.assert_array_equal(search(atoms, 0.35), by_ase(atoms, 0.35))


@pytest.mark.in_emulator(False)
def test_gigantic_cell_has_412_pairs(backend: str) -> None:
    positions = np.random.RandomState(34).randn(3000, 3) * 100
    graph = neighbor_list(positions, 8.0, [1e7] * 3)
    assert graph.n_edges == 412
    check_well_formed(graph)


def test_slanted_box_has_90_pairs(backend: str) -> None:
    """Four atoms of graphene in a box that leans over its neighbors; images of one pair are easily lost."""
    bond, height = 1.42, 1.42 * 3**0.5 / 2
    positions = np.array([[1, 0, 0], [2, 0, 0], [2.5, 0, 0], [3.5, 0, 0]]) * bond
    positions[2:, 1] = -height
    cell = np.array([[3 * bond, -2 * height, 0.0], [1.5 * bond, height, 0.0], [0.0, 0.0, 50.0]])
    edges = edges_of(neighbor_list(positions, 6.4, cell, half=True))
    assert len(edges) == 90
    found = {tuple(edge) for edge in edges.tolist()}
    assert {(3, 0, -2, 0, 0), (3, 0, -2, 1, 0), (3, 0, -2, 2, 0)} <= found


def test_fcc_primitive_cell(backend: str) -> None:
    """One atom, its own twelve neighbors; half of them, with a first shift that is positive."""
    cell = 1.5 * (np.ones((3, 3)) - np.eye(3))
    edges = edges_of(neighbor_list(np.zeros((1, 3)), 3.0 - 1e-9, cell, half=True))
    assert edges[:, 2:].tolist() == [[0, 0, 1], [0, 1, -1], [0, 1, 0], [1, -1, 0], [1, 0, -1], [1, 0, 0]]


def test_large_box_with_atoms_outside(backend: str) -> None:
    arm = np.array([[0.0, 0, 0], [0, 2, 0], [0, 0, 2]])
    positions = np.concatenate([arm, -arm - [6.0, 0, 0]])
    edges = edges_of(neighbor_list(positions, 2.1, [54.0] * 3, half=True))
    assert edges.tolist() == [[1, 0, 0, 0, 0], [2, 0, 0, 0, 0], [4, 3, 0, 0, 0], [5, 3, 0, 0, 0]]


@pytest.mark.parametrize("offset", [0.0, -15.0, 1e4])
def test_negative_coordinates(backend: str, offset: float) -> None:
    positions = np.array([[3.9, 1.6, 22.1], [3.2, 1.6, 22.9], [5.0, 1.7, 20.8]]) + offset
    graph = neighbor_list(positions, 8.0, np.zeros((3, 3)), False)
    pairs = {tuple(pair) for pair in edges_of(graph)[:, :2].tolist()}
    assert pairs == set(itertools.permutations(range(3), 2))


# --- freud ---


def test_points_on_a_line(backend: str) -> None:
    positions = np.zeros((4, 3), dtype=np.float32)
    positions[:, 0] = [0, 1, 3, 2]
    assert coordination(edges_of(neighbor_list(positions, 2.01, [10.0] * 3)), 4) == [2, 3, 2, 3]
    positions[0] = 5.0  # out of reach
    assert coordination(edges_of(neighbor_list(positions, 2.01, [10.0] * 3)), 4) == [0, 2, 2, 2]


def test_who_is_a_neighbor_has_one(backend: str) -> None:
    positions = np.random.default_rng(0).uniform(-5, 5, (1024, 3)).astype(np.float32)
    pairs = {tuple(pair) for pair in edges_of(neighbor_list(positions, 2.01, [10.0] * 3))[:, :2].tolist()}
    assert pairs == {(source, receiver) for receiver, source in pairs}
    assert len(pairs) > 10_000


# --- torch_nl ---


@pytest.mark.parametrize("cutoff", [1.05, 3.05, 5.1])
@pytest.mark.in_emulator(cutoff=[1.05, 3.05])
def test_a_batch_of_crystals_and_molecules(backend: str, cutoff: float) -> None:
    """Different cells, periodicities and sizes together give what ASE finds, one frame at a time."""
    frames = [make() for make in CRYSTALS.values()]
    graph = neighbor_list(
        np.concatenate([atoms.positions for atoms in frames]),
        cutoff,
        np.stack([atoms.cell.array for atoms in frames]),
        np.stack([atoms.pbc for atoms in frames]),
        np.repeat(np.arange(len(frames)), [len(atoms) for atoms in frames]),
    )
    first = np.cumsum([0] + [len(atoms) for atoms in frames[:-1]])
    parts = [
        by_ase(atoms, cutoff) + np.array([start, start, 0, 0, 0])
        for atoms, start in zip(frames, first, strict=True)
    ]
    np.testing.assert_array_equal(edges_of(graph), np.concatenate(parts))


# --- nvalchemi ---


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("pbc", [ALL, (False,) * 3, (True, False, True), (False, False, True)], ids=str)
@pytest.mark.parametrize("cutoff", [1.0, 3.0])
@pytest.mark.in_emulator(cutoff=[1.0])
def test_a_dense_monoclinic_cell(
    backend: str, dtype: type, pbc: tuple[bool, bool, bool], cutoff: float
) -> None:
    """Edges of about one, angles 90.74, 115.944 and 87.663 degrees; cutoffs of one and of three cells."""
    cell = ase.cell.Cell.fromcellpar([8.57, 12.9645, 7.2203, 90.74, 115.944, 87.663]).array / 720.88 ** (
        1 / 3
    )
    for n in (1, 2, 20):
        positions = (np.random.default_rng(42).random((n, 3)) @ cell).astype(dtype)
        graph = neighbor_list(positions, cutoff, cell, pbc)
        np.testing.assert_array_equal(edges_of(graph), brute_force(positions, cutoff, cell, pbc))
        assert not np.asarray(graph.shifts)[:, [not axis for axis in pbc]].any()


def test_one_and_two_atoms_in_a_small_cell(backend: str) -> None:
    assert neighbor_list(np.zeros((1, 3)), 3.0, [2.0] * 3).n_edges == 18
    pair = np.array([[0.0, 0, 0], [0.5, 0, 0]])
    assert edges_of(neighbor_list(pair, 1.0, [2.0] * 3)).tolist() == [[0, 1, 0, 0, 0], [1, 0, 0, 0, 0]]


def test_a_batch_without_systems(backend: str) -> None:
    empty = torch.zeros(0, 3)
    graph = neighbor_list(empty, 1.0, torch.zeros(0, 3, 3), batch=torch.zeros(0, dtype=torch.int64))
    assert (graph.n_systems, graph.n_edges, graph.row_ptr.tolist()) == (0, 0, [0])


# --- TorchMD-Net ---


@pytest.mark.parametrize("n_systems", [1, 3, 40])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("cell", ["none", "lengths", "triclinic"])
@pytest.mark.in_emulator(n_systems=[1, 3])
def test_batches_far_from_the_origin(backend: str, n_systems: int, dtype: type, cell: str) -> None:
    """Positions ten cells below the origin, two particles in one place; minimum images, up to rounding."""
    rng = np.random.default_rng(4321)
    sizes = rng.integers(3, 100, n_systems)
    first = np.cumsum(sizes) - sizes
    batch = np.repeat(np.arange(n_systems), sizes)
    positions = (rng.random((len(batch), 3)) * 10.0 - 100.0).astype(dtype)
    positions[:2] = 0.0
    vectors = {
        "none": None,
        "lengths": np.eye(3) * 10.0,
        "triclinic": np.array([[10, 0, 0], [0.1, 10, 0], [0.3, 0.2, 10]]),
    }
    lattice = vectors[cell]
    each_pair = [np.array(np.tril_indices(n, -1)) + start for n, start in zip(sizes, first, strict=True)]
    receiver, source = np.concatenate(each_pair, axis=1)
    for cutoff in (0.1, 1.0, 3.0, 4.9):
        each = None if lattice is None else np.broadcast_to(lattice, (n_systems, 3, 3))
        graph = neighbor_list(positions, cutoff, each, batch=batch)
        d = positions[receiver].astype(np.float64) - positions[source]
        for axis in () if lattice is None else (2, 1, 0):
            d -= np.rint(d[:, axis] / lattice[axis, axis])[:, None] * lattice[axis]
        near = np.linalg.norm(d, axis=1) < cutoff
        pairs = np.sort(np.column_stack([receiver, source])[near], axis=1)
        lower = edges_of(graph)[:, 1::-1][edges_of(graph)[:, 0] > edges_of(graph)[:, 1]]
        np.testing.assert_array_equal(sort_edges(lower), sort_edges(pairs))
        assert graph.n_edges == 2 * len(pairs)


@pytest.mark.parametrize("of", ["vectors", "distances", "both"])
@pytest.mark.parametrize("cell", [None, 10.0])
@pytest.mark.parametrize("n", [1, 2, 3, 100])
def test_gradients_through_vectors_and_distances(backend: str, of: str, cell: float | None, n: int) -> None:
    positions = (2.5 * torch.rand(n, 3, dtype=torch.float64)).requires_grad_()
    lengths = None if cell is None else torch.full((3,), cell, dtype=torch.float64)
    graph = neighbor_list(positions, 4.999999, lengths)
    receiver, source = (torch.arange(n)[:, None] != torch.arange(n)).nonzero().T  # all are near
    assert torch.equal(graph.edge_index, torch.stack([source, receiver]))

    def total(vectors: torch.Tensor, distances: torch.Tensor) -> torch.Tensor:
        weight = torch.arange(1.0, 1.0 + len(distances), dtype=torch.float64)
        return (vectors * weight[:, None]).sum() * (of != "distances") + (distances * weight).sum() * (
            of != "vectors"
        )

    ours = total(graph.vectors(positions, lengths), graph.distances(positions, lengths))
    direct = positions[receiver] - positions[source]
    (found,) = torch.autograd.grad(ours, positions)
    (expected,) = torch.autograd.grad(total(direct, direct.norm(dim=1)), positions)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("cell", [None, 10.0])
def test_second_derivatives_of_distances(backend: str, cell: float | None) -> None:
    positions = (2.5 * torch.rand(6, 3, dtype=torch.float64)).requires_grad_()
    lengths = None if cell is None else torch.full((3,), cell, dtype=torch.float64)
    graph = neighbor_list(positions, 4.999999, lengths)
    assert torch.autograd.gradcheck(lambda r: graph.distances(r, lengths).sum(), positions)
    assert torch.autograd.gradgradcheck(lambda r: graph.distances(r, lengths).sum(), positions)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("spread", [False, True], ids=["chain", "mixed"])
@pytest.mark.in_emulator(dtype=[torch.float32], spread=[True])
def test_more_particles_than_16_bits_count(backend: str, dtype: torch.dtype, spread: bool) -> None:
    """A closed chain of 65,537, one apart, in order or not: two neighbors each."""
    n = 65_537
    place = torch.randperm(n) if spread else torch.arange(n)
    positions = torch.zeros(n, 3, dtype=dtype)
    positions[:, 0] = place
    graph = neighbor_list(positions, 1.5, [float(n), 9.0, 9.0])
    before, after = torch.empty_like(place), torch.empty_like(place)
    particle_at = torch.argsort(place)
    before[particle_at], after[particle_at] = particle_at.roll(1), particle_at.roll(-1)
    neighbors = torch.stack([before, after], dim=1).sort(dim=1).values
    assert torch.equal(graph.edge_index[0], neighbors.flatten())
    assert torch.equal(graph.row_ptr, 2 * torch.arange(n + 1))
    assert (graph.shifts != 0).sum() == 2
