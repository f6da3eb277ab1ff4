"""Vocabularies that ship with the project, by name; each lies beside its card."""

from pathlib import Path

_FOLDER = Path(__file__).parent


def names() -> list[str]:
    """Names that `Tokenizer.path` and the tools take in place of a path."""
    return sorted(path.stem for path in _FOLDER.glob("*.model"))


def shipped(path: str) -> str:
    """The file of a vocabulary that ships, where `path` is its name; else `path` itself."""
    return str(_FOLDER / f"{path}.model") if path in names() else path
