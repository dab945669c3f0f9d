"""The layout of z, the one unconstrained vector that a sampler moves: network, mixtures, noise.

The parts of z, in this order:

    network    every trainable parameter, in the network's order
    mixture    of each group, the values that are not pinned:
               u, with pi = rest * softmax(V u), V an orthonormal basis orthogonal to (1, .., 1)
               mu
               xi = log sigma^2
    noise      log sigma_y^2, if it is learned

rest is one minus the pinned mixing proportions. K free proportions have K - 1 coordinates u: with
K softmax logits the density would be constant, and so improper, along one direction.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from swsmix.mixture import GaussianMixture

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Components:
    """One mixture's values, and which of them are pinned (the others are coordinates of z).

    Attributes:
        mixing: pi (k,); only its pinned entries are used.
        mean: mu (k,), likewise.
        std: sigma (k,), likewise.
        pinned_mixing: which proportions are fixed.
        pinned_mean: which means are fixed.
        pinned_std: which stds are fixed.
    """

    mixing: tuple[float, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    pinned_mixing: tuple[bool, ...]
    pinned_mean: tuple[bool, ...]
    pinned_std: tuple[bool, ...]

    @classmethod
    def of(cls, mixture: GaussianMixture) -> Components:
        """The values and pins of a mixture, as Python numbers."""
        return cls(*(tuple(getattr(mixture, f.name).tolist()) for f in dataclasses.fields(cls)))

    @property
    def free(self) -> tuple[Array, Array, Array]:
        """The components whose mixing, mean and std are free: three arrays of indices."""
        pins = (self.pinned_mixing, self.pinned_mean, self.pinned_std)
        mixing, mean, std = (np.flatnonzero(~np.asarray(p)) for p in pins)
        return mixing, mean, std

    @property
    def rest(self) -> float:
        """One minus the pinned mixing proportions: the sum of the free ones."""
        return 1.0 - sum(
            p for p, pinned in zip(self.mixing, self.pinned_mixing, strict=True) if pinned
        )

    @property
    def sizes(self) -> tuple[int, int, int]:
        """The numbers of coordinates u, mu and xi."""
        mixing, mean, std = self.free
        return max(len(mixing) - 1, 0), len(mean), len(std)


@functools.cache
def basis(num: int) -> Array:
    """Helmert's basis V (num, num - 1): orthonormal columns, each orthogonal to (1, .., 1).

    softmax(V u) is one-to-one in u.
    """
    v = np.zeros((num, max(num - 1, 0)))
    for j in range(num - 1):
        v[: j + 1, j] = 1.0
        v[j + 1, j] = -(j + 1.0)
        v[:, j] /= math.sqrt((j + 1.0) * (j + 2.0))
    return v


@dataclass(frozen=True)
class Layout:
    """Which part of z is what; made of Python values alone, so that it can be saved as JSON.

    Attributes:
        parameters: name -> shape of every trainable parameter, in order.
        groups: group -> the names of the tensors under its mixture.
        components: group -> its mixture's values and pins.
        likelihood: `"gaussian"`, `"categorical"` or `"binary"`.
        noise_std: a fixed sigma_y of the Gaussian; None if it is learned.
    """

    parameters: dict[str, tuple[int, ...]]
    groups: dict[str, tuple[str, ...]]
    components: dict[str, Components]
    likelihood: str
    noise_std: float | None

    @property
    def learns_noise(self) -> bool:
        """Whether the last coordinate is log sigma_y^2."""
        return self.likelihood == "gaussian" and self.noise_std is None

    @functools.cached_property
    def slices(self) -> dict[str, slice]:
        """The slice of z that holds each parameter, by name."""
        slices, at = {}, 0
        for name, shape in self.parameters.items():
            slices[name] = slice(at, at := at + math.prod(shape))
        return slices

    @functools.cached_property
    def num_parameters(self) -> int:
        """The number of the network's trainable parameters."""
        return sum(math.prod(shape) for shape in self.parameters.values())

    @functools.cached_property
    def mixture_slices(self) -> dict[str, tuple[slice, slice, slice]]:
        """The slices of z that hold u, mu and xi, by group."""
        slices, at = {}, self.num_parameters
        for group, c in self.components.items():
            ends = np.cumsum([at, *c.sizes]).tolist()
            slices[group] = (slice(*ends[0:2]), slice(*ends[1:3]), slice(*ends[2:4]))
            at = ends[-1]
        return slices

    @functools.cached_property
    def size(self) -> int:
        """The length of z."""
        mixtures = sum(sum(c.sizes) for c in self.components.values())
        return self.num_parameters + mixtures + self.learns_noise

    def weight_index(self, group: str) -> Array:
        """The indices into z of a group's weights (n,), in the order of its names."""
        parts = [np.arange(s.start, s.stop) for s in (self.slices[n] for n in self.groups[group])]
        index: Array = np.concatenate(parts)
        return index

    # -- from z -------------------------------------------------------------------------------

    def network(self, z: Float[Tensor, "*batch d"]) -> dict[str, Tensor]:
        """The network's parameters: name -> (*batch, *shape)."""
        batch = z.shape[:-1]
        return {n: z[..., at].reshape(*batch, *self.parameters[n]) for n, at in self.slices.items()}

    def weights(self, z: Float[Tensor, "*batch d"], group: str) -> Float[Tensor, "*batch n"]:
        """The weights under a group's mixture."""
        return z[..., torch.from_numpy(self.weight_index(group))]

    def mixture(
        self, z: Float[Tensor, "*batch d"], group: str
    ) -> tuple[Float[Tensor, "*batch k"], Float[Tensor, "*batch k"], Float[Tensor, "*batch k"]]:
        """Mixing, mean and std of a group's mixture."""
        c = self.components[group]
        u, mu, xi = (z[..., at] for at in self.mixture_slices[group])
        values = [
            torch.tensor(v, dtype=z.dtype, device=z.device).expand(*z.shape[:-1], -1).clone()
            for v in (c.mixing, c.mean, c.std)
        ]
        free = [torch.from_numpy(index) for index in c.free]
        if len(free[0]):
            v = torch.from_numpy(basis(len(free[0]))).to(z.dtype)
            values[0][..., free[0]] = c.rest * (u @ v.T).softmax(-1)
        values[1][..., free[1]] = mu
        values[2][..., free[2]] = (0.5 * xi).exp()
        return values[0], values[1], values[2]

    def noise(self, z: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch"]:
        """sigma_y of the Gaussian, learned or given, in units of the targets.

        Raises:
            ValueError: if the likelihood has none.
        """
        if self.likelihood != "gaussian":
            raise ValueError(f"the {self.likelihood} likelihood has no noise std")
        if self.noise_std is not None:
            return z.new_full(z.shape[:-1], self.noise_std)
        return (0.5 * z[..., -1]).exp()

    # -- to z ---------------------------------------------------------------------------------

    def pack(
        self,
        network: Mapping[str, Tensor],
        mixtures: Mapping[str, tuple[Tensor, Tensor, Tensor]],
        noise_std: float | Tensor | None = None,
    ) -> Float[Tensor, "*batch d"]:
        """The vector z of these values: the inverse of `network`, `mixture` and `noise`.

        Args:
            network: name -> (*batch, *shape); names that are no parameters are ignored.
            mixtures: group -> mixing, mean, std (*batch, k).
            noise_std: sigma_y, if it is learned.

        Returns:
            z (*batch, d) in float64, on the CPU.
        """
        first, shape = next(iter(self.parameters.items()))
        batch = network[first].shape[: network[first].ndim - len(shape)]
        parts = [network[n].detach().double().cpu().reshape(*batch, -1) for n in self.parameters]
        for group, c in self.components.items():
            mixing, mean, std = (t.detach().double().cpu() for t in mixtures[group])
            free = [torch.from_numpy(index) for index in c.free]
            log_share = mixing[..., free[0]].clamp_min(1e-12).log()
            parts.append(log_share @ torch.from_numpy(basis(len(free[0]))))
            parts += [mean[..., free[1]], 2.0 * std[..., free[2]].log()]
        if self.learns_noise:
            noise = torch.as_tensor(noise_std, dtype=torch.float64, device="cpu")
            parts.append(2.0 * noise.log().expand(batch)[..., None])
        return torch.cat(parts, -1)

    # -- files --------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """The layout as values that JSON can hold."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Layout:
        """The layout whose `to_dict` gave these values.

        Raises:
            ValueError: for an unknown likelihood, an impossible shape or mixture, or groups that do
                not fit the parameters.
        """
        if values["likelihood"] not in ("gaussian", "categorical", "binary"):
            raise ValueError(
                "likelihood must be 'gaussian', 'categorical' or 'binary'; got "
                f"{values['likelihood']!r}"
            )
        parameters = {n: tuple(map(int, shape)) for n, shape in values["parameters"].items()}
        groups = {g: tuple(map(str, names)) for g, names in values["groups"].items()}
        components = {
            g: Components(**{k: tuple(v) for k, v in c.items()})
            for g, c in values["components"].items()
        }
        if any(size < 0 for shape in parameters.values() for size in shape):
            raise ValueError(f"the parameters have impossible shapes: {parameters}")
        if groups.keys() != components.keys():
            raise ValueError(f"mixtures of {list(components)}, but groups {list(groups)}")
        for group, names in groups.items():
            if not names or any(name not in parameters for name in names):
                raise ValueError(f"the group {group!r} has tensors {names}, not of the network")
            GaussianMixture(**dataclasses.asdict(components[group]))
        return cls(
            parameters=parameters,
            groups=groups,
            components=components,
            likelihood=str(values["likelihood"]),
            noise_std=None if values["noise_std"] is None else float(values["noise_std"]),
        )
