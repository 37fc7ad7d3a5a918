"""A search on a SLURM cluster, begun or gone on with; run it where jobs are submitted from.

    pip install 'nas-codesign[cluster]' dask-jobqueue
    python slurm.py runs/first cifar10 --data ~/cifar-10-batches-bin --trials 400 --jobs 16 --gpu

Each job is one Dask worker with one trial at a time; jobs come and go with the trials there are.
End the script (Ctrl-C) and run it again as you like. Its traffic is not encrypted: for a cluster
whose network is trusted. `--print` shows the job script.
"""

import argparse
from pathlib import Path

from dask_jobqueue import SLURMCluster

import nas


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("preset")
    parser.add_argument("--data", default="")
    parser.add_argument("--trials", type=int, default=400)
    parser.add_argument("--jobs", type=int, default=8, help="at most")
    parser.add_argument("--partition")
    parser.add_argument("--memory", default="8GB", help="of a job")
    parser.add_argument("--walltime", default="08:00:00", help="of a job")
    parser.add_argument("--interface", help="of the network that nodes share, such as ib0")
    parser.add_argument("--gpu", action="store_true", help="one for each job")
    parser.add_argument("--print", action="store_true", help="the job script, and no more")
    asked = parser.parse_args()

    with SLURMCluster(
        cores=1,
        processes=1,
        memory=asked.memory,
        walltime=asked.walltime,
        queue=asked.partition,
        interface=asked.interface,
        job_extra_directives=["--gres=gpu:1"] if asked.gpu else [],
        worker_extra_args=["--no-dashboard", *(["--resources", "GPU=1"] if asked.gpu else [])],
        scheduler_options={"dashboard_address": "127.0.0.1:0"},
    ) as jobs:
        if asked.print:
            print(jobs.job_script())
            return
        jobs.adapt(minimum_jobs=0, maximum_jobs=asked.jobs)
        cluster = {
            "dask": jobs.scheduler_address,
            "resources": {"GPU": 1} if asked.gpu else {},
            "patience_s": 24 * 3600.0,  # in the queue
        }
        if (asked.run / "config.toml").exists():
            nas.resume(asked.run, trials=asked.trials, cluster=cluster)
        else:
            nas.search(
                asked.preset,
                run_dir=asked.run,
                data=asked.data,
                trials=asked.trials,
                in_flight=2 * asked.jobs,
                cluster=cluster,
            )


if __name__ == "__main__":
    main()
