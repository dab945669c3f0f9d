"""The posterior of a small network's weights as a Gaussian (Laplace), and the evidence.

    S = (H + diag(a))^-1,  H = sum_cases J' (d^2 loss / d f^2) J,  a_i = sum_j gamma_ij / sigma_j^2

H is the Gauss-Newton matrix of the data's negative log likelihood, exact where f is linear in the
weights, and a the prior's curvature with the responsibilities of `swsmix.em.variational`. Every
trainable parameter takes part; those outside the prior (biases) have N(0, other_std^2).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vmap

from swsmix.em import variational
from swsmix.prior import MixturePrior

Loss = Callable[[Tensor, Tensor], Tensor]
MAX_PARAMETERS = 5000
_MAX_JACOBIAN = 1 << 28  # numbers
_CHUNK = 1 << 24


@dataclass(frozen=True, eq=False)
class Curvature:
    """The Gauss-Newton matrix of a network's loss at its current weights.

    Attributes:
        shapes: name -> shape of each trainable parameter, in the order of the matrix.
        values: the parameters as one vector (d,), in float64.
        matrix: H (d, d), in nats over squared units of the weights, over all cases.
        log_likelihood: log p(data | w) in nats.
        jacobian: d output / d parameter (n, outputs, d).
        outputs: of the network (n, ...).
    """

    shapes: dict[str, torch.Size]
    values: Float[Tensor, " d"]
    matrix: Float[Tensor, "d d"]
    log_likelihood: float
    jacobian: Float[Tensor, "n c d"] = field(repr=False)
    outputs: Float[Tensor, "n ..."] = field(repr=False)

    def split(self, flat: Float[Tensor, " d"]) -> dict[str, Tensor]:
        """A vector over the parameters, by name."""
        parts = flat.split([shape.numel() for shape in self.shapes.values()])
        return {
            name: part.reshape(shape)
            for (name, shape), part in zip(self.shapes.items(), parts, strict=True)
        }


@torch.no_grad()
def curvature(
    model: nn.Module,
    loss: Loss,
    data: tuple[Tensor, Tensor],
    *,
    num_data: int | None = None,
) -> Curvature:
    """H = num_data times the Gauss-Newton matrix of the mean loss, in evaluation mode.

    Args:
        model: a small network: its matrix is d x d for d trainable parameters.
        loss: `loss(model(x), y)`, a mean (or sum, then num_data = 1) over cases of the negative
            log likelihood, convex in the network's output.
        data: all cases, two tensors (x, y).
        num_data: what the loss is multiplied by; the number of cases by default.

    Raises:
        ValueError: if the network is too large, or the loss is no mean and no sum over cases.

    Example:
        >>> net, x = nn.Linear(2, 1), torch.tensor([[1.0, 0.0], [0.0, 2.0]])
        >>> loss = lambda f, y: 0.5 * (f - y).square().mean()
        >>> curvature(net, loss, (x, torch.zeros(2, 1))).matrix.diagonal()
        tensor([1., 4., 2.], dtype=torch.float64)
    """
    params = {name: p for name, p in model.named_parameters() if p.requires_grad}
    size = sum(p.numel() for p in params.values())
    if not 0 < size <= MAX_PARAMETERS:
        raise ValueError(
            f"the Laplace approximation inverts a matrix over all parameters and takes 1 to "
            f"{MAX_PARAMETERS} of them; this network has {size}: use moments='maximum', or an "
            "Adam over batches, whose second moments give the variances"
        )
    x, y = (part.to(next(iter(params.values())).device) for part in data)
    num_data = len(x) if num_data is None else num_data

    def output(values: dict[str, Tensor], case: Tensor) -> Tensor:
        result: Tensor = functional_call(model, values, (case[None],))
        return result.reshape(-1)

    with _evaluation(model):
        outputs = model(x)
        if outputs.numel() * size > _MAX_JACOBIAN:
            raise ValueError(
                f"the Laplace approximation keeps a Jacobian of cases x outputs x parameters, "
                f"{len(x)} x {outputs[0].numel()} x {size}: too much; give it fewer cases"
            )
        rows = max(1, _CHUNK // (outputs[0].numel() * size))
        parts = []
        for cases in x.split(rows):
            by_name = vmap(jacrev(output), in_dims=(None, 0))(params, cases)
            parts.append(torch.cat([by_name[name].flatten(2).double() for name in params], 2))
        jacobian = torch.cat(parts)
        per_case = _per_case(loss)
        total = float(loss(outputs, y))
        scale = num_data * _share(total, vmap(per_case)(outputs, y))
        bend = scale * _bends(per_case, outputs, y).double()
    flat = torch.cat([p.detach().reshape(-1).double() for p in params.values()])
    matrix = torch.einsum("nci,nid->ncd", bend, jacobian).flatten(0, 1)
    return Curvature(
        {name: p.shape for name, p in params.items()},
        flat,
        jacobian.flatten(0, 1).T @ matrix,
        -num_data * total,
        jacobian,
        outputs,
    )


def _per_case(loss: Loss) -> Loss:
    def of_case(f: Tensor, y: Tensor) -> Tensor:
        return loss(f[None], y[None])

    return of_case


def _bends(per_case: Loss, outputs: Tensor, y: Tensor) -> Float[Tensor, "n c c"]:
    """d^2 loss / d f^2 of each case."""
    size = outputs[0].numel()
    # Forward mode would load torch's compiler.
    bends: Tensor = vmap(jacrev(jacrev(per_case)))(outputs, y)
    return bends.reshape(len(outputs), size, size)


def _share(total: float, cases: Tensor) -> float:
    """What the loss multiplies the cases' losses by: 1 / n for a mean, 1 for a sum."""
    whole = float(cases.double().sum())
    for share in (1.0 / len(cases), 1.0):
        if abs(share * whole - total) <= share * (1e-4 * float(cases.abs().sum()) + 1e-9):
            return share
    raise ValueError(
        "the loss must be a mean or a sum over cases of the negative log likelihood: over all "
        f"cases it is {total:.6g}, and the sum of the cases' own losses {whole:.6g}"
    )


@contextmanager
def _evaluation(model: nn.Module) -> Iterator[None]:
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


@dataclass(frozen=True, eq=False)
class Laplace:
    """The Gaussian posterior of a network's parameters under a prior; made by `laplace`.

    Attributes:
        curvature: of the data.
        prior: the mixture prior, at whose mixtures all is evaluated.
        tau: its strength.
        other_std: the std of the parameters outside the prior.
        covariance: S (d, d).
        log_det: log det S.
        variance: s^2 of each tensor of the prior by name, for `em_step_`.
    """

    curvature: Curvature
    prior: MixturePrior
    tau: float
    other_std: float
    covariance: Float[Tensor, "d d"] = field(repr=False)
    log_det: float
    variance: dict[str, Tensor] = field(repr=False)

    @property
    def num_determined(self) -> float:
        """tr(H S): how many parameters the data determine (MacKay 1992's gamma)."""
        return float((self.curvature.matrix * self.covariance).sum())

    def refreshed(self) -> Laplace:
        """The same with the prior's mixtures as they are now; the data's curvature stays."""
        return laplace(
            self.curvature, self.prior, tau=self.tau, other_std=self.other_std, near=self.variance
        )

    def log_evidence(self) -> float:
        """Log p(data | phi) in nats, the weights integrated out, at tau = 1.

            log p(data | w) - tr(H S) / 2 - F(w, s^2; phi) + log det(2 pi e S) / 2

        and the expected log density of the parameters outside the prior. With one component this
        is Laplace's approximation, exact for a network that is linear in its parameters; with
        several, a lower bound of it (Jensen), one assignment of weights to components. It holds
        near this mode; other modes, such as permuted hidden units, are not counted. It compares
        K and groups at fitted phi: a mixture with more parameters fits by itself a little better.

        Raises:
            ValueError: if tau is not 1: a prior raised to a power has no normaliser, so evidence
                chooses K and groups, and never tau.

        Reference:
            MacKay 1992, "A practical Bayesian framework for backpropagation networks".
        """
        if self.tau != 1.0 or any(tau != 1.0 for tau in self.prior.tau.values()):
            raise ValueError(
                "the evidence is defined at tau = 1 alone: a prior raised to the power tau is not "
                f"normalised; got tau = {self.tau} and {self.prior.tau} by group"
            )
        mean, spread = (self.curvature.split(t) for t in self._moments())
        value = self.curvature.log_likelihood - 0.5 * self.num_determined
        inside = set(self.prior.selection.names)
        for group, mixture in self.prior.mixtures.items():
            for name in self.prior.parameters_of(group):
                flat = mean[name].reshape(-1), spread[name].reshape(-1)
                value -= float(variational.neg_expected_log_prior(mixture, *flat))
        for name in mean.keys() - inside:
            square = (mean[name].square() + spread[name]) / self.other_std**2
            value -= 0.5 * float((square + math.log(2.0 * math.pi * self.other_std**2)).sum())
        size = len(self.curvature.values)
        return value + 0.5 * (size * math.log(2.0 * math.pi * math.e) + self.log_det)

    def _moments(self) -> tuple[Tensor, Tensor]:
        return self.curvature.values, self.covariance.diagonal()

    def output_variance(self) -> Float[Tensor, "n c c"]:
        """J S J': the variance of the network's outputs for each case."""
        jacobian = self.curvature.jacobian
        spread = jacobian @ self.covariance
        return spread @ jacobian.transpose(1, 2)


@torch.no_grad()
def laplace(
    curvature: Curvature,
    prior: MixturePrior,
    *,
    tau: float = 1.0,
    other_std: float = 10.0,
    near: variational.Variance | None = None,
) -> Laplace:
    """The Gaussian posterior at the current weights, S = (H + diag(a))^-1.

    The prior's curvature a_i = tau sum_j gamma_ij / sigma_j^2 depends on s^2 through gamma: the two
    are made to agree, each being the best for the other.

    Args:
        curvature: of the data, from `curvature`.
        prior: the mixture prior over some of the network's parameters.
        tau: its strength.
        other_std: the std of a Gaussian on the parameters outside the prior, in their units.
        near: variances to start from, by name; 0 by default.

    Raises:
        ValueError: if a tensor of the prior is not in the curvature, tau or other_std is not
            positive, or the matrix has no inverse.

    Example:
        >>> net, x = nn.Linear(3, 1), torch.randn(50, 3)
        >>> prior = MixturePrior(net, 1)
        >>> loss = lambda f, y: 0.5 * (f - y).square().mean()
        >>> posterior = laplace(curvature(net, loss, (x, x.sum(1, keepdim=True))), prior)
        >>> prior.em_step_(variance=posterior.variance)
    """
    if not (tau > 0.0 and other_std > 0.0):
        raise ValueError(f"tau and other_std must be positive; got {tau} and {other_std}")
    missing = [name for name in prior.selection.names if name not in curvature.shapes]
    if missing:
        raise ValueError(f"the curvature has no entry for these tensors of the prior: {missing}")
    values = curvature.split(curvature.values)
    spread = {name: torch.zeros_like(values[name]) for name in prior.selection.names}
    spread |= {name: s2.to(values[name]) for name, s2 in (near or {}).items()}
    for _ in range(_ROUNDS):
        added = {n: torch.full_like(v, other_std**-2.0) for n, v in values.items()}
        for group, mixture in prior.mixtures.items():
            for name in prior.parameters_of(group):
                flat = values[name].reshape(-1), spread[name].reshape(-1)
                bend = tau * prior.tau[group] * variational.precision(mixture, *flat)
                added[name] = bend.reshape(values[name].shape)
        diagonal = torch.cat([added[name].reshape(-1) for name in curvature.shapes])
        covariance, log_det = _inverse(curvature.matrix, diagonal)
        now = curvature.split(covariance.diagonal())
        moved = max(float((now[n] / spread[n] - 1.0).abs().max()) for n in spread)
        spread = {name: now[name] for name in spread}
        if moved < _AGREE:
            break
    return Laplace(curvature, prior, tau, other_std, covariance, log_det, spread)


_ROUNDS, _AGREE = 20, 1e-4


def _inverse(matrix: Tensor, diagonal: Tensor) -> tuple[Tensor, float]:
    """The inverse of H + diag(a) and its log determinant, by Cholesky after scaling."""
    scale = (matrix.diagonal() + diagonal).rsqrt()
    unit = scale[:, None] * (matrix + diagonal.diag()) * scale
    factor, failed = torch.linalg.cholesky_ex(0.5 * (unit + unit.T))
    if failed or not factor.isfinite().all():
        raise ValueError(
            "the posterior's precision is not positive definite: the loss must be convex in the "
            "network's output, and tau and the weights finite"
        )
    inverse = scale[:, None] * torch.cholesky_inverse(factor) * scale
    return inverse, float(2.0 * (scale.log().sum() - factor.diagonal().log().sum()))


def expected_loss(
    laplace: Laplace, loss: Loss, data: tuple[Tensor, Tensor]
) -> Callable[[], Tensor]:
    """The data's expected negative log likelihood under the posterior, as a function of the loss.

        sum_cases loss(f, y) + tr(d^2 loss / d f^2 J S J') / 2   [nats]

    For a loss with parameters of its own: minimised over them, it is their EM step. Gaussian noise
    becomes the residuals' variance plus the mean variance of the outputs; without the latter, a
    flexible network takes its noise for ever smaller.

    Args:
        laplace: the posterior.
        loss: as for `curvature`.
        data: all cases.

    Returns:
        A function without arguments, differentiable in the parameters of the loss.
    """
    outputs = laplace.curvature.outputs
    y, spread = data[1].to(outputs.device), laplace.output_variance().to(outputs)
    per_case = _per_case(loss)

    def value() -> Tensor:
        bend = _bends(per_case, outputs, y)
        total: Tensor = vmap(per_case)(outputs, y).sum() + 0.5 * (bend * spread).sum()
        return total

    return value
