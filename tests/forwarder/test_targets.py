"""Maildirs that mail is moved to, and that somebody moves, removes or replaces meanwhile.

Mail in a directory that is not at its path is mail that nobody finds.
"""

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from maildirqmtp.errors import LocalError
from maildirqmtp.forwarder.targets import REHEARSE_S
from maildirqmtp.mail.sidecar import Sidecar
from maildirqmtp.maildir import files, sidecars, writing
from maildirqmtp.maildir.files import Folder, Message
from maildirqmtp.maildir.maildir import Maildir
from tests.fakes import FileSystem
from tests.forwarder.doubles import SettlerCase
from tests.helpers import make_maildir, names, sidecar


@pytest.fixture
def case(tmp_path: Path) -> Iterator[SettlerCase]:
    """A maildir with a settler that keeps what was sent."""
    made = SettlerCase(tmp_path)
    made.make(sent=os.fsencode(tmp_path / "box" / "Sent"))
    (tmp_path / "box").mkdir()
    yield made
    made.maildir.close()


@pytest.fixture
def sent(case: SettlerCase) -> Path:
    """Where what was sent is kept."""
    return case.root / "box" / "Sent"


def _remove(target: Path) -> None:
    shutil.rmtree(target)


def _empty(target: Path) -> None:
    for part in target.iterdir():
        shutil.rmtree(part)


def _remove_tmp(target: Path) -> None:
    (target / "tmp").rmdir()


def _move(target: Path) -> None:
    target.rename(f"{target}.old")


def _replace(target: Path) -> None:
    _move(target)
    make_maildir(target)


def _replace_new(target: Path) -> None:
    (target / "new").rename(target / "new.old")
    (target / "new").mkdir()


WAYS = [_remove, _empty, _remove_tmp, _move, _replace, _replace_new]


def _at(case: SettlerCase, sent: Path, answer: str) -> Path:
    return sent if answer == "Kok" else case.failed


@pytest.mark.parametrize("answer", ["Kok", "Dno"])
@pytest.mark.parametrize("way", WAYS)
def test_the_next_message_is_in_what_is_at_the_path_then(
    case: SettlerCase, sent: Path, way: Callable[[Path], None], answer: str
) -> None:
    """As of a run that begins then; and the server, which has it, does not get it again."""
    target = _at(case, sent, answer)
    assert case.settle(case.add("1.a"), answer) is None
    case.settler.tick()
    way(target)
    assert case.settle(case.add("2.a"), answer) is None
    case.settler.finish()
    assert case.settler.local_error is None
    assert case.new == []
    found = names(target / "new")
    assert found == (["1.a", "2.a"] if way is _remove_tmp else ["2.a"])
    moved = [
        *Path(f"{target}.old", "new").glob("*"),
        *(target / "new.old").glob("*"),
    ]
    assert [path.name for path in moved] in ([], ["1.a"]), "it is in one place"
    if answer == "Dno":
        assert sidecar(target, "2.a")["recipients"] == ["recipient@example.net"]
    assert "was renamed, removed or replaced" in case.log.getvalue()


@pytest.mark.parametrize("answer", ["Kok", "Dno"])
@pytest.mark.parametrize("way", WAYS)
def test_the_message_stays_until_it_is_at_the_path(
    case: SettlerCase,
    sent: Path,
    way: Callable[[Path], None],
    answer: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Put in, and carried away with its directory before the original goes."""
    target = _at(case, sent, answer)
    real, left = writing.adopt, [way]

    def adopt(to: Maildir, message: Message, name: bytes) -> None:
        real(to, message, name)
        if left:
            left.pop()(target)

    monkeypatch.setattr(writing, "adopt", adopt)
    assert case.settle(case.add("1.a"), answer) is None
    case.settler.finish()
    assert names(target / "new") == ["1.a"]
    assert case.new == []


def test_a_failed_maildir_whose_sidecars_were_moved_gets_the_next_one(case: SettlerCase) -> None:
    """Without it, nobody could tell who has failed, and all would get the message again."""
    case.settle(case.add("1.a", "a@y"), "Dno")
    (case.failed / "envelope").rename(case.failed / "envelope.old")
    case.settler.tick()
    case.settle(case.add("2.a", "a@y", "b@y"), "Kok", "Dno")
    case.settler.finish()
    assert sidecar(case.failed, "2.a")["recipients"] == ["b@y"]


def test_a_failed_message_stays_until_its_sidecar_is_where_it_is_looked_for(
    case: SettlerCase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Moved without it, nobody could tell who has failed."""
    one = case.add("1.a", "a@y")
    real = writing.adopt

    def adopt(to: Maildir, message: Message, name: bytes) -> None:
        real(to, message, name)
        (case.failed / "envelope").rename(case.failed / "envelope.old")

    monkeypatch.setattr(writing, "adopt", adopt)
    case.settle(one, "Dno")
    assert case.new == ["1.a"]
    monkeypatch.setattr(writing, "adopt", real)
    assert case.settler.mend()
    case.settle(case.load("1.a"), "Dno")
    assert case.new == []
    assert sidecar(case.failed, "1.a")["recipients"] == ["a@y"]


def test_what_is_moved_away_is_durable_before_it_is_closed(
    case: SettlerCase, sent: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power cut would leave the message in neither place."""
    case.settle(case.add("1.a"), "Kok")
    _move(sent)
    case.settler.tick()
    system = FileSystem(monkeypatch, case.root)
    case.settle(case.add("2.a"), "Kok")
    case.settler.finish()
    assert [call for call in system.of("fsync") if call.endswith("/new")] == [
        "fsync box/Sent.old/new",
        "fsync M/new",
        "fsync box/Sent/new",
        "fsync M/new",
    ]


def test_where_it_cannot_be_made_again_nothing_more_is_taken(case: SettlerCase, sent: Path) -> None:
    """The server has the message: it waits here, not sent again, until there is a place for it."""
    case.settle(case.add("1.a"), "Kok")
    case.settler.tick()
    shutil.rmtree(sent.parent)
    kept = case.settle(case.add("2.a"), "Kok")
    assert kept is not None
    assert case.settler.local_error is not None
    assert not case.settler.mend()
    assert case.new == ["2.a"]
    assert "changed" not in case.log.getvalue(), "nobody has touched the message"
    make_maildir(sent)
    assert case.settler.mend()
    assert case.new == []
    assert names(sent / "new") == ["2.a"]
    assert case.report.counters.exit_code == 111


def test_one_that_is_at_its_path_is_not_looked_for_again(
    case: SettlerCase, sent: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk is no reason to make it anew, nor to try twice."""
    case.settle(case.add("1.a"), "Kok")
    system = FileSystem(monkeypatch, case.root)
    system.always_fail("link M", errno.ENOSPC)
    case.settle(case.add("2.a"), "Kok")
    assert len(system.of("link")) == 1
    assert "anew" not in case.log.getvalue()


def test_a_target_that_is_never_the_same_is_given_up(
    case: SettlerCase, sent: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message is not taken away, and no run goes round in circles."""
    real = writing.adopt

    def adopt(to: Maildir, message: Message, name: bytes) -> None:
        real(to, message, name)
        shutil.rmtree(sent)

    monkeypatch.setattr(writing, "adopt", adopt)
    case.settle(case.add("1.a"), "Kok")
    assert case.new == ["1.a"]
    assert "box/Sent was replaced while mail was being moved to it" in case.log.getvalue()
    monkeypatch.setattr(writing, "adopt", real)
    case.settler.finish()
    assert names(sent / "new") == ["1.a"]


# Others of its recipients have failed before


def _open_in_reader(case: SettlerCase) -> None:
    os.rename(case.failed / "new" / "1.a", case.failed / "cur" / "1.a:2,S")


def _fail_twice(case: SettlerCase, meanwhile: Callable[[], object]) -> None:
    """Have the server refuse a recipient, and the other one after something else has happened."""
    case.settle(case.add("1.a", "a@y", "b@y", "c@y"), "Dno", "Zlater", "Kok")
    case.settler.finish()
    meanwhile()
    case.settle(case.load(), "Dno")
    case.settler.finish()
    assert case.new == []


def test_one_that_a_mail_reader_has_opened_keeps_its_own_sidecar(case: SettlerCase) -> None:
    """Two files with one sidecar: resent, the second has none, and who has the mail gets it."""
    _fail_twice(case, lambda: _open_in_reader(case))
    assert names(case.failed / "cur") == ["1.a:2,S"]
    assert sidecar(case.failed, "1.a")["recipients"] == ["a@y"]
    assert names(case.failed / "new") == ["1.a.1"]
    assert sidecar(case.failed, "1.a.1")["recipients"] == ["b@y"]


def test_one_that_a_mail_reader_opens_at_that_moment_is_there_once(
    case: SettlerCase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In cur/, for both recipients; linked into new/ as well, it would be sent twice."""
    real = sidecars.write

    def write(to: Maildir, name: bytes, content: Sidecar) -> None:
        real(to, name, content)
        if to.path == os.fsencode(case.failed) and names(case.failed / "new"):
            _open_in_reader(case)

    monkeypatch.setattr(sidecars, "write", write)
    _fail_twice(case, lambda: None)
    assert (names(case.failed / "new"), names(case.failed / "cur")) == ([], ["1.a:2,S"])
    assert sidecar(case.failed, "1.a")["recipients"] == ["a@y", "b@y"]


def test_one_that_is_resent_at_that_moment_comes_back(
    case: SettlerCase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its sidecar alone would be an orphan, and the second recipient forgotten."""
    real = sidecars.write

    def write(to: Maildir, name: bytes, content: Sidecar) -> None:
        real(to, name, content)
        if to.path == os.fsencode(case.failed):
            (case.failed / "new" / "1.a").unlink(missing_ok=True)

    monkeypatch.setattr(sidecars, "write", write)
    _fail_twice(case, lambda: None)
    assert names(case.failed / "new") == ["1.a"]
    assert "b@y" in sidecar(case.failed, "1.a")["recipients"]


def test_an_orphan_of_that_name_says_nothing_of_who_failed_now(case: SettlerCase) -> None:
    """A resend was killed before it removed the sidecar: they would get the mail once more."""
    _fail_twice(case, lambda: (case.failed / "new" / "1.a").unlink())
    assert names(case.failed / "new") == ["1.a"]
    assert sidecar(case.failed, "1.a")["recipients"] == ["b@y"]


# Whether what is accepted can be moved to --sent is proved before it is sent


class Calls:
    """Has links and new files fail in the maildir of what was sent, as its file system does."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, sent: Path) -> None:
        self._sent = str(sent)
        #: Errors of a link from elsewhere, of one from tmp/ to new/, and of making a file.
        self.from_outside = self.inside = self.create = 0
        link, create = os.link, files.create

        def failing_link(name: bytes, new: bytes, *, src_dir_fd: int, **more: Any) -> None:
            is_inside = os.readlink(f"/proc/self/fd/{src_dir_fd}").startswith(self._sent)
            self._raise(self.inside if is_inside else self.from_outside)
            link(name, new, src_dir_fd=src_dir_fd, **more)

        def failing_create(folder: Folder, name: bytes, mode: int = 0o600) -> int:
            if os.fsdecode(folder.path).startswith(self._sent):
                self._raise(self.create)
            return create(folder, name, mode)

        monkeypatch.setattr(os, "link", failing_link)
        monkeypatch.setattr(files, "create", failing_create)

    @staticmethod
    def _raise(number: int) -> None:
        if number:
            raise OSError(number, os.strerror(number))


@pytest.fixture
def calls(sent: Path, monkeypatch: pytest.MonkeyPatch) -> Calls:
    """Calls that work."""
    return Calls(monkeypatch, sent)


def _leaves_nothing(sent: Path) -> bool:
    return [*(sent / "tmp").iterdir()] == [*(sent / "new").iterdir()] == []


def test_the_rehearsal_leaves_nothing(case: SettlerCase, sent: Path) -> None:
    """A file in somebody's archive that nobody has sent."""
    case.settler.prove_sent()
    probe = sent / "new" / ".maildirqmtp-probe"
    probe.write_bytes(b"of a run that was killed")
    case.settler.prove_sent()
    assert _leaves_nothing(sent)
    probe.mkdir()  # by somebody who wants no mail to go
    case.settler.prove_sent()
    assert names(sent / "new") == [".maildirqmtp-probe"]


@pytest.mark.parametrize("error", [errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS])
def test_where_there_are_no_hard_links_nothing_is_sent(
    case: SettlerCase, sent: Path, calls: Calls, error: int
) -> None:
    """A stick with FAT: all was sent, none could be moved, and the next run sent all again."""
    calls.from_outside, calls.inside = errno.EXDEV, error
    case.settler.prove_room(case.add("1.a").message)  # `prove_sent` tells
    with pytest.raises(LocalError, match="needs a file system with hard links"):
        case.settler.prove_sent()
    assert _leaves_nothing(sent)


def test_where_no_file_may_be_made_nothing_is_sent(
    case: SettlerCase, sent: Path, calls: Calls
) -> None:
    """tmp/ belongs to somebody else, new/ does not."""
    calls.from_outside, calls.create = errno.EACCES, errno.EACCES
    with pytest.raises(LocalError, match=r"cannot move messages to .*Sent: Permission denied"):
        case.settler.prove_sent()


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EDQUOT])
def test_without_room_what_can_be_linked_is_sent(
    case: SettlerCase, sent: Path, calls: Calls, error: int
) -> None:
    """No inode, or the user's quota: free bytes do not tell. A link needs neither."""
    calls.create = error
    one = case.add("1.a").message
    case.settler.prove_sent()
    case.settler.prove_room(one)
    calls.from_outside = errno.EXDEV
    with pytest.raises(LocalError, match=f"Sent afterwards: {os.strerror(error)}"):
        case.settler.prove_room(one)
    case.clock.advance(REHEARSE_S)
    calls.create = 0  # somebody has made room
    case.settler.prove_room(one)


@pytest.mark.parametrize("error", [errno.EDQUOT, errno.EROFS])
def test_what_fills_up_meanwhile_is_noticed(
    case: SettlerCase, sent: Path, calls: Calls, error: int
) -> None:
    """A daemon proves not only once; what was sent until then is what cannot be moved."""
    calls.from_outside = errno.EXDEV
    one = case.add("1.a").message
    case.settler.prove_sent()
    calls.create = error
    case.settler.prove_room(one)
    case.clock.advance(REHEARSE_S)
    for _ in range(2):
        with pytest.raises(LocalError, match="Sent"):
            case.settler.prove_room(one)
