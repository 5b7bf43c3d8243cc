"""Small searches: few steps of full batches, whose accounting is quick."""

from dpcgan_fast.privacy.selection import RunCount
from dpcgan_fast.tuning import Candidates, search_privately
from dpcgan_fast.tuning.candidates import Candidate
from tests.tables import ROWS, make_schema, make_table

QUICK = {"steps": 4, "autoencoder_steps": 4, "batch_size": ROWS, "networks_only": True}
FILES = {
    "config.json", "schema.json", "ledger.jsonl", "model.safetensors", "privacy_card.md", "checkpoints",
    "train_log.jsonl",
}  # fmt: skip


def candidates_of(*changes):
    return Candidates(tuple(Candidate.model_validate({**QUICK, **change}) for change in changes or ({},)), "c.json")


class Fixed(RunCount):
    """So many runs, whatever the distribution says."""

    runs = 3

    def draw(self, uniform):  # noqa: ARG002
        return self.runs


def fixed(runs):
    return type("Fixed", (Fixed,), {"runs": runs})("geometric", 3.0)


def search(out, count=None, candidates=None, epsilon=3.0, schema=None, **options):
    candidates = candidates or candidates_of({}, {"critic_lr": 0.01})
    schema = schema or make_schema()
    count = count or fixed(3)
    return search_privately(make_table(), schema, epsilon, 1e-4, candidates, out, count, device="cpu", **options)
