"""Reports on an inspection: text for the terminal, figures, and one page of HTML."""

from swsmix.inspection.figures import Picture, figures
from swsmix.inspection.live import view, watch
from swsmix.inspection.page import page
from swsmix.inspection.text import terminal

__all__ = ["Picture", "figures", "page", "terminal", "view", "watch"]
