"""What a posterior cannot be made of, refused before anything is sampled."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn

from swsmix.bayes import density
from swsmix.prior import MixturePrior

LIKELIHOODS = ("gaussian", "categorical", "binary")


def same_network(net: nn.Module, prior: MixturePrior) -> None:
    """Check that the prior is this network's, and that no number has gone astray.

    A network of the same shapes but with other weights gets a warning: the chains start at its
    weights, under a mixture that was fitted to others.

    Raises:
        ValueError: if the prior is over other tensors, or one is frozen, nan or inf.
    """
    parameters = dict(net.named_parameters(remove_duplicate=False))
    same = True
    for group, names in prior.selection.groups.items():
        bound = prior.parameters_of(group)
        for name in names:
            if name not in parameters or parameters[name].shape != bound[name].shape:
                got = tuple(parameters[name].shape) if name in parameters else list(parameters)
                raise ValueError(
                    f"the prior is over another network: its group {group!r} has {name} of shape "
                    f"{tuple(bound[name].shape)}; the network has {got}: make the prior with "
                    "MixturePrior(net, ...)"
                )
            if not parameters[name].requires_grad:
                raise ValueError(f"{name} is under the prior but frozen: unfreeze it")
            mine, its = (t.detach().double().cpu() for t in (parameters[name], bound[name]))
            same &= torch.allclose(mine, its, equal_nan=True)
    for name, tensor in (
        *net.named_parameters(),
        *prior.named_buffers(),
        *prior.named_parameters(),
    ):
        if (
            "running_" not in name
            and tensor.is_floating_point()
            and not torch.isfinite(tensor.detach().sum())
        ):
            raise ValueError(f"{name} holds nan or inf: training has diverged; start afresh")
    if not same:
        warnings.warn(
            "the prior was fitted to another network of the same shapes: the chains start at the "
            "weights of this one, far from where it would put them",
            stacklevel=3,
        )


def warn_if_untrained(prior: MixturePrior, otherwise: str) -> None:
    """Warn, in EM mode, of a prior without an EM step; `otherwise` says who has its work to do."""
    moments = [b for n, b in prior.named_buffers() if n.endswith("running_count")]
    if prior.mode == "em" and all(b.isnan().any() for b in moments):
        warnings.warn(
            "the prior has not taken an EM step: fit(...) the network under it first, or "
            f"{otherwise} what training would have found",
            stacklevel=3,
        )


def usable_data(x: Tensor, y: Tensor, likelihood: str) -> None:
    """Check inputs and targets by themselves.

    Raises:
        TypeError: if they are no tensors.
        ValueError: if there are none, not as many, some nan or inf, or no labels where labels are
            wanted.
    """
    if likelihood not in LIKELIHOODS:
        raise ValueError(
            f"likelihood must be 'gaussian', 'categorical' or 'binary'; got {likelihood!r}"
        )
    for name, t in (("inputs", x), ("targets", y)):
        if not isinstance(t, Tensor):
            raise TypeError(
                f"the {name} must be a tensor; got {type(t).__name__}: torch.as_tensor(...)"
            )
        if t.ndim == 0:
            raise ValueError(f"the {name} want a dimension of cases; got a single number")
    if not len(x) or len(x) != len(y):
        raise ValueError(f"a posterior wants inputs and as many targets; got {len(x)} and {len(y)}")
    for name, t in (("inputs", x), ("targets", y)):
        finite(t, name)
    if likelihood == "binary" and not ((y == 0) | (y == 1)).all():
        raise ValueError("the binary likelihood wants targets 0 and 1")
    if likelihood == "categorical" and (y.is_floating_point() or y.ndim != 1):
        raise ValueError(
            f"the categorical likelihood wants class numbers (n,); got {y.dtype}, {tuple(y.shape)}"
        )


def finite(t: Tensor, name: str) -> None:
    """Check that there is no nan or inf.

    Raises:
        ValueError: with their number.
    """
    if t.is_floating_point() and not torch.isfinite(t).all():
        bad = int((~torch.isfinite(t)).sum())
        raise ValueError(f"the {name} hold {bad} nan or inf among {t.numel()}: leave them out")


def output_shape(net: nn.Module, x: Tensor) -> tuple[int, ...]:
    """What shape the outputs of two cases have: one pass says whether the network takes them.

    Args:
        net: the network, in evaluation mode.
        x: the inputs, as it gets them.

    Returns:
        The shape, for all cases.

    Raises:
        ValueError: if it does not.
    """
    try:
        with torch.no_grad():
            out = tuple(net(x[:2]).shape)
    except RuntimeError as error:
        raise ValueError(
            f"the network does not take inputs of shape {tuple(x.shape)}, {x.dtype}: {error}"
        ) from error
    return (len(x), *out[1:]) if out[:1] == (min(len(x), 2),) else out


def fitting(out: tuple[int, ...], y: Tensor, likelihood: str) -> None:
    """Check that outputs of a shape can be those of the targets.

    Raises:
        ValueError: if they cannot.
    """
    shape = tuple(y.shape)
    wanted = (*shape, "classes") if likelihood == "categorical" else shape
    if out != shape if likelihood != "categorical" else (len(out) != 2 or out[:1] != shape):
        raise ValueError(
            f"the {likelihood} likelihood wants outputs of shape {wanted}, as the targets; the "
            f"network gives {out}: squeeze (n, 1) with nn.Flatten(0)"
        )
    if likelihood == "categorical" and len(y) and (y.min() < 0 or y.max() >= out[1]):
        raise ValueError(
            f"the network has {out[1]} outputs, hence class numbers from 0 to {out[1] - 1}; got "
            f"{int(y.min())} to {int(y.max())}"
        )


def proper(group: str, term: density.MixtureTerm) -> None:
    """Check that the mixture's density can be normalised: EM copes if not, no sampler does.

    For tau < 1 this is necessary and not sufficient: p(w | phi)^tau is no density, and weights that
    the data do not hold (behind a saturated unit) let sigma grow.

    Raises:
        ValueError: if it cannot.
    """
    hyper, tau = term.hyper, term.tau
    if not tau > 0.0:
        raise ValueError(f"tau of group {group!r} is 0: without a prior there is no posterior")
    if (hyper.mean_count[term.free_mean] <= 0.0).any():
        raise ValueError(
            f"the means of group {group!r} have no prior (mean_count = 0): a component without "
            "weights could lie anywhere, so that the posterior is improper. Give "
            "MixturePrior(..., hyper=HyperPrior(mean=0, mean_count=0.1, ...)): means "
            "within about sigma / sqrt(0.1) of 0"
        )
    # p(phi)^tau falls as v^-(tau (nu / 2 + 1) - (1 - tau) / 2) for large v, the mean integrated.
    power = tau * (term.half + 1.0) - 0.5 * max(1.0 - tau, 0.0)
    if (power <= 1.0).any():
        raise ValueError(
            f"tau = {tau:g} flattens the hyper-prior of group {group!r} until it is improper: "
            f"give it std_count > {(3.0 / tau - 3.0):.3g} (a tempered posterior wants more of it)"
        )
