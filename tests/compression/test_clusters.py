"""The clusters of a tensor between the phases of `compress_`."""

import pytest
import torch

from swsmix.compression.clusters import merge_clusters


@pytest.mark.parametrize(
    ("w", "expected"),
    [
        ([0.0, 1.0, 1.01, -1.0], [0, 2, 2, 1]),  # near-equal centres
        ([0.0, 0.02, 1.0, 2.0], [0, 0, 1, 2]),  # one that drifted to zero
        ([0.0, 1.0, 2.0, 3.0], [0, 1, 2, 3]),
    ],
)
def test_near_centres_merge_and_zero_keeps_its_number(w, expected):
    got = merge_clusters(torch.arange(4), torch.tensor(w), nearest=0.1, rare=0)
    assert got.tolist() == expected


def test_rare_clusters_merge_into_the_nearest():
    index = torch.tensor([0] * 9 + [1] * 9 + [2] + [3] * 9)
    w = torch.tensor([0.0] * 9 + [1.0] * 9 + [1.4] + [2.0] * 9)
    got = merge_clusters(index, w, nearest=0.03, rare=4)
    assert got.tolist() == [0] * 9 + [1] * 10 + [2] * 9


def test_few_zeros_are_not_rare():
    w = torch.tensor([0.0] + [1.0] * 9)
    assert merge_clusters((w != 0).long(), w, nearest=0.03, rare=4).tolist() == [0] + [1] * 9
