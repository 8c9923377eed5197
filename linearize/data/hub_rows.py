"""The rows of a dataset of the Hugging Face hub, or of a folder of one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from linearize.errors import DataError, did_you_mean_path
from linearize.files import hub


@dataclass(frozen=True, slots=True)
class NamedSplit:
    """Which rows of which dataset are meant.

    Attributes:
        path: a hub id, a folder that save_to_disk wrote, or a folder of Parquet files.
        subset: the dataset's configuration; None: its default one.
        revision: a commit or tag of the hub's repository; None: the newest.
    """

    path: str
    subset: str | None
    split: str
    revision: str | None


def open_rows(wanted: NamedSplit, *, streaming: bool = False) -> Any:
    """The rows of the split, as ``datasets`` gives them.

    Args:
        streaming: rows are read one after another as they are asked for, and none is kept on disk.

    Raises:
        DataError: there is no such dataset or split.
    """
    import datasets

    folder = Path(wanted.path)
    with hub.asked_once(wanted.path) as obstacle:
        try:
            if (folder / "dataset_info.json").is_file() or (folder / "dataset_dict.json").is_file():
                _refuse_hub_options(wanted)
                return _saved_split(wanted, datasets.load_from_disk(str(folder)))
            return datasets.load_dataset(
                wanted.path, wanted.subset, split=wanted.split, revision=wanted.revision, streaming=streaming
            )
        except DataError:
            raise
        except Exception as error:
            # Hub, network, scripts and file formats fail in ways of their own; all mean that there are no data.
            reason = hub.failure(error, obstacle).splitlines()[0]
            if not folder.exists():
                near = did_you_mean_path(folder)
                reason = f"there is no such folder in {Path.cwd()}.{near} As a hub id it cannot be read: {reason}"
            raise DataError(
                f"'{wanted.path}' could not be opened as split '{wanted.split}': {reason}. It takes a "
                "dataset's hub id, a folder that save_to_disk wrote or one of Parquet files; a private one needs a "
                "token (`hf auth login`)",
                option="path",
                found=wanted.path,
            ) from error


def _refuse_hub_options(wanted: NamedSplit) -> None:
    """What save_to_disk wrote holds one version of one subset, and its name says neither."""
    named = [f"data.{name} = '{getattr(wanted, name)}'" for name in ("subset", "revision") if getattr(wanted, name)]
    if named:
        raise DataError(
            f"{' and '.join(named)} cannot be chosen in {wanted.path}: save_to_disk wrote that folder, with one "
            "version of one subset. Leave it out, or give data.path the dataset's hub id"
        )


def _saved_split(wanted: NamedSplit, found: Any) -> Any:
    """The rows of the split in what save_to_disk wrote: several splits by name, or one that need not have a name."""
    import datasets

    if isinstance(found, datasets.DatasetDict):
        if wanted.split in found:
            return found[wanted.split]
        has = ", ".join(found)
    else:
        # The recipe's default stands for the only split that is there, whatever its name.
        name = str(found.split or "train")
        if wanted.split in ("train", name):
            return found
        has = f"one split alone, '{name}'"
    raise DataError(
        f"{wanted.path} has no split '{wanted.split}'; it has {has}. Name what it has in data.split; parts of a split, "
        "such as train[:10%], are for hub datasets and folders of Parquet files"
    )
