"""Where the tests find the repository, its guides, and what may lie beside it."""

from pathlib import Path

ROOT = Path(__file__).parents[1]
GUIDES = ROOT / "docs" / "guides"
SHARED = ROOT / "../shared"  # the course's data and an inventory of the reports; tests do without
