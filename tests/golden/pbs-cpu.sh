# qsub -q workq SCRIPT
#!/bin/bash

#PBS -S /bin/bash
#PBS -N campaign.cpu
#PBS -m n
#PBS -l walltime=02:00:00
#PBS -l select=1:ncpus=64
#PBS -o SCRIPT.stdout
#PBS -e SCRIPT.stderr


MPIEXEC=$(command -v mpiexec); mpiexec() { "$MPIEXEC" "$@"; }
export PATH=ENVIRONMENT/bin:$PATH
export OMP_NUM_THREADS=1
export MKL_NUM_THREADS=1
export OPENBLAS_NUM_THREADS=1
export CAMPAIGN_DRIVER=TOKEN SPT_NOENV=1 PYTHONSAFEPATH=1

export JOBNAME="campaign.cpu"

process_worker_pool.py  --max_workers_per_node=64 -a ADDRESSES -p 0 -c 1 -m None --poll 10 --port=PORT --cert_dir RUN/logs/cpu --logdir=RUN/logs/cpu --logconf=RUN/logs/cpu --block_id=BLOCK --hb_period=5  --hb_threshold=20 --drain_period=6840 --cpu-affinity none  --mpi-launcher=mpiexec --available-accelerators
