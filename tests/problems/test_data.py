"""Laws of the sunspot and shift data."""

from dataclasses import FrozenInstanceError

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from swsmix.problems import data

SIZES = {"train": 209, "test": 35, "late": 24, "confirm": 29}


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# ---------------------------------------------------------------------------------------- sunspots


def test_the_series_has_every_year_from_1700_to_2008_on_the_version_1_scale() -> None:
    sun = data.sunspots()
    assert sun.years.tolist() == list(range(1700, 2009))
    assert sun.series.dtype == torch.float64
    assert sun.series.min() >= 0
    # Version 2 of the numbers peaks at 269 in 1957.
    assert sun.years[sun.series.argmax()] == 1957
    assert sun.series.max().item() == 190.2


@given(lags=st.integers(1, 220), scale=st.sampled_from([1.0, 50.0, 191.0]))
@settings(deadline=None)
def test_inputs_are_the_years_before_the_target_oldest_first(lags: int, scale: float) -> None:
    sun = data.sunspots(lags, scale=scale, dtype=torch.float64)
    number = dict(zip(sun.years.tolist(), sun.series.tolist(), strict=True))
    for row in {0, 1, len(sun.targets) // 2, len(sun.targets) - 1}:
        year = int(sun.target_years[row])
        past = [number[y] / scale for y in range(year - lags, year)]
        assert sun.inputs[row].tolist() == pytest.approx(past, rel=1e-15)
        assert sun.targets[row].item() == pytest.approx(number[year] / scale, rel=1e-15)


@pytest.mark.parametrize("lags", [1, 12])
def test_splits_have_the_papers_sizes_and_years(lags: int) -> None:
    sun = data.sunspots(lags)
    splits = {name: sun.split(name) for name in data.SUNSPOT_SPLITS}
    assert {name: len(x) for name, (x, _) in splits.items()} == SIZES
    assert all(x.shape == (len(y), lags) for x, y in splits.values())
    # Put end to end, the splits are all cases in the order of time: disjoint, without a gap.
    assert torch.equal(torch.cat([y for _, y in splits.values()]), sun.targets)
    assert torch.equal(torch.cat([x for x, _ in splits.values()]), sun.inputs)
    assert sun.target_years.tolist() == list(range(1712, 2009))


def test_more_lags_than_twelve_cost_training_cases_only() -> None:
    sun = data.sunspots(40)
    sizes = {name: len(sun.split(name)[1]) for name in SIZES}
    assert sizes == SIZES | {"train": 209 - 28}
    assert sun.target_years[0] == 1740


def test_scaled_inputs_and_targets_lie_in_zero_to_one() -> None:
    sun = data.sunspots()
    for values in (sun.inputs, sun.targets):
        assert values.min() >= 0
        assert 0.9 < values.max() <= 1


def test_sunspot_dtype_is_the_default_unless_named() -> None:
    assert data.sunspots().inputs.dtype == torch.get_default_dtype()
    assert data.sunspots(dtype=torch.float64).targets.dtype == torch.float64


def test_sunspots_are_frozen_and_calls_share_no_memory() -> None:
    sun = data.sunspots()
    with pytest.raises(FrozenInstanceError):
        sun.scale = 1.0  # type: ignore[misc]
    sun.series.zero_()
    sun.inputs.zero_()
    assert data.sunspots().series.max() > 0
    assert sun.targets.max() > 0
    assert sun.years[0] == 1700


def test_an_unknown_split_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"'train', 'test', 'late', 'confirm'.*'tests'"):
        data.sunspots().split("tests")


@pytest.mark.parametrize("lags", [0, -1, 221])
def test_lags_without_a_training_case_are_refused(lags: int) -> None:
    with pytest.raises(ValueError, match=rf"needs 1 to 220 lags, got {lags}"):
        data.sunspots(lags)


@pytest.mark.parametrize("scale", [0.0, -191.0, float("nan"), float("inf")])
def test_a_scale_must_be_positive_and_finite(scale: float) -> None:
    with pytest.raises(ValueError, match="positive, finite scale"):
        data.sunspots(scale=scale)
    with pytest.raises(ValueError, match="positive, finite scale"):
        data.arv(torch.ones(2), torch.ones(2), scale=scale)
    with pytest.raises(ValueError, match="positive, finite normaliser"):
        data.arv(torch.ones(2), torch.ones(2), scale=1.0, normaliser=scale)


# --------------------------------------------------------------------------------------------- arv


def test_variance_1700_1979_is_the_variance_of_those_years() -> None:
    sun = data.sunspots()
    variance = sun.series[(sun.years >= 1700) & (sun.years <= 1979)].var(correction=0).item()
    assert variance == pytest.approx(data.VARIANCE_1700_1979, rel=1e-12)
    assert variance == pytest.approx(1495.6, abs=0.05)


@given(
    error=st.lists(st.floats(-200, 200), min_size=1, max_size=20),
    scale=st.floats(0.5, 500),
    normaliser=st.sampled_from([data.VARIANCE_1535, data.VARIANCE_1700_1979]),
)
def test_arv_does_not_depend_on_the_unit_of_its_values(
    error: list[float], scale: float, normaliser: float
) -> None:
    target = torch.linspace(0, 150, len(error), dtype=torch.float64)
    prediction = target + torch.tensor(error, dtype=torch.float64)
    plain = data.arv(prediction, target, scale=1.0, normaliser=normaliser)
    scaled = data.arv(prediction / scale, target / scale, scale=scale, normaliser=normaliser)
    by_hand = sum(e * e for e in error) / len(error) / normaliser
    assert plain == pytest.approx(by_hand, rel=1e-9, abs=1e-20)
    assert scaled == pytest.approx(by_hand, rel=1e-9, abs=1e-20)


def test_arv_refuses_to_guess_a_scale() -> None:
    with pytest.raises(TypeError, match="scale"):
        data.arv(torch.ones(2), torch.ones(2))  # type: ignore[call-arg]


def test_arv_of_a_column_against_a_row_does_not_broadcast() -> None:
    with pytest.raises(ValueError, match=r"one shape .*\(5, 1\) and \(5,\); squeeze"):
        data.arv(torch.ones(5, 1), torch.ones(5), scale=1.0)
    with pytest.raises(ValueError, match="at least one case"):
        data.arv(torch.ones(0), torch.ones(0), scale=1.0)


def test_arv_of_a_prediction_that_still_has_a_graph_is_a_number() -> None:
    sun = data.sunspots()
    _, y = sun.split("test")
    assert sun.arv(y.clone().requires_grad_(), "test") == 0.0


@pytest.mark.parametrize("scale", [1.0, 191.0])
def test_persistence_has_its_known_arv(scale: float) -> None:
    sun = data.sunspots(scale=scale)
    got = [sun.arv(sun.split(name)[0][:, -1], name) for name in ("train", "test", "late")]
    assert got == pytest.approx([0.292, 0.416, 0.940], abs=5e-4)


def test_linear_autoregression_has_its_known_arv() -> None:
    sun = data.sunspots(dtype=torch.float64)

    def design(x: Tensor) -> Tensor:
        return torch.cat([x, torch.ones_like(x[:, :1])], dim=1)

    x, y = sun.split("train")
    coefficients = torch.linalg.lstsq(design(x), y[:, None]).solution[:, 0]
    got = [
        sun.arv(design(sun.split(name)[0]) @ coefficients, name, normaliser=data.VARIANCE_1700_1979)
        for name in ("train", "test", "late")
    ]
    assert got == pytest.approx([0.132, 0.130, 0.368], abs=5e-4)


# ------------------------------------------------------------------------------------------- shift


def shifted(strip: list[float], places: int) -> list[float]:
    """Slow twin: bit i moves to place i + places, around the end."""
    out = [0.0] * len(strip)
    for i, bit in enumerate(strip):
        out[(i + places) % len(strip)] = bit
    return out


@given(bits=st.integers(3, 8), coding=st.sampled_from(["01", "pm1"]), seed=st.integers(0, 9))
@settings(deadline=None)
def test_labels_say_which_way_the_second_strip_was_shifted(
    bits: int, coding: str, seed: int
) -> None:
    x, y = data.shift(6, generator=seeded(seed), coding=coding, bits=bits)
    assert x.shape == (6, 2 * bits)
    assert y.shape == (6,)
    for row, label in zip(x.tolist(), y.tolist(), strict=True):
        strip, second = row[:bits], row[bits:]
        assert (second == shifted(strip, 1)) == (label == 1)
        assert (second == shifted(strip, -1)) == (label == 0)
        assert set(row) <= ({0.0, 1.0} if coding == "01" else {-1.0, 1.0})


@pytest.mark.parametrize(
    ("bits", "num_ambiguous"), [(3, 2), (4, 4), (5, 2), (8, 4), (9, 2), (10, 4)]
)
def test_the_whole_problem_is_every_unambiguous_strip_shifted_both_ways(
    bits: int, num_ambiguous: int
) -> None:
    num_cases = 2 * (2**bits - num_ambiguous)
    x, y = data.shift(num_cases, generator=seeded(0), bits=bits)
    assert len({tuple(row) for row in x.tolist()}) == num_cases
    assert y.sum() == num_cases / 2
    with pytest.raises(ValueError, match=rf"needs 1 to {num_cases} cases.* got {num_cases + 1}"):
        data.shift(num_cases + 1, generator=seeded(0), bits=bits)


def test_cases_are_drawn_in_no_order() -> None:
    _, y = data.shift(2040, generator=seeded(0))
    # The share of ones among 1020 of 2040 has a standard deviation of .011.
    assert y[:1020].mean().item() == pytest.approx(0.5, abs=0.05)


def test_the_draw_is_a_function_of_the_generator() -> None:
    before = torch.get_rng_state()
    x, y = data.shift(50, generator=seeded(1))
    x_again, y_again = data.shift(50, generator=seeded(1))
    x_other, _ = data.shift(50, generator=seeded(2))
    assert torch.equal(x, x_again)
    assert torch.equal(y, y_again)
    assert not torch.equal(x, x_other)
    assert torch.equal(torch.get_rng_state(), before)


def test_codings_differ_by_an_affine_map_only() -> None:
    x, y = data.shift(50, generator=seeded(1), dtype=torch.float64)
    x_signs, y_signs = data.shift(50, generator=seeded(1), coding="pm1", dtype=torch.float64)
    assert x.dtype == y.dtype == torch.float64
    assert torch.equal(x_signs, 2 * x - 1)
    assert torch.equal(y_signs, y)


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"coding": "+-1"}, r"needs coding '01' .* or 'pm1' .* got '\+-1'"),
        ({"bits": 2}, "needs 3 to 16 bits, got 2"),
        ({"bits": 17}, "needs 3 to 16 bits, got 17"),
        ({"num_cases": 0}, "needs 1 to 2040 cases"),
    ],
)
def test_shift_says_what_it_wants(keywords: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        data.shift(**({"num_cases": 10, "generator": seeded(0)} | keywords))  # type: ignore[arg-type]
