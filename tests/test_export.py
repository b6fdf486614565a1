"""torch.export and AOTInductor: a saved network gives the results of eager for other sizes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from nn_systems import assert_close, network, system
from oracles import TOLERANCE, normal, random_graph, random_vectors, relative_error
from torch import Tensor
from torch.export import AdditionalInputs, ExportedProgram

from glassconv import Graph
from glassconv.nn import SE3GNN, Batch, EquivariantConv

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")

# Run by a process that has no network: containers and operators are the package's, the rest is in the file.
RUN = """
import sys, torch, glassconv.nn
glassconv.backend()  # loads the operators
program, inputs, output = sys.argv[1:]
(batch,) = torch.load(inputs, weights_only=False)
if program.endswith(".aoti.pt2"):
    module = torch._inductor.aoti_load_package(program)
else:
    module = torch.export.load(program).module()
torch.save(module(batch).detach(), output)
"""


def exported(model: torch.nn.Module, *examples: tuple[object, ...]) -> ExportedProgram:
    """The program of a module; sizes in which the examples differ are free."""
    sizes = AdditionalInputs()
    for example in examples:
        sizes.add(example)
    return torch.export.export(model, examples[0], dynamic_shapes=sizes.dynamic_shapes(model, examples[0]))


def trained() -> tuple[SE3GNN, Batch, Batch, Batch]:
    """A network to evaluate, two batches to export it with, and another one."""
    model = network("both-cage", torch.float32, n_layers=2, l_max=1).eval()
    batches = [model.prepare(system(seed, n_side)) for seed, n_side in enumerate((3, 2, 4))]
    return model, batches[0], batches[1], batches[2]


def in_another_process(program: Path, batch: Batch) -> Tensor:
    inputs, output = program.with_name("inputs.pt"), program.with_name("output.pt")
    torch.save((batch,), inputs)
    arguments = [sys.executable, "-W", "ignore", "-c", RUN, str(program), str(inputs), str(output)]
    done = subprocess.run(arguments, check=False, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    loaded: Tensor = torch.load(output)
    return loaded


@pytest.mark.parametrize("backend", ["reference", "cpu"], indirect=True)
def test_network_for_other_sizes(backend: str) -> None:
    model, first, second, other = trained()
    program = exported(model, (first,), (second,)).module()
    for batch in (first, second, other):
        assert_close(program(batch), model(batch), torch.float32)


@pytest.mark.parametrize("backend", ["cpu"], indirect=True)
def test_operators_are_those_of_the_extension(backend: str) -> None:
    model, first, second, _ = trained()
    called = [str(node.target) for node in exported(model, (first,), (second,)).graph.nodes]
    assert called.count("glassconv.conv.default") == len(model.layers)


@pytest.mark.parametrize("backend", ["reference", "cpu"], indirect=True)
def test_layer_on_edges_of_any_order(backend: str) -> None:
    module = EquivariantConv("3x0e+2x1o", "2x0e+2x1o", 1, n_radial=4, radial_hidden=5).double().eval()

    def example(n_nodes: int, n_edges: int) -> tuple[Tensor, Graph, Tensor]:
        return normal((n_nodes, 9), 1), random_graph(n_nodes, n_edges), random_vectors(n_edges)

    program = exported(module, example(9, 40), example(11, 53)).module()
    for sizes in ((9, 40), (23, 150)):
        arguments = example(*sizes)
        assert relative_error(program(*arguments), module(*arguments)) < TOLERANCE[torch.float64]


def test_saved_program_in_another_process(native_extension: None, tmp_path: Path) -> None:
    model, first, second, other = trained()
    torch.export.save(exported(model, (first,), (second,)), tmp_path / "network.pt2")
    assert_close(in_another_process(tmp_path / "network.pt2", other), model(other), torch.float32)


def test_compiled_package_in_another_process(native_extension: None, tmp_path: Path) -> None:
    model, first, second, other = trained()
    package = torch._inductor.aoti_compile_and_package(
        exported(model, (first,), (second,)), package_path=str(tmp_path / "network.aoti.pt2")
    )
    assert_close(in_another_process(Path(package), other), model(other), torch.float32, factor=10)
