"""What was tried before the procedure was frozen; explore.py tries it and keeps the log."""

from __future__ import annotations

from typing import Any

SCALES = {
    "/191": {"divisor": 191.0},
    "/100": {"divisor": 100.0},
    "/100 - 0.5": {"divisor": 100.0, "centre": 0.5},
    "/50": {"divisor": 50.0},
    "standardised": {"divisor": 35.0, "centre": 1.25},
    "root /14": {"divisor": 14.0, "root": True},
    "root /7 - 1": {"divisor": 7.0, "centre": 1.0, "root": True},
}


def sunspots() -> dict[str, tuple[str, dict[str, Any]]]:
    """Everything that was tried, by a line of text.

    Returns:
        text -> (method, setting).
    """
    attempts: dict[str, tuple[str, dict[str, Any]]] = {}

    def add(method: str, scale: str = "/191", **setting: Any) -> None:
        text = ", ".join(f"{k} {v}" for k, v in setting.items())
        attempts[f"{method}: {scale}, {text}"] = (method, setting | {"scale": SCALES[scale]})

    def share(components: int, scale: str = "/191", **setting: Any) -> None:
        add("soft-sharing", scale, components=components, **setting)

    for scale in ("/191", "/100", "/100 - 0.5"):
        for iterations in (40, 60, 100, 200):
            add("early stopping", scale, iterations=iterations)
        for std in (0.2, 0.3, 0.5, 0.7):
            add("weight decay", scale, std=std)
        for strength in (3.0, 6.0, 12.0):
            add("weight elimination", scale, strength=strength, unit=1.0)
        for components in (3, 8):
            share(components, scale, tau=0.5)
            share(components, scale, tau=0.5, mode="gradient")
            share(components, scale, warm_iterations=100)
    for scale in ("/50", "standardised", "root /14", "root /7 - 1"):
        add("early stopping", scale, iterations=30)
        for std in (0.2, 0.3, 0.5):
            add("weight decay", scale, std=std)
        share(8, scale, tau=0.5)
    for strength, unit in ((3.0, 0.3), (6.0, 0.3), (6.0, 2.0), (12.0, 2.0)):
        add("weight elimination", strength=strength, unit=unit)
    for components in (3, 8):
        for tau in (0.25, 1.0, 2.0):
            share(components, tau=tau)
        share(components, mode="gradient")
    for components in (1, 2, 5, 12):
        share(components, tau=0.5)
    for other in (
        {"warm_iterations": 20}, {"ramp": 15}, {"hyper_count": 1.0}, {"hyper_std": 0.2},
        {"std": 0.2, "spread": 0.5}, {"std": 1.0, "spread": 2.0}, {"iterations": 40},
        {"pace": 0.1, "mode": "gradient"},
    ):  # fmt: skip
        share(8, tau=0.5, **other)

    # Other starts, noise models, and ensembles of nets that have seen different cases.
    good: list[tuple[str, str, dict[str, Any]]] = [
        ("weight decay", "/100", {"std": 0.3}),
        ("early stopping", "/100", {"iterations": 40}),
        ("soft-sharing", "/191", {"components": 3, "tau": 0.5}),
        ("soft-sharing", "/100", {"components": 8, "tau": 0.5}),
    ]
    for method, scale, setting in good:
        for start in (0.1, 1.0):
            add(method, scale, **setting, start=start)
        for noise in ("student", "level"):
            add(method, scale, **setting, noise=noise)
        add(method, scale, **setting, bagged=True)
    return attempts


SAMPLED: dict[str, tuple[str, dict[str, Any]]] = {
    f"posterior: {scale}, components {k}, tau {tau}, temperature {temperature}": (
        "soft-sharing",
        {
            "components": k, "tau": tau, "scale": SCALES[scale],
            "posterior": {"burn": 100, "keep": 200, "temperature": temperature},
        },
    )
    for scale, k, tau, temperature in (
        ("/191", 8, 1.0, 1.0), ("/100", 8, 1.0, 1.0), ("/191", 1, 1.0, 1.0), ("/191", 8, 1.0, 0.3),
        ("/191", 3, 1.0, 1.0),
    )
} | {
    f"posterior: {scale}, one Gaussian of std 0.3": (
        "soft-sharing",
        {
            "components": 1, "std": 0.3, "hyper_std": 0.3, "hyper_count": 1e7,
            "scale": SCALES[scale], "posterior": {"burn": 100, "keep": 200},
        },
    )
    for scale in ("/191", "/100")
}  # fmt: skip
"""Draws from the posterior, averaged: one component is a Gaussian prior of unknown std."""


# name -> nu of 8 components, target acceptance, draws per chain.
POSTERIOR = {
    "nu = 2, target acceptance .95, 4000 draws": (2.0, 0.95, 4000),
    "nu = 10, target acceptance .95, 4000 draws": (10.0, 0.95, 4000),
    "nu = 2": (2.0, 0.8, 1000),
    "nu = 2, target acceptance .95": (2.0, 0.95, 1000),
    "nu = 10": (10.0, 0.8, 1000),
    "nu = 30": (30.0, 0.8, 1000),
}

EVIDENCE = {
    f"evidence: {scale}, {text}": setting | {"scale": SCALES[scale]}
    for scale in ("/191", "/100")
    for text, setting in {
        "weight decay, std 0.3": {"std": 0.3},
        "3 components, tau 1": {"components": 3},
        "8 components, tau 1": {"components": 8},
    }.items()
}


_EM: dict[str, Any] = {"tau": 2.0, "iterations": 80}
_SLOW: dict[str, Any] = {"mode": "gradient", "pace": 0.03}
SHIFT: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "squared": [
        ("sharing", {"components": 10, "tau": 1.0, "spread": 1.0}),
        ("sharing", {"components": 10, "tau": 0.5, "spread": 1.0}),
        ("sharing", {"components": 10, "tau": 1.0, "spread": 1.0, "warm_std": 1.0}),
        ("sharing", {"components": 10, "spread": 1.0, **_SLOW}),
        ("sharing", {"components": 10, "tau": 0.5}),
        ("sharing", {"components": 10, "tau": 0.5, "spread": 1.0, "warm_std": 0.5}),
        ("sharing", {"components": 10, "tau": 0.25, "spread": 1.0}),
        ("sharing", {"components": 5, "tau": 0.5, "spread": 1.0}),
        ("sharing", {"components": 10, **_EM}),
        *(("plain", {"iterations": n}) for n in (10, 20, 30, 100, 350)),
        *(("decay", {"std": s}) for s in (0.25, 0.5, 1.0, 2.5)),
        *(("elimination", {"strength": s}) for s in (1.0, 3.0, 10.0)),
    ],
    "squashed": [
        ("plain", {"iterations": 350}),
        ("sharing", {"components": 10, "tau": 0.5, "spread": 1.0, "warm_std": 0.5}),
        ("decay", {"std": 0.5}),
        ("sharing", {"components": 10, "tau": 0.5}),
        ("decay", {"std": 1.0}),
        ("sharing", {"components": 10, "tau": 1.0}),
        ("decay", {"std": 2.5}),
        ("plain", {"iterations": 15}),
    ],
    "n100": [
        *(("plain", {"iterations": n}) for n in (30, 100, 350)),
        *(("decay", {"std": s}) for s in (0.5, 1.0, 2.0, 30.0, 250.0, 1e3, 4e3, 16e3)),
        *(("sharing", {"components": k, **o}) for k in (5, 10) for o in ({}, _EM, _SLOW)),
        *(
            ("sharing", options)
            for options in (
                {"tau": 2.0}, {"hyper_count": 0.3}, {"hyper_std": 0.5, "hyper_count": 3.0},
                {"hyper_std": 0.1, "hyper_count": 0.1}, {"iterations": 20},
                {"tau": 2.0, "iterations": 150}, {"components": 14},
                {"mode": "gradient", "ramp": 0}, {"mode": "gradient", "pace": 0.1},
                {"mode": "gradient", "hyper_std": 0.5, "hyper_count": 30.0},
                {"mode": "gradient", "iterations": 10, "rounds": 80, "ramp": 40},
                {**_SLOW, **_EM},
            )
        ),
    ],
}  # fmt: skip
"""The attempts by setting."""
