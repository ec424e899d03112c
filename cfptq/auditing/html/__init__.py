"""Reports as one HTML file that needs no network."""

from cfptq.auditing.html.page import format_html

__all__ = ["format_html"]
