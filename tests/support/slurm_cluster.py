"""A real SLURM on this machine, for tests: nodes n1 and n2, each with 8 pretended CPUs and 4 pretended GPUs.

    python tests/support/slurm_cluster.py start DIR    # prints `export SLURM_CONF=...` and leaves it running
    python tests/support/slurm_cluster.py stop DIR

In a test: skip when `missing()` says why, else `with running(directory) as cluster:`, which points this process's
SLURM commands at it. Everything lies in the directory and the ports are free ones, so several clusters can run; they
share the system's munged, which is started when it is not running and then left.
"""

import contextlib
import fcntl
import os
import random
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

NODES, CPUS, GPUS, MEMORY_MB = ("n1", "n2"), 8, 4, 100_000
HOSTS, MUNGE_KEY = Path("/etc/hosts"), Path("/etc/munge/munge.key")
SEARCH = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
TOOLS = ("slurmctld", "slurmd", "munged", "munge", "runuser", "sbatch", "srun", "squeue", "scontrol", "scancel", "sinfo")
LONGEST_PATH = 75  # a socket's may have 107 characters, and SLURM appends /spool.n1/n1_JOB.STEP
MARK = "RLHF_TEST_CLUSTER"  # set in the daemons' environment, so that what they started can be found

# cred_expire is also how long a requeued job waits before it may start again (120 s by default).
CONFIG = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmctldPidFile={directory}/slurmctld.pid
SlurmctldLogFile={directory}/slurmctld.log
StateSaveLocation={directory}/state
SlurmdPidFile={directory}/slurmd.%n.pid
SlurmdLogFile={directory}/slurmd.%n.log
SlurmdSpoolDir={directory}/spool.%n
SlurmdParameters=config_overrides
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=cred_expire={requeue_delay_s}
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
GresTypes=gpu
ReturnToService=2
PropagateResourceLimits=NONE
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=1,sched_interval=1,bf_interval=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
KillWait={kill_wait_s}
OverTimeLimit=0
InactiveLimit=0
MinJobAge={forget_s}
MessageTimeout=30
{nodes}
PartitionName=main Nodes=n1,n2 Default=YES MaxTime=UNLIMITED PriorityTier=10 PreemptMode=OFF
PartitionName=preemptible Nodes=n1,n2 MaxTime=UNLIMITED PriorityTier=1 PreemptMode=REQUEUE GraceTime={grace_s}
"""
NODE = "NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs={cpus} RealMemory={memory} Gres=gpu:{gpus}"


def missing() -> str | None:
    """Why SLURM cannot be started here, or None if it can."""
    if os.geteuid() != 0:
        return "SLURM: not root"
    if absent := [tool for tool in TOOLS if not shutil.which(tool, path=SEARCH)]:
        return f"SLURM: no {', '.join(absent)} (apt-get install slurmctld slurmd slurm-client munge)"
    if not MUNGE_KEY.is_file():
        return f"SLURM: no {MUNGE_KEY}"
    if absent_hosts() and not os.access(HOSTS, os.W_OK):
        return f"SLURM: {HOSTS} lacks {', '.join(absent_hosts())} and cannot be written"
    return None


def absent_hosts() -> list[str]:
    """The nodes whose names the system does not know."""
    words = {word for line in HOSTS.read_text().splitlines() for word in line.split("#")[0].split()[1:]}
    return [name for name in NODES if name not in words]


@contextlib.contextmanager
def only_one() -> Iterator[None]:
    """What clusters that start at once must not do at once: write the hosts, start munged, choose ports."""
    with Path("/tmp/rlhf-test-cluster.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def sh(*command: str, environment: dict[str, str] | None = None, timeout: float = 60) -> str:
    """The output of a command, found on PATH or in /usr/sbin; an error that holds what it printed if it failed."""
    program = shutil.which(command[0], path=SEARCH) or command[0]
    done = subprocess.run(
        [program, *command[1:]],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        env={**os.environ, **(environment or {})},
        stdin=subprocess.DEVNULL,
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def wait_for(what: str, true, timeout_s: float = 30, every_s: float = 0.1):
    """The value of `true()` as soon as it is one; TimeoutError after `timeout_s`."""
    end = time.monotonic() + timeout_s
    while not (value := true()):
        if time.monotonic() > end:
            raise TimeoutError(f"waited {timeout_s:g} s for {what}")
        time.sleep(every_s)
    return value


def munge_answers() -> bool:
    """Whether munged is there."""
    with contextlib.suppress(RuntimeError, subprocess.TimeoutExpired):
        return bool(sh("munge", "-n", timeout=10))
    return False


def start_munge() -> None:
    """Start the system's munged unless it runs."""
    if munge_answers():
        return
    for directory, mode in (("/run/munge", 0o755), ("/var/log/munge", 0o700)):
        Path(directory).mkdir(mode=mode, parents=True, exist_ok=True)
        shutil.chown(directory, "munge", "munge")
    sh("runuser", "-u", "munge", "--", shutil.which("munged", path=SEARCH))
    wait_for("munged", munge_answers)


def free_ports(count: int) -> list[int]:
    """Ports nobody listens on, below those that the system gives to outgoing connections."""
    found: list[int] = []
    for port in random.SystemRandom().sample(range(20_000, 32_000), 1000):
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("", port))
            found.append(port)
        if len(found) == count:
            return found
    raise RuntimeError("no free ports")


class Cluster:
    """The cluster of a directory; it need not be one that this process started."""

    def __init__(
        self, directory: str | Path, kill_wait_s: int = 10, grace_s: int = 20, requeue_delay_s: int = 5, forget_s: int = 60
    ) -> None:
        """KillWait: from TERM to KILL. GraceTime: from a preemption's TERM to its end, checked every half minute. How
        long a requeued job waits. MinJobAge: how long an ended job is known at least, and up to twice as long."""
        self.directory = Path(directory).resolve()
        self.conf = self.directory / "slurm.conf"
        self.environment = {"SLURM_CONF": str(self.conf)}
        self.seconds = {
            "kill_wait_s": kill_wait_s,
            "grace_s": grace_s,
            "requeue_delay_s": requeue_delay_s,
            "forget_s": forget_s,
        }

    def start(self) -> "Cluster":
        """Start the daemons and wait for the nodes; what ran in the directory before is stopped and forgotten."""
        if reason := missing():
            raise RuntimeError(reason)
        if len(str(self.directory)) > LONGEST_PATH:
            raise RuntimeError(f"SLURM's sockets cannot be made in so long a path: {self.directory}")
        self.stop()
        self.clean()
        self.directory.mkdir(parents=True, exist_ok=True)
        try:
            with only_one():
                if names := absent_hosts():
                    with HOSTS.open("a") as hosts:
                        hosts.write(f"\n127.0.0.1 {' '.join(names)}\n")
                start_munge()
                self.configure()
                self.daemon("slurmctld", "-i", "-f", str(self.conf))
                for name in NODES:
                    self.daemon("slurmd", "-N", name, "-f", str(self.conf))
            wait_for("both nodes to be idle", self.ready, every_s=0.3)
        except (RuntimeError, TimeoutError, subprocess.TimeoutExpired) as error:
            told = f"{error}\n{self.logs()}"
            self.stop()
            raise RuntimeError(told) from error
        return self

    def clean(self) -> None:
        """Remove the files of an earlier cluster."""
        for directory in (self.directory / "state", *self.directory.glob("spool.n?")):
            shutil.rmtree(directory, ignore_errors=True)
        for pattern in ("slurm*.pid", "slurm*.log", "gpu?"):
            for file in self.directory.glob(pattern):
                file.unlink()

    def configure(self) -> None:
        """Write slurm.conf and gres.conf, and the devices that stand for GPUs."""
        host, ports = socket.gethostname().split(".")[0], free_ports(1 + len(NODES))
        nodes = [
            NODE.format(name=name, host=host, port=port, cpus=CPUS, memory=MEMORY_MB, gpus=GPUS)
            for name, port in zip(NODES, ports[1:], strict=True)
        ]
        for place in ("state", *(f"spool.{name}" for name in NODES)):
            (self.directory / place).mkdir()
        for gpu in range(GPUS):
            os.mknod(self.directory / f"gpu{gpu}", stat.S_IFCHR | 0o666, os.makedev(1, 3))  # as /dev/null
        self.conf.write_text(
            CONFIG.format(host=host, port=ports[0], directory=self.directory, nodes="\n".join(nodes), **self.seconds)
        )
        gres = f"NodeName={','.join(NODES)} Name=gpu File={self.directory}/gpu[0-{GPUS - 1}]\n"
        (self.directory / "gres.conf").write_text(gres)

    def daemon(self, *command: str) -> None:
        """Start a daemon; it puts itself into the background."""
        sh(*command, environment={**self.environment, MARK: str(self.directory)})

    def run(self, *command: str) -> str:
        """The output of a SLURM command that is told of this cluster."""
        return sh(*command, environment=self.environment)

    def ready(self) -> bool:
        """Whether both nodes are idle."""
        with contextlib.suppress(RuntimeError, subprocess.TimeoutExpired):
            return self.run("sinfo", "-h", "-N", "-p", "main", "-o", "%t").split() == ["idle"] * len(NODES)
        return False

    def job(self, job_id: str | int) -> dict[str, str]:
        """What `scontrol show job` says of a job or an array's element; {} if SLURM does not know it (any more)."""
        try:
            told = self.run("scontrol", "-o", "show", "job", str(job_id))
        except RuntimeError as error:
            if "Invalid job id" in str(error):
                return {}
            raise
        return dict(re.findall(r"(?:^|\s)([A-Za-z][\w/:]*)=(.*?)(?=\s+[A-Za-z][\w/:]*=|\s*$)", told.splitlines()[0]))

    def wait_job(self, job_id: str | int, *states: str, timeout_s: float = 60) -> dict[str, str]:
        """What `job` says as soon as its JobState is one of these."""
        return wait_for(
            f"job {job_id} to be {' or '.join(states)}",
            lambda: (told := self.job(job_id)).get("JobState") in states and told,
            timeout_s,
            every_s=0.3,
        )

    def cancel(self, timeout_s: float = 60) -> None:
        """End every job, also one that requeues itself upon that, so that the next test finds both nodes idle."""

        def ended() -> bool:
            if jobs := set(self.run("squeue", "-h", "-t", "pending,running,suspended", "-o", "%A").split()):
                self.run("scancel", *sorted(jobs))
            return not self.run("squeue", "-h").strip() and self.ready()

        wait_for("the jobs' end", ended, timeout_s, every_s=0.3)

    def logs(self, lines: int = 20) -> str:
        """The last lines of each daemon's log."""
        logs = sorted(self.directory.glob("slurm*.log"))
        return "\n".join(f"== {log.name}\n" + "\n".join(log.read_text().splitlines()[-lines:]) for log in logs)

    def processes(self) -> list[int]:
        """The daemons, the steps' managers, and what jobs left behind."""
        wanted, told = f"{MARK}={self.directory}".encode(), f"SLURM_CONF={self.conf}".encode()
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):  # it has just ended
                values = (entry / "environ").read_bytes().split(b"\0")
                if wanted in values or (told in values and any(v.startswith(b"SLURM_JOB_ID=") for v in values)):
                    found.append(int(entry.name))
        return sorted(set(found) - {os.getpid()})

    def stop(self) -> None:
        """End every job, step and daemon; the files stay."""
        self.signal(signal.SIGTERM, "slurmctld.pid", *(f"slurmd.{name}.pid" for name in NODES))
        with contextlib.suppress(TimeoutError):
            wait_for("the daemons' end", lambda: not list(self.directory.glob("slurm*.pid")), 5)
        end = time.monotonic() + 20
        while left := self.processes():
            if time.monotonic() > end:
                raise RuntimeError(f"cannot end the processes {left} of the cluster in {self.directory}")
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.1)

    def signal(self, number: int, *files: str) -> None:
        """Send a signal to the daemons of these pid files, as far as they are this cluster's."""
        ours = self.processes()
        for file in (self.directory / name for name in files):
            with contextlib.suppress(FileNotFoundError, ValueError, ProcessLookupError):
                if (pid := int(file.read_text())) in ours:
                    os.kill(pid, number)
                else:
                    file.unlink()


@contextlib.contextmanager
def running(directory: str | Path, **seconds: int) -> Iterator[Cluster]:
    """A cluster that this process's SLURM commands talk to, stopped at the end; `seconds` as for Cluster."""
    before = os.environ.get("SLURM_CONF")
    cluster = Cluster(directory, **seconds).start()
    os.environ.update(cluster.environment)
    try:
        yield cluster
    finally:
        if before is None:
            os.environ.pop("SLURM_CONF", None)
        else:
            os.environ["SLURM_CONF"] = before
        cluster.stop()


def main() -> None:
    """`start DIR` or `stop DIR`."""
    if len(sys.argv) != 3 or sys.argv[1] not in {"start", "stop"}:
        sys.exit("usage: python tests/support/slurm_cluster.py start|stop DIR")
    cluster = Cluster(sys.argv[2])
    if sys.argv[1] == "stop":
        cluster.stop()
    else:
        if reason := missing():
            sys.exit(reason)
        cluster.start()
        print(f"export SLURM_CONF={cluster.conf}")


if __name__ == "__main__":
    main()
