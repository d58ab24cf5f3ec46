"""Results: the wrong answer for a recipient is a message lost or sent twice."""

import pytest

from maildirqmtp.response import Response, Status
from maildirqmtp.results import Outcome, SendResult

YES, LATER, NO = (Response(status, b"x") for status in Status)
RESULT = SendResult(
    [
        Outcome(b"a@x", YES),
        Outcome(b"b@x", LATER, answered=False, in_doubt=True),
        Outcome("jürgen@x".encode(), NO),
        Outcome(b"a@x", NO),
        Outcome(b"\xff@x", YES),
    ]
)


def test_it_is_a_sequence_in_the_recipients_order_with_doubles() -> None:
    """A list that drops a double no longer fits the list the program sent."""
    assert len(RESULT) == 5
    assert [r.recipient for r in RESULT] == ["a@x", "b@x", "jürgen@x", "a@x", "\udcff@x"]
    assert RESULT[0] == Outcome(b"a@x", YES)
    assert RESULT[-1].response is YES
    assert [r.address for r in RESULT[1:3]] == [b"b@x", "jürgen@x".encode()]
    assert RESULT.index(Outcome(b"a@x", NO)) == 3


@pytest.mark.parametrize(
    ("key", "response"),
    [
        ("a@x", NO),
        (b"a@x", NO),
        ("b@x", LATER),
        ("jürgen@x", NO),
        ("jürgen@x".encode(), NO),
        (b"\xff@x", YES),
        ("\udcff@x", YES),
    ],
)
def test_a_recipient_is_the_key_of_his_last_response(key: str | bytes, response: Response) -> None:
    """As str or bytes, also where he is not ASCII or not even UTF-8."""
    assert RESULT[key] is response
    assert key in RESULT


def test_others_are_no_keys() -> None:
    """A typing error must not look like an answer."""
    with pytest.raises(KeyError, match="A@x"):
        RESULT["A@x"]
    assert "A@x" not in RESULT
    assert 7 not in RESULT
    assert RESULT[2] in RESULT


def test_the_three_outcomes_and_doubt() -> None:
    """What programs branch on."""
    assert RESULT.accepted == (RESULT[0], RESULT[4])
    assert RESULT.deferred == RESULT.in_doubt == (RESULT[1],)
    assert RESULT.failed == (RESULT[2], RESULT[3])


def test_results_are_values() -> None:
    """Compared, hashed and shown in a test or a log."""
    same = SendResult(list(RESULT))
    assert same == RESULT
    assert hash(RESULT) == hash(same)
    assert SendResult([]) != RESULT
    assert "b@x" in repr(RESULT)


def test_text_is_fit_for_a_terminal_and_raw_is_not_touched() -> None:
    """A server must not be able to clear the screen, and a program may want the bytes."""
    response = Response(Status.FAILED, b"\x1b[2J no\n")
    assert (response.text, response.raw) == ("?[2J no?", b"\x1b[2J no\n")
