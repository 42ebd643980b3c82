"""The report: plots, the page, the table."""
