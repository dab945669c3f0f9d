"""The reproduction's own arithmetic, and that its data, settings and figures belong together."""

import json
import math
import tomllib
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from papers.ullrich2017 import figures, kept, run, settings, sizes, tables, verify
from papers.ullrich2017.images import Images
from swsmix.compression.recipe import Recipe
from swsmix.problems.reproduction import runner
from swsmix.problems.reproduction.runner import Places
from swsmix.problems.reproduction.units import keep, unfinished

HERE = Path(run.__file__).parent
RESULTS = sorted((HERE / "results").glob("*-seed*.json"))


@given(st.lists(st.integers(0, 9), min_size=2, max_size=300))
def test_a_huffman_code_costs_its_entropy_and_less_than_a_bit_more_a_symbol(symbols):
    share = [symbols.count(v) / len(symbols) for v in set(symbols)]
    entropy = -sum(p * math.log2(p) for p in share)
    each = sizes.huffman_bits(torch.tensor(symbols)) / len(symbols)
    assert each >= entropy - 1e-9 and each < entropy + 1 + 1e-9


def test_the_huffman_code_of_a_known_alphabet():
    # 1, 2, 3, 3 bits for shares 1/2, 1/4, 1/8, 1/8.
    symbols = torch.tensor([0] * 4 + [1] * 2 + [2] + [3])
    assert sizes.huffman_bits(symbols) == 4 * 1 + 2 * 2 + 3 + 3
    assert sizes.huffman_bits(torch.tensor([], dtype=torch.long)) == 0


def test_the_papers_format_counts_indices_distances_fillers_codebook_and_biases():
    done = SimpleNamespace(index={"w": None})
    w = torch.zeros(100)
    w[[3, 4, 99]] = torch.tensor([1.0, 2.0, 1.0])
    # Gaps 3, 0 and 94 = 2 fillers and 30: indices 1 2 1 f f, distances 3 0 30 31 31.
    indices = sizes.huffman_bits(torch.tensor([0, 1, 0, 2, 2]))
    distances = sizes.huffman_bits(torch.tensor([3, 0, 30, 31, 31]))
    bits = indices + distances + 32 * 3 + 32 * 5
    state = {"w": w, "b": torch.ones(5)}
    assert sizes.han_ratio(state, done) == pytest.approx(32 * 105 / bits)


points = st.lists(st.tuples(st.integers(1, 20), st.integers(0, 20)), min_size=1, max_size=20)


@given(points)
def test_nothing_on_the_front_is_beaten_in_both_and_all_else_is(pairs):
    rows = [{"size_bytes": s, "compressed_validation_error_percent": e} for s, e in pairs]
    front = figures.chosen(rows)
    on = {(r["size_bytes"], r["compressed_validation_error_percent"]) for r in front}
    for size, error in pairs:
        beaten = any(s <= size and e <= error and (s, e) != (size, error) for s, e in on)
        assert beaten != ((size, error) in on)


def test_images_are_shifted_by_at_most_the_given_pixels_and_labels_follow():
    x = torch.zeros(40, 28, 28)
    x[:, 10, 10] = torch.arange(1.0, 41.0)  # each image knows its number
    setting = settings.Setting("test", "lenet-300-100", shift=1, batch_size=16)
    images = Images(x, torch.arange(40), setting, seed=0)
    batches = list(images)
    assert len(batches) == len(images) == 3
    seen = torch.cat([y for _, y in batches])
    assert sorted(seen.tolist()) == list(range(40))
    places = set()
    for batch, y in batches:
        for image, label in zip(batch, y.tolist(), strict=True):
            ((row, column),) = image.nonzero().tolist()
            assert image[row, column] == label + 1
            places.add((row - 10, column - 10))
    assert len(places) > 4 and all(abs(a) <= 1 and abs(b) <= 1 for a, b in places)
    plain = Images(x, torch.arange(40), settings.Setting("t", "lenet-300-100"), seed=0)
    assert all(torch.equal(batch, x[y]) for batch, y in plain)


def test_every_figure_has_its_words_and_every_setting_its_own_name():
    paper = tomllib.loads((HERE / "paper.toml").read_text())
    assert {f["name"] for f in paper["figures"]} == {*figures.FIGURES, "training"}
    for units in (settings.full(2), settings.quick(2)):
        keys = [(setting.name, seed) for setting, seed in units]
        assert len(keys) == len(set(keys))


def test_published_rows_state_their_unit_and_certainty_and_bytes_agree_with_ratios():
    published = tomllib.loads((HERE / "published.toml").read_text())
    for row in published["rows"]:
        assert row["unit"] in tables.UNITS
        assert row["certainty"] in ("read", "secondary", "recalled")
        if "size_bytes" in row:
            ratio = published["float32_bytes"][row["net"]] / row["size_bytes"]
            assert ratio == pytest.approx(row["ratio"], rel=0.03)


def test_committed_results_agree_with_themselves():
    for path in RESULTS:
        result = json.loads(path.read_text())
        assert result["subset"] is None, f"{path.name} comes from a quick run"
        if result["kind"] == "compressed":
            assert result["ratio"] * result["size_bytes"] == pytest.approx(result["float32_bytes"])


def test_the_committed_results_are_all_there_and_of_the_recipes_in_the_code(tmp_path):
    results = HERE / "results"
    wanted = settings.full(settings.NUM_SEEDS)
    places = Places(results, tmp_path, tmp_path)
    dense, units = run.stages(places, settings.NUM_SEEDS, quick=False)
    assert dense == [] == unfinished(units, results)
    assert len(units) == len({unit.key for unit in units}) == len(wanted)
    for unit, (setting, _) in zip(units, wanted, strict=True):
        found = json.loads(unit.file(results).read_text())
        assert (found["batch_size"], found["shift"]) == (setting.batch_size, setting.shift)
        recipe = None if setting.recipe is None else asdict(setting.recipe)
        assert (found["recipe"] is None) == (recipe is None)
        # A field that the library has added since keeps its default.
        assert all(recipe[name] == value for name, value in (found["recipe"] or {}).items())


def test_a_lost_network_is_trained_again_only_where_it_is_needed(tmp_path):
    results = tmp_path / "results"
    results.mkdir()
    places = Places(results, tmp_path, tmp_path)
    dense, units = run.stages(places, 1, quick=True)
    assert len(dense) == len(units) == 4
    for unit in units[1:]:
        keep(unit, {}, 1.0, results)
    dense, _ = run.stages(places, 1, quick=True)
    assert [unit.key for unit in dense] == ["lenet-300-100-shift0-dropout0-seed0"]
    keep(dense[0], {}, 1.0, results)
    assert unfinished(dense, results) == dense  # its network is not there
    (file,) = dense[0].leaves
    file.parent.mkdir(parents=True)
    file.touch()
    assert unfinished(dense, results) == []


@pytest.mark.mnist
def test_a_unit_runs_writes_a_file_that_is_verified_and_is_then_done(tmp_path, capsys):
    (setting,) = (s for s, _ in settings.quick(1) if s.name == settings.SHIFTED.name)
    recipe = Recipe(sparsify_epochs=1, quantise_epochs=1, finetune_epochs=1, em_every=2)
    setting = replace(setting, recipe=recipe, pretrain_epochs=1)
    results, pictures = tmp_path / "results", tmp_path / "figures"
    results.mkdir()
    pictures.mkdir()
    places = Places(results, pictures, tmp_path)
    for make in (run.pretrained, run.compressed):
        unit = make(setting, 0, places, 512)
        assert runner.run_units([unit], results, 1) == 1
        assert unfinished([unit], results) == []
    result = json.loads(unit.file(results).read_text())
    file = results / f"{unit.key}.sws"
    assert result["size_bytes"] == file.stat().st_size < result["float32_bytes"] / 10
    assert verify.verify(results) and "shifted-seed0: agrees" in capsys.readouterr().out
    written = figures.draw(results, pictures)
    assert {p.name for p in written} == {"pareto.png", "bands.png", "layers.png", "README.md"}


def test_the_figures_weights_are_the_files_in_the_dense_networks_order():
    results = kept.Results(HERE / "results")
    for setting, name in (
        ("lenet-300-100-shifted", "fc3.weight"),
        ("lenet-5-caffe-shifted", "conv1.weight"),
    ):
        portrait = results.portrait(setting)
        assert portrait is not None
        before, after = (portrait.weights(when, name) for when in ("before", "after"))
        snapped = portrait.snapped(name)
        assert torch.equal(snapped.half().sort().values, after.half().sort().values)
        # A weight that outlives the prior comes from a large one of its sign; those of the file,
        # whose neurons are sorted, are paired with others.
        alive = snapped != 0
        agree = (snapped.sign() == before.sign())[alive].float().mean()
        assert agree > 0.9 > (after.sign() == before.sign())[after != 0].float().mean()
