"""Reports on an inspection: text for the terminal, figures, and one page of HTML."""

from swsmix.report.figures import Picture, figures
from swsmix.report.live import view, watch
from swsmix.report.page import page
from swsmix.report.text import terminal

__all__ = ["Picture", "figures", "page", "terminal", "view", "watch"]
