"""A small Sphinx extension: what Jupyter Book does not do for a site that works offline.

- drops the script of sphinx-thebe, which is loaded on every page and only raises an error there;
- lets the Colab button open ``notebooks/NAME.ipynb`` (Colab cannot open a Markdown file);
- offers that notebook for download;
- copies the script and style of the interactive figures from ``qlab.viz`` into the site.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

COLAB = "https://colab.research.google.com/github/"


def drop_thebe(app: Any, page: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    """Remove thebe from the scripts and styles of a page, those written into the page included."""

    def thebe(file: Any) -> bool:
        body = getattr(file, "attributes", {}).get("body") or ""
        return "thebe" in f"{getattr(file, 'filename', file)} {body}".lower()

    for kind in ("script_files", "css_files"):
        files = context.get(kind)
        if files is not None:
            context[kind] = [f for f in files if not thebe(f)]


def link_notebook(
    app: Any, page: str, template: str, context: dict[str, Any], doctree: Any
) -> None:
    """Point the Colab button and a download button at the page's notebook."""
    name = f"{page.rsplit('/', 1)[-1]}.ipynb"
    file = Path(app.srcdir) / "notebooks" / name
    for group in context.get("header_buttons", []):
        if group.get("label") == "launch-buttons":
            for button in group["buttons"]:
                if "colab" in button.get("url", ""):
                    repository = app.config.html_theme_options["repository_url"].split(".com/")[1]
                    button["url"] = f"{COLAB}{repository}/blob/main/notebooks/{name}"
        if group.get("label") == "download-buttons" and file.is_file():
            root = context["pathto"]("_notebooks/" + name, resource=True)
            group["buttons"].insert(
                0,
                {
                    "type": "link",
                    "url": root,
                    "text": ".ipynb",
                    "tooltip": "Download as a notebook",
                    "icon": "fas fa-file-code",
                    "label": "download-notebook-button",
                },
            )


def copy_notebooks(app: Any, error: Exception | None) -> None:
    """Put the notebooks beside the pages."""
    if error is None and app.builder.format == "html":
        out = Path(app.outdir) / "_notebooks"
        out.mkdir(exist_ok=True)
        for file in sorted((Path(app.srcdir) / "notebooks").glob("*.ipynb")):
            (out / file.name).write_bytes(file.read_bytes())


def setup(app: Any) -> dict[str, Any]:
    """Register with Sphinx."""
    app.connect("html-page-context", drop_thebe, priority=900)
    app.connect("html-page-context", link_notebook, priority=901)
    app.connect("build-finished", copy_notebooks)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
