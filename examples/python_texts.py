# %% [markdown]
# # Texts that every machine has
#
# To train on something without a download: two kinds of text that come with Python.
#
# - The language reference, as `help()` has it (`pydoc_data.topics`).
# - The docstrings of the standard library, a text a module; sources are parsed, not imported.
#
# It is a small corpus with a narrow mind: two hundred thousand tokens, all about Python, and so are
# the features that come out of it. Each version of Python has its own texts.

# %%
import ast
import json
import random
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

QUICK = "--quick" in sys.argv  # as the tests run it

SHORTEST = 400  # characters
LONGEST = 30_000
LEFT_OUT = ("idlelib", "lib2to3", "pydoc_data", "site-packages", "test", "tests", "turtledemo")
Text = dict[str, str]


def reference() -> Iterator[Text]:
    """Pages of the language reference."""
    from pydoc_data.topics import topics

    for name, text in sorted(topics.items()):
        yield {"id": f"reference/{name}", "text": text}


def docstrings() -> Iterator[Text]:
    """Return what each module of the standard library says about itself and what it defines."""
    root = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root)
        if not set(LEFT_OUT) & set(name.parts):
            try:
                tree = ast.parse(path.read_text(encoding="utf-8"))
            except (SyntaxError, UnicodeDecodeError):
                continue  # some modules are there to be wrong
            documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
            said = [ast.get_docstring(node) or "" for node in ast.walk(tree) if isinstance(node, documented)]
            yield {"id": f"docstrings/{name.with_suffix('')}", "text": "\n\n".join(filter(None, said))}


def all_texts() -> list[Text]:
    """Return all texts, each once, cut at `LONGEST`, in a mixed order."""
    found = {}
    for record in (*reference(), *docstrings()):
        if len(record["text"]) >= SHORTEST:
            found.setdefault(record["text"][:SHORTEST], {**record, "text": record["text"][:LONGEST]})
    texts = list(found.values())
    random.Random(0).shuffle(texts)
    return texts


def write_texts(path: Path, held_out: Path, characters: int = 50_000 if QUICK else 800_000) -> None:
    """Write JSON lines: texts of so many characters to train on, and a tenth of that for tests."""
    texts = iter(all_texts())
    for to, limit in ((path, characters), (held_out, characters // 10)):
        taken = 0
        with to.open("w", encoding="utf-8") as file:
            while taken < limit and (record := next(texts, None)):
                taken += len(record["text"])
                file.write(json.dumps(record) + "\n")
        print(f"{to}: {taken:,} characters")


# %%
if __name__ == "__main__":
    write_texts(Path("texts.jsonl"), Path("held_out.jsonl"))
