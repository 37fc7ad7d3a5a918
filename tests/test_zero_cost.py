"""Scores without training: closed forms, what they must not depend on, and a real search."""

import subprocess
import sys

import numpy as np
import pandas
import pytest

from benchmarks.proxy_ranking import better_half, edges, naswot, spearman, synflow
from nas.evaluators.zero_cost import (
    Figures,
    ZeroCost,
    figures,
    log_effective_rank,
    n_patterns,
)
from nas.executor import LocalExecutor
from nas.layout import Layout
from search_spaces import Space, cell
from search_spaces.network import IMAGE, Network, Plan
from search_spaces.ops import Activation, Convolution, Dense, GlobalPool

CONV = "|nor_conv_3x3~0|+|skip_connect~0|nor_conv_3x3~1|+|nor_conv_1x1~0|none~1|nor_conv_3x3~2|"
SIZE = {"cell.depth": 1, "cell.width": 4, "cell.resolution": 16}


def images(n=8, seed=0, size=16):
    return np.random.default_rng(seed).normal(size=(n, size, size, 3)).astype(np.float32)


def two_layers() -> Network:
    plan = Plan()
    at = plan.add("conv", Convolution(5, 3), IMAGE, group=0)
    at = plan.add("relu", Activation(), at, group=0)
    at = plan.add("pool", GlobalPool(), at, group=0)
    plan.add("dense", Dense(10), at, group=0)
    return Network(tuple(plan.steps), (6, 6, 3), ("all",))


def test_distinct_patterns_are_counted_over_all_activations():
    first = np.array([[1, -1, 1], [1, 1, 1], [-1, 2, -1]])  # columns: ++-, -++, ++-
    second = np.array([[-3.0], [0.5], [4]])  # -++ again
    assert n_patterns([first]) == 2
    assert n_patterns([first, second]) == 2
    assert n_patterns([first, -second]) == 3
    ten = np.eye(10)  # more images than bits of a byte
    assert n_patterns([ten]) == 10


@pytest.mark.parametrize("rank", [1, 3, 8])
def test_the_effective_rank_of_equal_independent_directions_is_their_number(rank):
    signs = np.array(np.meshgrid(*[[-1.0, 1.0]] * rank)).reshape(rank, -1).T  # uncorrelated
    mixed = np.pad(signs, ((0, 0), (0, 8 - rank))) @ np.linalg.qr(np.ones((8, 8)) + np.eye(8))[0]
    assert np.exp(log_effective_rank(mixed + 5)) == pytest.approx(rank, rel=1e-6)


def test_what_never_varies_has_no_rank():
    assert log_effective_rank(np.ones((4, 2, 2, 3))) == 0
    assert log_effective_rank(np.arange(6.0).reshape(6, 1)) == 0


def test_each_term_raises_the_score_by_its_weight():
    base = Figures(1000, 50, 1.0)
    assert base._replace(operations=2000).score - base.score == pytest.approx(np.log(2))
    assert base._replace(patterns=100).score - base.score == pytest.approx(1.4 * np.log(2))
    assert base._replace(log_rank=2.0).score - base.score == pytest.approx(3.4)


def test_figures_are_the_same_for_the_same_seed_only():
    network = cell.network({**edges(CONV), **SIZE})
    found = figures(network, images(), 3)
    assert found == figures(network, images(), 3)
    assert found != figures(network, images(), 4)
    assert found.operations == network.training_flops
    # as many patterns as images have subsets, or as there are positions
    positions = sum(np.prod(i[0]) for s, i in zip(network.steps, network.inputs)
                    if isinstance(s.op, Activation))  # fmt: skip
    assert 1 < found.patterns <= min(2**8, positions)


def test_equal_images_have_one_bit_of_patterns_and_no_naswot():
    """An activation is on for all of them or for none; every row of the kernel is the same."""
    network = cell.network({**edges(CONV), **SIZE})
    same = np.repeat(images(1), 8, 0)
    assert figures(network, same, 0).patterns == 2
    assert naswot(network, same, 0) == -np.inf
    assert np.isfinite(naswot(network, images(), 0))


def test_synflow_is_its_closed_form():
    """R is the mean over the image of |conv| of ones, times |dense|; each of two layers has
    sum |w| dR/d|w| = R, as R is linear in the weights of each."""
    network = two_layers()
    layout = Layout(network)
    weights = layout.weights(layout.initial(7, [32]))
    kernel, dense = (np.abs(weights[i]["kernel"]).astype(float) for i in (0, 3))
    ones = np.pad(np.ones((6, 6, 3)), ((1, 1), (1, 1), (0, 0)))  # same padding
    windows = np.lib.stride_tricks.sliding_window_view(ones, (3, 3), (0, 1))  # [6, 6, 3, 3, 3]
    hidden = np.einsum("hwcij,ijco->o", windows, kernel) / 36
    assert synflow(network, images(), 7) == pytest.approx(np.log(2 * (hidden @ dense).sum()))


def test_spearman_and_its_interval():
    truth = np.arange(40.0)
    assert spearman(truth**3, truth)[:3] == pytest.approx((1, 1, 1))
    noisy = truth + np.random.default_rng(0).normal(0, 20, 40)
    found = spearman(noisy, truth)
    assert found.low < found.value < found.high
    from scipy.stats import spearmanr

    assert found.value == pytest.approx(spearmanr(noisy, truth)[0])
    assert better_half(truth).sum() == 20


def test_workers_screen_cells_and_say_which_leads_nowhere(tmp_path):
    rich = edges(CONV)
    poor = dict.fromkeys(rich, "skip")
    cut = {**rich, "cell.edge03": "none", "cell.edge13": "none", "cell.edge23": "none"}
    with LocalExecutor(1, "zero_cost", {}, tmp_path / "log") as executor:
        for i, each in enumerate((rich, poor, cut)):
            executor.submit({"id": i, "kind": "trial", "seed": 5, "choices": {**each, **SIZE}})
        first, second, third = (executor.wait() for _ in range(3))
    better, worse = first["metrics"], second["metrics"]
    assert better["zero_cost"] > worse["zero_cost"]
    assert "accuracy" not in better
    assert "DisconnectedError" in third["error"]


SEEN = [
    "quickstart", "--trials", "4", "--workers", "1", "--set", "evaluator.name=zero_cost",
    "--set", "evaluator.final_epochs=1", "--set", "reward.name=pareto",
    "--set", 'reward.objectives=["zero_cost", "-latency_s"]', "--set", "train.batch=64",
    "--set", "train.learning_rate=0.1", "--set", "train.lr_rule=linear", "--set", "bits.ends=8",
    *(word for kind in ("weights", "activations") for stage in range(3)
      for word in ("--set", f"bits.{kind}.stage{stage}=8")),
]  # fmt: skip


def nas_search(*arguments, folder):
    command = [sys.executable, "-m", "nas.cli", "search", *arguments, "--run", folder / "run"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=240)


def test_a_search_screens_by_the_score_and_never_calls_it_accuracy(tmp_path):
    done = nas_search(*SEEN, "--set", "final.top=1", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    board = pandas.read_csv(tmp_path / "run" / "leaderboard.csv")
    assert "accuracy" not in board and np.isfinite(board["zero_cost"]).all()
    assert (board["latency_s"] > 0).all()
    assert 0 < board["test_accuracy"].max() < 1  # of the final training
    report = (tmp_path / "run" / "report.html").read_text()
    assert "zero cost" in report and "validation accuracy in the search" not in report
    assert "were scored" in report and "were trained" not in report
    assert "its first 10 designs at random, and the run has no more than 4 trials" in done.stderr


def test_open_decisions_that_no_score_sees_are_refused(tmp_path):
    done = nas_search(*SEEN, "--set", "bits.weights.stage1=[4, 8]", folder=tmp_path)
    assert done.returncode == 2
    assert "cannot tell the values of 'bits.weights.stage1' apart (4, 8)" in done.stderr
    assert "--set bits.weights.stage1=4" in done.stderr


def test_options_are_the_proxys():
    with pytest.raises(ValueError, match="final_epochs is 0"):
        ZeroCost(final_epochs=0)
    with pytest.raises(ValueError, match="unknown data set"):
        ZeroCost(dataset="cifar11").check(Space([]))
