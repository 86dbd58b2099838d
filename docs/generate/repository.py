"""Pages for files of the repository that the documentation links to."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Mapping
from pathlib import Path

FOLDER = "repository"
_LINK = re.compile(r"(?<!!)\]\((?![a-z]+:|#)([^)#\s]+)(#[^)\s]*)?\)")
_PICTURES = {".png", ".svg"}  # MkDocs copies those of docs/ as they are
_LANGUAGES = {
    ".toml": "toml", ".py": "python", ".yaml": "yaml", ".yml": "yaml", ".json": "json", ".proto": "protobuf",
    ".service": "ini", ".conf": "ini", ".cfg": "ini", ".sh": "bash", ".tf": "terraform",
}  # fmt: skip


class Repository:
    """Knows where on the site each file of the checkout `root` stands."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def page_of(self, path: str) -> str | None:
        """The page's source path for a path from the root; None: there is no such file."""
        target = self._root / path
        if path.startswith("docs/") and target.suffix in {".md", *_PICTURES} and target.is_file():
            return path.removeprefix("docs/")
        if target.is_dir():
            readme = f"{path}/README.md".lstrip("./")
            return f"{FOLDER}/{readme}" if (self._root / readme).is_file() else f"{FOLDER}/{path}/index.md"
        if target.is_file():
            return f"{FOLDER}/{path}" if target.suffix == ".md" else f"{FOLDER}/{path}.md"
        return None

    def linked_from(self, starts: Mapping[str, str]) -> dict[str, str]:
        """Pages (source path -> text) for all that is linked to from there, directly or through such a page."""
        found: dict[str, str] = {}
        waiting = [(page, text) for page, text in starts.items()]
        while waiting:
            page, text = waiting.pop()
            for path in self._targets(text, page):
                target = self.page_of(path)
                if target is None or not target.startswith(FOLDER) or target in found:
                    continue
                found[target] = self._text(path, target)
                waiting.append((target, found[target]))
        return found

    def rewritten(self, text: str, page: str) -> str:
        """The text with its links into the repository turned into links between pages."""

        def link(match: re.Match[str]) -> str:
            path = self._resolve(match[1], page)
            target = self.page_of(path) if path is not None else None
            if target is None:
                return match[0]
            return f"]({posixpath.relpath(target, posixpath.dirname(page) or '.')}{match[2] or ''})"

        return _LINK.sub(link, text)

    def _targets(self, text: str, page: str) -> list[str]:
        paths = (self._resolve(match[1], page) for match in _LINK.finditer(text))
        return [path for path in paths if path is not None]

    def _resolve(self, link: str, page: str) -> str | None:
        """The linked path from the root, or None where the link leaves it."""
        base = page.removeprefix(f"{FOLDER}/") if page.startswith(FOLDER) else f"docs/{page}"
        path = posixpath.normpath(posixpath.join(posixpath.dirname(base), link))
        return None if path.startswith("..") else path

    def _text(self, path: str, page: str) -> str:
        target = self._root / path
        if target.is_dir() and page.endswith("/index.md"):
            names = sorted(item.name for item in target.iterdir() if item.name[0] not in "._")
            rows = [f"- [{name}]({name})" for name in names if (target / name).is_file()]
            return f"# {path}\n\n" + "\n".join(rows) + "\n"
        if target.is_dir():
            target = target / "README.md"
        text = target.read_text(encoding="utf-8")
        if target.suffix == ".md":
            return text
        return f"# {path}\n\n````{_LANGUAGES.get(target.suffix, 'text')}\n{text}\n````\n"
