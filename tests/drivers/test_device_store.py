"""Stores of device states: the same models from every store, and a device that is restarted goes on."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
from kept_devices import MASKED, Round
from played import play
from toy import ToyTrainer

from edgewise.apps.simulate import simulation
from edgewise.core.errors import StoreError
from edgewise.core.memory import Memory
from edgewise.core.training import FitRequest, Update
from edgewise.drivers.storage import device_store, files
from edgewise.drivers.storage.device_store import FileDevices, FolderFiles, SimulatedDevices
from edgewise.drivers.storage.run_store import RunStore
from edgewise.drivers.workers.executor import Inproc
from edgewise.drivers.workers.host import Host
from edgewise.engine.device_state import After, Idle, InSecAgg
from edgewise.engine.ports import DeviceStore
from edgewise.secagg import client

VISIBLE = {"round.rounds": 3, "compare.local_only": False, "compare.centralised": False}
IDLE = Idle(
    "d", After(3, Memory({"residual": np.arange(5, dtype=np.uint16)})), After(4, Memory({"residual": np.ones(5)})), 4
)


@pytest.mark.slow
@pytest.mark.parametrize("settings", [VISIBLE, MASKED], ids=["visible", "masked"])
def test_a_federation_gives_the_same_models_on_both_stores(tmp_path, monkeypatch, settings):
    simulated, _, _ = play(tmp_path / "a", settings)
    (kept := tmp_path / "kept").mkdir()
    real = Host(lambda plan, job: FileDevices(kept, plan.run))
    monkeypatch.setattr(simulation, "Inproc", lambda host: Inproc(real))
    on_files, _, _ = play(tmp_path / "b", settings)
    assert on_files == simulated
    assert not list(tmp_path.glob("*/devices/*/sessions/*")), "sessions end with their simulation"


@pytest.mark.slow
def test_a_device_that_is_restarted_before_every_frame_goes_on(tmp_path):
    calm, restarted = Round(tmp_path / "calm", lambda: False), Round(tmp_path / "restarted")
    for number in range(2):
        one, two = calm.play(number), restarted.play(number)
        np.testing.assert_array_equal(one.body, two.body)
        assert one.survivors == two.survivors == tuple(calm.names)
    assert restarted.seen == {"NoneType", "Idle", "Advertised", "Sharing", "Waiting", "Signed"}


@pytest.mark.slow
def test_a_device_that_is_killed_while_it_trains_is_asked_again(tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    def fit(self: ToyTrainer, request: FitRequest) -> Update:
        raise Killed

    calm, killed = Round(tmp_path / "calm"), Round(tmp_path / "killed")
    for number in range(2):
        with monkeypatch.context() as patch:
            patch.setattr(ToyTrainer, "fit", fit)
            with pytest.raises(Killed):
                killed.answer("d00001", killed.invite(number))
        np.testing.assert_array_equal(calm.play(number).body, killed.play(number).body)


def test_a_device_whose_frame_was_lost_sends_the_same_bytes_again(tmp_path):
    masked = Round(tmp_path / "devices")
    first = masked.answer("d00002", masked.invite(0))
    assert masked.answer("d00002", masked.invite(0)) == first


def test_nothing_is_fetched_for_an_invitation_that_is_refused(tmp_path):
    masked = Round(tmp_path / "devices")
    invite = masked.invite(0)
    assert masked.devices.wanted("d00002", invite) == (invite.model,)
    for lie in ({"run": "f" * 64}, {"model": "../model"}, {"round": 9}, {"support": "/support"}, {"clip": 1.0}):
        assert masked.devices.wanted("d00002", msgspec.structs.replace(invite, **lie)) == ()


def test_a_session_that_a_device_left_is_gone_from_its_store(tmp_path, monkeypatch):
    """It took another invitation, and was killed while it trained."""
    masked = Round(tmp_path / "devices")
    masked.answer("d00002", masked.invite(0))
    monkeypatch.setattr(ToyTrainer, "fit", lambda self, request: 1 / 0)
    masked.answer("d00002", msgspec.structs.replace(masked.invite(0), nonce=bytes([7]) * 32))
    assert isinstance(masked.devices.store.load("d00002"), Idle)


def stores(folder: Path, which: int) -> DeviceStore:
    if which:
        return SimulatedDevices(FolderFiles(folder), "run", "i", remembers=True)
    store = FileDevices(folder, "run")
    store.close()
    return store


@pytest.mark.parametrize("which", [0, 1])
def test_a_store_gives_back_what_it_was_given(tmp_path, which):
    state = InSecAgg(5, client.Finished(device="d"), IDLE, "heard", b"said")
    for saved in (IDLE, state, Idle("d", IDLE.committed)):
        stores(tmp_path, which).save("d", saved)
        loaded = stores(tmp_path, which).load("d")
        assert repr(loaded) == repr(saved)
        idle = loaded.idle if isinstance(loaded, InSecAgg) else loaded
        np.testing.assert_array_equal(idle.committed.memory["residual"], np.arange(5))
    assert stores(tmp_path, which).load("other") is None


def flipped(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[len(raw) * 3 // 4] ^= 1
    path.write_bytes(raw)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "cut off": lambda path: path.write_bytes(path.read_bytes()[:-7]),
    "empty": lambda path: path.write_bytes(b""),
    "a bit is flipped": flipped,
    "of another device": lambda path: os.replace(path, device_store._memory_path(path.parent, "e")),
}


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_file_is_refused_by_name(tmp_path, which, how):
    stores(tmp_path, which).save("d", IDLE)
    (path,) = tmp_path.glob("*.safetensors")
    DAMAGES[how](path)
    with pytest.raises(StoreError, match=r"E-CHECKPOINT: the codec memory of device [de] "):
        stores(tmp_path, which).load("e" if how == "of another device" else "d")


def test_a_state_of_another_run_is_refused(tmp_path):
    with FileDevices(tmp_path, "run") as store:
        store.save("d", IDLE)
    with FileDevices(tmp_path, "another") as store, pytest.raises(StoreError, match=r"E-CHECKPOINT.*another run"):
        store.load("d")


def test_one_process_works_in_a_folder_at_a_time(tmp_path):
    """Two could each send an update of one round."""
    with FileDevices(tmp_path, "run"), pytest.raises(StoreError, match=r"E-RUN-EXISTS.*one process at a time"):
        FileDevices(tmp_path, "run")
    FileDevices(tmp_path, "run").close()


def test_a_real_devices_state_is_on_the_disk_when_save_returns(tmp_path, monkeypatch):
    """The file before its name, and the name before anything else; or the state of before."""
    done, sync, move = [], os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda handle: (done.append("sync"), sync(handle)))
    monkeypatch.setattr(os, "replace", lambda a, b: (done.append("name"), move(a, b)))
    stores(tmp_path, 0).save("d", IDLE)
    assert done == (["sync", "name", "sync"] if os.name != "nt" else ["sync", "name"])

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match="E-DISK"):
        stores(tmp_path, 0).save("d", Idle("d", IDLE.committed))
    loaded = stores(tmp_path, 0).load("d")
    assert isinstance(loaded, Idle)
    assert loaded.pending is not None
    (path,) = tmp_path.glob("*.safetensors")
    assert path.stat().st_mode & 0o777 == (0o600 if os.name != "nt" else 0o666)


def test_simulated_devices_forget_their_sessions_with_the_simulation(tmp_path):
    with RunStore(tmp_path) as store:
        store.create("r", "toy", {}, {})
        SimulatedDevices(FolderFiles(store.memory_dir), "r", store.instance, True).save(
            "d", InSecAgg(5, client.Finished(device="d"), IDLE, "heard", b"said")
        )
    with RunStore(tmp_path) as store:
        loaded = SimulatedDevices(FolderFiles(store.memory_dir), "r", store.instance, True).load("d")
    assert isinstance(loaded, Idle)
    assert (loaded.answered, loaded.committed.round) == (None, 3)


def test_a_simulation_writes_codec_memory_when_it_changes_and_not_with_every_message(tmp_path, monkeypatch):
    written, real = [], files.write_durably
    monkeypatch.setattr(files, "write_durably", lambda path, *a, **k: (written.append(path), real(path, *a, **k)))
    devices = SimulatedDevices(FolderFiles(tmp_path), "run", "i", remembers=True)
    devices.save("d", IDLE)
    for number in range(3):
        loaded = devices.load("d")
        assert loaded is not None
        idle = loaded if isinstance(loaded, Idle) else loaded.idle
        devices.save("d", InSecAgg(number, client.Finished(device="d"), idle, "heard", b"said"))
    assert len(written) == 1
    SimulatedDevices(FolderFiles(tmp_path), "run", "i", remembers=False).save(
        "e", Idle("e", After(None, Memory()), answered=1)
    )
    assert len(written) == 1
