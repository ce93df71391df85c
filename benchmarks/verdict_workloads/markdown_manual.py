"""Pages in Markdown."""

import markdown

SECTION = """## Part {i}

Take *part {i}* and put it into `slot {i}`, as [the drawing](figures/{i}.png) shows:

1. open the lid,
2. turn **{i}** times,
3. close it.
"""


def manual_pages_input(n: int = 800) -> str:
    return "\n".join(SECTION.format(i=i) for i in range(n))


def manual_pages(text: str) -> str:
    return markdown.markdown(text)
