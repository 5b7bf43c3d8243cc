"""The run folder: which files a run consists of, and how they are read and written."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpcgan_fast.errors import InputError
from dpcgan_fast.files import PRIVATE_FOLDER, machine_error, write_whole
from dpcgan_fast.train.checkpoint import checkpoint_paths

CONFIG_VERSION = 1
# Parts of config.json, and what each is in JSON. Of the plan `BudgetPlan.from_dict` tells whether it is one: a run
# without it is refused for privacy.
_PARTS = {"settings": dict, "user_schema": dict, "data": str, "finished": bool}
_PARTS_WITH_CHECKPOINT = {**_PARTS, "released": dict}
_PARTS_OF_FINISHED = {**_PARTS_WITH_CHECKPOINT, "privacy": dict, "model_sha256": str}


@dataclass(frozen=True)
class RunFolder:
    """Paths of a run; mode 0700, its files 0600."""

    path: Path

    @property
    def config(self) -> Path:
        """Settings, plan and state of the run, as JSON."""
        return self.path / "config.json"

    @property
    def schema(self) -> Path:
        """The schema, with paid values in place of "private"."""
        return self.path / "schema.json"

    @property
    def ledger(self) -> Path:
        """Every mechanism that touched the data."""
        return self.path / "ledger.jsonl"

    @property
    def model(self) -> Path:
        """The trained networks, and the released statistics where the schema has any."""
        return self.path / "model.safetensors"

    @property
    def card(self) -> Path:
        """The privacy card."""
        return self.path / "privacy_card.md"

    @property
    def log(self) -> Path:
        """Public quantities of the training."""
        return self.path / "train_log.jsonl"

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.path / "checkpoints"

    def others(self, folder: str, names: list[str]) -> list[str]:
        """Names in a folder of the run that are no files of it, for `shutil.copytree`: figures of the real rows may
        have been put there."""
        own = (self.config, self.schema, self.ledger, self.model, self.card, self.log, self.checkpoints)
        known = {path.name for path in own}
        top = Path(folder) == self.path
        return [name for name in names if name.startswith(".") or (top and name not in known)]

    @classmethod
    def create(cls, path: str | Path) -> "RunFolder":
        """Makes a new run folder. Raises InputError if there is something at the path already."""
        folder = cls(Path(path))
        if folder.path.exists() and (not folder.path.is_dir() or any(folder.path.iterdir())):
            raise InputError(
                "There is something at the output path already",
                str(path),
                "Choose a new folder, or continue a stopped run with resume=True (--resume).",
            )
        try:
            folder.path.mkdir(mode=PRIVATE_FOLDER, parents=True, exist_ok=True)
            folder.path.chmod(PRIVATE_FOLDER)
            folder.checkpoints.mkdir(mode=PRIVATE_FOLDER)
        except OSError as error:
            raise machine_error(error, folder.path) from error
        return folder

    @classmethod
    def open(cls, path: str | Path) -> "RunFolder":
        """An existing run folder. Raises InputError if it is none."""
        folder = cls(Path(path))
        if not folder.config.is_file():
            raise InputError("This is no run folder", str(path), "Give the folder that training wrote.")
        return folder

    def read_config(self) -> dict[str, Any]:
        """The content of config.json. Raises InputError if it is damaged, lacks a part or is of another version."""
        try:
            config = json.loads(self.config.read_text(encoding="utf-8"))
            if config["version"] != CONFIG_VERSION:
                raise InputError("The run is of another version", str(self.config), "Use the version that wrote it.")
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(
                "The run's configuration cannot be read", f"{self.config}: {type(error).__name__}", "Restore the file."
            ) from None
        parts = _PARTS_WITH_CHECKPOINT if checkpoint_paths(self.checkpoints) else _PARTS
        for name, kind in (_PARTS_OF_FINISHED if config.get("finished") else parts).items():
            if not isinstance(config.get(name), kind):
                raise InputError("The run's configuration is damaged", f"{self.config}: {name}", "Restore the file.")
        return config

    def write_config(self, config: dict[str, Any]) -> None:
        """Writes config.json, whole or not at all."""
        self.write(self.config, json.dumps({"version": CONFIG_VERSION, **config}, indent=1, sort_keys=True))

    def write(self, path: Path, content: bytes | str) -> None:
        """Writes a file of the run, whole or not at all, readable by its owner alone."""
        write_whole(path, content, private=True)

    def remove(self) -> None:
        """Removes a run in which nothing has touched the data yet."""
        shutil.rmtree(self.path, ignore_errors=True)
