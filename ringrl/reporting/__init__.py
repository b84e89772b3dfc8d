"""Returns -> statistics -> figures and one self-contained page."""

from ringrl.reporting.page.report_page import write_report

__all__ = ["write_report"]
