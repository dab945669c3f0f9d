"""The prior in anyone's training loop: hooks around the optimiser's step, and one clock.

attachment      Attachment, made by `MixturePrior.attach`: the hooks
proximal        the proximal step, stable for every sigma
gradients       the explicit update, as if the penalty were in the loss
clock           EM steps and annealing, tick by tick
entry           when the prior enters by itself, and how strong it becomes
second_moments  posterior variances from Adam
checks          what is refused
watching        what goes wrong while it trains
"""

from swsmix.attach.attachment import MOMENTS as MOMENTS
from swsmix.attach.attachment import Attachment as Attachment
from swsmix.attach.attachment import MomentsOf as MomentsOf
from swsmix.attach.attachment import Update as Update
from swsmix.attach.clock import advance_ as advance_
