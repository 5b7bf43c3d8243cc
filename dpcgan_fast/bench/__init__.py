"""Benchmarks: a private step, training, sampling, tables of any size; the paper's comparison of what rows are worth.

Correctness is checked before anything is timed.
"""

from dpcgan_fast.bench.compare import compare_markdown as compare_markdown
from dpcgan_fast.bench.files import jax_results as jax_results
from dpcgan_fast.bench.files import read_results as read_results
from dpcgan_fast.bench.files import write_json as write_json
from dpcgan_fast.bench.files import write_results as write_results
from dpcgan_fast.bench.machine import describe as describe
from dpcgan_fast.bench.nets import chosen_nets as chosen_nets
from dpcgan_fast.bench.paper import EPSILONS as EPSILONS
from dpcgan_fast.bench.paper import STEPS as STEPS
from dpcgan_fast.bench.paper import SYSTEMS as SYSTEMS
from dpcgan_fast.bench.paper import TABLES as TABLES
from dpcgan_fast.bench.paper import Grid as Grid
from dpcgan_fast.bench.paper import bench_paper as bench_paper
from dpcgan_fast.bench.sample import bench_sample as bench_sample
from dpcgan_fast.bench.scale import SIZES as SIZES
from dpcgan_fast.bench.scale import WIDTHS as WIDTHS
from dpcgan_fast.bench.scale import bench_scale as bench_scale
from dpcgan_fast.bench.step import bench_step as bench_step
from dpcgan_fast.bench.table import others_markdown as others_markdown
from dpcgan_fast.bench.table import targets_markdown as targets_markdown
from dpcgan_fast.bench.train import bench_train as bench_train
