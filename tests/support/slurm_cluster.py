"""A SLURM cluster of one node on this machine, from Debian's packages (slurmctld, slurmd, munge) and without systemd.

    python tests/support/slurm_cluster.py start FOLDER     # prints the line that points SLURM's commands at it
    python tests/support/slurm_cluster.py stop FOLDER

Needs root, as slurmd does. Two partitions share the node: jobs of `high` preempt those of `low`, which are told with
SIGTERM, have some seconds, and are queued again. A job above its memory is killed.
"""

import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

CONFIG = """
ClusterName=regrow-test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmdPort={node_port}
SlurmUser=root
AuthType=auth/munge
AuthInfo=cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,bf_interval=2
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=1
JobAcctGatherParams=OverMemoryKill
AccountingStorageType=accounting_storage/none
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
MpiDefault=none
ReturnToService=2
InactiveLimit=0
KillWait=10
MinJobAge=300
MaxArraySize=10001
MaxJobCount=20000
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory={memory} State=UNKNOWN
PartitionName=low Nodes={host} Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime=15 MaxTime=240 State=UP
PartitionName=high Nodes={host} PriorityTier=2 PreemptMode=OFF MaxTime=240 State=UP
"""
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch")
WAIT_SECONDS = 60


def missing() -> str | None:
    """Why no cluster can be started here; None if it can."""
    absent = [program for program in PROGRAMS if _found(program) is None]
    if absent:
        return f"needs {', '.join(absent)} (apt-get install slurmctld slurmd slurm-client munge)"
    return None if os.geteuid() == 0 else "needs root, as slurmd does"


def start(folder: Path) -> Path:
    """Bring the cluster up with all its files in `folder`; returns the file that SLURM_CONF has to name."""
    host = socket.gethostname().split(".")[0]
    for name in ("state", "spool"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    config = folder / "slurm.conf"
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20
    text = CONFIG.format(
        host=host, folder=folder, cpus=os.cpu_count(), memory=memory * 3 // 4, port=_free_port(), node_port=_free_port()
    )
    config.write_text(text)
    os.environ["SLURM_CONF"] = str(config)
    _munge(folder)
    for program in ("slurmctld", "slurmd"):
        subprocess.run(
            [str(_found(program))], check=True, capture_output=True, env=os.environ | {"SLURM_CONF": str(config)}
        )
    deadline = time.monotonic() + WAIT_SECONDS
    while _ask("sinfo", "--noheader", "--partition=low", "--format=%T") != "idle":
        if time.monotonic() > deadline:
            log = (folder / "slurmctld.log").read_text()[-2000:] + (folder / "slurmd.log").read_text()[-2000:]
            stop(folder)
            raise RuntimeError(f"the node does not come up in {WAIT_SECONDS} s:\n{log}")
        time.sleep(0.2)
    return config


def stop(folder: Path) -> None:
    """End the daemons that `start` has started, and no others."""
    for name in ("slurmd", "slurmctld", "munged"):
        file = folder / f"{name}.pid"
        if not file.exists():
            continue
        process = int(file.read_text())
        try:
            os.kill(process, 15)
        except ProcessLookupError:
            continue
        for _ in range(100):
            if not Path(f"/proc/{process}").exists():
                break
            time.sleep(0.1)


def _munge(folder: Path) -> None:
    """munged as its own user, unless one runs already."""
    if subprocess.run(["munge", "--no-input"], capture_output=True).returncode == 0:
        return
    shutil.chown("/etc/munge/munge.key", "munge", "munge")
    run = Path("/run/munge")
    run.mkdir(exist_ok=True)
    shutil.chown(run, "munge", "munge")
    run.chmod(0o755)
    subprocess.run(["runuser", "-u", "munge", "--", str(_found("munged"))], check=True, capture_output=True)
    deadline = time.monotonic() + WAIT_SECONDS
    while subprocess.run(["munge", "--no-input"], capture_output=True).returncode:
        if time.monotonic() > deadline:
            raise RuntimeError("munged does not answer")
        time.sleep(0.1)
    shutil.copy("/run/munge/munged.pid", folder / "munged.pid")


def _ask(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()


def _found(program: str) -> str | None:
    return shutil.which(program, path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"]))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    action, where = sys.argv[1], Path(sys.argv[2]).resolve()
    if action == "start":
        reason = missing()
        if reason:
            sys.exit(f"no SLURM here: {reason}")
        print(f"export SLURM_CONF={start(where)}")
    else:
        stop(where)
