"""A real Slurm on this machine for the tests marked `slurm`: one controller, two nodes, munge.

Needs root and Debian's `slurm-wlm` and `munge`. Every daemon is ended by the pid that it wrote.
"""

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue")
CONF = """\
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={place}/munge.sock,cred_expire=5
StateSaveLocation={place}/state
SlurmdSpoolDir={place}/%n
SlurmctldPidFile={place}/slurmctld.pid
SlurmdPidFile={place}/%n.pid
SlurmctldLogFile={place}/slurmctld.log
SlurmdLogFile={place}/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
MailProg=/bin/true
ReturnToService=2
SlurmdTimeout=10
SlurmctldTimeout=10
KillWait=10
MinJobAge=3600
MaxArraySize=20
JobRequeue=1
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=2,sched_interval=2,batch_sched_delay=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=2 State=UNKNOWN
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=2 State=UNKNOWN
PartitionName=main Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP PriorityTier=1
PartitionName=grace Nodes=n1,n2 MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=60
PartitionName=short Nodes=n1,n2 MaxTime=00:30:00 State=UP PriorityTier=1
PartitionName=urgent Nodes=n1,n2 MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
"""


def missing() -> str:
    """Return why there can be no Slurm here; nothing where there can."""
    if lacking := [
        name for name in PROGRAMS if shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin") is None
    ]:
        return f"no {', '.join(lacking)}: apt-get install slurm-wlm munge"
    return "" if os.geteuid() == 0 else "starting Slurm's daemons needs root"


class RealSlurm:
    """The daemons, and what the tests do to them."""

    def __init__(self, place: Path) -> None:
        self.place, self.host = place, socket.gethostname().split(".")[0]
        self.env = {
            **os.environ,
            "SLURM_CONF": str(place / "slurm.conf"),
            "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin",
        }

    def start(self) -> None:
        """Start munge, the controller and two nodes; returns when both nodes are idle."""
        self.place.mkdir(parents=True, exist_ok=True)
        (self.place / "state").mkdir()
        (self.place / "slurm.conf").write_text(CONF.format(place=self.place, host=self.host, ports=free_ports(3)))
        key = self.place / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        files = ("key-file=munge.key", "socket=munge.sock", "pid-file=munged.pid", "log-file=munged.log")
        files += ("seed-file=munge.seed",)
        self.run("munged", "--force", *(f"--{file.replace('=', f'={self.place}/')}" for file in files))
        self.start_controller()
        for node in ("n1", "n2"):
            self.start_node(node)
        until(self.is_idle, 60, self.logs)

    def start_controller(self) -> None:
        """Start slurmctld, with the jobs that it knew."""
        self.run("slurmctld", "-f", self.env["SLURM_CONF"])
        until(self.answers, 30, self.logs)

    def start_node(self, node: str) -> None:
        """Start a slurmd."""
        self.run("slurmd", "-N", node, "-f", self.env["SLURM_CONF"])

    def is_idle(self) -> bool:
        """Tell whether both nodes wait for work."""
        return self.run("sinfo", "-h", "-N", "-o", "%T", "-p", "main").split() == ["idle", "idle"]

    def answers(self) -> bool:
        """Tell whether the controller answers."""
        done = subprocess.run(["squeue", "-h"], env=self.env, capture_output=True, timeout=30, check=False)
        return done.returncode == 0

    def run(self, *words: str) -> str:
        """Run a command of Slurm's and return what it prints."""
        done = subprocess.run(words, env=self.env, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, f"{words}: {done.stderr}"
        return done.stdout

    def end(self, name: str, number: signal.Signals = signal.SIGTERM) -> None:
        """End a daemon by its pid file, and wait until it is gone."""
        with suppress(FileNotFoundError, ValueError, ProcessLookupError):
            pid = int((self.place / f"{name}.pid").read_text())
            os.kill(pid, number)
            until(lambda: not alive(pid), 30, self.logs)

    def lose_node(self, node: str, processes: Iterable[int]) -> None:
        """Let a node vanish with all that runs on it: its daemon, the step daemons that hold `processes`, and these."""
        doomed = [*processes, *(parent for pid in processes if (parent := parent_of(pid)) > 1)]
        self.end(node, signal.SIGKILL)
        for pid in doomed:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def states(self, *more: str) -> dict[str, str]:
        """Return the state of every job that Slurm remembers, by id."""
        lines = self.run("squeue", "-h", "-r", "-t", "all", "-o", "%i|%T|%j", *more).splitlines()
        return {line.split("|")[0]: line.split("|")[1] for line in lines if not line.endswith("-report")}

    def clear(self) -> None:
        """Cancel every job and wait until none is left; what is only being put away does not disturb the next."""
        self.run("scancel", "--user=root")
        until(lambda: not set(self.states().values()) & {"PENDING", "RUNNING"}, 60, self.logs)

    def stop(self) -> None:
        """End all that was started."""
        with suppress(AssertionError, subprocess.TimeoutExpired):
            self.clear()
        for name in ("n1", "n2", "slurmctld", "munged"):
            self.end(name)

    def logs(self) -> str:
        """Return the end of every log, for a test that fails."""
        return "\n".join(
            f"== {path.name}\n{path.read_text(errors='replace')[-1500:]}" for path in sorted(self.place.glob("*.log"))
        )


def alive(pid: int) -> bool:
    """Tell whether a process is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def parent_of(pid: int) -> int:
    """Return the parent of a process, 0 if there is none."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def free_ports(number: int) -> list[int]:
    """Return some TCP ports that nobody uses."""
    sockets = [socket.socket() for _ in range(number)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def until(true: Callable[[], object], seconds: float, explain: Callable[[], object] = str) -> None:
    """Wait until something is true. Fails after some seconds, with an explanation."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"not within {seconds} s: {explain()}"
        time.sleep(0.25)
