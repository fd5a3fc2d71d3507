# sbatch SCRIPT
#!/bin/bash

#SBATCH --job-name=campaign.gpu
#SBATCH --output=SCRIPT.stdout
#SBATCH --error=SCRIPT.stderr
#SBATCH --nodes=1
#SBATCH --time=240
#SBATCH --ntasks-per-node=1
#SBATCH --no-requeue
#SBATCH --exclusive
#SBATCH --partition=booster
#SBATCH --account=<project>
#SBATCH --gres=gpu:4


export PATH=ENVIRONMENT/bin:$PATH
export OMP_NUM_THREADS=12
export MKL_NUM_THREADS=12
export OPENBLAS_NUM_THREADS=12
export CAMPAIGN_DRIVER=TOKEN SPT_NOENV=1 PYTHONSAFEPATH=1


export JOBNAME="campaign.gpu"

set -e
export CORES=$SLURM_CPUS_ON_NODE
export NODES=$SLURM_JOB_NUM_NODES

[[ "1" == "1" ]] && echo "Found cores : $CORES"
[[ "1" == "1" ]] && echo "Found nodes : $NODES"
WORKERCOUNT=1
SCRIPT_DIR="RUN/logs/submit_scripts"
[[ -d $SCRIPT_DIR ]] || SCRIPT_DIR=""

cat << SLURM_EOF > ${SCRIPT_DIR:+$SCRIPT_DIR/}cmd_$SLURM_JOB_NAME.sh
process_worker_pool.py  --max_workers_per_node=4 -a ADDRESSES -p 0 -c 12 -m None --poll 10 --port=PORT --cert_dir RUN/logs/gpu --logdir=RUN/logs/gpu --logconf=RUN/logs/gpu --block_id=BLOCK --hb_period=5  --hb_threshold=20 --drain_period=13680 --cpu-affinity list:18-23:6-11:42-47:30-35  --mpi-launcher=mpiexec --available-accelerators 0 1 2 3
SLURM_EOF
chmod a+x ${SCRIPT_DIR:+$SCRIPT_DIR/}cmd_$SLURM_JOB_NAME.sh

srun --ntasks 1 -l --cpu-bind=none bash ${SCRIPT_DIR:+$SCRIPT_DIR/}cmd_$SLURM_JOB_NAME.sh

[[ "1" == "1" ]] && echo "Done"
