"""What `--help` says of the commands."""

EXIT_CODES = """\
exit codes:
  0    done
  1    unexpected error; the trace is in RUN/logs/rank-N.log
  2    bad input or configuration; the message says what to change
  3    diverged: NaN or exploding loss; the last good checkpoint is kept
  4    a promise could not be kept: target missed, invariant broken, checkpoint unreadable
  85   preempted (SIGUSR1, SIGTERM, Ctrl-C): the state is saved, run the same command again
  130  Ctrl-C twice: ended at once
  RUN/exit.json holds the same code once ranks have started: launchers such as torchrun replace it with their own."""

EXAMPLES = """\
examples:
  pat train recipe=parity                 train and prune: the recipe `parity` is a tiny model on generated text
  pat export runs/parity --out pruned     what came out, as a Hugging Face folder
  pat train --help                        recipes, keys and methods

"""
TRAIN_HELP = """\
Fine-tune a model and prune it while it trains.

A recipe is a complete run; key=value changes parts of it. Every key is described in
{config}

recipes (recipes/NAME.yaml):
  {recipes}
  more with --config-dir DIR: DIR/recipe/NAME.yaml

groups (GROUP=OPTION picks a set of keys):
{groups}

methods of a pruner (pruners.NAME.KIND.name=METHOD; of weights: criterion, granularity; of structures: gate):
{methods}

structures (pruners.NAME.structures=[...]):
  {structures}
"""

TRAIN_EXAMPLES = """\
examples:
  pat train recipe=parity run.dir=/data/run1
  pat train --recipe parity engine.zero_stage=3 seed=1 pruners.weights.budget.sparsity=0.5
  pat train recipe=parity pruners.weights.criterion.name=magnitude --dry-run
  pat train -m recipe=parity seed=0,1,2                 one run after another
  torchrun --nproc-per-node 8 -m pat.cli train recipe=parity     each process becomes a rank; so with
  srun pat train recipe=parity                          deepspeed and srun, on several machines

The run directory is runs/NAME, NAME made of the recipe and the changed keys, unless run.dir or run.name say
otherwise. The same command goes on from the newest checkpoint there (run.resume=auto); ranks and ZeRO stage may differ.

"""
