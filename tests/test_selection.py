from inspect import unwrap

import pytest
import torch
from torch import nn

from swsmix._shards import pieces
from swsmix.selection import select


def net():
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))
    model.register_parameter("counter", nn.Parameter(torch.zeros(2, 2).long(), requires_grad=False))
    return model


def test_by_default_the_prior_sees_trainable_matrices_and_says_why_not_the_rest():
    model = net()
    model[2].weight.requires_grad_(False)
    selection = select(model)
    assert selection.groups == {"all": ("0.weight",)}
    assert selection.left_out["2.weight"] == "frozen"
    assert selection.left_out["0.bias"].startswith("1 dimension")
    assert selection.left_out["counter"].startswith("not floating-point")
    assert set(selection.left_out) | set(selection.names) == dict(model.named_parameters()).keys()


def test_tied_parameters_count_once():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    assert select(model).names == ("0.weight",)


def test_patterns_choose_and_groups_keep_the_networks_order():
    assert select(net(), include=["2.*", "0.weight"]).names == ("0.weight", "2.weight", "2.bias")
    assert select(net(), include="*.weight", exclude="1.*").names == ("0.weight", "2.weight")
    grouped = select(net(), groups={"late": "2.weight", "early": ["0.weight", "0.bias"]})
    assert grouped.groups == {"late": ("2.weight",), "early": ("0.weight", "0.bias")}
    assert select(net(), groups="tensor").groups == {
        "0.weight": ("0.weight",),
        "2.weight": ("2.weight",),
    }


def test_a_state_dict_is_no_network_and_the_error_says_what_to_do():
    with pytest.raises(TypeError, match=r"an nn.Module, got OrderedDict: load a state_dict into"):
        unwrap(select)(net().state_dict())  # without the tests' own check of types


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"include": "fc*"}, ValueError, "'fc.' of include matches no parameter; there are"),
        ({"exclude": "nothing*"}, ValueError, "exclude matches no parameter"),
        ({"include": "counter"}, TypeError, "counter is torch.int64"),
        ({"exclude": "*"}, ValueError, "would see no tensor"),
        ({"groups": {"a": "0.*", "b": "*.weight"}}, ValueError, "0.weight belongs to two groups"),
        ({"groups": {"a": "0.*"}, "include": "0.*"}, ValueError, "not in both"),
        ({"groups": "layer"}, ValueError, "'global', 'tensor' or a mapping"),
    ],
)
def test_requests_that_cannot_be_met_are_errors_never_silence(options, error, message):
    with pytest.raises(error, match=message):
        unwrap(select)(net(), **options)


def test_a_frozen_tensor_that_was_asked_for_is_an_error():
    model = net()
    model[0].weight.requires_grad_(False)
    with pytest.raises(ValueError, match=r"0\.weight was asked for but is frozen"):
        select(model, include="*.weight")


def test_a_model_without_parameters_is_an_error():
    with pytest.raises(ValueError, match=r"must have parameters.* got Tanh without"):
        select(nn.Tanh())


def test_pieces_hold_each_element_once_and_large_tensors_in_place():
    small, large = [torch.arange(3.0), torch.arange(4.0).view(2, 2)], torch.arange(100.0)
    parts = list(pieces([small[0], large, small[1]], 10))
    assert [len(p) for p in parts] == [7, 100]
    assert parts[1].data_ptr() == large.data_ptr()
