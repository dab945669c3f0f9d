"""MNIST as tensors: pixels, parts and standardising."""

from dataclasses import replace

import pytest
import torch

from swsmix.problems import mnist


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def digits() -> mnist.MNIST:
    """Twelve random digits; the label of a training image is its place."""
    return mnist.MNIST(
        x_train=torch.randint(0, 256, (8, 28, 28), generator=seeded(0), dtype=torch.uint8),
        y_train=torch.arange(8),
        x_test=torch.randint(0, 256, (4, 28, 28), generator=seeded(1), dtype=torch.uint8),
        y_test=torch.arange(4),
    )


def test_pixels_become_fractions_and_keep_their_order(digits: mnist.MNIST) -> None:
    tensors = mnist.mnist_tensors(digits, num_validation=3, dtype=torch.float64)
    assert tensors.x_train.shape == (5, 1, 28, 28)
    assert tensors.x_validation.shape == (3, 1, 28, 28)
    pixels = torch.cat([tensors.x_train, tensors.x_validation])[:, 0] * 255
    assert torch.equal(pixels.round().to(torch.uint8), digits.x_train)
    assert torch.equal((tensors.x_test[:, 0] * 255).round().to(torch.uint8), digits.x_test)
    assert tensors.x_train.min() >= 0
    assert tensors.x_train.max() <= 1
    assert tensors.x_train.dtype == torch.float64


def test_flat_images_are_the_same_pixels(digits: mnist.MNIST) -> None:
    image = mnist.mnist_tensors(digits, num_validation=3)
    flat = mnist.mnist_tensors(digits, num_validation=3, flatten=True)
    for key in ("x_train", "x_validation", "x_test"):
        assert torch.equal(getattr(flat, key), getattr(image, key).flatten(1))


@pytest.mark.parametrize("num_validation", [0, 1, 7])
@pytest.mark.parametrize("drawn", [False, True])
def test_training_and_validation_part_the_training_data(
    digits: mnist.MNIST, num_validation: int, drawn: bool
) -> None:
    generator = seeded(0) if drawn else None
    tensors = mnist.mnist_tensors(digits, num_validation=num_validation, generator=generator)
    assert len(tensors.y_validation) == len(tensors.x_validation) == num_validation
    labels = torch.cat([tensors.y_train, tensors.y_validation])
    assert sorted(labels.tolist()) == list(range(8))
    assert drawn or labels.tolist() == list(range(8))
    images = torch.cat([tensors.x_train, tensors.x_validation])[:, 0]
    assert torch.equal((images * 255).round().to(torch.uint8), digits.x_train[labels])


def test_the_drawn_validation_set_is_a_function_of_the_generator(digits: mnist.MNIST) -> None:
    first, again = (
        mnist.mnist_tensors(digits, num_validation=4, generator=seeded(2)).y_validation
        for _ in range(2)
    )
    others = [
        mnist.mnist_tensors(digits, num_validation=4, generator=seeded(s)).y_validation.tolist()
        for s in range(3, 8)
    ]
    assert torch.equal(first, again)
    assert any(other != first.tolist() for other in others)


def test_standardising_looks_at_the_training_part_alone(digits: mnist.MNIST) -> None:
    brighter = replace(digits, x_test=torch.full_like(digits.x_test, 255))
    tensors = mnist.mnist_tensors(brighter, num_validation=3, standardise=True, dtype=torch.float64)
    plain = mnist.mnist_tensors(brighter, num_validation=3, dtype=torch.float64)
    assert tensors.x_train.mean().item() == pytest.approx(0, abs=1e-12)
    assert tensors.x_train.std(correction=0).item() == pytest.approx(1, rel=1e-12)
    mean, std = plain.x_train.mean(), plain.x_train.std(correction=0)
    torch.testing.assert_close(tensors.x_validation * std + mean, plain.x_validation)
    torch.testing.assert_close(tensors.x_test * std + mean, plain.x_test)


@pytest.mark.parametrize("num_validation", [-1, 8, 10_000])
def test_holding_out_all_of_the_training_data_is_refused(
    digits: mnist.MNIST, num_validation: int
) -> None:
    with pytest.raises(ValueError, match=rf"needs 0 to 7 .* got {num_validation}"):
        mnist.mnist_tensors(digits, num_validation=num_validation)


@pytest.mark.mnist
def test_mnist_tensors_keep_ten_thousand_images_for_validation() -> None:
    tensors = mnist.mnist_tensors(mnist.mnist(mirrors=()))
    assert tensors.x_train.shape == (50_000, 1, 28, 28)
    assert tensors.x_validation.shape == tensors.x_test.shape == (10_000, 1, 28, 28)
