"""Where the components begin, and where they go when others say what they say.

initial   initial_mixture: the best of several starts by penalised likelihood
segments  the best partition of cells into Gaussians
moves     split and merge, inside EM
cells     the weights as a few hundred cells
cell_em   EM on cells
"""

from swsmix.start.initial import Initialisation as Initialisation
from swsmix.start.initial import NumComponents as NumComponents
from swsmix.start.initial import initial_mixture as initial_mixture
from swsmix.start.initial import subsample as subsample
