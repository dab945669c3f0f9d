"""What an entry refuses to continue from."""

import pytest
import torch

from swsmix.attach.entry import Entry

BROKEN = [
    ("time", "del"), ("more", 1), ("time", -1), ("time", 2.5), ("time", True), ("due", 2**60),
    ("level", "high"), ("moved", 1e200), ("falling", 0), ("entered", []), ("losses", 3),
    ("losses", {"count": 1}), ("losses/total", None), ("now/count", 1.5), ("sums", torch.ones(2)),
    ("sums", torch.full((3,), torch.nan)), ("product", 1.0), ("product", torch.tensor(1)),
    ("start", [1]), ("start", {"w": 1.0}), ("start", {"w": torch.full((3,), torch.inf)}),
    ("records", {}), ("records", [(1.0, 2.0)]), ("records", [(1.0, 2.0, "low")]),
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(BROKEN)))
def test_a_state_that_no_entry_has_saved_is_refused_by_the_field(number):
    field, value = BROKEN[number]
    entry = Entry(1.0, num_weights=10.0, num_data=100)
    state = entry.state_dict()
    *parents, last = field.split("/")
    place = state[parents[0]] if parents else state
    if value == "del":
        del place[last]
    else:
        place[last] = value
    with pytest.raises(ValueError, match=f"{(parents or [last])[0]}|the fields"):
        entry.load_state_dict(state)
    assert entry.tau == 0.0
