"""Checks of network, prior and data, before anything is sampled: each error says how to mend it."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn

from swsmix.bayes.mixture_term import MixtureTerm
from swsmix.prior import MixturePrior

LIKELIHOODS = ("gaussian", "categorical", "binary")


def check_prior_of(net: nn.Module, prior: MixturePrior) -> None:
    """Check that the prior is over this network, and that all numbers of both are finite.

    Warns if the network has the right shapes but other weights than those that the prior is bound
    to: the chains would start at weights that the mixture was not fitted to.

    Raises:
        ValueError: if the prior is over other tensors, one is frozen, or one holds nan or inf.
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
            given, fitted = (t.detach().double().cpu() for t in (parameters[name], bound[name]))
            same &= torch.allclose(given, fitted, equal_nan=True)
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
            raise ValueError(f"{name} holds nan or inf: training has diverged; train again")
    if not same:
        warnings.warn(
            "the prior was fitted to another network of the same shapes: the chains start at the "
            "weights of this one, which the mixture does not fit; pass the network of the prior",
            stacklevel=3,
        )


def warn_if_untrained(prior: MixturePrior, consequence: str) -> None:
    """Warn if a prior in EM mode has not taken an EM step; `consequence` ends the sentence."""
    counts = [b for n, b in prior.named_buffers() if n.endswith("running_count")]
    if prior.mode == "em" and all(b.isnan().any() for b in counts):
        warnings.warn(
            "the prior has not taken an EM step: fit(...) the network under it first, or else "
            f"{consequence}",
            stacklevel=3,
        )


def check_data(x: Tensor, y: Tensor, likelihood: str) -> None:
    """Check inputs and targets, without the network.

    Raises:
        TypeError: if they are no tensors.
        ValueError: if there are no cases, their numbers differ, some values are nan or inf, or the
            targets are not labels where the likelihood needs labels.
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
            raise ValueError(f"the {name} need a dimension of cases; got a single number")
    if not len(x) or len(x) != len(y):
        raise ValueError(f"a posterior needs inputs and as many targets; got {len(x)} and {len(y)}")
    for name, t in (("inputs", x), ("targets", y)):
        check_finite(t, name)
    if likelihood == "binary" and not ((y == 0) | (y == 1)).all():
        raise ValueError("the binary likelihood needs targets 0 and 1")
    if likelihood == "categorical" and (y.is_floating_point() or y.ndim != 1):
        raise ValueError(
            f"the categorical likelihood needs class numbers (n,); got {y.dtype}, {tuple(y.shape)}"
        )


def check_finite(t: Tensor, name: str) -> None:
    """Check that there is no nan or inf.

    Raises:
        ValueError: if there is one; the message counts them.
    """
    if t.is_floating_point() and not torch.isfinite(t).all():
        bad = int((~torch.isfinite(t)).sum())
        raise ValueError(f"the {name} hold {bad} nan or inf among {t.numel()}: omit those cases")


def output_shape(net: nn.Module, x: Tensor) -> tuple[int, ...]:
    """The shape of the outputs for all cases, from a pass of two of them.

    Args:
        net: the network, in evaluation mode.
        x: the inputs (n, ...), in its dtype and on its device.

    Raises:
        ValueError: if the network does not take the inputs.
    """
    try:
        with torch.no_grad():
            out = tuple(net(x[:2]).shape)
    except RuntimeError as error:
        raise ValueError(
            f"the network does not take inputs of shape {tuple(x.shape)}, {x.dtype}: {error}"
        ) from error
    return (len(x), *out[1:]) if out[:1] == (min(len(x), 2),) else out


def check_outputs(out: tuple[int, ...], y: Tensor, likelihood: str) -> None:
    """Check that outputs of this shape fit the targets.

    Raises:
        ValueError: if they do not.
    """
    shape = tuple(y.shape)
    categorical = likelihood == "categorical"
    if not (len(out) == 2 and out[:1] == shape if categorical else out == shape):
        wanted = (*shape, "classes") if categorical else shape
        raise ValueError(
            f"the {likelihood} likelihood needs outputs of shape {wanted}, as the targets; the "
            f"network gives {out}: squeeze (n, 1) with nn.Flatten(0)"
        )
    if categorical and len(y) and (y.min() < 0 or y.max() >= out[1]):
        raise ValueError(
            f"the network has {out[1]} outputs, hence class numbers from 0 to {out[1] - 1}; got "
            f"{int(y.min())} to {int(y.max())}"
        )


def check_proper(group: str, term: MixtureTerm) -> None:
    """Check that the mixture's density is proper: EM works without that, a sampler does not.

    For tau < 1 the check is necessary but not sufficient: p(w | phi)^tau is not normalised, and
    weights that the data do not determine (behind a saturated unit) let sigma grow.

    Raises:
        ValueError: if it is improper.
    """
    hyper, tau = term.hyper, term.tau
    if not tau > 0.0:
        raise ValueError(f"tau of group {group!r} is 0: without a prior there is no posterior")
    if (hyper.mean_count[term.free_mean] <= 0.0).any():
        raise ValueError(
            f"the means of group {group!r} have no prior (mean_count = 0): a component without "
            "weights could lie anywhere, and the posterior is improper. Pass "
            "MixturePrior(..., hyper=HyperPrior(mean=0, mean_count=0.1, ...)): it puts the means "
            "within about sigma / sqrt(0.1) of 0"
        )
    # p(phi)^tau falls as v^-(tau (nu / 2 + 1) - (1 - tau) / 2) for large v, the mean integrated.
    power = tau * (term.half + 1.0) - 0.5 * max(1.0 - tau, 0.0)
    if (power <= 1.0).any():
        raise ValueError(
            f"tau = {tau:g} flattens the hyper-prior of group {group!r} until it is improper: "
            f"give it std_count > {(3.0 / tau - 3.0):.3g} (a tempered posterior needs more of it)"
        )
