"""Benchmarks: one private step, training, and sampling. Correctness is checked before anything is timed."""

from dpcgan_fast.bench.machine import describe as describe
from dpcgan_fast.bench.product import bench_sample as bench_sample
from dpcgan_fast.bench.product import bench_train as bench_train
from dpcgan_fast.bench.step import bench_step as bench_step
from dpcgan_fast.bench.table import step_figure as step_figure
from dpcgan_fast.bench.table import step_markdown as step_markdown
