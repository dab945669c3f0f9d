"""Any checkpoint inspected: its tensors and mixtures as text, figures, and a page of HTML.

checkpoints  read: anyone's checkpoint as named tensors, without running its code
checkpoint_files, checkpoint_folders, contents, companions
             one file; a folder, by its index; which of the entries are the network; which of the
             tensors in a flat state_dict are not its weights
inspect      inspect: the tensors of a checkpoint, and the mixture over them
omitted      which tensors are not inspected, and why
measures     how heavy the tails of weights are, and how nearly they are clustered
sorting      what tensors are sorted and compared by
comparison   compare: several checkpoints side by side, as text, figures and a page
text         weights and mixtures as text
printed      terminal: an inspection for the terminal
figures      draw_figures: every figure of an inspection
dark         a picture's greys for a page that may be dark
page         html_page: one self-contained page of HTML
live         view, watch: training in the terminal
"""

from swsmix.inspection.figures import Picture, draw_figures
from swsmix.inspection.live import view, watch
from swsmix.inspection.page import html_page
from swsmix.inspection.printed import terminal

__all__ = ["Picture", "draw_figures", "html_page", "terminal", "view", "watch"]
