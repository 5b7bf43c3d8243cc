"""How texts of options are read that several commands have."""

import math

import pytest

from dpcgan_fast.cli.options import epsilons_of
from dpcgan_fast.errors import InputError


def test_epsilons_are_different_positive_numbers_in_the_order_given():
    assert epsilons_of("10,1, inf,1.0", "--epsilons", "1,10") == (10.0, 1.0, math.inf)


@pytest.mark.parametrize("text", ["", "1,", "0,1", "-1", "nan", "one"])
def test_other_texts_are_refused_with_the_option_and_an_example(text):
    with pytest.raises(InputError) as error:
        epsilons_of(text, "--curve-epsilons", "0.5,1,3")
    assert error.value.where == f"--curve-epsilons {text}"
    assert "such as 0.5,1,3" in error.value.how
