"""What the training program prints about its use. Imports nothing heavy."""

USAGE = "%(prog)s [CONFIG.yaml] [--model MODEL] [--train_data DATA] [options]"
ABOUT = """\
usage: {prog} CONFIG.yaml [options]
       {prog} --model MODEL --train_data DATA --output_dir DIR [options]

Fine-tunes a model with the FAST-GOAL losses on the dataset that `fastgoal
pairs` wrote. Settings come from a YAML file, from options, or from both;
options override the file. `fastgoal config` prints a commented file.

Several GPUs:          fastgoal train CONFIG.yaml --num_processes 4
Several CPU processes: fastgoal train CONFIG.yaml --num_processes 4 --use_cpu

`accelerate launch -m fastgoal.trainer.run CONFIG.yaml` is the same program for
your own launcher.

--help-all describes every option at length, with all of transformers.
"""
