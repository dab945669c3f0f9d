"""Where everything lies in one unconstrained vector: network, mixtures, noise.

A sampler moves one vector z of real numbers. Its parts, in this order:

    network    every trainable parameter, in the network's order
    mixture    of each group, without what is pinned:
               u, with pi = rest * softmax(V u), V an orthonormal basis orthogonal to (1, .., 1)
               mu
               xi = log sigma^2
    noise      log sigma_y^2, if it is learned

rest is what the pinned mixing proportions leave. K free proportions have K - 1 coordinates u:
softmax logits themselves would leave one direction without any density.
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
        mixing: pi; only pinned entries matter here.
        mean: mu, likewise.
        std: sigma, likewise.
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
        """The values and pins of a mixture.

        Returns:
            Plain numbers.
        """
        return cls(*(tuple(getattr(mixture, f.name).tolist()) for f in dataclasses.fields(cls)))

    @property
    def free(self) -> tuple[Array, Array, Array]:
        """The components whose mixing, mean and std are free: three arrays of indices."""
        pins = (self.pinned_mixing, self.pinned_mean, self.pinned_std)
        mixing, mean, std = (np.flatnonzero(~np.asarray(p)) for p in pins)
        return mixing, mean, std

    @property
    def rest(self) -> float:
        """What the pinned mixing proportions leave to the free ones."""
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
    """Helmert's basis: orthonormal columns (num, num - 1), each orthogonal to (1, .., 1).

    Returns:
        V; softmax(V u) is one-to-one in u.
    """
    v = np.zeros((num, max(num - 1, 0)))
    for j in range(num - 1):
        v[: j + 1, j] = 1.0
        v[j + 1, j] = -(j + 1.0)
        v[:, j] /= math.sqrt((j + 1.0) * (j + 2.0))
    return v


@dataclass(frozen=True)
class Layout:
    """The parts of z, plain enough to be written into a file.

    Attributes:
        parameters: name -> shape of every trainable parameter, in order.
        groups: group -> the names of the tensors under its mixture.
        components: group -> its mixture's pins.
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
        """Where each parameter lies, by name."""
        found, at = {}, 0
        for name, shape in self.parameters.items():
            found[name] = slice(at, at := at + math.prod(shape))
        return found

    @functools.cached_property
    def num_parameters(self) -> int:
        """The number of the network's trainable parameters."""
        return sum(math.prod(shape) for shape in self.parameters.values())

    @functools.cached_property
    def mixture_slices(self) -> dict[str, tuple[slice, slice, slice]]:
        """Where u, mu and xi of each group lie."""
        found, at = {}, self.num_parameters
        for group, c in self.components.items():
            ends = np.cumsum([at, *c.sizes]).tolist()
            found[group] = (slice(*ends[0:2]), slice(*ends[1:3]), slice(*ends[2:4]))
            at = ends[-1]
        return found

    @functools.cached_property
    def size(self) -> int:
        """The length of z."""
        mixtures = sum(sum(c.sizes) for c in self.components.values())
        return self.num_parameters + mixtures + self.learns_noise

    def weight_index(self, group: str) -> Array:
        """Where the weights of a group lie in z, in the order of its names.

        Returns:
            Indices (n,).
        """
        parts = [np.arange(s.start, s.stop) for s in (self.slices[n] for n in self.groups[group])]
        index: Array = np.concatenate(parts)
        return index

    # -- from z -------------------------------------------------------------------------------

    def network(self, z: Float[Tensor, "*batch d"]) -> dict[str, Tensor]:
        """The network's parameters.

        Returns:
            name -> (*batch, *shape).
        """
        batch = z.shape[:-1]
        return {n: z[..., at].reshape(*batch, *self.parameters[n]) for n, at in self.slices.items()}

    def weights(self, z: Float[Tensor, "*batch d"], group: str) -> Float[Tensor, "*batch n"]:
        """The weights under a group's mixture.

        Returns:
            (*batch, n).
        """
        return z[..., torch.from_numpy(self.weight_index(group))]

    def mixture(
        self, z: Float[Tensor, "*batch d"], group: str
    ) -> tuple[Float[Tensor, "*batch k"], Float[Tensor, "*batch k"], Float[Tensor, "*batch k"]]:
        """A group's mixture.

        Returns:
            Mixing, mean and std, each (*batch, k).
        """
        c = self.components[group]
        u, mu, xi = (z[..., at] for at in self.mixture_slices[group])
        values = [
            torch.tensor(v, dtype=z.dtype).expand(*z.shape[:-1], -1).clone()
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
        """sigma_y of the Gaussian, learned or given.

        Returns:
            (*batch), in units of the targets.

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
        """The vector of these values, the inverse of `network`, `mixture` and `noise`.

        Args:
            network: name -> (*batch, *shape); further names are left out.
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

    def to_plain(self) -> dict[str, Any]:
        """As values for JSON.

        Returns:
            What `from_plain` reads.
        """
        return dataclasses.asdict(self)

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Layout:
        """Read `to_plain`'s values.

        Returns:
            The layout.

        Raises:
            ValueError: for an unknown likelihood.
        """
        if plain["likelihood"] not in ("gaussian", "categorical", "binary"):
            raise ValueError(f"there is no likelihood {plain['likelihood']!r}")
        return cls(
            parameters={n: tuple(map(int, shape)) for n, shape in plain["parameters"].items()},
            groups={g: tuple(map(str, names)) for g, names in plain["groups"].items()},
            components={
                g: Components(**{k: tuple(v) for k, v in c.items()})
                for g, c in plain["components"].items()
            },
            likelihood=str(plain["likelihood"]),
            noise_std=None if plain["noise_std"] is None else float(plain["noise_std"]),
        )
