"""Reports for people and machines, each drawn from the report's JSON alone."""

DRAWN = ("report.md", "report.html", "report.junit.xml")
"""What is drawn beside a run's report.json."""
