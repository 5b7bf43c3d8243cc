"""Suite paper: the published system beside its rivals, its ablations, and what the same epsilon buys elsewhere."""

from dpcgan_fast.bench.paper.cells import EPSILONS as EPSILONS
from dpcgan_fast.bench.paper.cells import Grid as Grid
from dpcgan_fast.bench.paper.cells import bench_paper as bench_paper
from dpcgan_fast.bench.paper.figures import paper_figure as paper_figure
from dpcgan_fast.bench.paper.overview import overview_markdown as overview_markdown
from dpcgan_fast.bench.paper.summary import paper_markdown as paper_markdown
from dpcgan_fast.bench.paper.systems import STEPS as STEPS
from dpcgan_fast.bench.paper.systems import SYSTEMS as SYSTEMS
from dpcgan_fast.bench.paper.tables import TABLES as TABLES
from dpcgan_fast.bench.paper.targets import headline_markdown as headline_markdown
