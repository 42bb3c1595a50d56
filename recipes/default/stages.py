"""The curriculum: what is looked at, what is learned from it, and for how long. The stages of the report, in small."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from handlens.data.make import resolved
from handlens.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage. `tasks` are makers with the share of each; `strips` are heights in patches, 0 as in use (batch.py)."""

    name: str
    share: float  # of the time of the whole plan; 0 where a stage is only gone through by its name
    tasks: Mapping[str, float]
    strips: tuple[int, ...] = (0,)
    trains: tuple[str, ...] = ("vpm", "resampler", "llm")
    answers: float = 1.0  # the weight of the loss on answers
    dense: float = 0.3  # the weight of the loss on the labels of patches
    spelling: float = 0.0  # the weight of the loss on the characters that the vectors of single lines stand for
    pull: float = 1.0  # how much of the answers' gradient the tower feels: at first it is noise there
    rate: float = 1.0  # a factor of the preset's learning rate
    dropout: float = 0.1  # of merges in answers
    strength: float = 1.0  # of degradations
    turns: int = 1  # the most questions that are asked about one picture
    notes: float = 0.0  # the share of examples that are questions about texts that were never drawn (notes.py)
    things: float = 0.0  # the share of the other examples that show a thing alone (crops.py)
    sparse: float = 0.0  # the share of lines drawn alone that stand on a page of their own, mostly in several slices
    by_lines: float = 0.0  # the share of pictures with text that are shown as their text and some of their lines

    def __post_init__(self):
        if not self.answers and not self.dense:
            raise ValueError(f"the stage {self.name} learns nothing")


STAGES = (
    Stage(
        name="glyphs",
        share=0.1,
        tasks={"word": 0.3, "line": 0.7},
        strips=(2, 2, 3),
        trains=("vpm",),
        answers=0.0,
        dense=1.0,
        strength=0.5,
    ),
    Stage(
        name="words",
        share=0.1,
        tasks={"word": 0.4, "line": 0.6},
        strips=(2, 2, 3),
        dense=1.0,
        spelling=0.5,
        pull=0.1,
        dropout=0.9,
        strength=0.5,
    ),
    Stage(
        name="lines",
        share=0.15,
        tasks={"word": 0.3, "line": 0.7},
        strips=(2, 0, 0),
        dense=1.0,
        spelling=0.5,
        pull=0.3,
        dropout=0.7,
    ),
    Stage(
        name="pages",
        share=0.15,
        tasks={
            **{"word": 0.1, "line": 0.35, "paragraph": 0.2, "block": 0.1, "notice": 0.05, "code": 0.03},
            **{"page": 0.12, "letter": 0.05},
        },
        dense=0.5,
        dropout=0.3,
    ),
    Stage(
        name="everything",
        share=0.5,
        turns=6,
        tasks={  # plots by matplotlib take six times as long to draw as anything else
            **{"word": 0.05, "line": 0.23, "paragraph": 0.07, "block": 0.08, "notice": 0.02, "code": 0.02},
            **{"page": 0.06, "letter": 0.02, "table": 0.1, "receipt": 0.06, "invoice": 0.03, "form": 0.02},
            **{"menu": 0.02, "screen": 0.03, "chart": 0.07, "plot": 0.005, "name": 0.01, "count": 0.04, "locate": 0.01},
            **{"shapes": 0.01, "present": 0.005, "absent": 0.015, "writing": 0.01, "language": 0.005},
            **{"blank": 0.01, "unreadable": 0.01, "photo": 0.01},
        },
    ),
    Stage(
        name="notes",
        share=0.1,
        trains=("llm",),
        dense=0.0,
        turns=2,
        notes=0.7,
        by_lines=0.95,
        tasks={
            **{"word": 0.15, "line": 0.35, "paragraph": 0.03, "block": 0.02, "notice": 0.02, "code": 0.02},
            **{"letter": 0.01, "table": 0.03, "receipt": 0.05, "invoice": 0.05, "form": 0.04, "menu": 0.02},
            **{"screen": 0.02, "chart": 0.03, "name": 0.01, "count": 0.06, "locate": 0.01, "shapes": 0.01},
            **{"present": 0.01, "absent": 0.02, "writing": 0.02, "blank": 0.015, "unreadable": 0.015, "photo": 0.015},
        },
    ),
    Stage(
        name="text",
        share=0.3,
        trains=("llm",),
        dense=0.0,
        turns=2,
        notes=0.1,
        by_lines=0.95,
        tasks={
            **{"word": 0.03, "line": 0.1, "paragraph": 0.03, "block": 0.02, "notice": 0.01, "code": 0.01},
            **{"page": 0.01, "letter": 0.02, "table": 0.08, "receipt": 0.14, "invoice": 0.11, "form": 0.09},
            **{"menu": 0.04, "screen": 0.06, "chart": 0.13, "plot": 0.005, "name": 0.01, "count": 0.06, "locate": 0.01},
            **{"shapes": 0.01, "present": 0.01, "absent": 0.12, "writing": 0.01, "language": 0.01},
            **{"blank": 0.015, "unreadable": 0.015, "photo": 0.015},
        },
    ),
    Stage(
        name="sparse",
        share=0.0,
        trains=("llm",),
        dense=0.0,
        turns=2,
        notes=0.04,
        sparse=0.6,
        by_lines=0.95,
        tasks={
            **{"word": 0.1, "line": 0.55, "paragraph": 0.05, "block": 0.03, "notice": 0.01, "code": 0.01},
            **{"page": 0.02, "letter": 0.02, "table": 0.04, "receipt": 0.07, "invoice": 0.05, "form": 0.04},
            **{"menu": 0.02, "screen": 0.02, "chart": 0.04, "absent": 0.04, "writing": 0.01, "language": 0.005},
            **{"blank": 0.01, "unreadable": 0.01, "photo": 0.01, "count": 0.01, "shapes": 0.01},
        },
    ),
    Stage(
        name="things",
        share=0.0,
        trains=("llm",),
        dense=0.0,
        dropout=0.0,
        turns=4,
        notes=0.04,
        things=0.9,
        by_lines=0.95,
        tasks={
            **{"word": 0.05, "line": 0.3, "paragraph": 0.08, "block": 0.05, "notice": 0.02, "code": 0.01},
            **{"page": 0.03, "letter": 0.03, "table": 0.06, "receipt": 0.1, "invoice": 0.08, "form": 0.09},
            **{"menu": 0.03, "screen": 0.05, "chart": 0.09, "plot": 0.005, "absent": 0.06, "writing": 0.01},
            **{"language": 0.01, "blank": 0.015, "unreadable": 0.015, "photo": 0.015},
        },
    ),
)


def shared_out(stage: Stage, factors: Mapping[str, float]) -> Stage:
    """The stage with those of its tasks, or groups of them, drawn so many times as often; the last factor of a task
    counts. What the stage does not have stays away."""
    tasks = dict(stage.tasks)
    for name, factor in factors.items():
        tasks |= {task: stage.tasks[task] * factor for task in resolved([name]) if task in tasks}
    if not any(tasks.values()):
        raise InputError(f"nothing is left of the stage {stage.name}: the shares of all its tasks are 0")
    return replace(stage, tasks=tasks)


def stage_named(name: str) -> Stage:
    for stage in STAGES:
        if stage.name == name:
            return stage
    raise ValueError(f"there is no stage {name!r}; there are {', '.join(stage.name for stage in STAGES)}")


def stage_at(position: float, first: str | None = None) -> Stage:
    """The stage at a position of the plan, from 0 to 1; behind the end it is the last one. A plan may begin with
    another stage than the first: then it has only those from there on, each longer."""
    start = STAGES.index(stage_named(first)) if first else 0
    stages = [stage for stage in STAGES[start:] if stage.share] or [STAGES[start]]
    whole, end = sum(stage.share for stage in stages), 0.0
    for stage in stages[:-1]:
        end += stage.share / whole
        if position < end:
            return stage
    return stages[-1]
