"""The guide's table of metrics is the one in the code."""

from pathlib import Path

from lightrft.config.metric_names import as_table

GUIDE = Path(__file__).resolve().parent.parent / "docs" / "guide.md"


def test_the_guide_s_table_is_made_from_the_code() -> None:
    assert as_table() in GUIDE.read_text(encoding="utf-8"), "replace the table under `## Metrics` by as_table()"
