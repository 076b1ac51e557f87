"""What the site has from outside docs/: CONTRIBUTING.md, the notebook as a page, studies from their records, figures.

A hook of mkdocs. In the docs' source a link to a file of the repository leads there; on the site it becomes its path.
"""

import json
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
FIGURES = {"site/accuracy_sparsity.png": "results/digits/report/accuracy_sparsity.png"}
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)#\s]+)(#[^)\s]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages that are made, and the figures."""
    for notebook in [file for file in files if file.src_uri.endswith(".ipynb")]:
        page = notebook_as_markdown(json.loads(notebook.content_string))
        files.append(File.generated(config, notebook.src_uri.removesuffix(".ipynb") + ".md", content=page))
    contributing = (ROOT / "CONTRIBUTING.md").read_text().replace("](docs/", "](")
    files.append(File.generated(config, "contributing.md", content=contributing))
    files.append(File.generated(config, "studies/each.md", content=studies_as_markdown()))
    for name, path in FIGURES.items():
        files.append(File.generated(config, name, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Replaces links that leave docs/ by the paths that they lead to, seen from the root of the repository."""

    def replaced(link: re.Match[str]) -> str:
        image, text, target, _ = link.groups()
        path = posixpath.normpath(posixpath.join("docs", posixpath.dirname(page.file.src_uri), target))
        if "://" in target or path.startswith("docs/"):
            return link[0]
        if not (ROOT / path).exists():
            return link[0]  # mkdocs warns
        if image:
            name = next(name for name, figure in FIGURES.items() if figure == path)
            return f"![{text}]({posixpath.relpath(name, posixpath.dirname(page.file.src_uri) or '.')})"
        return f"`{path}`" if text.strip("`") in path else f"{text} (`{path}`)"

    return LINK.sub(replaced, markdown)


def notebook_as_markdown(notebook: dict[str, Any]) -> str:
    """Text as it is; code and what it printed as blocks."""
    parts = []
    for cell in notebook["cells"]:
        text = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(text)
            continue
        parts.append(f"```python\n{text}\n```")
        printed = "".join(line for output in cell["outputs"] for line in output["text"])
        if printed:
            parts.append(f"```text\n{printed.rstrip()}\n```")
    return "\n\n".join(parts) + "\n"


def studies_as_markdown() -> str:
    """A section for each study, from its record."""
    from regrow_lab.studies import STUDIES

    parts = ["# What each study costs and gives", "From the records in `src/regrow_lab/studies/`."]
    for study in STUDIES.values():
        parts += [
            f"## {study.name}",
            f"{study.about[0].upper()}{study.about[1:]}.",
            f"**Cost.** {study.cost}",
            f"**Expected{'' if study.expected.startswith(',') else ':'}** {study.expected.removeprefix(', ')}",
        ]
    return "\n\n".join(parts) + "\n"
