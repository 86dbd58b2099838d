"""What MkDocs does not do by itself: reference pages made from the code, and links into the repository that work.

Called by `make docs` (mkdocs.yml). A link from a page to a file outside `docs/` gets a page that shows the file, so
that `mkdocs build --strict` checks every link, and the site stands alone.
"""

from __future__ import annotations

import sys
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

sys.path.insert(0, str(Path(__file__).parent))
import reference
from repository import Repository

ROOT = Path(__file__).resolve().parents[2]
_repository = Repository(ROOT)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the reference, and a page for each file of the repository that some page links to."""
    for path, text in reference.pages(ROOT).items():
        files.append(File.generated(config, path, content=text))
    starts = {file.src_uri: file.content_string for file in files.documentation_pages()}
    for path, text in _repository.linked_from(starts).items():
        files.append(File.generated(config, path, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turns links into the repository into links to those pages."""
    del config, files
    return _repository.rewritten(markdown, page.file.src_uri)
