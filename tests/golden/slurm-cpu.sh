# sbatch SCRIPT
#!/bin/bash

#SBATCH --job-name=campaign.cpu
#SBATCH --output=SCRIPT.stdout
#SBATCH --error=SCRIPT.stderr
#SBATCH --nodes=1
#SBATCH --time=120
#SBATCH --ntasks-per-node=1
#SBATCH --no-requeue
#SBATCH --exclusive
#SBATCH --partition=cpu


export PATH=ENVIRONMENT/bin:$PATH
export OMP_NUM_THREADS=1
export MKL_NUM_THREADS=1
export OPENBLAS_NUM_THREADS=1
export CAMPAIGN_DRIVER=TOKEN SPT_NOENV=1 PYTHONSAFEPATH=1


export JOBNAME="campaign.cpu"

set -e
export CORES=$SLURM_CPUS_ON_NODE
export NODES=$SLURM_JOB_NUM_NODES

[[ "1" == "1" ]] && echo "Found cores : $CORES"
[[ "1" == "1" ]] && echo "Found nodes : $NODES"
WORKERCOUNT=1
SCRIPT_DIR="RUN/logs/submit_scripts"
[[ -d $SCRIPT_DIR ]] || SCRIPT_DIR=""

cat << SLURM_EOF > ${SCRIPT_DIR:+$SCRIPT_DIR/}cmd_$SLURM_JOB_NAME.sh
process_worker_pool.py  --max_workers_per_node=64 -a ADDRESSES -p 0 -c 1 -m None --poll 10 --port=PORT --cert_dir RUN/logs/cpu --logdir=RUN/logs/cpu --logconf=RUN/logs/cpu --block_id=BLOCK --hb_period=5  --hb_threshold=20 --drain_period=6840 --cpu-affinity none  --mpi-launcher=mpiexec --available-accelerators 
SLURM_EOF
chmod a+x ${SCRIPT_DIR:+$SCRIPT_DIR/}cmd_$SLURM_JOB_NAME.sh

srun --ntasks 1 -l  bash ${SCRIPT_DIR:+$SCRIPT_DIR/}cmd_$SLURM_JOB_NAME.sh

[[ "1" == "1" ]] && echo "Done"
