"""Numbers and addresses outlive the agent, also where the file that says so does not."""

from __future__ import annotations

from pathlib import Path

from worlds import CONFIG

from agent.numbers import Numbers
from agent.world.allocations import Allocations
from policies.model import ObjectRef

WEB, DNS = ObjectRef("Pod", "shop", "web"), ObjectRef("Pod", "shop", "dns")


def begun(path: Path) -> tuple[Allocations, Numbers]:
    allocations = Allocations(CONFIG)
    return allocations, Numbers(allocations, path)


def test_the_next_agent_gives_the_same(tmp_path: Path) -> None:
    first, numbers = begun(tmp_path / "state.json")
    assert numbers.restore() == set()
    given = first.pod_addresses(WEB), first.endpoints.allocate("shop/web")
    numbers.save_all()
    later = first.pod_addresses(DNS), first.endpoints.allocate("shop/dns")
    numbers.save()
    second, numbers = begun(tmp_path / "state.json")
    assert numbers.restore() == {WEB, DNS}
    assert (second.pod_addresses(WEB), second.endpoints.allocate("shop/web")) == given
    assert (second.pod_addresses(DNS), second.endpoints.allocate("shop/dns")) == later
    assert numbers.notices == []


def test_what_is_given_up_is_not_restored(tmp_path: Path) -> None:
    first, numbers = begun(tmp_path / "state.json")
    first.endpoints.allocate("shop/web")
    numbers.save()
    first.release_pod(WEB)
    numbers.save()
    _, numbers = begun(tmp_path / "state.json")
    assert numbers.restore() == set()


def test_pods_that_run_keep_their_addresses_without_the_file(tmp_path: Path) -> None:
    first, numbers = begun(tmp_path / "state.json")
    taken, other = first.pod_addresses(DNS), first.pod_addresses(WEB)
    assert taken != other
    numbers.save_all()
    (tmp_path / "state.json").write_text("{")
    second, numbers = begun(tmp_path / "state.json")
    assert numbers.restore() == set()
    assert len(numbers.notices) == 1
    assert "numbers are given afresh" in numbers.notices[0]
    numbers.restore_addresses(WEB, taken)
    assert second.pod_addresses(WEB) == taken, "whatever it would have been given"
    assert set(second.pod_addresses(DNS)).isdisjoint(taken)
