"""Plain sentences from captions that a model formatted as Markdown."""

import re
from collections.abc import Iterator

from markdown_it import MarkdownIt
from markdown_it.token import Token

# The dialect that models write: CommonMark with tables. Without the last four rules, which would drop text of plain
# captions: indented lines, "[Sign]: ...", and "<3".
_PARSER = MarkdownIt("commonmark").enable(["table", "strikethrough"])
_PARSER.disable(["code", "reference", "html_block", "html_inline"])
_PLAIN = {"paragraph_open", "paragraph_close", "inline", "text", "text_special", "softbreak", "hardbreak"}
_ENDED = re.compile("[.!?…。！？؟।:：;,，][\"'”’»)\\]]*$")


def without_markdown(caption: str, is_inside_fence: bool = False) -> str:
    """Return a caption without Markdown: each heading, list item, row of a table and code block becomes a sentence.

    A caption without Markdown is returned unchanged, with its line breaks.
    """
    tokens = _PARSER.parse(caption)
    if all(part.type in _PLAIN for token in tokens for part in (token, *(token.children or ()))):
        return caption
    text = ""
    for block in _blocks(tokens, is_inside_fence):
        starts_sentence = not text.endswith((":", "：", ";", ",", "，"))
        text += (" " if text else "") + (block[0].upper() + block[1:] if starts_sentence else block)
        text += "" if _ENDED.search(block) else "."
    return text


def _blocks(tokens: list[Token], is_inside_fence: bool) -> Iterator[str]:
    """Yield the texts of paragraphs, headings, list items, code blocks and rows of tables."""
    cells: list[str] | None = None
    for token in tokens:
        block = ""
        if token.type == "tr_open":
            cells = []
        elif token.type == "tr_close":
            block, cells = ", ".join(filter(None, cells or ())), None
        elif token.type == "inline":
            children = token.children or ()
            block = "".join(" " if part.type.endswith("break") else part.content for part in children)
            if cells is not None:
                cells.append(" ".join(block.split()))
                continue
        elif token.type == "fence":  # some models write the whole answer inside a fence
            block = token.content if is_inside_fence else without_markdown(token.content, is_inside_fence=True)
        if block := " ".join(block.split()):
            yield block
