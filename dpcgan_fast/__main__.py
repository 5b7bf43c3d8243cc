"""`python -m dpcgan_fast` is the `dpcgan` command."""

from dpcgan_fast.cli import main

main()
