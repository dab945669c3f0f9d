import pytest

from swsmix import Schedule


def test_tau_waits_then_rises_linearly_then_stays():
    schedule = Schedule(tau=2.0, start=3, warmup=4)
    assert [schedule.tau_at(t) for t in range(9)] == [0, 0, 0, 0, 0.5, 1.0, 1.5, 2.0, 2.0]


def test_without_a_warmup_the_whole_of_tau_holds_from_the_first_tick():
    assert [Schedule(tau=2.0, start=3).tau_at(t) for t in range(5)] == [0, 0, 0, 2, 2]
    assert Schedule().tau_at(0) == 1.0  # the log prior itself


@pytest.mark.parametrize(("values", "first"), [({}, 5), ({"em_start": 2}, 2), ({"em_start": 9}, 9)])
def test_the_mixture_moves_from_the_end_of_its_burn_in_on(values, first):
    schedule = Schedule(start=5, **values)
    assert [t for t in range(20) if schedule.mixture_moves_at(t)] == list(range(first, 20))
    assert not any(schedule.em_at(t) for t in range(first + 1))


def test_em_waits_for_the_prior_unless_told_otherwise():
    assert [t for t in range(20) if Schedule(start=5, em_every=4).em_at(t)] == [9, 13, 17]
    assert [t for t in range(20) if Schedule(start=5, em_start=0, em_every=4).em_at(t)] == [
        4,
        8,
        12,
        16,
    ]


def test_the_cap_on_the_stds_falls_geometrically():
    schedule = Schedule(std_start=1.0, std_end=0.01, anneal_start=2, anneal=2)
    assert schedule.std_cap_at(1) is None
    assert [schedule.std_cap_at(t) for t in (2, 3, 4, 9)] == pytest.approx([1.0, 0.1, 0.01, 0.01])
    assert Schedule().std_cap_at(5) is None


def test_each_group_may_have_a_cap_of_its_own():
    caps = Schedule(std_start={"a": 1.0, "b": 4.0}, std_end={"a": 0.01, "b": 0.04}, anneal=2)
    assert [caps.std_cap_at(1, g) for g in ("a", "b")] == pytest.approx([0.1, 0.4])
    with pytest.raises(ValueError, match=r"no std for the group 'c'; it has \['a', 'b'\]"):
        caps.std_cap_at(1, "c")


def test_the_cap_falls_with_the_em_steps_not_with_every_tick():
    schedule = Schedule(start=3, em_every=5, std_start=1.0, std_end=0.1, anneal_start=6, anneal=20)
    assert [t for t in range(25) if schedule.anneals_at(t)] == [8, 13, 18, 23]
    first = Schedule(em_every=5, std_start=1.0, std_end=0.1, anneal_start=5, anneal=20)
    assert [t for t in range(12) if first.anneals_at(t)] == [5, 10]
    assert not any(Schedule().anneals_at(t) for t in range(300))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"tau": -1.0}, "tau must be finite and at least 0; got -1"),
        ({"tau": float("nan")}, "tau"),
        ({"em_every": 0}, "at least 1 tick; got 0"),
        ({"em_rate": 0.0}, r"lie in \(0, 1\]; got 0"),
        ({"warmup": -1}, "warmup must be at least 0"),
        ({"std_start": 1.0}, "both std_start and std_end"),
        ({"std_start": 0.1, "std_end": 0.2}, "std_start >= std_end > 0"),
        ({"std_start": 1.0, "std_end": 0.0}, "std_start >= std_end > 0"),
        ({"std_start": float("inf"), "std_end": 0.1}, "std_start >= std_end > 0"),
        ({"std_start": {"a": 0.1}, "std_end": {"a": 0.2}}, "std_start >= std_end > 0"),
        ({"std_start": {"a": 0.1}, "std_end": {"b": 0.1}}, "the same groups"),
        ({"std_start": {"a": 0.1}, "std_end": 0.1}, "the same groups"),
        ({"std_floor": 1.5}, r"std_floor must lie in \[0, 1\]; got 1.5"),
    ],
)
def test_impossible_schedules_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        Schedule(**values)
