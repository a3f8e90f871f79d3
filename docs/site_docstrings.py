"""An extension of griffe, which reads the docstrings: examples become code blocks without prompts and doctest marks."""

import re
from typing import Any

import griffe

EXAMPLE = re.compile(r"^( *)>>> .*(?:\n\1\S.*)*", re.MULTILINE)


def example_block(match: re.Match[str]) -> str:
    """Return a doctest as a code block, its output as comments."""
    indent, lines = match[1], []
    for line in match[0].splitlines():
        code = re.match(r" *(?:>>>|\.\.\.) ?(.*)", line)
        text = re.sub(r"\s*# doctest: .*", "", code[1]) if code else f"# {line.strip()}"
        lines.append(indent + text)
    return "\n".join([f"{indent}```python", *lines, f"{indent}```"])


class Examples(griffe.Extension):
    """Rewrite the examples of each docstring."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring:
            obj.docstring.value = EXAMPLE.sub(example_block, obj.docstring.value)
