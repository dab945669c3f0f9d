"""What the evidence says of K: the README has the table of the lines that are kept."""

import json
from pathlib import Path

from papers.nowlan1992 import evidence

README = Path(evidence.__file__).parent / "README.md"


def test_the_readme_has_the_table_of_all_lines():
    lines = [json.loads(line) for line in evidence.OUT.read_text().splitlines()]
    found = {(line["problem"], line["components"]) for line in lines}
    assert found == {(p, k) for p in ("sunspots", "shift") for k in evidence.COMPONENTS}
    text = README.read_text()
    for row in evidence.table(lines):
        assert f"\n  {row}\n" in text


def test_a_start_is_the_trained_network_under_the_mixture_that_is_held():
    problem = evidence.the_shifts()
    theta = problem.cases.start(range(2), 0.3)
    prior = problem.recipe.prior(2)
    prior.mixture.mean[1] += 0.1  # unlike the first
    joint, starts = evidence.joints(problem, theta, prior, 1)
    mixture = joint.prior.mixtures["all"]
    assert mixture.mean.tolist() == prior.mixture.member(1).mean.tolist()
    assert sum(sum(c.sizes) for c in joint.layout.components.values()) == 0
    for start, row in zip(starts, theta, strict=True):
        out = joint._compiled[0](start)[0]
        expected = problem.cases.outputs(row[None])[0]
        assert abs(out - expected.numpy()).max() < 1e-9
