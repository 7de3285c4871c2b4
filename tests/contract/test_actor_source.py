"""The contract of a source of actors, on a folder of manifests; Kubernetes itself is covered by tests/e2e."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from aether_api.errors import SettingsInvalid
from aether_api.identity import ActorId, Epoch, PodUid, parse_actor_id
from aether_api.v1alpha1 import ActorModel
from aether_runtime.adapters.folder import FolderSource
from aether_runtime.ports import DesiredActor, ShownStatus

MODEL = """
apiVersion: aether.flowmade.one/v1alpha1
kind: ActorModel
metadata: {name: counter}
spec:
  description: DESCRIPTION
  events: {Counted: {}}
  commands: {Count: {emits: [{event: Counted}]}}
"""
ALICE, BOB = parse_actor_id("default", "counter", "alice"), parse_actor_id("default", "counter", "bob")


def actor(name: str, spec: str = "") -> str:
    return f"---\napiVersion: aether.flowmade.one/v1alpha1\nkind: Actor\nmetadata: {{name: {name}}}\nspec: {{model: counter{spec}}}\n"


class Recording:
    """A listener that keeps what it was told."""

    def __init__(self) -> None:
        self.models: dict[str, ActorModel] = {}
        self.held: dict[ActorId, DesiredActor] = {}
        self.syncs = 0
        self.models_at_first_sync: list[str] | None = None
        self.told = 0

    def on_model(self, model: ActorModel) -> None:
        self.told += 1
        self.models[model.metadata.name] = model

    def on_model_gone(self, name: str) -> None:
        self.told += 1
        del self.models[name]

    def on_synced(self) -> None:
        self.syncs += 1
        if self.models_at_first_sync is None:
            self.models_at_first_sync = sorted(self.models)

    def on_adopt(self, desired: DesiredActor) -> None:
        known = self.held.get(desired.actor)
        if known is None or desired.epoch >= known.epoch:
            self.held[desired.actor] = desired

    def on_release(self, actor: ActorId, epoch: Epoch) -> None:
        known = self.held.get(actor)
        if known is not None and known.epoch <= epoch:
            del self.held[actor]

    def on_status_shown(self, actor: ActorId, shown: ShownStatus) -> None:
        raise AssertionError("a folder holds no status")

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not condition():
                await asyncio.sleep(0.005)


@pytest.fixture(autouse=True)
def look_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aether_runtime.adapters.folder.POLL_S", 0.005)


@asynccontextmanager
async def running(folder: Path, namespace: str = "default") -> AsyncIterator[tuple[FolderSource, Recording]]:
    source, listener = FolderSource(folder, namespace, PodUid("uid")), Recording()
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(source.run(listener))
        await listener.until(lambda: listener.syncs > 0)
        yield source, listener
        task.cancel()


async def test_everything_in_the_folder_is_told_before_the_first_sync(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(MODEL)
    (tmp_path / "b.yml").write_text(actor("alice") + actor("bob", ", snapshot: {every: 9, recoveryTarget: 2s}, passivation: {idleAfter: 1m}"))
    async with running(tmp_path) as (source, listener):
        assert listener.models_at_first_sync == ["counter"]
        assert set(listener.held) == {ALICE, BOB}
        assert (listener.held[BOB].snapshot_every, listener.held[BOB].recovery_target_s, listener.held[BOB].idle_after_s) == (9, 2, 60)
        assert listener.held[ALICE].epoch > 0
        home = await source.find(ALICE)
        assert home is not None
        assert (home.pod_uid, home.suspended, home.desired) == ("uid", False, listener.held[ALICE])
        assert await source.find(parse_actor_id("default", "counter", "nobody")) is None


async def test_an_empty_folder_is_synced_too(tmp_path: Path) -> None:
    async with running(tmp_path) as (_, listener):
        assert (listener.models, listener.held) == ({}, {})


async def test_what_is_added_changed_and_removed_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(MODEL)
    (tmp_path / "b.yaml").write_text(actor("alice"))
    async with running(tmp_path) as (_, listener):
        (tmp_path / "c.yaml").write_text(actor("bob"))
        await listener.until(lambda: BOB in listener.held)
        (tmp_path / "a.yaml").write_text(MODEL.replace("DESCRIPTION", "another one"))
        await listener.until(lambda: listener.models["counter"].spec.description == "another one")
        (tmp_path / "b.yaml").unlink()
        await listener.until(lambda: ALICE not in listener.held)
        (tmp_path / "a.yaml").unlink()
        await listener.until(lambda: listener.models == {})
        assert set(listener.held) == {BOB}


async def test_an_actor_that_comes_back_is_held_again(tmp_path: Path) -> None:
    (tmp_path / "b.yaml").write_text(actor("alice"))
    async with running(tmp_path) as (_, listener):
        for _ in range(2):
            (tmp_path / "b.yaml").write_text("# nobody")
            await listener.until(lambda: ALICE not in listener.held)
            (tmp_path / "b.yaml").write_text(actor("alice"))
            await listener.until(lambda: ALICE in listener.held)


async def test_nothing_is_told_while_nothing_changes(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(MODEL)
    async with running(tmp_path) as (_, listener):
        told = listener.told
        (tmp_path / "unrelated.txt").write_text("hello")
        await asyncio.sleep(0.05)
        assert listener.told == told


async def test_a_suspended_actor_is_released_and_found_as_suspended(tmp_path: Path) -> None:
    (tmp_path / "b.yaml").write_text(actor("alice"))
    async with running(tmp_path) as (source, listener):
        (tmp_path / "b.yaml").write_text(actor("alice", ", suspend: true"))
        await listener.until(lambda: ALICE not in listener.held)
        home = await source.find(ALICE)
        assert home is not None
        assert (home.suspended, home.pod_uid) == (True, "")


async def test_manifests_of_other_namespaces_and_kinds_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(actor("alice").replace("{name: alice}", "{name: alice, namespace: other}"))
    (tmp_path / "b.yaml").write_text("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: x}\n---\n- 1\n---\nhello\n---\n")
    async with running(tmp_path) as (_, listener):
        assert listener.held == {}
    async with running(tmp_path, "other") as (_, listener):
        assert set(listener.held) == {parse_actor_id("other", "counter", "alice")}


@pytest.mark.parametrize(
    ("text", "named"),
    [
        (actor("alice", ", modle: x"), "spec.modle"),
        (actor("alice", ", id: 'a b'"), "spec.id"),
        (actor("Alice.Smith"), "Alice.Smith"),
        (actor("alice").replace("{name: alice}", ""), "metadata"),
        (actor("alice").replace("{name: alice}", "alice"), "metadata"),
        (actor("alice").replace("{name: alice}", "{}"), "metadata.name"),
        (actor("alice").replace("spec: {model: counter}", "spec:"), "spec"),
        (MODEL.replace("{Counted: {}}", "{Counted: {sets: {}}}"), "spec.events.Counted.sets"),
        (MODEL.replace("name: counter", "name: Coun.ter"), "metadata.name"),
        ("a: [", "broken.yaml"),
        ("a: b: c", "broken.yaml"),
        ("note: 2026-13-45", "line 1, column 7"),
        (actor("alice").replace("alice", "2026-13-01"), "line 4, column 18"),
        ('a: !!int "x"', "line 1, column 4"),
        ('a: [!!int "", !!float ""]', "line 1, column 5"),
        ("a: !!bool 2", "line 1, column 4"),
        ("a: !!timestamp x", "line 1, column 4"),
        ("a: " + "9" * 5000, "'" + "9" * 40 + "' is no value of the type int"),
        (actor("0x" + "f" * 5000), "line 4, column 18"),
        ("[" * 3000 + "]" * 3000, "recursion"),
    ],
)
async def test_a_wrong_manifest_is_refused_by_field_and_the_others_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture, text: str, named: str) -> None:
    (tmp_path / "broken.yaml").write_text(text)
    (tmp_path / "good.yaml").write_text(actor("bob"))
    async with running(tmp_path) as (_, listener):
        assert (set(listener.held), listener.models) == ({BOB}, {})
    said = [f"{getattr(record, 'name_of_object', '')} {getattr(record, 'reason', '')}" for record in caplog.records if record.levelname == "ERROR"]
    assert len(said) == 1
    assert named in said[0]
    assert "broken.yaml" in said[0]


@pytest.mark.parametrize(
    "typo",
    [
        MODEL + actor("alice") + actor("bob") + "---\na: [",
        MODEL + actor("alice", ", modle: x") + actor("bob"),
        MODEL.replace("events:", "evnts:") + actor("alice") + actor("bob"),
    ],
    ids=["no YAML", "wrong actor", "wrong model"],
)
async def test_a_typo_in_a_manifest_of_a_running_actor_changes_nothing_until_it_is_corrected(tmp_path: Path, caplog: pytest.LogCaptureFixture, typo: str) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(MODEL + actor("alice") + actor("bob"))
    async with running(tmp_path) as (source, listener):
        before = (dict(listener.held), dict(listener.models), listener.syncs)
        file.write_text(typo)
        await listener.until(lambda: listener.syncs > before[2])
        assert (listener.held, listener.models) == before[:2]
        assert await source.find(ALICE) is not None
        assert "stay" in "".join(record.getMessage() for record in caplog.records if record.levelname == "ERROR")
        file.write_text(MODEL + actor("alice", ", snapshot: {every: 3}"))
        await listener.until(lambda: BOB not in listener.held)
        assert listener.held[ALICE].snapshot_every == 3


async def test_bytes_that_are_no_text_and_files_that_cannot_be_opened_end_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "folder.yaml").mkdir()
    os.symlink(tmp_path / "nowhere", tmp_path / "dangling.yaml")
    os.symlink(tmp_path / "loop.yaml", tmp_path / "loop.yaml")
    (tmp_path / "good.yaml").write_text(actor("bob"))
    async with running(tmp_path) as (_, listener):
        assert set(listener.held) == {BOB}


async def test_a_folder_that_is_away_changes_nothing_and_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    folder, away = tmp_path / "manifests", tmp_path / "away"
    folder.mkdir()
    (folder / "a.yaml").write_text(MODEL + actor("alice") + actor("bob"))
    async with running(folder) as (source, listener):
        before = (dict(listener.held), dict(listener.models))
        folder.rename(away)
        await listener.until(lambda: [record.levelname for record in caplog.records] == ["ERROR"])
        await asyncio.sleep(0.05)
        assert (listener.held, listener.models) == before
        assert await source.find(ALICE) is not None
        (away / "a.yaml").write_text(MODEL + actor("alice"))
        away.rename(folder)
        await listener.until(lambda: BOB not in listener.held)
        assert set(listener.held) == {ALICE}
    assert [(record.levelname, getattr(record, "name_of_object", "")) for record in caplog.records] == [("ERROR", str(folder)), ("INFO", str(folder))]


async def test_a_look_without_a_free_file_descriptor_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "a.yaml").write_text(MODEL + actor("alice"))
    async with running(tmp_path) as (_, listener):

        def refuse(folder: Path) -> Iterator[Path]:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), str(folder))

        with monkeypatch.context() as patched:
            patched.setattr(Path, "iterdir", refuse)
            await listener.until(lambda: bool(caplog.records))
        assert set(listener.held) == {ALICE}
        (tmp_path / "b.yaml").write_text(actor("bob"))
        await listener.until(lambda: BOB in listener.held)


def test_a_folder_that_is_not_there_is_a_wrong_setting(tmp_path: Path) -> None:
    with pytest.raises(SettingsInvalid, match=r"AETHER_FOLDER .*nowhere"):
        FolderSource(tmp_path / "nowhere", "default", PodUid("uid"))
