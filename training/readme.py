"""Puts a bundle's measured figures into README.md and the bundle's own README.

Run: python -m training.readme, or with --check to see only whether they are up to date.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from models.manifest import BundleError, Manifest, read_manifest
from training.evaluate import REPORT_NAME, summary
from training.model_card import circumstances, drawn, model_card, quality_table

START, END = "<!-- quality:start -->", "<!-- quality:end -->"


def read_report(directory: Path, manifest: Manifest) -> dict[str, Any]:
    """The bundle's report.

    Raises:
        BundleError: there is none, or the manifest's `quality` is not its summary.
    """
    path = directory / REPORT_NAME
    try:
        report: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BundleError(f"{path} cannot be read: {error}; run `rpiae evaluate`") from None
    if summary(report) != manifest.quality:
        raise BundleError(
            f"{directory}: quality in the manifest is not that of {REPORT_NAME}; "
            f"run `rpiae evaluate {directory}`"
        )
    return report


def quality_block(directory: str, manifest: Manifest, report: dict[str, Any]) -> str:
    """What stands between the two markers of README.md; `directory` as the README links it."""
    return "\n\n".join(
        [
            f"![Held-out prompts and edits, and what the model painted]({directory}/samples.png)",
            f"The model in `{directory}`, trained by this repository, draws:",
            drawn(manifest),
            quality_table(report),
            circumstances(report),
        ]
    )


def fill(text: str, block: str, first: str = START, last: str = END) -> str:
    """`text` with `block` between the markers `first` and `last`.

    Raises:
        ValueError: not exactly one pair of markers, in that order.
    """
    before, start, rest = text.partition(first)
    _, end, after = rest.partition(last)
    if not start or not end or first in rest or last in after:
        raise ValueError(f"the README needs one {first} and, below it, one {last}")
    return f"{before}{first}\n\n{block}\n\n{last}{after}"


def outdated(readme: Path, directory: Path) -> dict[Path, str]:
    """Files that do not show the bundle's figures, and what they should hold.

    Raises:
        BundleError: the bundle has no report, or it does not fit the manifest.
    """
    manifest = read_manifest(directory)
    report = read_report(directory, manifest)
    link = directory.resolve().relative_to(readme.resolve().parent).as_posix()
    wanted = {
        readme: fill(readme.read_text(encoding="utf-8"), quality_block(link, manifest, report)),
        directory / "README.md": model_card(manifest, report),
    }
    return {
        path: text
        for path, text in wanted.items()
        if not path.exists() or path.read_text(encoding="utf-8") != text
    }


def main() -> int:
    """Exit status: 1 if --check finds an outdated file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--readme", type=Path, default=Path("README.md"))
    parser.add_argument("--bundle", type=Path, default=Path("bundles/stickers"))
    parser.add_argument("--check", action="store_true", help="write nothing")
    arguments = parser.parse_args()
    files = outdated(arguments.readme, arguments.bundle)
    for path, text in files.items():
        sys.stderr.write(f"{path} {'is outdated' if arguments.check else 'written'}\n")
        if not arguments.check:
            path.write_text(text, encoding="utf-8")
    return int(arguments.check and bool(files))


if __name__ == "__main__":
    sys.exit(main())
