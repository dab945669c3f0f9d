"""The mixture: a Gaussian mixture over one scalar, the weight.

    p(w) = sum_j pi_j N(w | mu_j, sigma_j^2)
    gamma_j(w) = pi_j N(w | mu_j, sigma_j^2) / p(w)

Everything is computed in log space and in the centred form ((w - mu) / sigma)^2, which stays
exact far out in the tails, where the density itself underflows.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Real
from torch import Tensor, nn
from torch.nn.utils import parametrize

from swsmix._log_odds import LOG_SQRT_2PI, LogSum, log_odds, log_or_nothing, standardised

Vector = Real[Tensor, "*b k"] | Sequence[float]

_PINS = ("pinned_mixing", "pinned_mean", "pinned_std")


class GaussianMixture(nn.Module):
    """A Gaussian mixture over scalars, p(w) = sum_j pi_j N(w | mu_j, sigma_j^2).

    The three tensors are buffers, moved by EM (`swsmix.em`); `trainable_` turns them into
    parameters for an optimiser. A *pinned* entry is never changed by either.

    With a leading axis, (b, k), it is b mixtures side by side, those of an ensemble: the methods
    take weights (b, n), and the E and the M step do. All else is for one mixture.

    Args:
        mixing: pi, the mixing proportions (k,), non-negative, summing to 1 within 1e-4. Those of
            16 bits may be off by two roundings (0.2 % in float16, 1.6 % in bfloat16); the free
            ones are then divided by their sum. 16-bit tensors become float32.
        mean: mu, the component means (k,), in units of the weights.
        std: sigma, the component standard deviations (k,), positive.
        pinned_mixing: which mixing proportions are fixed (k,); none by default.
        pinned_mean: which means are fixed (k,); none by default.
        pinned_std: which stds are fixed (k,); none by default.

    Raises:
        ValueError: if the shapes differ, a value is not finite, a std is not positive, or mixing
            is negative or does not sum to 1.

    Example:
        >>> mixture = GaussianMixture([0.9, 0.1], [0.0, 1.0], [0.1, 0.1])
        >>> mixture.responsibilities(torch.tensor([0.0, 1.0])).argmax(-1)
        tensor([0, 1])
    """

    mixing: Tensor
    mean: Tensor
    std: Tensor
    pinned_mixing: Tensor
    pinned_mean: Tensor
    pinned_std: Tensor

    def __init__(
        self,
        mixing: Vector,
        mean: Vector,
        std: Vector,
        *,
        pinned_mixing: Bool[Tensor, "*b k"] | Sequence[bool] | None = None,
        pinned_mean: Bool[Tensor, "*b k"] | Sequence[bool] | None = None,
        pinned_std: Bool[Tensor, "*b k"] | Sequence[bool] | None = None,
    ) -> None:
        super().__init__()
        with torch.inference_mode(False):  # tensors made inside it could never change again
            self._set(mixing, mean, std, pinned_mixing, pinned_mean, pinned_std)
        self._check()

    def _set(self, mixing: Any, mean: Any, std: Any, *pins: Any) -> None:
        like = [v for v in (mixing, mean, std) if isinstance(v, Tensor)]
        real = [v.dtype for v in like if v.is_floating_point()] or [torch.float64]
        dtype = functools.reduce(torch.promote_types, [*real, torch.float32])
        device = like[0].device if like else torch.device("cpu")
        for name, value in (("mixing", mixing), ("mean", mean), ("std", std)):
            tensor = torch.as_tensor(value, dtype=dtype, device=device).detach().clone()
            self.register_buffer(name, tensor)
        for name, pinned in zip(_PINS, pins, strict=True):
            if pinned is None:
                pinned = torch.zeros_like(self.mean, dtype=torch.bool)
            mask = torch.as_tensor(pinned, dtype=torch.bool, device=device)
            self.register_buffer(name, mask.clone())
        if isinstance(mixing, Tensor) and mixing.dtype in (torch.float16, torch.bfloat16):
            self._undo_rounding_(2.0 * torch.finfo(mixing.dtype).eps)

    def _undo_rounding_(self, allowed: float) -> None:
        """Make free proportions that 16 bits rounded sum to 1 again; what is further off stays."""
        if self.mixing.shape == self.pinned_mixing.shape and self.mixing.ndim == 1:
            mixing, free = self.mixing.double(), ~self.pinned_mixing
            rest = 1.0 - mixing[~free].sum()
            if abs(mixing.sum() - 1.0) <= allowed and mixing[free].sum() > 0.0 and rest > 0.0:
                self.mixing.copy_(torch.where(free, mixing * (rest / mixing[free].sum()), mixing))

    def _check(self) -> None:
        shapes = {name: tuple(buffer.shape) for name, buffer in self.named_buffers()}
        if len(set(shapes.values())) != 1 or self.mean.ndim == 0 or self.mean.numel() == 0:
            raise ValueError(
                "a mixture needs mixing, mean, std (and pins) of one shape (k,) or (b, k), k >= 1; "
                f"got {shapes}"
            )
        for name in ("mixing", "mean", "std"):
            values = getattr(self, name)
            if not torch.isfinite(values).all():
                raise ValueError(f"{name} must be finite; got {values.tolist()}")
        if (self.std <= 0).any():
            raise ValueError(f"std must be positive; got {self.std.tolist()}")
        total = self.mixing.double().sum(-1)
        off = (total - 1.0).abs().max().item()
        if (self.mixing < 0).any() or off > 1e-4:
            raise ValueError(
                f"mixing must be non-negative and sum to 1; got {self.mixing.tolist()}, "
                f"which sums to {total.tolist()}: divide it by its sum"
            )

    @property
    def num_components(self) -> int:
        """K, pinned components included."""
        return self.mean.shape[-1]

    @property
    def batch_shape(self) -> torch.Size:
        """(b,) of mixtures side by side; () of one."""
        return self.mean.shape[:-1]

    @property
    def is_trainable(self) -> bool:
        """Whether `trainable_` has made the tensors parameters."""
        return "mean" not in self._buffers

    def member(self, index: int) -> GaussianMixture:
        """One of several mixtures side by side, with its pins; it shares nothing with them.

        Raises:
            IndexError: if there is no such member.
        """
        if len(self.batch_shape) != 1:
            raise IndexError(f"one mixture has no members; got index {index}")
        pins = {name: getattr(self, name)[index] for name in _PINS}
        return GaussianMixture(self.mixing[index], self.mean[index], self.std[index], **pins)

    @classmethod
    def stacked(cls, mixtures: Sequence[GaussianMixture]) -> GaussianMixture:
        """Mixtures of one K side by side, (b, k); their `member` is each of them again.

        Raises:
            ValueError: if there are none, or they differ in K.
        """
        sizes = {m.mean.shape for m in mixtures}
        if len(sizes) != 1 or any(m.batch_shape for m in mixtures):
            raise ValueError(
                "mixtures to stack need one number of components; got "
                f"{[tuple(m.mean.shape) for m in mixtures]}"
            )
        names = ("mixing", "mean", "std", *_PINS)
        values = {n: torch.stack([getattr(m, n).detach() for m in mixtures]) for n in names}
        return cls(**values)

    def plain_copy(self) -> GaussianMixture:
        """The same mixture with the same pins, its tensors buffers again.

        Returns:
            A mixture that shares nothing with this one.
        """
        pins = {name: getattr(self, name) for name in _PINS}
        return GaussianMixture(self.mixing, self.mean, self.std, **pins)

    def extra_repr(self) -> str:
        """The size and the pins, for `print`."""
        pins = {n: int(getattr(self, n).sum()) for n in ("pinned_mixing", "pinned_mean")}
        return f"num_components={self.num_components}, " + ", ".join(
            f"{k}={v}" for k, v in pins.items()
        )

    def log_joint(self, w: Float[Tensor, "*n"]) -> Float[Tensor, "*n k"]:
        """Log pi_j + log N(w | mu_j, sigma_j^2), in nats.

        Returns:
            One value for each weight and component; -inf where the mixing proportion is 0.
        """
        # Half of z, so that the largest floats on both sides of zero do not overflow.
        mixing, mean, std = self._beside(w)
        half = (0.5 * w.unsqueeze(-1) - 0.5 * mean) / std
        return mixing.log() - std.log() - LOG_SQRT_2PI - 2.0 * half.square()

    def _beside(self, w: Tensor) -> list[Tensor]:
        """Mixing, mean and std as (*b, 1, ..., k), for weights (*b, *n, 1)."""
        b = self.batch_shape
        if w.shape[: len(b)] != b:
            raise ValueError(
                f"{tuple(b)} mixtures need weights (*{tuple(b)}, n); got {tuple(w.shape)}"
            )
        shape = (*b, *[1] * (w.ndim - len(b)), self.num_components)
        return [t.reshape(shape) for t in (self.mixing, self.mean, self.std)]

    def log_prob(self, w: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
        """Log p(w) = logsumexp_j (log pi_j + log N(w | mu_j, sigma_j^2)), in nats.

        The plain evaluation, with one number for each weight and component, in float64; a
        `MixturePrior` uses the O(N) tables instead. The value and its gradients are right out to
        the largest float, or infinite where they overflow. Of a mixing proportion of 0 the
        gradient is 0, as the tables have it.

        Returns:
            The log density of each weight.
        """
        dtype = torch.promote_types(w.dtype, self.mean.dtype)
        mixing, mean, std = (t.double() for t in self._beside(w))
        gamma = self._gamma(w)
        w = w.double().unsqueeze(-1)
        # Where nothing is owned, nothing flows back: 0 times an infinite slope is nan.
        owned = gamma.detach() > 0
        offset = w - mean
        over = offset.detach().isinf()
        z = torch.where(owned & ~over, offset, 0.0) / std
        if bool(over.any()):
            z = z + 2.0 * (torch.where(owned & over, 0.5 * w - 0.5 * mean, 0.0) / std)
        joint = log_or_nothing(mixing) - std.log() - 0.5 * z * z
        value: Tensor = LogSum.apply(joint, gamma)
        return value.to(dtype)

    def responsibilities(self, w: Float[Tensor, "*n"]) -> Float[Tensor, "*n k"]:
        """gamma_ij = pi_j N(w_i | mu_j, sigma_j^2) / p(w_i); the rows sum to 1.

        Computed in float64, out to the largest float: where every density underflows, the
        components are compared by their differences, not by their logarithms.

        Returns:
            The posterior probability of each component for each weight.
        """
        dtype = torch.promote_types(w.dtype, self.mean.dtype)
        return self._gamma(w).to(dtype)

    def _gamma(self, w: Tensor) -> Tensor:
        """The responsibilities in float64."""
        mixing, mean, std = (t.double() for t in self._beside(w))
        w = w.double().unsqueeze(-1)
        level = log_or_nothing(mixing) - std.log()
        return log_odds(w, standardised(w, mean, std), level, mean, std).softmax(-1)

    def sample(
        self, num: int, *, generator: torch.Generator | None = None
    ) -> Float[Tensor, "*b n"]:
        """Draw weights from the mixture, or from each.

        Args:
            num: how many.
            generator: the source of randomness; torch's global one by default.

        Returns:
            `num` independent draws.
        """
        j = torch.multinomial(self.mixing, num, replacement=True, generator=generator)
        noise = torch.randn(
            j.shape, generator=generator, dtype=self.mean.dtype, device=self.mean.device
        )
        return self.mean.gather(-1, j) + self.std.gather(-1, j) * noise

    def distribution(self) -> torch.distributions.MixtureSameFamily:
        """The same mixture as a `torch.distributions` object (density space's twin).

        Returns:
            `MixtureSameFamily(Categorical(mixing), Normal(mean, std))`.
        """
        return torch.distributions.MixtureSameFamily(
            torch.distributions.Categorical(self.mixing),
            torch.distributions.Normal(self.mean, self.std),
        )

    def trainable_(self) -> GaussianMixture:
        """Turn mixing, mean and std into parameters, for gradient descent on them.

        The parameters are those of Nowlan & Hinton (1992): softmax logits, means, and log
        variances, pi = softmax(eta), sigma^2 = exp(xi). Pinned entries stay as they are, to the
        last bit: they do not pass through the softmax or the exponential.

        Returns:
            The mixture itself.
        """
        if self.is_trainable:
            return self
        for name, parametrization in (
            ("mixing", _Softmax(self.mixing, self.pinned_mixing)),
            ("mean", _Pinned(self.mean, self.pinned_mean)),
            ("std", _LogVariance(self.std, self.pinned_std)),
        ):
            value = getattr(self, name).clone()
            del self._buffers[name]
            self.register_parameter(name, nn.Parameter(value))
            parametrize.register_parametrization(self, name, parametrization)
        return self

    @torch.no_grad()
    def cap_std_(self, cap: float, *, floor: float = 0.0) -> None:
        """Cut stds above a cap down to it, for annealing; pinned ones stay.

        Args:
            cap: the largest std allowed, positive, in units of the weights.
            floor: the smallest, at most the cap.

        Raises:
            ValueError: if the cap is not positive, or the floor lies above it.
        """
        if not cap > 0.0:
            raise ValueError(f"the cap of the stds must be positive; got {cap}")
        if not 0.0 <= floor <= cap:
            raise ValueError(f"the floor of the stds must lie in [0, {cap}]; got {floor}")
        capped = torch.where(self.pinned_std, self.std, self.std.clamp(floor, cap))
        if self.is_trainable:
            self.std = capped
        elif not torch.equal(capped, self.std):  # else its tables stay good
            self.std.copy_(capped)


class _Pinned(nn.Module):
    """Keeps the pinned entries of a trainable tensor at their values."""

    pins: Tensor
    mask: Tensor

    def __init__(self, pins: Tensor, mask: Tensor) -> None:
        super().__init__()
        self.register_buffer("pins", pins.clone())
        self.register_buffer("mask", mask.clone())

    def forward(self, free: Tensor) -> Tensor:
        return torch.where(self.mask, self.pins, free)

    def right_inverse(self, value: Tensor) -> Tensor:
        return value


class _LogVariance(_Pinned):
    """sigma = exp(xi / 2)."""

    def forward(self, free: Tensor) -> Tensor:
        return super().forward((0.5 * free).exp())

    def right_inverse(self, value: Tensor) -> Tensor:
        return 2.0 * value.log()


class _Softmax(_Pinned):
    """pi = softmax(eta) over the free entries, which share what the pinned ones leave."""

    def forward(self, free: Tensor) -> Tensor:
        logits = free.masked_fill(self.mask, -torch.inf)
        rest = 1.0 - (self.pins * self.mask).sum(-1, keepdim=True)
        return super().forward(rest * logits.softmax(-1))

    def right_inverse(self, value: Tensor) -> Tensor:
        return value.clamp_min(torch.finfo(value.dtype).tiny).log()
