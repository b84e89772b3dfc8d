"""Returns -> statistics -> figures and one self-contained page."""

from ringrl.reporting.page.report_page import summarise_runs, write_report

__all__ = ["summarise_runs", "write_report"]
