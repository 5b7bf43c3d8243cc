"""Two results of `dpcgan bench --suite train` side by side, as a Markdown table.

python bench/compare.py bench/results/train_before.json bench/results/train_after.json
"""

import argparse
from pathlib import Path

from dpcgan_fast.bench import compare_markdown, read_results


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description="Two results of the train benchmark side by side.")
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    arguments = parser.parse_args()
    print(compare_markdown(read_results(arguments.before), read_results(arguments.after)), end="")


if __name__ == "__main__":
    main()
