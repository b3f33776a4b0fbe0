"""A page about a model and a table."""

from diffeo.report.page import write_report as write_report
