"""Makes what is shown of the results anew: tables and figures beside each JSON file, and the README's tables.

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
from dpcgan_fast.bench.paper import headline_markdown

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results"


def put_between(text: str, name: str, content: str) -> str:
    """Text with what stands between the comments `bench:NAME` and `/bench:NAME` replaced."""
    begin, end = f"<!-- bench:{name} -->\n", f"<!-- /bench:{name} -->"
    head, _, rest = text.partition(begin)
    _, _, tail = rest.partition(end)
    if not tail:
        raise SystemExit(f"The README lacks the comments {begin.strip()} and {end}.")
    return head + begin + content + end + tail


def main() -> None:
    """Renders everything."""
    argparse.ArgumentParser(description="Makes what is shown of bench/results anew, also in the README.").parse_args()
    step = read_results(RESULTS / "step.json")
    write_results(step, RESULTS / "step.json")
    readme = ROOT / "README.md"
    text = put_between(readme.read_text(encoding="utf-8"), "targets", targets_markdown(step))
    text = put_between(text, "others", others_markdown(step, jax_results(RESULTS)))
    on_gpu = read_results(RESULTS / "step_h100.json")
    write_results(on_gpu, RESULTS / "step_h100.json")
    text = put_between(text, "gpu", others_markdown(on_gpu))
    paper = read_results(RESULTS / "paper.json")
    write_results(paper, RESULTS / "paper.json")
    text = put_between(text, "paper", headline_markdown(paper))
    readme.write_text(text, encoding="utf-8")
    before, after = (RESULTS / f"train_{when}.json" for when in ("before", "after"))
    if before.exists() and after.exists():
        compared = compare_markdown(read_results(before), read_results(after))
        (RESULTS / "train.md").write_text(compared, encoding="utf-8")


if __name__ == "__main__":
    main()
