"""The tests notice what would hurt: every row of the table of mutants is noticed by its tests."""

from __future__ import annotations

import ast
import os
import random
import re

import pytest

from tests.mutants.mutants import PASSED, ROOT, Mutant, copies, load, survivors

MUTANTS = load()
#: At least so many lines are watched over.
FEWEST = 300
#: Mutants of which one is tried by each run of the tests.
SHARE = 10
SEED = "MUTANTS_SEED"


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: str(mutant.label)[:100])
def test_the_row_fits_the_code(mutant: Mutant) -> None:
    """A line that has changed without its row is no longer watched over."""
    ast.parse(mutant.applied((ROOT / "maildirqmtp" / mutant.file).read_text()))
    assert mutant.becomes != mutant.there
    assert len(mutant.loses) > 20, "say what a user would lose"
    for file in mutant.noticed_by.split():
        assert re.fullmatch(r"tests/[\w/]+\.py", file.partition("::")[0])
        assert (ROOT / file.partition("::")[0]).exists(), file


def test_the_table_is_as_long_as_was_promised() -> None:
    """A row that is deleted because it is in the way is to be missed."""
    assert len({(m.file, m.there, m.becomes) for m in MUTANTS}) == len(MUTANTS) >= FEWEST


@pytest.mark.timeout(600)
def test_a_tenth_of_the_mutants_is_noticed(capfd: pytest.CaptureFixture[str]) -> None:
    """Others in each run; MUTANTS_SEED repeats one."""
    seed = os.environ.get(SEED) or str(random.SystemRandom().randrange(10**6))
    chosen = random.Random(seed).sample(MUTANTS, len(MUTANTS) // SHARE)
    with capfd.disabled():
        print(f"\nmutants: {len(chosen)} of {len(MUTANTS)}, {SEED}={seed}")
    found = survivors(chosen)
    assert not found, "\n".join([f"{SEED}={seed}", *found])


@pytest.mark.long
@pytest.mark.timeout(7_200)
def test_every_mutant_is_noticed() -> None:
    """And its tests pass without it, so that it is the mutant that they notice."""
    with copies(1) as made:
        copy = made.get()
        for tests in sorted({mutant.noticed_by for mutant in MUTANTS}):
            code, output = copy.run(tests)
            assert code == PASSED, f"{tests} fails without any mutant\n{output[-2_000:]}"
    found = survivors(MUTANTS)
    assert not found, "\n".join(found)
