"""Makes what is shown of the results anew: tables and figures beside each JSON file, and tables of README and docs.

    python bench/render.py

For after a benchmark was run into bench/results, or bench/jax_privacy_step.py, whose column then joins the step table.
Where bench/results has train_before.json and train_after.json, train.md compares them.
"""

import argparse
from pathlib import Path

from dpcgan_fast.bench import (
    compare_markdown,
    jax_results,
    others_markdown,
    read_results,
    targets_markdown,
    write_results,
)  # fmt: skip
from dpcgan_fast.bench.paper import headline_markdown, overview_markdown

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results"


def put_between(text: str, name: str, content: str, where: Path) -> str:
    """Text with what stands between the comments `bench:NAME` and `/bench:NAME` replaced."""
    begin, end = f"<!-- bench:{name} -->\n", f"<!-- /bench:{name} -->"
    head, _, rest = text.partition(begin)
    _, _, tail = rest.partition(end)
    if not tail:
        raise SystemExit(f"{where} lacks the comments {begin.strip()} and {end}: put them where the table belongs.")
    return head + begin + content + end + tail


def tables_of_pages() -> dict[Path, dict[str, str]]:
    """Each page that shows results, with its tables by the names in its comments."""
    step, on_gpu, paper = (read_results(RESULTS / f"{name}.json") for name in ("step", "step_h100", "paper"))
    return {
        ROOT / "README.md": {"overview": overview_markdown(paper), "targets": targets_markdown(step)},
        ROOT / "docs" / "utility.md": {"paper": headline_markdown(paper)},
        ROOT / "docs" / "engine.md": {
            "others": others_markdown(step, jax_results(RESULTS)), "gpu": others_markdown(on_gpu)
        },
    }  # fmt: skip


def main() -> None:
    """Renders everything."""
    argparse.ArgumentParser(description="Makes what is shown of bench/results anew, also on the pages.").parse_args()
    for name in ("step", "step_h100", "paper"):
        path = RESULTS / f"{name}.json"
        write_results(read_results(path), path)
    for page, tables in tables_of_pages().items():
        text = page.read_text(encoding="utf-8")
        for name, content in tables.items():
            text = put_between(text, name, content, page)
        page.write_text(text, encoding="utf-8")
    before, after = (RESULTS / f"train_{when}.json" for when in ("before", "after"))
    if before.exists() and after.exists():
        compared = compare_markdown(read_results(before), read_results(after))
        (RESULTS / "train.md").write_text(compared, encoding="utf-8")


if __name__ == "__main__":
    main()
