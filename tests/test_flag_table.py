"""The page of other libraries' names is the one that the code gives."""

import flag_table


def test_the_page_is_up_to_date() -> None:
    assert flag_table.PAGE.read_text(encoding="utf-8") == flag_table.page(), "run `make docs`"
