"""The Modelfile with which ollama runs a pair of GGUF files, its template made of the family's own chat format.

Facts: ollama's docs/modelfile.md; ollama puts the bos token in front by itself.
"""

from pathlib import Path

from handlens.config import ModelConfig
from handlens.engine.sampling import SamplingParams
from handlens.errors import InputError
from handlens.prompts import TEMPLATES, Special, Template
from handlens.weights import ModelFiles

#: Roles that a template asks for, and the name of their text in it.
VARIABLES = {"system": "System", "user": "Prompt"}

#: A sliced image takes about a thousand tokens of 2.5, so ollama's own 2048 are few.
CONTEXT_LENGTH = 4096


def modelfile(config: ModelConfig, files: ModelFiles, context_length: int | None = None) -> str:
    """The text of the Modelfile for these files; `context_length` is at most what the model can."""
    most = config.llm.max_position_embeddings
    if context_length is not None and not 0 < context_length <= most:
        raise InputError(f"a context of {context_length} tokens was asked for; the model can have from 1 to {most}")
    template = TEMPLATES[config.family.template]
    sampling = SamplingParams()
    parameters = {
        "num_ctx": context_length or min(CONTEXT_LENGTH, most),
        "num_keep": 4,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "repeat_penalty": sampling.repetition_penalty,
    }
    lines = [f"FROM {_quoted(path)}" for path in (files.model, files.mmproj) if path is not None]
    lines += [f'TEMPLATE """{go_template(template)}"""']
    lines += [f'PARAMETER stop "{stop}"' for stop in stops(config)]
    lines += [f"PARAMETER {name} {value}" for name, value in parameters.items()]
    return "\n".join(lines) + "\n"


def go_template(template: Template) -> str:
    """The chat format in ollama's template language."""
    text = ""
    for role, variable in VARIABLES.items():
        if role in template.turns:
            turn = template.turns[role]
            text += f"{{{{ if .{variable} }}}}{_text(turn.before)}{{{{ .{variable} }}}}{_text(turn.after)}{{{{ end }}}}"
    answer = template.turns["assistant"]
    return f"{text}{_text(answer.before)}{{{{ .Response }}}}{_text(answer.after)}"


def stops(config: ModelConfig) -> list[str]:
    """The texts that end an answer: what ends a turn, and what can only begin another."""
    turns = TEMPLATES[config.family.template].turns.values()
    parts = [part for turn in turns for part in (*turn.before, *turn.after)]
    special = [part.name for part in parts if isinstance(part, Special)]
    return list(dict.fromkeys([*special, *config.family.tokens.stop]))


def _text(parts: tuple[str | Special, ...]) -> str:
    return "".join(part.name if isinstance(part, Special) else part for part in parts)


def _quoted(path: Path) -> str:
    """A path as a Modelfile takes it: relative paths count from the Modelfile's folder."""
    text = str(path)
    if any(sign in text for sign in '\n"'):
        raise InputError(f"the path {text!r} cannot be written into a Modelfile; rename the file")
    return f'"{text}"' if " " in text else text
