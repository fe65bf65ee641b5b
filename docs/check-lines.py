#!/usr/bin/env python3
"""Checks the references into llama.cpp that the pages in docs/ make against the pinned source: each `name` (`file:line`), or the two in
cells of a table, must be true, and each `file:line` must exist. Run it after the pin or a patch has moved.

usage: docs/check-lines.py [LLAMA-SOURCE]     (default: the source of scripts/build-llama.sh native)
"""
import pathlib
import re
import subprocess
import sys

docs = pathlib.Path(__file__).resolve().parent
PLACE = r"`((?:src/llama|src/models/|ggml/|common/|tools/)[\w./-]*):(\d+)`"
NAMED = re.compile(r"`([\w:~]+)`(?: \(| \| )" + PLACE)


def main() -> int:
    if len(sys.argv) > 1:
        source = pathlib.Path(sys.argv[1])
    else:
        prefix = subprocess.run([docs.parent / "scripts/build-llama.sh", "native"], check=True, capture_output=True, text=True)
        source = pathlib.Path(prefix.stdout.strip()) / "source"
    files: dict[str, list[str]] = {}
    checked, wrong = 0, []

    def line_of(file: str, number: int) -> str | None:
        if file not in files:
            path = source / file
            files[file] = path.read_text(errors="replace").splitlines() if path.is_file() else []
        return files[file][number - 1] if 0 < number <= len(files[file]) else None

    for page in sorted(docs.glob("*.md")):
        text = page.read_text()
        for file, number in re.findall(PLACE, text):
            checked += 1
            if line_of(file, int(number)) is None:
                wrong.append(f"{page.name}: {file} has no line {number}")
        for name, file, number in NAMED.findall(text):
            line = line_of(file, int(number))
            if line is None or name.split("::")[-1] not in line:
                at = [i for i, l in enumerate(files.get(file, []), 1) if re.search(rf"\b{name.split('::')[-1]}\(", l)]
                wrong.append(f"{page.name}: {name} is not in {file}:{number} (seen in lines {at[:6]})")
    print("\n".join(wrong + [f"{checked} references checked, {len(wrong)} wrong"]))
    return 1 if wrong or not checked else 0


if __name__ == "__main__":
    raise SystemExit(main())
