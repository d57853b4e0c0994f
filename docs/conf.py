"""How Sphinx makes the site from these pages: `make docs`, offline, every warning an error."""

import logging
import re
from typing import Any

from docutils import nodes
from latex2mathml.converter import convert

import bigrad

project = "bigrad"
release = bigrad.__version__
copyright = "the authors of bigrad, Apache-2.0"

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.viewcode"]
exclude_patterns = ["pictures"]
myst_enable_extensions = ["deflist", "dollarmath"]
myst_heading_anchors = 3

html_theme = "furo"
html_title = "bigrad"
html_math_renderer = "mathml"
html_static_path = ["_static"]
html_css_files = ["wide.css"]
html_copy_source = False
smartquotes = False

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 100

# Types in signatures. Those of torch, numpy and CVXPY have no page here, since no inventory is downloaded; those of
# bigrad that are not public have none on purpose. Links in the text are checked.
nitpick_ignore_regex = [("py:class|py:obj|py:data", ".*")]


# A folder of examples may be empty. (Sphinx 9.0 gives this warning no type, so suppress_warnings cannot name it.)
logging.getLogger("sphinx.sphinx.directives.other").addFilter(lambda r: getattr(r, "subtype", "") != "empty_glob")


def plain(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Docstrings are plain text: indented blocks and tables are shown as they stand, `code` is code, nothing else is markup."""
    found = []
    for block in re.split(r"\n\s*\n", "\n".join(lines).strip("\n")):
        if re.match(r" {2,}|\|", block):
            found += [".. code-block:: text", "", *("    " + line for line in block.split("\n")), ""]
        elif re.match(r"\w+:\n ", block):  # "Args:" and its entries, "Source:" and a text
            head, rest = block.split("\n", 1)
            bullet = "* " if re.match(r" +\w+: ", rest) else ""
            entries = re.split(r"\n {4}(?=\w+: )", rest)
            found += [head, "", *(bullet + escaped(re.sub(r"\s+", " ", entry.strip())) for entry in entries), ""]
        else:
            found += [escaped(block), ""]
    lines[:] = "\n".join(found).split("\n")


def escaped(text: str) -> str:
    """Plain text with `code` as reStructuredText."""
    parts = re.split(r"(`+[^`]+`+)", text)
    return "".join(f"``{p.strip('`')}``" if k % 2 else re.sub(r"([\\*_|])", r"\\\1", p) for k, p in enumerate(parts))


def short(app: Any, what: str, name: str, obj: Any, options: Any, signature: str | None, returns: str | None) -> Any:
    """Signatures in which a default that is made anew for each object is an ellipsis, so that Sphinx can read them."""
    return (signature.replace("<factory>", "..."), returns) if signature else None


def mathml(formula: str, display: str) -> str:
    """A formula as MathML, which browsers draw by themselves."""
    formula = formula.replace(r"\arg", r"\operatorname{arg}")
    if display == "block":
        formula = re.sub(r"\\(min|max)_", r"\\\1\\limits_", formula)
    found: str = convert(formula, display=display)
    if "\\" in found:
        raise ValueError(f"latex2mathml does not know a command in {formula}")
    return found


def inline(writer: Any, node: nodes.math) -> None:
    """A formula in a line."""
    writer.body.append(mathml(node.astext(), "inline"))
    raise nodes.SkipNode


def block(writer: Any, node: nodes.math_block) -> None:
    """A formula of its own."""
    writer.body.append(f"<div class='math'>{mathml(node.astext(), 'block')}</div>")
    raise nodes.SkipNode


def setup(app: Any) -> None:
    """What Sphinx asks a configuration for."""
    app.add_html_math_renderer("mathml", (inline, None), (block, None))
    app.connect("autodoc-process-docstring", plain)
    app.connect("autodoc-process-signature", short)
