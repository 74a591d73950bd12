"""HTML of notebooks: no text can become markup, and the result is well-formed."""

from __future__ import annotations

from html.parser import HTMLParser

import pytest

from npstream.rendering.html import Markup, document, element, escape, key_value_table, table

VOID = {"img", "br"}

ATTACKS = [
    "<script>alert(1)</script>",
    "</td></tr></table><script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    '" onmouseover="alert(1)',
    "<svg/onload=alert(1)>",
    "</style><script>alert(1)</script>",
    "</title></textarea></script><iframe src=javascript:alert(1)>",
    "<!--", "-->", "<![CDATA[", "]]>", "<?php", "&lt;script&gt;", "&#60;script&#62;", "&amp",
    "javascript:alert(1)", "data:text/html,<script>alert(1)</script>", "$\\href{javascript:x}{y}$",
    "\x00<\x00script>", "<scr\x00ipt>", "\ud800<b>", "\u202e<b>\u202c", "\ufeff<b>", "a\x1b[31mred",
    "<details open ontoggle=alert(1)>", "{{constructor.constructor('alert(1)')()}}",
]  # fmt: skip
"""Text that becomes markup, or breaks markup, where it is not escaped."""

ALLOWED = {
    "div", "style", "table", "caption", "thead", "tbody", "tr", "th", "td", "small", "p", "span",
    "code", "details", "summary", "img", "audio", "figure", "figcaption",
}  # fmt: skip
ALLOWED_ATTRIBUTES = {
    "class", "src", "width", "height", "controls", "preload", "style", "title", "alt",
}  # fmt: skip


class Page(HTMLParser):
    """Parses HTML, and holds its elements, attributes and text."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.stack: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.texts: list[str] = []
        self.feed(html)
        self.close()
        assert self.stack == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.stack.append(tag)

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag

    def handle_data(self, data):
        if self.stack[-1:] != ["style"]:
            self.texts.append(data)

    def handle_comment(self, data):
        raise AssertionError(f"a comment: {data!r}")

    handle_decl = handle_pi = unknown_decl = handle_comment

    @property
    def text(self) -> str:
        return "".join(self.texts)


def check_page(html: str) -> Page:
    """Return parsed HTML; raise AssertionError if it has markup that the package does not make."""
    page = Page(html)
    assert set(page.tags) <= ALLOWED
    assert {name for name, _ in page.attributes} <= ALLOWED_ATTRIBUTES
    for name, value in page.attributes:
        if name == "src":
            assert value.startswith(("data:image/", "data:audio/"))
    html.encode()  # no lone surrogates
    return page


def visible(text: str) -> str:
    """Return the text that a reader sees of a hostile text."""
    for character in ("\x00", "\x1b", "\ud800"):
        text = text.replace(character, character.encode("unicode_escape").decode())
    return text


@pytest.mark.parametrize("attack", ATTACKS)
def test_text_never_becomes_markup(attack):
    shown = visible(attack)
    cells = check_page(
        table([attack, ("x", attack)], [[attack, "1"]], caption=attack, footer=attack)
    )
    assert cells.text.count(shown) == 5
    assert check_page(key_value_table(attack, [(attack, attack)])).text == shown * 3
    attribute = Page(element("td", attack, title=attack))
    assert attribute.text == shown
    assert [name for name, _ in attribute.attributes] == ["title"]


def test_table_has_its_cells_in_order():
    html = table(["a", ("b", "int64")], [["1", "2"], ["3", Markup("<b>4</b>")]], numeric=[1])
    assert Page(html).text == "abint641234"
    assert html.count("<tr>") == 3
    assert '<td class="npstream-n">2</td>' in html
    assert "<b>4</b>" in html


def test_table_without_rows_or_headers():
    assert Page(table([], [])).text == ""
    assert Page(table(["a"], [])).text == "a"


def test_index_columns_label_their_rows():
    assert "<tr><th>0</th><td>x</td></tr>" in table(["row", "name"], [["0", "x"]], index=1)


def test_markup_is_escaped_once():
    assert escape(escape("<")) == "&lt;"
    assert element("p", element("b", "&")) == "<p><b>&amp;</b></p>"


def test_attributes_may_have_no_value():
    assert element("audio", controls=True, loop=False) == "<audio controls></audio>"
    assert element("img", width=3) == '<img width="3">'


def test_document_is_ignored_by_mathjax():
    assert 'class="npstream tex2jax_ignore mathjax_ignore"' in document("$x$")


@pytest.mark.parametrize("theme", ["--jp-layout-color0", "--vscode-foreground", "scheme:dark"])
def test_style_follows_themes(theme):
    assert theme in document()
