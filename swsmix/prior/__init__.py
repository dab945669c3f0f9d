"""The prior: one or several mixtures bound to the weights of a network.

mixture_prior  MixturePrior: the penalty, the EM step, and what it is bound to
placing        the mixtures and hyper-priors that it begins with
evaluation     its sums over all tensors of a group, and all their shards
built_from     whether a mixture still has the values that its tables were built from
moving         split and merge in its EM steps
keys           groups in saved states
description    the table of `describe`
learned        LearnedPrior: what was learned, apart from its network
sharing        sharing_penalty: the plain form, with any distance
"""

from swsmix.prior.evaluation import Evaluation as Evaluation
from swsmix.prior.learned import LearnedPrior as LearnedPrior
from swsmix.prior.mixture_prior import MixturePrior as MixturePrior
from swsmix.prior.mixture_prior import Mode as Mode
