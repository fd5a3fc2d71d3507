# qsub -q preemptable -A <project> SCRIPT
#!/bin/bash

#PBS -S /bin/bash
#PBS -N campaign.gpu
#PBS -m n
#PBS -l walltime=03:00:00
#PBS -l select=1:ncpus=32:system=polaris:ngpus=4
#PBS -o SCRIPT.stdout
#PBS -e SCRIPT.stderr
#PBS -l filesystems=home:eagle
#PBS -l place=scatter

MPIEXEC=$(command -v mpiexec); mpiexec() { "$MPIEXEC" "$@"; }
export PATH=ENVIRONMENT/bin:$PATH
export OMP_NUM_THREADS=8
export MKL_NUM_THREADS=8
export OPENBLAS_NUM_THREADS=8
export CAMPAIGN_DRIVER=TOKEN SPT_NOENV=1 PYTHONSAFEPATH=1

export JOBNAME="campaign.gpu"

cd RUN/logs/submit_scripts
set -e
export CORES=$(getconf _NPROCESSORS_ONLN)
[[ "1" == "1" ]] && echo "Found cores : $CORES"
WORKERCOUNT=1
SCRIPT_DIR="RUN/logs/submit_scripts"
[[ -d $SCRIPT_DIR ]] || SCRIPT_DIR=""

# Deduplicate the nodefile
HOSTFILE="$JOBNAME.nodes"
if [ -z "$PBS_NODEFILE" ]; then
    echo "localhost" > $HOSTFILE
else
    sort -u $PBS_NODEFILE > $HOSTFILE
fi

cat << MPIEXEC_EOF > ${SCRIPT_DIR:+$SCRIPT_DIR/}cmd_$JOBNAME.sh
process_worker_pool.py  --max_workers_per_node=4 -a ADDRESSES -p 0 -c 8 -m None --poll 10 --port=PORT --cert_dir RUN/logs/gpu --logdir=RUN/logs/gpu --logconf=RUN/logs/gpu --block_id=BLOCK --hb_period=5  --hb_threshold=20 --drain_period=10260 --cpu-affinity list:24-31,56-63:16-23,48-55:8-15,40-47:0-7,32-39  --mpi-launcher=mpiexec --available-accelerators 0 1 2 3
MPIEXEC_EOF
chmod u+x ${SCRIPT_DIR:+$SCRIPT_DIR/}cmd_$JOBNAME.sh

mpiexec --cpu-bind none --ppn 1 --depth=64 -n $WORKERCOUNT --hostfile $HOSTFILE /usr/bin/sh ${SCRIPT_DIR:+$SCRIPT_DIR/}cmd_$JOBNAME.sh

[[ "1" == "1" ]] && echo "All workers done"
