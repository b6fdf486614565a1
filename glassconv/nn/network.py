"""The network `SE3GNN`: from a configuration to the propensities of its particles at all times."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch
from e3nn.o3 import Irreps
from torch import Tensor

from glassconv import neighbor_list
from glassconv.data import Configuration
from glassconv.nn import inputs as node_inputs
from glassconv.nn import serialization, statistics
from glassconv.nn.batch import Batch
from glassconv.nn.layer import Layer, hidden_irreps
from glassconv.nn.radial import RadialBasis, count, integer
from glassconv.nn.readout import Readout

PARITIES = ("natural", "both")
POSITIONS = ("inherent", "thermal")


class SE3GNN(torch.nn.Module):
    r"""Rotation-equivariant graph network for glassy liquids.

        x      = one_hot(type) [+ energy] [+ cage]                           N x (n_types + ...) scalars
        h^1    = BatchNorm(EquivariantConv(x))
        h^k    = BatchNorm(EquivariantConv(x + h^(k-1) concatenated)) [+ h^(k-1) where the irreps agree]
        z_i    = (scalars, |h_i^{l,c}| for l > 0)
        y_i    = W_{type(i)} z_i + b_{type(i)}                               all outputs (times) at once

    There is no pointwise nonlinearity on node features. The output is invariant under rotations, inversion,
    translations; it goes with the particles under permutation, and is smooth as particles cross the cutoff.
    It is not smooth everywhere: |h| has a kink where h vanishes, in symmetric surroundings (derivatives are
    taken as 0 there), and so has the ReLU of the radial networks.

    Source: F. S. Pezzicoli, G. Charpiat, F. P. Landes, SciPost Phys. 16, 136 (2024).

    Args:
        n_types: number of particle types.
        n_outputs: number of outputs per particle: the times of the propensity.
        channels: C, number of channels of every irrep of the hidden features.
        l_max: highest degree of the harmonics and of the hidden features, 0 to 4.
        n_layers: number of convolutions.
        cutoff: edges join particles nearer than this, in the unit of the positions (sigma_AA).
        parity: hidden features `"natural"`: C x (0e+1o+2e+3o), or `"both"`: C x (0o+0e+1o+1e+...), as far as
            the layer can reach them (the first layer gives natural parity only).
        positions: structure that the graph is made of, `"inherent"` or `"thermal"`.
        inputs: node inputs, some of `"type"` (one-hot), `"energy"` (of the inherent structure) and `"cage"`
            (|thermal - inherent position|, nearest image); the last two are standardized per type by
            `set_statistics`.
        radial_basis: `"bessel"` or `"gaussian"`.
        n_radial: number of radial basis functions.
        radial_hidden: number of hidden features of the radial network.
        cutoff_power: power of the polynomial cutoff, see `RadialBasis`.
        momentum: weight of the newest batch in the running statistics of all batch normalizations.
        n_neighbors: typical number of neighbors, a constant that only sets the scale at the start.

    Raises:
        ValueError: an argument out of its range.

    Attributes:
        metadata: anything JSON can hold; saved and loaded with the network.
        layout: what a prepared `Batch` depends on; networks of equal layout read the same batches.
    """

    def __init__(
        self,
        n_types: int,
        n_outputs: int,
        *,
        channels: int = 8,
        l_max: int = 3,
        n_layers: int = 8,
        cutoff: float = 2.0,
        parity: str = "natural",
        positions: str = "inherent",
        inputs: Sequence[str] = ("type", "energy"),
        radial_basis: str = "bessel",
        n_radial: int = 10,
        radial_hidden: int = 16,
        cutoff_power: int = 6,
        momentum: float = 0.5,
        n_neighbors: float = 40.0,
    ) -> None:
        super().__init__()
        inputs = (inputs,) if isinstance(inputs, str) else tuple(inputs)
        n_types, n_outputs = count("n_types", n_types), count("n_outputs", n_outputs)
        channels, n_layers = count("channels", channels), count("n_layers", n_layers)
        n_radial, radial_hidden = count("n_radial", n_radial), count("radial_hidden", radial_hidden)
        cutoff_power = count("cutoff_power", cutoff_power)
        l_max = integer("l_max", l_max)
        if not 0 <= l_max <= 4:
            raise ValueError(f"l_max: expected 0 to 4, got {l_max}")
        for name, choice, allowed in (("parity", parity, PARITIES), ("positions", positions, POSITIONS)):
            if choice not in allowed:
                raise ValueError(f"{name}: expected one of {allowed}, got {choice!r}")
        if not inputs or len(set(inputs)) != len(inputs) or not set(inputs) <= set(node_inputs.INPUTS):
            raise ValueError(f"inputs: expected some of {node_inputs.INPUTS}, each once, got {inputs}")
        self.options: dict[str, Any] = {
            "n_types": n_types,
            "n_outputs": n_outputs,
            "channels": channels,
            "l_max": l_max,
            "n_layers": n_layers,
            "cutoff": float(cutoff),
            "parity": parity,
            "positions": positions,
            "inputs": list(inputs),
            "radial_basis": radial_basis,
            "n_radial": n_radial,
            "radial_hidden": radial_hidden,
            "cutoff_power": cutoff_power,
            "momentum": momentum,
            "n_neighbors": float(n_neighbors),
        }
        self.metadata: dict[str, Any] = {}
        self.n_types = n_types
        self.n_outputs = n_outputs
        self.cutoff = float(cutoff)
        self.positions = positions
        self.inputs = inputs
        self.scalars = tuple(name for name in inputs if name != "type")
        self.basis = RadialBasis(radial_basis, n_radial, self.cutoff, cutoff_power)
        # kept, because torch.compile cannot put a number that it takes as dynamic into a string
        self.layout = (
            f"{positions} positions, cutoff {self.cutoff:g}, {n_radial} {radial_basis} functions, "
            f"cutoff power {cutoff_power}, inputs {'+'.join(inputs)}"
        )
        n_input = (n_types if "type" in inputs else 0) + len(self.scalars)
        self.irreps_input = Irreps([(n_input, (0, 1))])
        convolution = {
            "l_max": l_max,
            "n_radial": n_radial,
            "radial_hidden": radial_hidden,
            "cutoff": self.cutoff,
            "radial_basis": radial_basis,
            "cutoff_power": cutoff_power,
            "momentum": momentum,
            "n_neighbors": n_neighbors,
        }
        hidden = Irreps([])
        self.layers = torch.nn.ModuleList()
        for _ in range(n_layers):
            layer = Layer(
                self.irreps_input, hidden, hidden_irreps(channels, l_max, parity), convolution, momentum
            )
            hidden = layer.irreps_out
            self.layers.append(layer)
        self.irreps_hidden = hidden
        self.readout = Readout(hidden, n_types, n_outputs)
        self.input_mean: Tensor
        self.input_std: Tensor
        self.target_mean: Tensor
        self.target_std: Tensor
        self.register_buffer("input_mean", torch.zeros(n_types, len(self.scalars)))
        self.register_buffer("input_std", torch.ones(n_types, len(self.scalars)))
        self.register_buffer("target_mean", torch.zeros(n_types, n_outputs))
        self.register_buffer("target_std", torch.ones(n_types, n_outputs))

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the parameters."""
        return self.readout.weight.dtype

    @property
    def device(self) -> torch.device:
        """The device of the parameters."""
        return self.readout.weight.device

    def prepare(self, configurations: Configuration | Sequence[Configuration]) -> Batch:
        """Neighbor graph, edge vectors, radial basis and node inputs of configurations.

        Parameters of the network do not enter: keep the result as long as positions, energies and cell stay.

        Args:
            configurations: one, or a sequence; on any device. Positions may require gradients, then the batch
                is part of the graph of derivatives.

        Returns:
            A `Batch` on the device and in the dtype of the network.

        Raises:
            ValueError: no configuration, types out of range, or missing inherent positions or energies.
            TypeError: something that is not a configuration.
        """
        given = node_inputs.listed(configurations)
        return Batch.concatenate([self._prepare(configuration) for configuration in given])

    def _prepare(self, configuration: Configuration) -> Batch:
        highest = int(configuration.types.max())
        if highest >= self.n_types:
            raise ValueError(
                f"types: expected types 0 to {self.n_types - 1}, "
                f"got {highest}{node_inputs.where(configuration)}"
            )
        configuration = configuration.to(self.device)
        positions = (
            configuration.positions if self.positions == "thermal" else node_inputs.inherent(configuration)
        )
        cell = configuration.cell
        graph = neighbor_list(positions.detach(), self.cutoff, cell=cell.detach(), pbc=configuration.pbc)
        vectors = graph.vectors(positions, cell)
        targets = configuration.propensity
        return Batch(
            graph=graph,
            vectors=vectors.to(self.dtype),
            edge_features=self.basis.features(vectors, self.dtype),
            types=configuration.types,
            inputs=node_inputs.scalars(configuration, self.scalars),
            targets=None if targets is None else targets.T.contiguous(),
            sizes=(configuration.n_particles,),
            layout=self.layout,
        )

    def forward(self, configurations: Configuration | Sequence[Configuration] | Batch) -> Tensor:
        """Predict in standardized units.

        Args:
            configurations: what `prepare` takes, or what it gave.

        Returns:
            (N, n_outputs), N particles of all configurations in order, per type and output in units of the
            standard deviation of the target about its mean, as `set_statistics` found them.

        Raises:
            ValueError: as `prepare`; a batch of other layout, dtype or device than the network.
        """
        batch = configurations if isinstance(configurations, Batch) else self.prepare(configurations)
        self._check(batch)
        x = self._node_input(batch)
        h = x.new_zeros(batch.n_nodes, 0)
        for layer in self.layers:
            h = layer(x, h, batch)
        result: Tensor = self.readout(h, batch.types)
        return result

    def _check(self, batch: Batch) -> None:
        for name, expected, got in (
            ("layout", self.layout, batch.layout),
            ("dtype", self.dtype, batch.vectors.dtype),
            ("device", self.device, batch.vectors.device),
        ):
            if got != expected:
                raise ValueError(f"batch: expected the {name} of the network, {expected}, got {got}")

    def _node_input(self, batch: Batch) -> Tensor:
        scaled = ((batch.inputs - self.input_mean[batch.types]) / self.input_std[batch.types]).to(self.dtype)
        columns = {name: scaled[:, k : k + 1] for k, name in enumerate(self.scalars)}
        if "type" in self.inputs:
            columns["type"] = torch.nn.functional.one_hot(batch.types, self.n_types).to(self.dtype)
        return torch.cat([columns[name] for name in self.inputs], dim=1)

    def set_statistics(self, configurations: Configuration | Sequence[Configuration]) -> None:
        """Set the means and standard deviations that inputs and targets are standardized with.

        Per type, over all particles of all configurations: of each scalar input and each propensity.
        A standard deviation of 0, and a type that does not occur, are given 1 (and mean 0 for the latter).

        Args:
            configurations: the training set, with propensities for all `n_outputs` times.

        Raises:
            ValueError: missing or unequal propensities, and what `prepare` refuses.
        """
        given = node_inputs.listed(configurations)
        targets = [statistics.targets_of(configuration, self.n_outputs) for configuration in given]
        inputs = torch.cat(
            [node_inputs.scalars(configuration, self.scalars) for configuration in given]
        ).detach()
        types = torch.cat([configuration.types for configuration in given])
        if int(types.max()) >= self.n_types:
            raise ValueError(f"types: expected types 0 to {self.n_types - 1}, got {int(types.max())}")
        for name, values in (("input", inputs), ("target", torch.cat(targets))):
            mean, std = statistics.per_type(values, types, self.n_types)
            getattr(self, f"{name}_mean").copy_(mean)
            getattr(self, f"{name}_std").copy_(std)

    def standardize(self, targets: Tensor, types: Tensor) -> Tensor:
        """Propensities (N, n_outputs) in physical units -> what `forward` should give, in its dtype."""
        return ((targets - self.target_mean[types]) / self.target_std[types]).to(self.dtype)

    def unstandardize(self, outputs: Tensor, types: Tensor) -> Tensor:
        """Outputs of `forward` (N, n_outputs) -> physical units; the inverse of `standardize`."""
        return outputs * self.target_std[types] + self.target_mean[types]

    @torch.no_grad()
    def predict(self, configurations: Configuration | Sequence[Configuration] | Batch) -> Tensor:
        """Predict propensities in physical units, with running statistics and without gradients.

        Args:
            configurations: as `forward`.

        Returns:
            (N, n_outputs), N particles of all configurations in order.

        Raises:
            ValueError: as `forward`.
        """
        batch = configurations if isinstance(configurations, Batch) else self.prepare(configurations)
        modes = {module: module.training for module in self.modules()}
        self.eval()
        try:
            return self.unstandardize(self(batch), batch.types)
        finally:
            for module, mode in modes.items():
                module.training = mode

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the network (options, parameters, statistics, `metadata`) to one file, atomically.

        Args:
            path: the file, by custom ending in `.safetensors`.
        """
        serialization.write(path, {"options": self.options, "metadata": self.metadata}, self.state_dict())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> SE3GNN:
        """Read a network that `save` wrote: on the CPU, in its own dtype, bit for bit, in evaluation mode.

        Raises:
            FileNotFoundError: no such file.
            ValueError: not a saved network, or tensors that do not fit its options; it names the file.
        """
        description, state = serialization.read(path)
        try:
            with torch.random.fork_rng(devices=[]):  # the initial values are thrown away: leave no trace
                network = cls(**description["options"])
        except (TypeError, ValueError, OverflowError, RuntimeError, MemoryError) as error:
            raise ValueError(f"path: expected options of SE3GNN in {path}, got {error}") from error
        network.metadata = description.get("metadata", {})
        try:
            network.to(serialization.floating_dtype(state))
            network.load_state_dict(state)
        except (ValueError, RuntimeError) as error:
            raise ValueError(f"path: expected tensors that fit the options in {path}, got {error}") from error
        return network.eval()

    def extra_repr(self) -> str:
        """Options, for `repr`."""
        return ", ".join(f"{name}={value!r}" for name, value in self.options.items())
