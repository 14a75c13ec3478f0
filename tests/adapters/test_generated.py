"""A sample of generated refactorings; `python -m tests.adapters.generated` runs thousands.

The decisions that make a case are hypothesis' own, the plainest first, so that a failing case is reduced to what matters.
"""

from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pyrosys.errors import PyrosysError
from tests.adapters.generated.__main__ import made
from tests.adapters.generated.case import OTHER, SAME, composition, mutation

decisions = st.randoms(use_true_random=False)
sample = settings(deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow])


@given(decisions)
@settings(sample, max_examples=25)
def test_two_spellings_of_a_model_are_one_function(random: Random) -> None:
    assert composition(random).truth() < SAME


@given(decisions)
@settings(sample, max_examples=8)
def test_a_mutation_is_another_function(random: Random) -> None:
    assert mutation(random).truth() > OTHER


@given(decisions)
@settings(sample, max_examples=5)
def test_no_weights_go_wrong(random: Random) -> None:
    """Of spellings as unusual as can be, some are refused."""
    outcome, message = composition(random).outcome()
    assert outcome in ("exact", "refused"), message


@pytest.mark.parametrize("number", [*range(10), 146, 405, 716, 864])  # the last ones were refused once
def test_weights_move_between_spellings(number: int) -> None:
    assert made("composition", 0, number).ported() < SAME


@given(decisions)
@settings(sample, max_examples=5)
def test_another_function_is_refused(random: Random) -> None:
    with pytest.raises(PyrosysError):
        mutation(random).ported()
