"""The Modelfile for ollama renders to the very prompt that handlens makes."""

import re

import pytest

from handlens.cli import run
from handlens.config import FAMILIES
from handlens.errors import InputError
from handlens.gguf import GGUFFile
from handlens.gguf.keys import read_config
from handlens.ollama import go_template, modelfile, stops
from handlens.prompts import TEMPLATES, Message, Special, render
from handlens.weights import ModelFiles


def go_render(template: str, **values: str) -> str:
    """The part of Go's template language that Modelfiles use: `if` on a text, and texts."""
    condition = re.compile(r"\{\{ if \.(\w+) \}\}(.*?)\{\{ end \}\}", re.DOTALL)
    text = condition.sub(lambda match: match[2] if values.get(match[1]) else "", template)
    return re.sub(r"\{\{ \.(\w+) \}\}", lambda match: values.get(match[1], ""), text)


def ours(family: str, *messages: tuple[str, str]) -> str:
    """Our prompt as text, without the bos that ollama adds itself."""
    rules = FAMILIES[family]
    parts = render([Message(role, (text,)) for role, text in messages], TEMPLATES[rules.template], rules.tokens)
    return "".join(part.name if isinstance(part, Special) else part for part in parts[1:])


@pytest.mark.parametrize("family", FAMILIES)
def test_the_template_renders_to_our_prompt(family):
    template = go_template(TEMPLATES[FAMILIES[family].template])
    before, _, after = template.partition("{{ .Response }}")
    assert go_render(before, Prompt="What is it?") == ours(family, ("user", "What is it?"))
    first = go_render(template, Prompt="What is it?", Response="A lens.")
    both = first + go_render(before, Prompt="How large?")
    assert both == ours(family, ("user", "What is it?"), ("assistant", "A lens."), ("user", "How large?"))
    if "system" in TEMPLATES[FAMILIES[family].template].turns:
        found = go_render(before, System="Be brief.", Prompt="What is it?")
        assert found == ours(family, ("system", "Be brief."), ("user", "What is it?"))
    assert "{{" not in after


def test_the_modelfile_names_files_stops_and_context(tiny_model, tmp_path, capsys):
    config = read_config(GGUFFile(tiny_model.model), GGUFFile(tiny_model.mmproj))
    assert {"<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"} <= set(stops(config))
    assert run(["export", "ollama", str(tiny_model.model), "--out", str(tmp_path / "Modelfile"), "-q"]) == 0
    text = (tmp_path / "Modelfile").read_text(encoding="utf-8")
    assert f"FROM {tiny_model.model}\nFROM {tiny_model.mmproj}\n" in text
    assert 'PARAMETER stop "<|eot_id|>"' in text and "PARAMETER num_ctx 4096\n" in text
    assert run(["export", "ollama", str(tiny_model.model), "--context-length", "2048"]) == 0
    assert "PARAMETER num_ctx 2048\n" in capsys.readouterr().out


def test_a_context_that_the_model_cannot_have_is_refused(tiny_model):
    config = read_config(GGUFFile(tiny_model.model), GGUFFile(tiny_model.mmproj))
    with pytest.raises(InputError, match="from 1 to 4096"):
        modelfile(config, ModelFiles(tiny_model.model, tiny_model.mmproj), 5000)
