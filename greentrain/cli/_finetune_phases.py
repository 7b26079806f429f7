"""The phases of a fine-tuning run: their workers on this machine, in a lab and, over SSH, on other hosts."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec

from greentrain.cli._common import say
from greentrain.cli._finetune_plan import runs_here
from greentrain.cli._finetune_worker import FINETUNE_SCHEMA, FinetuneSpec, Seat
from greentrain.cli._remote import REMOTE_CLUSTER, cluster_files, fetch_runs, hosts_of
from greentrain.cli._run import check_network, check_processors, coordinator_address, placed, runnable_entry
from greentrain.errors import RunError, UsageError
from greentrain.files import write_json
from greentrain.runtime.remote import has_run, host_of, remote_argv, remove_folder, send_files

if TYPE_CHECKING:
    from greentrain.cluster_file import DeviceEntry
    from greentrain.runtime.launch import WorkerCommand
    from greentrain.runtime.messages import Progress

__all__ = ["MEMORY_FOLDER", "Phases", "phase_entries"]

Phase = Literal["backbone", "cached"]
MEMORY_FOLDER = "/dev/shm"
_WORKER = "greentrain.cli._finetune_worker"
_SHOW_EVERY_S = 2.0
# What never leaves the host that made it.
_CACHE, _KEY = "cache", "key"


def phase_entries(spec: FinetuneSpec, sysroot: Path) -> dict[str, DeviceEntry | None]:
    """How each device's worker is started; None on this machine alone.

    Raises:
        UsageError: A device cannot be started, or they cannot reach each other.
    """
    devices = dict.fromkeys((*spec.first.devices, *(spec.cached.devices if spec.cached else ())))
    if spec.cluster is None:
        return dict.fromkeys(devices)
    from greentrain.cli._cluster import load_cluster

    file, _ = load_cluster(Path(spec.cluster))
    entries = [runnable_entry(file, device) for device in devices]
    for entry in entries:
        if entry.launch == "manual":
            raise UsageError(
                f"device {entry.id!r} has launch 'manual', expected 'local', 'ssh:USER@HOST' or 'lab:NAME/NODE'.",
                hint="Change it in cluster.toml, or name the other devices with --device.",
            )
    check_network(entries)
    check_processors(entries, sysroot)
    return {entry.id: entry for entry in entries}


@dataclass(frozen=True, kw_only=True)
class Phases:
    """Starts the workers of each phase that is not done yet.

    Attributes:
        spec: The run.
        folder: Its folder here.
        entries: How each device's worker is started.
        profiles: Folder of profiles.
        sysroot: Prefix of the sensors' files of this machine.
        in_memory: The caches lie in memory and end with the run.
        quiet: Nothing is said of the progress.
    """

    spec: FinetuneSpec
    folder: Path
    entries: Mapping[str, DeviceEntry | None]
    profiles: Path
    sysroot: Path
    in_memory: bool
    quiet: bool

    def run(self) -> None:
        """Run what is left; what hosts wrote of it, but for caches and keys, is here afterwards.

        Raises:
            UsageError: A host has another run of this name.
            RunError: A worker failed or a host does not answer; finished epochs are kept.
        """
        from greentrain.runtime.adapter_state import epochs_done

        spec = self.spec
        if self._told.exists():
            # Perhaps nobody was left to bring it.
            self._fetch(self._started, failed=False)
        else:
            self._check_hosts()
        done = epochs_done(self.folder)
        resumed = done > 0
        last_with_backbone = 1 if spec.cached is not None else spec.epochs
        try:
            if done < last_with_backbone:
                say(f"With the backbone: {runs_here(spec.first)}", quiet=self.quiet)
                self._phase("backbone", done, last_with_backbone, resumed=resumed)
                done = last_with_backbone
            if spec.cached is not None and done < spec.epochs:
                say(f"From the cache: {runs_here(spec.cached)}", quiet=self.quiet)
                self._phase("cached", done, spec.epochs, resumed=resumed)
        finally:
            self._clear_memory()

    @property
    def _started(self) -> list[DeviceEntry]:
        return [entry for entry in self.entries.values() if entry is not None]

    @property
    def _told(self) -> Path:
        """What hosts were told of the run; it lies here once one of them was."""
        return self.folder / "finetune.hosts.json"

    def _check_hosts(self) -> None:
        for host in hosts_of(self._started):
            if has_run(host, self.spec.run):
                raise UsageError(
                    f"{host.target} has a run named {self.spec.run!r} in {host.folder}, which was not begun here.",
                    hint="Choose another --run NAME, or remove it there.",
                )

    def _clear_memory(self) -> None:
        """A cache in memory is gone with the run, on hosts too."""
        if not self.in_memory:
            return
        for host in hosts_of(self._started):
            try:
                remove_folder(host, self.spec.cache_root)
            except RunError as error:
                say(f"Also: {error.message}")

    def _phase(self, phase: Phase, start: int, stop: int, *, resumed: bool) -> None:
        from greentrain.runtime.launch import run_workers
        from greentrain.runtime.network import free_port

        spec = self.spec
        plan = spec.first if phase == "backbone" or spec.cached is None else spec.cached
        # Those that only computed the cache hand it on.
        devices = plan.devices if phase == "backbone" else tuple(dict.fromkeys((*plan.devices, *spec.first.devices)))
        taking = [entry for device in devices if (entry := self.entries[device]) is not None]
        self._forget(phase, start)
        self._send(taking, start)
        host, port, meet_port = coordinator_address(taking) if taking else "127.0.0.1", free_port(), free_port()
        commands = [
            self._command(
                Seat(
                    spec=(self.folder / "finetune.json").as_posix(), device=device, phase=phase, start_epoch=start,
                    stop_epoch=stop, host=host, port=port, meet_port=meet_port, resumed=resumed,
                )
            )
            for device in devices
        ]  # fmt: skip
        shown = _Shown(quiet=self.quiet)
        failed = True
        try:
            run_workers(commands, shown.report)
            failed = False
        except RunError as error:
            error.hint = f"{error.hint or ''} Run the same command with --run {spec.run} to go on.".strip()
            raise
        finally:
            self._fetch(taking, failed=failed)

    def _forget(self, phase: Phase, start: int) -> None:
        """What an earlier try of this phase said of itself, without finishing its epochs."""
        later = (path for path in self.folder.glob("epoch-*.json") if int(path.stem.removeprefix("epoch-")) > start)
        for path in (*self.folder.glob(f"{phase}-{start}-*.json"), *later):
            path.unlink()

    def _fetch(self, entries: list[DeviceEntry], *, failed: bool) -> None:
        """What the hosts wrote and is not here, but for what stays there."""
        here = [path.name for path in self.folder.iterdir()]
        caches = Path(self.spec.cache_root)
        inside = [caches.relative_to(self.folder).as_posix()] if caches.is_relative_to(self.folder) else []
        fetch_runs(entries, self.folder, failed=failed, without=(_CACHE, _KEY, self._texts, *inside, *here))

    @property
    def _texts(self) -> str:
        return f"texts{Path(self.spec.data).suffix}"

    def _send(self, entries: list[DeviceEntry], start: int) -> None:
        """The run with its texts, the cluster, and what the epochs so far have trained."""
        from greentrain.runtime.adapter_state import epoch_file

        hosts = hosts_of(entries)
        if not hosts:
            return
        assert self.spec.cluster is not None
        run = self.folder.as_posix()
        changed = msgspec.structs.replace(
            self.spec, data=f"{run}/{self._texts}", cluster=REMOTE_CLUSTER,
            cache_key=None if self.spec.cache_key is None else f"{run}/{_KEY}",
        )  # fmt: skip
        write_json(self._told, changed, schema=FINETUNE_SCHEMA)
        files = {f"{run}/finetune.json": self._told, f"{run}/{self._texts}": Path(self.spec.data)}
        trained = (epoch_file(self.folder, start), self.folder / "backbone.sha256")
        files |= {f"{run}/{path.name}": path for path in trained if path.exists()}
        files |= cluster_files(Path(self.spec.cluster), self.profiles)
        for host in hosts:
            send_files(host, files)

    def _command(self, seat: Seat) -> WorkerCommand:
        from greentrain.runtime.launch import WorkerCommand

        entry = self.entries[seat.device]
        env = {"GREENTRAIN_DEVICE_ID": seat.device}
        if entry is not None and entry.threads is not None:
            env["OMP_NUM_THREADS"] = str(entry.threads)
        if entry is None or entry.launch == "local":
            # Other hosts and the nodes of a lab have sensors of their own.
            seat = msgspec.structs.replace(seat, sysroot=str(self.sysroot))
        words = msgspec.json.encode(seat).decode()
        argv = [sys.executable, "-m", _WORKER, words]
        host = None if entry is None else host_of(entry)
        if host is not None:
            argv, env = remote_argv(host, [words], env, module=_WORKER), {}
        elif entry is not None:
            argv, env = placed(entry, argv, env)
        return WorkerCommand(
            device=seat.device, argv=argv, env=env, log=self.folder / "logs" / f"{seat.phase}-{seat.device}.log"
        )


@dataclass
class _Shown:
    """Progress, a line every few seconds."""

    quiet: bool
    last_s: float = 0.0

    def report(self, progress: Progress) -> None:
        now_s = time.monotonic()
        if progress.step == progress.steps or now_s - self.last_s > _SHOW_EVERY_S:
            self.last_s = now_s
            loss = "" if progress.loss is None else f", loss {progress.loss:.4f}"
            say(f"  epoch {progress.epoch}, round {progress.step}/{progress.steps}{loss}", quiet=self.quiet)
