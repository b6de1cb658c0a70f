"""A real Slurm over two hosts in namespaces: controller on the first, a node daemon on each."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.cluster.hosts import Host, wait_for
from tests.support.debian import program

REPOSITORY = Path(__file__).resolve().parents[2]
CONFIGURATION = """
ClusterName=test
SlurmctldHost=a({address})
SlurmctldPort=16817
SlurmdPort=16818
SlurmUser=root
SlurmdUser=root
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
ReturnToService=2
MpiDefault=none
SlurmdTimeout=60
KillWait=5
SchedulerParameters=sched_interval=2
NodeName=a NodeAddr={address} CPUs={cpus} RealMemory=4000 State=UNKNOWN
NodeName=b NodeAddr={other} CPUs={cpus} RealMemory=4000 State=UNKNOWN
PartitionName=main Nodes=a,b Default=YES MaxTime=INFINITE OverSubscribe=EXCLUSIVE State=UP
"""


@dataclass(frozen=True)
class Slurm:
    """A running Slurm; its commands run on the first host."""

    head: Host
    folder: Path

    def command(self, *words: str) -> str:
        finished = self.head.run(*words)
        assert finished.returncode == 0, finished.stdout + finished.stderr
        return finished.stdout.strip()

    def submit(self, *words: str, **environment: str) -> str:
        """`sbatch` of the repository's script; the number of the job."""
        export = ",".join(["ALL", *(f"{key}={value}" for key, value in environment.items())])
        script = str(REPOSITORY / "infra" / "slurm" / "ray.sbatch")
        options = ["--parsable", "--nodes=2", f"--chdir={self.folder}", f"--output={self.folder}/%j.log"]
        return self.command("sbatch", *options, f"--export={export}", script, *words)

    def log(self, job: str) -> str:
        path = self.folder / f"{job}.log"
        return path.read_text() if path.exists() else ""

    def facts(self, job: str) -> dict[str, str]:
        """`scontrol show job` as a table."""
        return dict(word.split("=", 1) for word in self.command("scontrol", "show", "job", job).split() if "=" in word)

    def wait(self, job: str, seconds: float, *states: str) -> dict[str, str]:
        """Wait until a job is in one of these states."""
        try:
            wait_for(lambda: self.facts(job)["JobState"] in states, seconds, f"{states} of job {job}")
        except AssertionError as error:
            raise AssertionError(f"{error}; it is {self.facts(job)['JobState']}\n{self.log(job)[-4000:]}") from None
        return self.facts(job)


@contextlib.contextmanager
def slurm(hosts: tuple[Host, Host]) -> Iterator[Slurm]:
    """Start munge, the controller and both node daemons; stop them, and what they started, at the end."""
    # Not in /tmp, which every host has of its own.
    (REPOSITORY / "build").mkdir(exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="slurm-", dir=REPOSITORY / "build"))
    first, second = hosts
    text = CONFIGURATION.format(folder=folder, cpus=os.cpu_count(), address=first.address, other=second.address)
    (folder / "slurm.conf").write_text(text)
    for name in ("state", "munge"):
        (folder / name).mkdir(mode=0o700)
    key = folder / "munge" / "key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    for host in hosts:
        host.environment.update(SLURM_CONF=str(folder / "slurm.conf"), PATH=f"{os.environ['PATH']}:/usr/sbin:/sbin")
        (folder / f"spool-{host.name}").mkdir()
    daemons = [
        start(first, folder, "munged", "--foreground", "--force", f"--key-file={key}",
              f"--socket={folder}/munge.socket",
              f"--log-file={folder}/munge/log", f"--pid-file={folder}/munge/pid", f"--seed-file={folder}/munge/seed"),
        start(first, folder, "slurmctld", "-D", "-i"),
        *(start(host, folder, "slurmd", "-D", "-N", host.name) for host in hosts),
    ]  # fmt: skip
    running = Slurm(first, folder)
    try:
        wait_for(lambda: first.run("sinfo", "--noheader", "--format=%T %D").stdout.split() == ["idle", "2"], 60,
                 "two idle nodes")  # fmt: skip
        yield running
    except AssertionError as error:
        logs = "\n".join(f"== {path.name}\n{path.read_text()[-1500:]}" for path in folder.glob("*.log"))
        raise AssertionError(f"{error}\n{logs}") from error
    finally:
        for host in hosts:
            host.end_processes()
        for daemon in daemons:
            daemon.kill()
            daemon.wait()
        shutil.rmtree(folder, ignore_errors=True)


def start(host: Host, folder: Path, name: str, *words: str) -> subprocess.Popen[bytes]:
    """A daemon on a host that believes to be called so."""
    script = f'hostname {host.name}; exec "$@"'
    command = host.command("unshare", "--uts", "sh", "-c", script, "sh", program(name), *words)
    with (folder / f"{name}-{host.name}.out.log").open("wb") as log:
        process = subprocess.Popen(command, env=host.environment, stdout=log, stderr=subprocess.STDOUT)
    time.sleep(0.5)
    return process
