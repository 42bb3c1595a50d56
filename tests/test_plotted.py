"""Charts with values above a row of labels become tables; tables, axes and other charts stay what they are."""

import pytest

from handlens.layout import Box
from handlens.plotted import find_plotted


def box(x: float, y: float, text: str) -> tuple[Box, str]:
    """A line around a middle, as wide as its text."""
    half = 4 * len(text)
    return Box(int(x - half), int(y - 7), int(x + half), int(y + 7)), text


def chart(labels, values, *others) -> dict[Box, str]:
    """Bars 80 pixels apart: labels below, each value where its bar ends; and other lines (x, y, text)."""
    found = [box(100 + 80 * place, 300, label) for place, label in enumerate(labels)]
    found += [box(104 + 80 * place, y, text) for place, (y, text) in enumerate(values) if text]
    return dict([*found, *(box(*other) for other in others)])


LABELS, VALUES = ["North", "South", "East|West"], [(80, "7.5 €"), (180, "3.0 €"), (140, "5.1 €")]
AXIS = [(30, 290 - 50 * number, str(2 * number)) for number in range(5)]


def test_each_label_gets_the_value_above_it():
    found = find_plotted(chart(LABELS, VALUES, (200, 20, "Sales"), *AXIS))
    assert found.titles == ["Sales"]
    assert found.values == [("North", "7.5 €"), ("South", "3.0 €"), ("East|West", "5.1 €")]
    assert found.markdown == (
        "Sales\n\n|  |  |\n| --- | --- |\n| North | 7.5 € |\n| South | 3.0 € |\n| East\\|West | 5.1 € |"
    )


def test_a_value_that_was_not_found_is_left_empty():
    found = find_plotted(chart([*LABELS, "Sea"], [*VALUES, (100, "")]))
    assert found.values[-1] == ("Sea", "") and len(found.values) == 4


def test_years_are_labels_and_the_numbers_of_an_axis_are_not():
    assert find_plotted(chart(["2019", "2020", "2021"], VALUES)).values[0] == ("2019", "7.5 €")
    assert find_plotted(chart(["0", "50 kg", "100 kg"], VALUES)) is None


@pytest.mark.parametrize(
    "texts",
    [
        {},
        chart(LABELS[:2], VALUES[:2]),
        chart(LABELS, [(80, "7.5 €"), (180, ""), (140, "")]),
        chart(LABELS, [(180, "2019"), (180, "2020"), (180, "2022")]),
        chart(LABELS, [(80, "up"), (180, "down"), (140, "steady")]),
        chart(LABELS, [(80, "Flat 4"), (180, "3 Mill Lane"), (140, "5")]),
        chart(LABELS, VALUES, *[(200, 330 + 30 * number, f"Total {number}") for number in range(2)]),
        chart(LABELS, VALUES, *[(200, 10 + 14 * number, "Corner Shop") for number in range(5)]),
    ],
    ids=["nothing", "two", "values are missing", "a table", "words", "addresses", "sums below", "much text above"],
)
def test_other_things_are_no_such_chart(texts):
    assert find_plotted(texts) is None
