"""The record of attachments on file: whole at every moment, and without a new file for each change."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from agent.cni.attachments import PAGE_BYTES, Attachment, Attachments
from agent.cni.protocol import Key
from agent.objects import Interface
from policies.address import parse_address
from policies.model import ObjectRef

ADDRESSES = (parse_address("10.1.0.5"), parse_address("fd00::5"))


def attachment(netns: str = "/run/netns/c", interface: Interface | None = None) -> Attachment:
    pod = ObjectRef("Pod", "shop", "web")
    return Attachment(Key("c", "eth0"), pod, "u", netns, "gatehouse", ADDRESSES, 1, interface=interface)


def opened(folder: Path) -> Attachments:
    record = Attachments(folder)
    assert record.load() == []
    return record


@pytest.mark.parametrize(
    ("first", "second", "kept"),
    [
        (attachment(), attachment(interface=Interface(7, "gh1", b"\2" * 6, b"\4" * 6, "/run/netns/c")), True),
        (attachment("/run/netns/" + "long" * 20), attachment("/n"), True),
        (attachment("/" + "n" * PAGE_BYTES), attachment("/n"), False),
        (attachment("/n"), attachment("/" + "n" * PAGE_BYTES), False),
    ],
    ids=["longer", "shorter", "from more than a page", "to more than a page"],
)
def test_a_change_is_written_over_what_was_there(
    first: Attachment, second: Attachment, kept: bool, tmp_path: Path
) -> None:
    record = opened(tmp_path / "attachments")
    record.put(first)
    (path,) = (tmp_path / "attachments").iterdir()
    before = path.stat().st_ino
    link = tmp_path / "held"
    os.link(path, link)  # so that the number is not given out again
    record.put(second)
    assert (path.stat().st_ino == before) == kept
    assert list(opened(tmp_path / "attachments")) == [second]


def test_what_is_noted_is_on_file_once_it_is_written(tmp_path: Path) -> None:
    record = opened(tmp_path / "attachments")
    record.note(attachment())
    assert record.get(Key("c", "eth0")) == attachment() and not list(opened(tmp_path / "attachments"))
    record.write(attachment())
    assert list(opened(tmp_path / "attachments")) == [attachment()]
    record.remove(Key("c", "eth0"))
    assert not list(opened(tmp_path / "attachments")) and not list(record)


def test_an_agent_killed_before_it_wrote_leaves_nothing(tmp_path: Path) -> None:
    opened(tmp_path / "attachments")
    (tmp_path / "attachments" / "c@eth0.json").touch()
    assert not list(opened(tmp_path / "attachments"))
    assert not list((tmp_path / "attachments").iterdir())
