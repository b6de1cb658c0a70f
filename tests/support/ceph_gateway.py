"""A real S3 server for tests: Ceph's RADOS gateway with one monitor and one store, without containers.

On Debian: ``apt-get install --no-install-recommends radosgw ceph-mon ceph-osd``. It checks secrets and honours
conditional PUTs under racing writers. Starts in about 15 s; everything it writes lies in one folder.
"""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

PROGRAMS = ("ceph", "ceph-mon", "ceph-osd", "radosgw", "radosgw-admin", "ceph-authtool", "monmaptool")
KEY, SECRET = "testkey", "testsecret123"
SECONDS_TO_START = 240.0

# Sizes for a test machine: one copy of everything, few placement groups, little memory.
CONFIG = """[global]
fsid = {fsid}
mon_host = [v2:127.0.0.1:{monitor_port},v1:127.0.0.1:{monitor_port_v1}]
mon_initial_members = a
public_addr = 127.0.0.1
cluster_addr = 127.0.0.1
keyring = {folder}/keyring
run_dir = {folder}/run
admin_socket = {folder}/run/$name.asok
log_file = {folder}/log/$name.log
crash_dir = {folder}/log
auth_allow_insecure_global_id_reclaim = false
osd_pool_default_size = 1
osd_pool_default_min_size = 1
osd_pool_default_pg_num = 8
osd_pool_default_pg_autoscale_mode = off
osd_crush_chooseleaf_type = 0
mon_allow_pool_size_one = true
mon_max_pg_per_osd = 1000
[mon.a]
mon_data = {folder}/mon
mon_data_avail_crit = 1
mon_data_avail_warn = 2
[osd.0]
keyring = {folder}/osd/keyring
osd_data = {folder}/osd
osd_objectstore = bluestore
bluestore_block_size = {store_bytes}
bluestore_block_create = true
bluestore_fsck_on_mount = false
bluestore_cache_autotune = false
bluestore_cache_size = 134217728
osd_memory_target = 939524096
osd_op_num_shards = 2
[client.rgw]
keyring = {folder}/rgw/keyring
rgw_data = {folder}/rgw
rgw_frontends = beast endpoint={address}:{port}
rgw_thread_pool_size = 64
rgw_num_rados_handles = 1
rgw_enable_usage_log = false
"""


@dataclass(frozen=True)
class Gateway:
    """A running server."""

    endpoint: str
    folder: Path
    processes: dict[str, subprocess.Popen[bytes]]
    """``mon``, ``osd`` and ``rgw``: kill one for a fault."""

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs to use it."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }


def missing_for_gateway() -> str:
    """The programs that this machine lacks; empty when none."""
    return ", ".join(program for program in PROGRAMS if shutil.which(program) is None)


@contextlib.contextmanager
def ceph_gateway(folder: Path, address: str = "127.0.0.1", store_bytes: int = 8 * 2**30) -> Iterator[Gateway]:
    """A fresh server that listens at an address of this machine; killed at the end.

    Args:
        folder: empty, and not too deep: the paths of sockets are limited to about 100 characters.
        store_bytes: size of the store's sparse file.
    """
    for name in ("mon", "osd", "rgw", "run", "log"):
        (folder / name).mkdir(parents=True)
    monitor_port, monitor_port_v1, port = _free_ports(3)
    names = {"fsid": uuid.uuid4(), "folder": folder, "address": address, "port": port, "store_bytes": store_bytes}
    names |= {"monitor_port": monitor_port, "monitor_port_v1": monitor_port_v1}
    (folder / "ceph.conf").write_text(CONFIG.format(**names))
    gateway = Gateway(f"http://{address}:{port}", folder, {})
    try:
        _start_monitor(gateway, str(names["fsid"]), f"[v2:127.0.0.1:{monitor_port},v1:127.0.0.1:{monitor_port_v1}]")
        _start_store(gateway)
        _start(gateway, "rgw", "radosgw", "-n", "client.rgw", "-f")
        _wait_for(lambda: _answers(address, port), "the gateway")
        user = ["--uid=test", "--display-name=test", f"--access-key={KEY}", f"--secret-key={SECRET}"]
        _ceph(gateway, "radosgw-admin", "-n", "client.rgw", "user", "create", *user)
        yield gateway
    finally:
        for process in gateway.processes.values():
            process.kill()
            process.wait()


def _start_monitor(gateway: Gateway, fsid: str, addresses: str) -> None:
    folder = gateway.folder
    rights = ["--cap", "mon", "allow *", "--cap", "osd", "allow *", "--cap", "mgr", "allow *"]
    _ceph(gateway, "ceph-authtool", "-C", "keyring", "--gen-key", "-n", "client.admin", *rights)
    _ceph(gateway, "ceph-authtool", "-C", "mon.keyring", "--gen-key", "-n", "mon.", "--cap", "mon", "allow *")
    _ceph(gateway, "ceph-authtool", "mon.keyring", "--import-keyring", "keyring")
    _ceph(gateway, "monmaptool", "--create", "--fsid", fsid, "--addv", "a", addresses, "monmap")
    _ceph(gateway, "ceph-mon", "-i", "a", "--mkfs", "--monmap", "monmap", "--keyring", "mon.keyring")
    shutil.copy(folder / "mon.keyring", folder / "mon" / "keyring")
    _start(gateway, "mon", "ceph-mon", "-i", "a", "-f")
    _wait_for(lambda: _succeeds(gateway, "ceph", "--connect-timeout", "3", "quorum_status"), "the monitor")


def _start_store(gateway: Gateway) -> None:
    identity = str(uuid.uuid4())
    _ceph(gateway, "ceph", "osd", "new", identity)
    of_store = ["mon", "allow profile osd", "osd", "allow *", "mgr", "allow profile osd"]
    _ceph(gateway, "ceph", "auth", "get-or-create", "osd.0", *of_store, "-o", "osd/keyring")
    of_gateway = ["mon", "allow rw", "osd", "allow rwx", "mgr", "allow rw"]
    _ceph(gateway, "ceph", "auth", "get-or-create", "client.rgw", *of_gateway, "-o", "rgw/keyring")
    _ceph(gateway, "ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", identity)
    _start(gateway, "osd", "ceph-osd", "-i", "0", "-f")
    _wait_for(lambda: b"1 up" in _ceph(gateway, "ceph", "osd", "stat"), "the store")


def _ceph(gateway: Gateway, program: str, *arguments: str) -> bytes:
    done = subprocess.run(_command(program, arguments), cwd=gateway.folder, capture_output=True, check=False)
    assert done.returncode == 0, f"{program} {' '.join(arguments)}: {done.stderr.decode()[-500:]}"
    return done.stdout


def _succeeds(gateway: Gateway, program: str, *arguments: str) -> bool:
    command = _command(program, arguments)
    return subprocess.run(command, cwd=gateway.folder, capture_output=True, check=False).returncode == 0


def _start(gateway: Gateway, name: str, program: str, *arguments: str) -> None:
    with (gateway.folder / "log" / f"{name}.out").open("wb") as log:
        command = _command(program, arguments)
        gateway.processes[name] = subprocess.Popen(command, cwd=gateway.folder, stdout=log, stderr=log)


def _command(program: str, arguments: Sequence[str]) -> list[str]:
    plain = program in ("ceph-authtool", "monmaptool")
    return [program, *arguments] if plain else [program, "-c", "ceph.conf", *arguments]


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


def _answers(address: str, port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex((address, port)) == 0


def _wait_for(happened: Callable[[], bool], what: str) -> None:
    ends_at = time.monotonic() + SECONDS_TO_START
    while not happened():
        assert time.monotonic() < ends_at, f"{what} did not start within {SECONDS_TO_START:.0f} s"
        time.sleep(0.3)
