"""The lines that a question speaks of are found, misread or not, with the values that belong to them."""

import pytest

from handlens.passages import as_written, passages

INVOICE = """Bakery & Sons

| Invoice no. | Date |  | Due date | Customer |
| --- | --- | --- | --- | --- |
| 6594644 | 27/02/09 |  | 30/03/29 | 818720 |
| Description | Quantity | Unit price |  | Amount |
| Rye bread | 2 | 3.00 |  | 6.00 |
| Apple cake | 1 | 4.50 |  | 4.50 |
| Subtotal |  |  |  | 10.50 |
| Tolal |  |  |  | $11.55 |

Street
12 Mill Lane

Thank you"""
CHART = """Sales

| 3.5 |  |  |  |
| --- | --- | --- | --- |
|  | 3.1 |  |  |
| 2.0 |  | 1.1 |  |
|  |  |  | 0.3 |
|  | Monday | Tuesday | Wednesday |"""


@pytest.mark.parametrize(
    ("question", "found"),
    [
        ("Subtotal?", "Subtotal | 10.50"),
        ("What is the price of “Apple cake”?", "Apple cake | 1 | 4.50 | 4.50"),
        # Misread, and another row that is alike.
        ("What does the invoice say for “Total”?", "Subtotal | 10.50\nTolal | $11.55"),
        # The value of a label stands below it, in the same column or on the next line.
        ("Customer?", "Customer | 818720 | Amount"),
        ("Form: street?", "Street\n12 Mill Lane"),
    ],
)
def test_a_question_finds_the_lines_that_it_speaks_of(question, found):
    assert passages(INVOICE, question) == found


def test_the_column_of_a_label_comes_with_it():
    assert "Due date | 30/03/29" in passages(INVOICE, "What is the due date?")
    assert (
        passages(CHART, "What is the value of “Tuesday” in the chart?") == "Monday | Tuesday | Wednesday\n1.1 | Tuesday"
    )


def test_the_cell_where_a_row_and_a_column_cross_is_found():
    found = passages(INVOICE, "What is in row “Rye bread”, column “Quantity”?").splitlines()
    assert "Rye bread | 2 | 3.00 | 6.00" in found and any(line.startswith("Quantity | 2") for line in found)


@pytest.mark.parametrize(
    "question",
    ["Read the text in this image.", "What is the title?", "Wo ist der Hund?", "?", "Which one is the highest?"],
)
def test_where_no_line_has_words_of_the_question_all_of_the_text_is_left(question):
    assert passages(CHART, question) == CHART


def test_several_questions_find_the_lines_of_each_once_and_in_order():
    found = passages(INVOICE, "Subtotal?", "Price of Rye bread?", "Subtotal?")
    assert found == "Rye bread | 2 | 3.00 | 6.00\nSubtotal | 10.50"


def test_short_texts_stay_as_they_are():
    text = "Total 4.25\n\n| Cash | 5.00 |\n| --- | --- |"
    assert passages(text, "Cash?") == text and passages("", "Cash?") == ""


@pytest.mark.parametrize("question", ["When was this bought?", "Wann wurde das gekauft?", "Когда это было?"])
def test_when_asks_for_the_cells_that_say_a_day(question):
    text = (
        "Corner Shop\n\n| Date: 16/05/2026 |  | Receipt no.: 3893 |\n| --- | --- | --- |\n| Bread | 2 | 3.10 |\n\n"
        "| Valid until |  | 2026-06-01 |\n| --- | --- | --- |\n\nThank you\nCall 07458 393"
    )
    assert passages(text, question) == "Date: 16/05/2026\nValid until 2026-06-01"
    assert "3.10" in passages(text, "What does the receipt say for “Bread”?")


FORM = """Form

| Last name |  | Country |
| --- | --- | --- |
| Mitschke |  | Iceland |
| Date of birth |  | Phone |
| 12.05.1987 |  | 0716 76554 |"""


@pytest.mark.parametrize(
    ("label", "value"),
    [("Last name", "Mitschke"), ("Country", "Iceland"), ("Date of birth", "12.05.1987"), ("Phone", "0716 76554")],
)
def test_a_label_beside_a_label_has_its_value_below(label, value):
    assert passages(FORM, f"What does the form say for “{label}”?") == f"{label} | {value}"


def test_a_label_below_a_label_is_not_its_value():
    text = "| Beruf | Weichensteller |\n| --- | --- |\n| Straße | Am Tor 3 |\n| Land: | Chile |\n\nEnde\n\nSeite 1"
    assert passages(text, "Beruf?") == "Beruf | Weichensteller"


@pytest.mark.parametrize(
    ("said", "written"),
    [
        ("Kazim-Schuchardt-Platz 4", "Kazim-Schuchhardt-Platz 4"),
        ("Akar Šti.", "Akar Şti."),
        ("10.50", "10.50"),
        ("17.05.2026", "16.05.2026"),
        ("That is not in the picture.", "That is not in the picture."),
        ("", ""),
    ],
)
def test_answers_are_spelled_as_in_the_text(said, written):
    text = "| Straße | Kazim-Schuchhardt-Platz 4 |\n| --- | --- |\n| Summe | 10.50 |\n\nDatum: 16.05.2026\nAkar Şti."
    assert as_written(text, said) == written
    assert as_written("", said) == said
