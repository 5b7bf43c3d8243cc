"""What a log file is told of a training."""

import pytest

from dpcgan_fast.cli.progress import TerminalProgress


@pytest.mark.parametrize(("spare", "lines"), [(False, 10), (True, 2)])
def test_networks_that_no_row_depends_on_are_said_to_be_such_and_take_few_lines(capsys, spare, lines):
    with TerminalProgress(spare) as progress:
        for phase in ("autoencoder", "critic"):
            progress.start(phase, 100, 0)
            for step in range(100):
                progress.advance(step + 1, 1.0)
    said = capsys.readouterr().err.splitlines()
    assert len([line for line in said if line.startswith("critic: ") and "/100" in line]) == lines
    assert said[0].startswith("Synthetic rows are drawn from statistics") is spare
    assert "epsilon so far is an upper bound" in said[spare]


def test_steps_that_cost_nothing_are_not_called_private(capsys):
    with TerminalProgress() as progress:
        progress.start("fitting critic", 10, 0)
        for step in range(10):
            progress.advance(step + 1, None)
    _, begun, *said = capsys.readouterr().err.splitlines()
    assert begun == "fitting critic: 10 steps that cost nothing"
    assert said[-1] == "fitting critic: 10/10"
