"""What stands where in an image of printed text: lines by paragraphs, tables by cells, in reading order.

The recursive XY cut (Nagy and Seth 1984) on the pixels that differ from the paper around them: an image is cut along
its empty columns and rows. A model that reads lines better than pages is shown one line at a time (reading.py).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from PIL import Image

from handlens.ink import LEAST_RULE, RULE_ACROSS, RULE_DOWN, beside, contrast, ink_of, rules_in, runs, sides_in

#: Images of more pixels are searched in a copy that is a whole number of times smaller.
MOST_PIXELS = 3_000_000
#: Angles that a page may be turned by, in degrees, and the least one that is worth turning it back.
ANGLES, LEAST_ANGLE = np.arange(-5, 5.01, 0.5), 0.5
#: The longest side of the picture that angles are tried on, and by how many rows they move what stands at its edge.
TURNED_SIDE, SHEAR_ROOM = 512, 24
#: Columns of text stand at least this many heights of a line apart, are so wide, and their lines fill this share of it.
COLUMN_GAP, COLUMN_WIDTH, COLUMN_FILL = 1.3, 14.0, 0.65
#: Columns of a table stand at least this many heights of a line apart. One row in so many may lie across a gap.
CELL_GAP, ROWS_A_SPAN = 0.6, 5
#: The share of the columns that rules part where they part all.
RULED = 0.6
#: A gap of this many heights of a line parts what stands beside each other, not two words.
WIDE_GAP = 1.6
#: ... and more than so many gaps between letters.
WORD_GAP = 3.0
#: The width of the strips that the height of lines is told from.
STRIP = 48
#: The marks of a list are narrower than this many heights of a line.
MARK = 1.5
#: Parts of a line (dots, accents) are lower than this share of a line; two lines that touch are higher than that one.
FRAGMENT, TWO_LINES = 0.45, 1.65
#: Between two lines that touch there is less than this share of the ink that most rows of them have.
BETWEEN_LINES = 0.5
#: The least height of a line in pixels: what is lower can't be read.
LEAST_HEIGHT = 5
#: A new paragraph begins where lines stand this much further apart than most, a row where bands of a table do.
PARAGRAPH, ROW = 1.45, 1.7
#: Around a line this share of its height is shown as well, and a picture is at least so many times as wide as high.
MARGIN, SHORTEST = 0.35, 4.0
#: Strokes of letters are thinner than this share of the height of their line.
THICKEST_STROKE = 0.4
#: Text covers less than this share of a picture.
MOST_INK = 0.4


#: Where runs of rows begin and end.
Bands = Sequence[tuple[int, int]]


@dataclass(frozen=True)
class Box:
    """A rectangle of pixels; right and bottom are the first ones outside."""

    left: int
    top: int
    right: int
    bottom: int

    @property
    def width(self) -> int:
        return self.right - self.left

    @property
    def height(self) -> int:
        return self.bottom - self.top


@dataclass(frozen=True)
class Text:
    """Lines by paragraphs."""

    paragraphs: list[list[Box]]


@dataclass(frozen=True)
class Table:
    """Lines by rows and columns; a cell without any is empty, or covered by the one before it."""

    rows: list[list[list[Box]]]


@dataclass(frozen=True)
class Layout:
    """What was found. The boxes are in pixels of `ink`, of which each is `scale` of the image, which stands upright."""

    image: Image.Image
    ink: np.ndarray = field(repr=False)  # bool [H, W]
    blocks: list[Text | Table]
    scale: int = 1

    @property
    def lines(self) -> list[Box]:
        """All lines in reading order."""
        return [line for block in self.blocks for line in lines_of(block)]

    def parts(self, line: Box, aspect: float) -> list[Box]:
        """A line, in parts where it is more than `aspect` times as wide as high."""
        return _parts(self.ink[line.top : line.bottom, line.left : line.right], line, aspect)

    def picture(self, box: Box) -> Image.Image:
        """A line or a part of one with a margin around it."""
        margin = max(round(MARGIN * box.height), 2)
        left, top = max(box.left - margin, 0) * self.scale, max(box.top - margin, 0) * self.scale
        right = min((box.right + margin) * self.scale, self.image.width)
        bottom = min((box.bottom + margin) * self.scale, self.image.height)
        cut = self.image.crop((left, top, right, bottom))
        wanted = round(SHORTEST * cut.height)
        if cut.width >= wanted:
            return cut
        # A letter or two would be shown as large as a whole line.
        edge = np.concatenate([np.asarray(cut)[:, 0], np.asarray(cut)[:, -1]])
        wide = Image.new("RGB", (wanted, cut.height), tuple(int(level) for level in np.median(edge, axis=0)))
        wide.paste(cut, (margin * self.scale, 0))
        return wide


def lines_of(block: Text | Table) -> list[Box]:
    """The lines of a block in reading order."""
    if isinstance(block, Text):
        return [line for paragraph in block.paragraphs for line in paragraph]
    return [line for row in block.rows for cell in row for line in cell]


def find_layout(image: Image.Image) -> Layout:
    """The lines and tables of an image; no blocks where there are none, or where what there is does not look like text
    (`looks_like_text`). Large images are searched in a smaller copy."""
    image = image.convert("RGB")
    scale = max(math.ceil(math.sqrt(image.width * image.height / MOST_PIXELS)), 1)
    small = image.reduce(scale)
    differs = contrast(small)
    ink = ink_of(differs)
    angle = tilt(ink)
    if abs(angle) >= LEAST_ANGLE:
        paper = tuple(int(level) for level in np.median(np.asarray(small).reshape(-1, 3), axis=0))
        image = image.rotate(-angle, Image.Resampling.BICUBIC, expand=True, fillcolor=paper)
        small = image.reduce(scale)
        differs = contrast(small)
        ink = ink_of(differs)
    page = _Page(ink, differs > LEAST_RULE)
    blocks = [found for box in page.blocks(page.whole) for found in page.content(box)]
    lines = [line for block in blocks for line in lines_of(block)]
    return Layout(image, page.ink, blocks if looks_like_text(ink, lines) else [], scale)


def tilt(ink: np.ndarray) -> float:
    """By how many degrees lines rise to the left: the angle at which rows differ most in how much ink they have."""
    small = Image.fromarray(ink.astype(np.uint8) * 255)
    small.thumbnail((TURNED_SIDE, TURNED_SIDE), Image.Resampling.BOX)

    levels = np.asarray(small, np.float32)
    rows, columns = np.nonzero(levels)
    levels, columns = levels[rows, columns], columns - small.width / 2

    def sharpness(angle: float) -> float:
        # Small turns leave each column in its place; a pixel falls between two rows.
        places = rows + SHEAR_ROOM + columns * np.tan(np.radians(angle))
        lower = places.astype(np.intp)
        above, below = (lower + 1 - places) * levels, (places - lower) * levels
        length = small.height + 2 * SHEAR_ROOM
        filled = np.bincount(lower, above, length) + np.bincount(lower + 1, below, length)
        return float(np.square(np.diff(filled)).sum())

    return float(max(sorted(ANGLES, key=abs), key=lambda angle: sharpness(angle)))


def looks_like_text(ink: np.ndarray, lines: Sequence[Box]) -> bool:
    """Whether what was found are lines of text: much of the picture is paper, most lines are alike and wider than high,
    and what they are drawn with is thin."""
    if not lines or ink.mean() > MOST_INK:
        return False
    heights = np.array([line.height for line in lines])
    alike = np.abs(heights - np.median(heights)) < 0.6 * np.median(heights)
    wide = np.mean([line.width > 1.2 * line.height for line in lines])
    rows = [ink[(line.top + line.bottom) // 2, line.left : line.right] for line in lines]
    strokes = [(last - first) / line.height for row, line in zip(rows, lines, strict=True) for first, last in runs(row)]
    return bool(alike.mean() > 0.6 and wide > 0.5 and np.median(strokes or [1.0]) < THICKEST_STROKE)


class _Page:
    """The ink of a page without its rules, and where those lie that go across and down."""

    def __init__(self, ink: np.ndarray, faint: np.ndarray):
        self.whole = Box(0, 0, ink.shape[1], ink.shape[0])
        across, self.across = rules_in(ink, faint, RULE_ACROSS)
        sides = sides_in(ink, across)
        # Letters have strokes that are as long as they are high.
        least = max(RULE_DOWN, 2 * _line_height(ink & ~sides))
        down, self.down = (rules.T for rules in rules_in(ink.T, faint.T, least))
        # The edges of rules are softer than they are.
        self.ink = ink & ~sides & ~beside(across) & ~beside(down.T).T
        self._heights: dict[Box, float] = {}
        self._rows: dict[Box, list[tuple[int, int]]] = {}

    def line_height(self, box: Box) -> float:
        """The usual height of a line in a box; 0 if all are too low to be read."""
        if box not in self._heights:
            self._heights[box] = _line_height(self.ink[box.top : box.bottom, box.left : box.right])
        return self._heights[box]

    def rows(self, box: Box) -> list[tuple[int, int]]:
        """The rows of a box that hold ink, as runs."""
        if box not in self._rows:
            part = self.ink[box.top : box.bottom, box.left : box.right]
            self._rows[box] = [(box.top + first, box.top + last) for first, last in runs(part.any(axis=1))]
        return self._rows[box]

    def trimmed(self, box: Box) -> Box | None:
        """The box without its empty margins; None if all of it is empty."""
        part = self.ink[box.top : box.bottom, box.left : box.right]
        rows, columns = np.flatnonzero(part.any(axis=1)), np.flatnonzero(part.any(axis=0))
        if not len(rows):
            return None
        left, top = box.left + int(columns[0]), box.top + int(rows[0])
        return Box(left, top, box.left + int(columns[-1]) + 1, box.top + int(rows[-1]) + 1)

    def blocks(self, box: Box) -> list[Box]:
        """The blocks of a box in reading order: columns of text from left to right, what spans them in its place."""
        trimmed = self.trimmed(box)
        if trimmed is None:
            return []
        columns = self.columns(trimmed)
        if columns:
            return [block for column in columns for block in self.blocks(column)]
        for (_, end), (begin, _) in pairwise(self.rows(trimmed)):
            middle = (end + begin) // 2
            above = Box(trimmed.left, trimmed.top, trimmed.right, middle)
            below = Box(trimmed.left, middle, trimmed.right, trimmed.bottom)
            if any((part := self.trimmed(half)) and self.columns(part) for half in (below, above)):
                return self.blocks(above) + self.blocks(below)
        return [trimmed]

    def columns(self, box: Box) -> list[Box]:
        """The columns of running text of a box; [] where there is one."""
        filled = runs(self.ink[box.top : box.bottom, box.left : box.right].any(axis=0))
        if len(_joined(filled, COLUMN_GAP * LEAST_HEIGHT)) < 2:  # whatever the height of its lines is
            return []
        rows, height = self.rows(box), self.line_height(box)
        across = self.across[box.top : box.bottom, box.left : box.right].mean(axis=1) > 0.5
        if len(rows) < 3 or not height or len(runs(across)) > 2:  # rules are for tables
            return []
        found = _joined(filled, COLUMN_GAP * height)
        columns = [Box(box.left + first, box.top, box.left + last, box.bottom) for first, last in found]
        if len(columns) < 2 or min(column.width for column in columns) < COLUMN_WIDTH * height:
            return []
        return columns if all(self._is_running(column) for column in columns) else []

    def _is_running(self, column: Box) -> bool:
        lines = self.lines(column)
        return len(lines) > 3 and float(np.median([line.width for line in lines])) > COLUMN_FILL * column.width

    def content(self, box: Box) -> list[Text | Table]:
        """What stands in a block, from top to bottom: lines and tables."""
        rows, height = self.rows(box), self.line_height(box)
        if not height:
            return []
        bands = _whole(rows, height)
        tables = []
        for first, last in [(0, len(bands)), *self._in_pieces(box, bands, height)]:
            table, over, under = self.table(box, bands[first:last], height)
            if table is not None:
                tables.append((table, bands[first + over][0], bands[first + under - 1][1]))
        if not tables:
            lines = self.lines(box)
            return [Text(_paragraphs(lines))] if lines else []
        table, top, bottom = max(tables, key=lambda found: _regularity(found[0]))
        above, below = Box(box.left, box.top, box.right, top), Box(box.left, bottom, box.right, box.bottom)
        around = [self.content(part) if part.height > 0 else [] for part in (above, below)]
        return [*around[0], table, *around[1]]

    def _in_pieces(self, box: Box, bands: Bands, height: float) -> list[tuple[int, int]]:
        """Which neighbouring bands of a block are all cut into pieces by wide gaps: three or more, for words of two
        lines that fill their column stand below each other by chance."""
        cut = [
            len(_joined(runs(self.ink[top:bottom, box.left : box.right].any(axis=0)), WIDE_GAP * height)) > 1
            for top, bottom in bands
        ]
        return [(first, last) for first, last in runs(np.array(cut)) if last - first > 2]

    def lines(self, box: Box) -> list[Box]:
        """The lines of a block from top to bottom, each without its margins."""
        rows, height = self.rows(box), self.line_height(box)
        if not height:
            return []
        lines = []
        for first, last in _whole(rows, height):
            for top, bottom in self._untouched(box, first, last, height):
                line = self.trimmed(Box(box.left, top, box.right, bottom))
                if line is not None and line.height >= LEAST_HEIGHT:
                    lines.append(line)
        return lines

    def _untouched(self, box: Box, first: int, last: int, height: float) -> list[tuple[int, int]]:
        """Rows of text cut where lines touch: at those with the least ink, about as far apart as lines are high."""
        count = round((last - first) / height)
        if (last - first) < TWO_LINES * height or count < 2:
            return [(first, last)]
        share = self.ink[first:last, box.left : box.right].mean(axis=1)
        step, cuts = (last - first) / count, [0]
        for number in range(1, count):
            around = range(int((number - 0.3) * step), int((number + 0.3) * step) + 1)
            row = min(around, key=lambda row: (share[row], abs(row - number * step)))
            if share[row] < BETWEEN_LINES * np.median(share):
                cuts.append(row)
        cuts.append(last - first)
        return [(first + top, first + bottom) for top, bottom in pairwise(cuts)]

    def table(self, box: Box, bands: Bands, height: float) -> tuple[Table | None, int, int]:
        """The table in a block whose lines stand in these bands, and which of the bands are its: those that are cut
        into most columns by the same gaps. A title or a note may stand over and under them."""
        filled = np.array([self.ink[top:bottom, box.left : box.right].any(axis=0) for top, bottom in bands])
        best: list[tuple[int, int]] = []
        chosen = 0, len(bands)
        for over, under in ((0, 0), (1, 0), (2, 0), (0, 1), (1, 1)):
            first, last = over, len(bands) - under
            if last - first > 1:
                columns = self._table_columns(self._part(box, bands[first:last]), filled[first:last], height)
                if len(columns) > len(best):
                    best, chosen = columns, (first, last)
        first, last = chosen
        if not best:
            return None, first, last
        gap = self._cell_gap(filled, height)
        while last - first > 2 and self._is_title(self._part(box, bands[first : first + 1]), filled[first], best, gap):
            first += 1
        while last - first > 2 and self._is_title(self._part(box, bands[last - 1 : last]), filled[last - 1], best, gap):
            last -= 1
        part = self._part(box, bands[first:last])
        return self._cells(part, bands[first:last], filled[first:last], best, height), first, last

    @staticmethod
    def _part(box: Box, bands: Bands) -> Box:
        return Box(box.left, bands[0][0], box.right, bands[-1][1])

    def _is_title(self, box: Box, band: np.ndarray, columns: Sequence[tuple[int, int]], gap: float) -> bool:
        """Whether a band of ink is one piece that lies over a gap between columns, or beside the first one."""
        pieces = self._cut(box, band, gap)
        crosses = any(band[last:first].any() for (_, last), (first, _) in pairwise(columns))
        return len(pieces) == 1 and (crosses or pieces[0][0] > columns[0][1])

    def _table_columns(self, box: Box, filled: np.ndarray, height: float) -> list[tuple[int, int]]:
        """The columns of a table, counted from the left of its box; fewer than two where it is none."""
        gap = self._cell_gap(filled, height) * (1 if len(filled) > 2 else 2)
        common = filled.sum(axis=0) > len(filled) // ROWS_A_SPAN
        columns = self._cut(box, common, gap)
        # Where rules part most columns they part all, and other gaps are those between words.
        ruled = self._cut(box, common, math.inf)
        if len(ruled) > 2 and len(ruled) >= RULED * len(columns):
            columns = ruled
        is_list = len(columns) == 2 and columns[0][1] - columns[0][0] < MARK * height
        if len(columns) < 2 or (is_list and not self._separators(box).any()):
            return []
        return columns

    def _cell_gap(self, filled: np.ndarray, height: float) -> float:
        letters = [begin - end for band in filled for (_, end), (begin, _) in pairwise(runs(band))]
        return max(CELL_GAP * height, WORD_GAP * float(np.median(letters or [0])) + CELL_GAP * height / 2)

    def _separators(self, box: Box) -> np.ndarray:
        """In which columns of a box a rule goes down most of it."""
        return self.down[box.top : box.bottom, box.left : box.right].mean(axis=0) > 0.5

    def _cut(self, box: Box, filled: np.ndarray, gap: float) -> list[tuple[int, int]]:
        """Runs of ink [width of the box], those as one that stand less than a gap apart with no rule between them."""
        separators = self._separators(box)
        joined: list[list[int]] = []
        for first, last in runs(filled):
            if joined and first - joined[-1][1] < gap and not separators[joined[-1][1] : first].any():
                joined[-1][1] = last
            else:
                joined.append([first, last])
        return [(first, last) for first, last in joined]

    def _cells(
        self, box: Box, bands: Bands, filled: np.ndarray, columns: Sequence[tuple[int, int]], height: float
    ) -> Table | None:
        gap = self._cell_gap(filled, height)
        inside = np.array([filled[:, first:last].any(axis=1) for first, last in columns]).T  # [bands, columns]
        found = []
        for top, bottom in self._table_rows(box, bands, inside):
            cells: list[list[Box]] = [[] for _ in columns]
            row = self.ink[top:bottom, box.left : box.right].any(axis=0)
            for first, last in self._cut(Box(box.left, top, box.right, bottom), row, gap):
                cells[_column_of(first, last, columns)] += self.lines(
                    Box(box.left + first, top, box.left + last, bottom)
                )
            if any(cells):
                found.append(cells)
        # What is left of a frame makes columns without anything in them.
        kept = [number for number in range(len(columns)) if any(row[number] for row in found)]
        return Table([[row[number] for number in kept] for row in found]) if len(found) > 1 < len(kept) else None

    def _table_rows(self, box: Box, bands: Bands, inside: np.ndarray) -> list[tuple[int, int]]:
        """Bands of ink joined to the rows of a table: what stands between two rules, or close together. `inside` says
        in which columns a band has ink [bands, columns]: one that goes on with the row above has it in few of those."""
        ruled = [
            bool((self.across[end:begin, box.left : box.right].mean(axis=1) > 0.3).any())
            for (_, end), (begin, _) in pairwise(bands)
        ]
        gaps = [begin - end for (_, end), (begin, _) in pairwise(bands)]
        if sum(ruled) > 1 and sum(ruled) >= len(ruled) / 3:
            apart = ruled
        else:
            goes_on = [not (below & ~above).any() and below.mean() <= 0.5 for above, below in pairwise(inside)]
            apart = [
                not further or gap * ROW > max(gaps) or gap > ROW * min(gaps)
                for gap, further in zip(gaps, goes_on, strict=True)
            ]
        rows = [list(bands[0])]
        for (top, bottom), is_new in zip(bands[1:], apart, strict=True):
            if is_new:
                rows.append([top, bottom])
            else:
                rows[-1][1] = bottom
        return [(top, bottom) for top, bottom in rows]


def _line_height(ink: np.ndarray) -> float:
    """The usual height of a line in ink [H, W]; 0 if all are too low to be read. Told from narrow strips of it, for
    lines of neighbouring columns need not stand side by side."""
    high, wide = ink.shape
    if not high or not wide:
        return 0.0
    # The strips one below the other, an empty row under each.
    strips = np.zeros((-(-wide // STRIP), high + 1), bool)
    strips[:, :-1] = np.logical_or.reduceat(ink, np.arange(0, wide, STRIP), axis=1).T
    heights = [last - first for first, last in runs(strips.ravel()) if last - first >= LEAST_HEIGHT]
    return float(np.median(heights)) if heights else 0.0


def _regularity(table: Table) -> float:
    """How much of a table it is: the more cells the better, but few may be empty."""
    cells = [bool(cell) for row in table.rows for cell in row]
    return sum(cells) * (sum(cells) / len(cells)) ** 2


def _column_of(first: int, last: int, columns: Sequence[tuple[int, int]]) -> int:
    """The first column that a piece of a row lies in, or the nearest one."""
    return min(range(len(columns)), key=lambda n: (max(columns[n][0] - last, first - columns[n][1], 0), n))


def _joined(runs: Sequence[tuple[int, int]], gap: float) -> list[tuple[int, int]]:
    """Runs, those that stand less than a gap apart as one."""
    joined: list[list[int]] = []
    for first, last in runs:
        if joined and first - joined[-1][1] < gap:
            joined[-1][1] = last
        else:
            joined.append([first, last])
    return [(first, last) for first, last in joined]


def _whole(rows: Sequence[tuple[int, int]], height: float) -> list[tuple[int, int]]:
    """Runs of rows with dots and accents joined to the line that they stand close to."""
    whole: list[list[int]] = []
    for first, last in rows:
        near = whole and first - whole[-1][1] < FRAGMENT * height
        if near and min(last - first, whole[-1][1] - whole[-1][0]) < FRAGMENT * height:
            whole[-1][1] = last
        else:
            whole.append([first, last])
    return [(first, last) for first, last in whole]


def _paragraphs(lines: Sequence[Box]) -> list[list[Box]]:
    """Lines by paragraphs: a new one begins after a wide gap, or where the height of letters changes."""
    steps = [below.bottom - above.bottom for above, below in pairwise(lines)]
    usual = float(np.percentile(steps, 25)) if steps else 0.0
    found = [[lines[0]]]
    for (above, below), step in zip(pairwise(lines), steps, strict=True):
        if step > PARAGRAPH * usual or not 0.6 < below.height / above.height < 1.6:
            found.append([below])
        else:
            found[-1].append(below)
    return found


def _parts(ink: np.ndarray, line: Box, aspect: float) -> list[Box]:
    """A line, whose ink this is, in parts: what wide gaps part, each about `aspect` times as wide as high at most."""
    inked = runs(ink.any(axis=0))
    return [
        Box(line.left + first, line.top, line.left + last, line.bottom)
        for begin, end in _joined(inked, WIDE_GAP * line.height)
        for first, last in _shares([run for run in inked if begin <= run[0] < end], aspect * line.height)
    ]


def _shares(runs: Sequence[tuple[int, int]], longest: float) -> list[tuple[int, int]]:
    """Runs of ink joined to shares that are about equally long, and about `longest` at most: cut at wide gaps."""
    begin, end = runs[0][0], runs[-1][1]
    count = -(-(end - begin) // max(int(longest), 1))
    step = (end - begin) / count
    shares, first = [], begin
    gaps = [(last, following) for (_, last), (following, _) in pairwise(runs)]
    for number in range(1, count):
        near = [gap for gap in gaps if abs(sum(gap) / 2 - begin - number * step) < 0.35 * step and gap[0] > first]
        if near:
            last, following = max(near, key=lambda gap: gap[1] - gap[0])
            shares.append((first, last))
            first = following
    return [*shares, (first, end)]
