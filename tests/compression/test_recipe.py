"""Compressing a small network that has learned a simple problem."""

import copy
from dataclasses import replace

import pytest
import torch
from classifiers import pretrained
from torch import nn

from swsmix import snap_
from swsmix.compression.recipe import Recipe, compress_
from swsmix.compression.straight_through import StraightThrough

SHORT = Recipe(
    num_components=5, sparsify_epochs=6, quantise_epochs=6, finetune_epochs=2, em_every=5,
    sparsify_tau=1.0, quantise_tau=0.3, sparsify_lr=5e-3, quantise_lr=3e-3, finetune_lr=5e-4,
)  # fmt: skip


def problem(seed=0):
    """Two of twenty inputs matter, and a pretrained network knows."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(600, 20, generator=generator)
    y = (x[:, 0] + x[:, 1] > 0).long()
    return pretrained(x, y, generator, hidden=16, num_train=500, steps=150)


def errors(logits, target):
    return (logits.argmax(-1) != target).double().mean()


def compressed(net, data, **options):
    options = {"recipe": SHORT, "batch_size": 20, "progress": False, **options}
    return compress_(net, nn.functional.cross_entropy, data, **options)


@pytest.fixture(scope="module")
def done():
    net, data, validation = problem()
    before = copy.deepcopy(net)
    return before, net, validation, compressed(net, data, validation=validation, measure=errors)


def test_few_values_and_mostly_zeros_are_left_and_the_network_still_works(done):
    before, net, (x, y), result = done
    for name, p in net.named_parameters():
        if p.ndim >= 2:
            values = p.detach().unique()
            assert len(values) <= SHORT.num_components
            assert set(values.tolist()) <= set(result.prior.mixtures[name].mean.tolist())
            assert torch.equal(values, values.half().float())
    # Only two of the twenty inputs matter.
    assert result.nonzero["0.weight"] < 0.25
    assert errors(net(x), y) <= errors(before(x), y) + 0.03


def test_the_final_prior_assigns_each_weight_to_its_own_value(done):
    _, net, _, result = done
    snapped = copy.deepcopy(net.state_dict())
    index = snap_(result.prior)
    assert all(torch.equal(net.state_dict()[n], t) for n, t in snapped.items())
    assert all(torch.equal(index[n], j) for n, j in result.index.items())


def test_the_zero_components_std_is_the_schedules_and_the_slab_stays(done):
    before, _, _, result = done
    std = result.histories["sparsify"].stacked("0.weight", "std")
    unit = before[0].weight.detach().double().std(correction=0).item()
    assert std[:, 1].tolist() == pytest.approx([SHORT.slab * unit] * len(std), rel=1e-5)
    assert std[0, 0] == pytest.approx(SHORT.zero_start * unit, rel=1e-5)
    assert std[-1, 0] == pytest.approx(SHORT.zero_end * unit, rel=1e-5)
    assert (std[:, 0].diff() <= 0).all()
    final = result.histories["quantise"].stacked("0.weight", "std")[-1]
    assert final.max() <= SHORT.std_end * unit * (1 + 1e-5)


def test_fine_tuning_moves_centres_and_biases_but_no_weight_to_another_centre():
    moved = {}
    for epochs in (0, 3):
        net, data, _ = problem()
        recipe = Recipe(**{**SHORT.__dict__, "finetune_epochs": epochs, "finetune_lr": 1e-2})
        moved[epochs] = net, compressed(net, data, recipe=recipe).index
    (fixed, index), (tuned, same) = moved[0], moved[3]
    assert all(torch.equal(index[n], same[n]) for n in index)
    assert not torch.equal(fixed[0].weight, tuned[0].weight)
    assert not torch.equal(fixed[0].bias, tuned[0].bias)
    assert torch.equal(fixed[0].weight == 0, tuned[0].weight == 0)


def test_an_interrupted_compression_resumes_bit_for_bit(tmp_path):
    class InterruptError(Exception):
        pass

    straight, data, _ = problem()
    compressed(straight, data)
    net, _, _ = problem()
    steps = 0

    def loss(prediction, target):
        nonlocal steps
        steps += 1
        if steps == 25 * 8:  # in the second phase
            raise InterruptError
        return nn.functional.cross_entropy(prediction, target)

    options = {"recipe": SHORT, "batch_size": 20, "progress": False, "run": tmp_path / "run"}
    with pytest.raises(InterruptError):
        compress_(net, loss, data, **options)
    with pytest.raises(FileExistsError, match="already holds a run"):
        compress_(problem()[0], nn.functional.cross_entropy, data, **options)
    again, _, _ = problem()
    compress_(again, nn.functional.cross_entropy, data, resume=True, **options)
    for p, q in zip(straight.parameters(), again.parameters(), strict=True):
        assert torch.equal(p, q)


def test_biases_can_be_compressed_too():
    net, data, _ = problem()
    result = compressed(net, data, include="*")
    assert set(result.index) == {name for name, _ in net.named_parameters()}
    assert len(net[0].bias.unique()) <= SHORT.num_components


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_components": 1}, "at least 2; got 1"),
        ({"sparsify_epochs": 0}, "sparsify_epochs must be at least 1; got 0"),
        ({"finetune_epochs": -1}, "finetune_epochs must be at least 0; got -1"),
        ({"slab": 0.0}, "slab must be positive; got 0"),
        ({"zero_end": 2.0}, "zero_start >= zero_end >= std_end > 0"),
        ({"cluster_start": 0.001}, "cluster_start >= std_end"),
    ],
)
def test_impossible_recipes_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        Recipe(**values)


def test_data_without_a_length_and_a_resume_without_a_folder_are_refused():
    net, (x, y), _ = problem()
    with pytest.raises(ValueError, match="the data need a length"):
        compressed(net, ((x, y) for _ in range(2)))
    with pytest.raises(ValueError, match="resume needs the folder"):
        compressed(net, (x, y), resume=True)


def test_weights_that_are_not_finite_are_named():
    net, data, _ = problem()
    net[2].weight.data[0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"2\.weight holds nan or inf"):
        compressed(net, data)


def test_while_clusters_form_the_measure_is_that_of_the_network_which_is_snapped_at_the_end():
    net, data, validation = problem()
    recipe = replace(SHORT, finetune_epochs=0, merge=0.0, rare=0)
    done = compressed(net, data, recipe=recipe, validation=validation, measure=errors)
    with torch.no_grad():
        after = errors(net(validation[0]), validation[1]).item()
    assert done.histories["quantise"].scalars["validation_measure"][-1] == pytest.approx(after)


def test_what_the_first_phase_sends_to_zero_is_zero_at_the_end():
    net, data, _ = problem()
    zeros = {}

    def after_first_phase(module, *_):
        if isinstance(module, StraightThrough) and not zeros:
            zeros.update({n: p == 0 for n, p in module.model.named_parameters() if p.ndim > 1})

    handle = nn.modules.module.register_module_forward_pre_hook(after_first_phase)
    try:
        compressed(net, data)
    finally:
        handle.remove()
    assert zeros["0.weight"].float().mean() > 0.5
    assert all((net.get_parameter(n)[z] == 0).all() for n, z in zeros.items())
