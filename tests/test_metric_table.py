"""The guide's table of metrics is the one in the code."""

from pathlib import Path

from lightrft.config.metric_names import as_table

PAGE = Path(__file__).resolve().parent.parent / "docs" / "reference" / "metrics.md"


def test_the_guide_s_table_is_made_from_the_code() -> None:
    assert as_table() in PAGE.read_text(encoding="utf-8"), "replace the table of docs/reference/metrics.md by as_table()"
