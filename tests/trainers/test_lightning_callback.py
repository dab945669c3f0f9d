"""The prior in Lightning by a callback, against a loop by hand, to the last bit."""

import doctest
import warnings

import pytest
import torch
from callbacks import EPOCHS, OPTIONS, STEPS, assert_same, batches, by_hand, network
from torch import nn

from swsmix import MixturePrior

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what Lightning says of itself
    lightning = pytest.importorskip("lightning", reason="lightning is not installed")
    from swsmix.trainers import lightning as trainers

pytestmark = [
    pytest.mark.frameworks,
    pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
]
BY_ITSELF = {"num_data": 48, "em_every": 4}  # no schedule: the data decide when the prior enters


class Net(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = network()

    def training_step(self, batch):
        x, y = batch
        return nn.functional.cross_entropy(self.net(x), y)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.01)


def fit(folder, epochs, options, resume=None, used=True):
    net = Net()
    callback = trainers.PriorCallback(MixturePrior(net, 3), **options)
    trainer = lightning.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[callback] if used else [],
        default_root_dir=folder,
    )
    data = torch.utils.data.DataLoader(batches(), batch_size=None)
    trainer.fit(net, data, ckpt_path=resume, weights_only=True)
    return net, callback, trainer


def looped(options):
    net = Net()
    return by_hand(net, net.configure_optimizers(), lambda x, y: net.training_step((x, y)), options)


@pytest.mark.parametrize("options", [OPTIONS, BY_ITSELF], ids=["scheduled", "by itself"])
def test_the_callback_trains_as_the_loop_by_hand(tmp_path, options):
    net, callback, _ = fit(tmp_path, EPOCHS, options)
    assert_same(net, callback, *looped(options))


@pytest.mark.parametrize("options", [OPTIONS, BY_ITSELF], ids=["scheduled", "by itself"])
def test_a_resumed_training_is_one_that_was_never_interrupted(tmp_path, options):
    _, _, trainer = fit(tmp_path, 2, options)
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    net, callback, _ = fit(tmp_path, EPOCHS, options, resume=tmp_path / "half.ckpt")
    assert_same(net, callback, *looped(options))


def test_a_checkpoint_without_the_callback_is_refused(tmp_path):
    _, _, trainer = fit(tmp_path, 2, OPTIONS, used=False)
    trainer.save_checkpoint(tmp_path / "plain.ckpt")
    with pytest.raises(ValueError, match=r"saved without this PriorCallback: start anew"):
        fit(tmp_path, EPOCHS, OPTIONS, resume=tmp_path / "plain.ckpt")


def test_callbacks_of_unlike_weights_have_states_of_their_own():
    net = network()
    names = [name for name, p in net.named_parameters() if p.ndim > 1]
    priors = [MixturePrior(net, 3, groups={"one": name}) for name in names]
    assert len({trainers.PriorCallback(prior).state_key for prior in priors}) == len(names) > 1


def test_after_training_the_prior_is_out_of_the_optimiser(tmp_path):
    net, callback, trainer = fit(tmp_path, 1, OPTIONS)
    net.training_step(batches()[0]).backward()
    trainer.optimizers[0].step()
    assert callback.attachment.tick == STEPS // EPOCHS


def test_the_example():
    assert doctest.testmod(trainers, extraglobs={"torch": torch}).failed == 0
