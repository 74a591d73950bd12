"""HTML for notebooks: tables and other elements, with colors for light and dark themes.

All text is escaped here. A `Markup` is HTML that this package made; any other ``str`` is text.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence

__all__ = ["Markup", "document", "element", "escape", "key_value_table", "table"]

Header = str | tuple[str, str]
"""The name of a column, or its name and a note to show under it, such as its type."""

# JupyterLab's rules for tables have two classes in their selectors. To override them, the rules
# here need two classes as well: "& " stands for the class .npstream, twice.
# The classes: -head is the title of an output, -n a number, -t text with its white space, -l long
# text, -e an error, -m muted text, -p an image whose pixels are enlarged, -g a grid of images.
_STYLE = """\
.npstream{--npstream-text:var(--jp-content-font-color1,var(--vscode-foreground,#1f2328));\
--npstream-muted:var(--jp-content-font-color2,var(--vscode-descriptionForeground,#59636e));\
--npstream-back:var(--jp-layout-color0,var(--vscode-editor-background,#fff));\
--npstream-stripe:var(--jp-rendermime-table-row-background,rgba(128,128,128,.1));\
--npstream-line:var(--jp-border-color2,var(--vscode-panel-border,#d1d9e0));\
--npstream-error:var(--jp-error-color1,var(--vscode-errorForeground,#cf222e));\
color:var(--npstream-text);background:var(--npstream-back);color-scheme:light;overflow-x:auto;\
font:13px/1.4 var(--jp-ui-font-family,system-ui,sans-serif);padding:4px 0}
@media (prefers-color-scheme:dark){.npstream{\
--npstream-text:var(--jp-content-font-color1,var(--vscode-foreground,#e6edf3));\
--npstream-muted:var(--jp-content-font-color2,var(--vscode-descriptionForeground,#9198a1));\
--npstream-back:var(--jp-layout-color0,var(--vscode-editor-background,#0d1117));\
--npstream-line:var(--jp-border-color2,var(--vscode-panel-border,#3d444d));\
--npstream-error:var(--jp-error-color1,var(--vscode-errorForeground,#f85149));\
color-scheme:dark}}
[data-jp-theme-light="true"] .npstream,.vscode-light .npstream{color-scheme:light}
[data-jp-theme-light="false"] .npstream,.vscode-dark .npstream{color-scheme:dark}
& table{border-collapse:collapse;border:none;margin:0;font-size:inherit;\
table-layout:auto;color:inherit}
& .npstream-head{padding:0 8px 6px;white-space:pre-wrap;overflow-wrap:anywhere}
& tr,& thead,& tbody{background:none;border:none}
& tbody tr:nth-child(even){background:var(--npstream-stripe)}
& th,& td{text-align:left;vertical-align:top;padding:4px 8px;border:none;\
max-width:24em;white-space:normal;overflow-wrap:break-word;unicode-bidi:isolate;color:inherit;\
background:none}
& thead th{border-bottom:1px solid var(--npstream-line);vertical-align:bottom;\
overflow-wrap:normal;font-weight:600}
& small{display:block;color:var(--npstream-muted);font-weight:400;font-size:11px}
& .npstream-n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
& tbody th{color:var(--npstream-muted);font-weight:400}
& .npstream-t{white-space:pre-wrap}
& .npstream-l{display:block;min-width:18em;overflow-wrap:anywhere}
& .npstream-e{color:var(--npstream-error);overflow-wrap:anywhere}
& td .npstream-e{display:block;min-width:12em}
& .npstream-m{color:var(--npstream-muted);overflow-wrap:anywhere}
& p{margin:4px 8px;color:var(--npstream-muted)}
& code{font:12px/1.4 var(--jp-code-font-family,ui-monospace,monospace);\
background:none;color:inherit;padding:0;white-space:pre-wrap;overflow-wrap:anywhere}
& details{margin:0}
& summary{cursor:pointer}
& details>div{padding-left:14px}
& img{display:block;max-width:none;margin:0}
& img.npstream-p{image-rendering:pixelated}
& audio{display:block;width:220px;height:32px}
& .npstream-g{display:grid;gap:6px;padding:0 8px}
& figure{margin:0;text-align:center;overflow:hidden;font-size:11px;\
color:var(--npstream-muted)}
& figure img{margin:0 auto}
""".replace("& ", ".npstream.npstream ")

_CONTROLS = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


class Markup(str):
    """HTML that is inserted unchanged; `escape` and `element` make it.

    Examples
    --------
    >>> element("b", "1 < 2")
    '<b>1 &lt; 2</b>'
    """

    __slots__ = ()


def escape(text: str) -> Markup:
    r"""Return text as HTML; a `Markup` is returned unchanged.

    Characters that HTML does not allow become escapes of Python, such as ``\x00``. Lone
    surrogates do, too: a notebook could not be saved as UTF-8 with them.

    Parameters
    ----------
    text : str

    Returns
    -------
    Markup
    """
    if isinstance(text, Markup):
        return text
    plain = _CONTROLS.sub(_python_escape, text)
    return Markup(html.escape(plain))


def _python_escape(match: re.Match[str]) -> str:
    return match[0].encode("unicode_escape").decode()


def element(tag: str, *children: str, **attributes: str | int | bool) -> Markup:
    """Return an HTML element.

    Parameters
    ----------
    tag : str
        Name of the element.
    *children : str
        Text, which is escaped, or `Markup`.
    **attributes : str, int or bool
        Attributes. A trailing underscore of a name is dropped, as in ``class_``. True makes an
        attribute without a value, and False makes none.

    Returns
    -------
    Markup
    """
    parts = [tag]
    for name, value in attributes.items():
        if value is not False:
            key = name.rstrip("_")
            parts.append(key if value is True else f'{key}="{html.escape(str(value))}"')
    opening = f"<{' '.join(parts)}>"
    if tag in ("img", "br"):
        return Markup(opening)
    return Markup(f"{opening}{''.join(map(escape, children))}</{tag}>")


def document(*children: str) -> Markup:
    """Return the outermost element of the output of a notebook's cell, with the style sheet.

    Two of its classes keep Jupyter from rendering text between dollar signs as a formula.

    Parameters
    ----------
    *children : str
        Text, which is escaped, or `Markup`.

    Returns
    -------
    Markup
    """
    style = Markup(f"<style>{_STYLE}</style>")
    return element("div", style, *children, class_="npstream tex2jax_ignore mathjax_ignore")


def table(
    headers: Sequence[Header],
    rows: Iterable[Sequence[str]],
    *,
    caption: str = "",
    footer: str = "",
    numeric: Iterable[int] = (),
    index: int = 0,
) -> str:
    """Return a table as the HTML output of a notebook's cell.

    Parameters
    ----------
    headers : sequence of str or tuple
        The name of each column, or its name and a note to show under it, such as its type.
    rows : iterable of sequence of str
        The cells of each row: text, which is escaped, or `Markup`.
    caption, footer : str, default: ""
        Text above and under the table.
    numeric : iterable of int, default: ()
        Positions of the columns with numbers, which are aligned to the right.
    index : int, default: 0
        Number of the first columns that are labels of their rows.

    Returns
    -------
    str

    Examples
    --------
    >>> page = table(["name", ("label", "int64")], [["<b>", "3"]], numeric=[1])
    >>> '<td>&lt;b&gt;</td><td class="npstream-n">3</td>' in page
    True
    """
    right = set(numeric)

    def cell(tag: str, number: int, *children: str) -> Markup:
        return element(tag, *children, class_="npstream-n" if number in right else False)

    head = []
    for number, header in enumerate(headers):
        name, note = header if isinstance(header, tuple) else (header, "")
        head.append(cell("th", number, name, element("small", note) if note else ""))
    body = [
        element("tr", *(cell("th" if n < index else "td", n, text) for n, text in enumerate(row)))
        for row in rows
    ]
    parts = [
        element("thead", element("tr", *head)) if headers else "",
        element("tbody", *body),
    ]
    # A title outside of the table does not widen its columns.
    title = element("div", caption, class_="npstream-head") if caption else ""
    return document(title, element("table", *parts), element("p", footer) if footer else "")


def key_value_table(caption: str, pairs: Iterable[tuple[str, str]]) -> str:
    """Return a table of names and values as the HTML output of a notebook's cell.

    Parameters
    ----------
    caption : str
        Text above the table.
    pairs : iterable of tuple
        Names and values.

    Returns
    -------
    str

    Examples
    --------
    >>> "<th>shards</th><td>3</td>" in key_value_table("Cost", [("shards", "3")])
    True
    """
    return table([], pairs, caption=caption, index=1)
