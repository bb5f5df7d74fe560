"""What another query is worth, nothing trained: the majority vote of the first 1 .. K views against the truth.

``.venv/bin/python benchmarks/queries.py espnet_idd 0`` after notebooks 00 to 02 of the run.
"""

import argparse
import sys

import numpy as np
from tqdm import tqdm

from b2ma_core.data.datasets import load
from b2ma_core.metrics import ConfusionMatrix
from b2ma_core.params import load_params, study_file
from b2ma_core.processes import run_command
from b2ma_core.queries import VIEWS, weighted_majority_vote
from b2ma_core.study.asking import ask_views, in_frame, open_box, queries
from b2ma_core.study.records import Run


def main(study: str, seed: int) -> None:
    run = Run(load_params(study_file(study)), seed)
    space, data, box = run.params.space, load(run.params, "target_val"), open_box(run)
    count = queries(run.params, box)
    scores = [ConfusionMatrix(space.num_classes, space.ignore_index) for _ in range(count)]
    same = np.zeros(count)
    for i in tqdm(range(len(data)), unit="image", mininterval=5):
        answers, truth = ask_views(run, box, data, [i]), np.asarray(data.labels[i])
        for k in range(count):
            votes = weighted_majority_vote(answers[: k + 1], space.num_classes, run.params.vote_exponent)[0]
            scores[k].update(in_frame(votes, truth.shape)[0], truth)
            same[k] += (votes == answers[0]).mean() / len(data)
    print(f"{study}, seed {seed}: majority vote of the first views on {len(data)} validation images, nothing trained")
    for k in range(count):
        print(f"{k + 1} ({VIEWS[k][0]}): mIoU {100 * scores[k].miou():.1f}, pixels right "
              f"{100 * scores[k].accuracy():.1f}, as the plain answer {100 * same[k]:.1f}")  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study")
    parser.add_argument("seed", type=int)
    args = parser.parse_args()
    sys.exit(run_command("queries", lambda: main(args.study, args.seed)))
